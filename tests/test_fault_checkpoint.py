"""Verified checkpoints: whatever breaks one, the newest good one is used."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from atst_jax.runtime import checksums
from atst_jax.runtime.checkpoint import find_checkpoint
from atst_jax.runtime.checkpoint_folder import UNFINISHED, CheckpointFolder
from atst_jax.runtime.trees import restore_encoder
from atst_jax.util.errors import StoreError, UserError
from tests.checkpoints import flip, largest, restore, save, state_of


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  folder = tmp_path_factory.mktemp("three") / "checkpoints"
  save(folder, 1, 2, 3, keep=3)
  return folder


@pytest.fixture
def folder(three, tmp_path):
  """A copy of three checkpoints, which is a good one itself (row 6)."""
  shutil.copytree(three, tmp_path / "copy")
  return tmp_path / "copy"


def _edit(path, **facts):
  path.write_text(json.dumps(json.loads(path.read_text()) | facts))


DAMAGE = {
  "the contents of default/.* are not what was written": flip,
  r"has \d+ bytes instead of": lambda c: os.truncate(largest(c / "default"), 100),
  "is missing": lambda c: largest(c / "default").unlink(),
  "no manifest.json": lambda c: (c / "manifest.json").unlink(),
  "manifest.json cannot be read": lambda c: os.truncate(c / "manifest.json", 50),
  "says step 2, and its state is that of 3": lambda c: _edit(c / "manifest.json", step=2),
  "is not that of a checkpoint": lambda c: (c / "manifest.json").write_text('{"files": {}}'),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_fault_05_damage_to_the_newest_checkpoint_falls_back(folder, message, warnings):
  DAMAGE[message](folder / "3")
  assert restore(folder) == 2
  assert len(warnings) == 1
  assert re.search(f"going on from checkpoint 2, since 3: .*{message}", warnings[0])
  assert sorted(os.listdir(folder)) == ["1", "2", "3.damaged"]
  save(folder, 3)  # its name is free again
  assert restore(folder) == 3 and len(warnings) == 1


def test_fault_05_no_good_checkpoint_is_refused_every_time(folder):
  """Never from scratch in silence, and nothing is moved."""
  for step in "123":
    flip(folder / step)
  for _ in range(2):
    with pytest.raises(
      UserError, match=r"(?s)no checkpoint is good:\n  3: the contents.*\n  2: .*\n  1: .*move them"
    ):
      restore(folder)
  assert sorted(os.listdir(folder)) == ["1", "2", "3"] and restore(folder / "none") is None


def test_fault_05_going_back_never_ends_at_the_start_in_silence(folder):
  """Where no manifest can be read, none says whether its checkpoint was sound."""
  for step in "123":
    os.truncate(folder / step / "manifest.json", 50)
  with pytest.raises(UserError, match="no checkpoint is good"):
    CheckpointFolder(str(folder)).choose({}, sound_only=True)


def test_fault_05_arrays_that_were_read_wrongly_are_noticed(folder, warnings):
  """All files agree, and yet the arrays are not those that were saved."""
  path = folder / "3" / "manifest.json"
  found = json.loads(path.read_text())
  found["state"]["params/encoder/kernel"] ^= 1
  path.write_text(json.dumps(found))
  assert restore(folder) == 2
  assert "3: 1 arrays are not what was saved, the first is params/encoder/kernel" in warnings[0]


def test_fault_05_an_older_version_trusted_what_was_never_merged(folder, warnings):
  """Its hashes are right, but no array is found: what Orbax left in folders named as a pattern."""
  (folder / "3" / "default" / "manifest.ocdbt").unlink()
  facts = checksums.read(str(folder / "3"))
  checksums.write(str(folder / "3"), {k: v for k, v in facts.items() if k != "files"})
  assert restore(folder) == 2
  assert "3: arrays that it should hold are not there" in warnings[0]


def test_fault_05_a_process_that_does_not_find_the_manifest_may_try_again(folder, monkeypatch):
  """Another one has read it: a client of NFS remembers what was in a folder."""
  choose = CheckpointFolder.choose

  def then_gone(self, faults, **options):
    step = choose(self, faults, **options)
    (folder / str(step) / "manifest.json").unlink()
    return step

  monkeypatch.setattr(CheckpointFolder, "choose", then_gone)
  with pytest.raises(
    StoreError, match=r"checkpoint 3 in .* process 0 cannot read it now .no manif"
  ):
    restore(folder)


def test_fault_05_export_reads_the_newest_good_checkpoint(folder, warnings):
  flip(folder / "3")
  step, path, _ = find_checkpoint(str(folder))
  variables = restore_encoder(path, network="teacher")
  np.testing.assert_array_equal(
    variables["params"]["kernel"], state_of(2)["teacher"]["params"]["encoder"]["kernel"]
  )
  assert step == 2 and "checkpoint 2 is read, since 3: the contents" in warnings[0]
  with pytest.raises(
    UserError, match=r"no good checkpoint of step 3 \(3: the contents.*there are \[1, 2, 3\]"
  ):
    find_checkpoint(str(folder), 3)
  assert sorted(os.listdir(folder)) == ["1", "2", "3"]  # a reader moves nothing
  os.rename(folder / "2" / "default" / "d", folder / "2" / "default" / "e")
  with pytest.raises(UserError, match="cannot be read as a checkpoint"):
    restore_encoder(path, network="teacher")


def test_fault_06_a_copied_or_renamed_checkpoint_loads(folder, tmp_path, warnings):
  assert restore(folder) == 3
  os.rename(folder, tmp_path / "renamed")
  assert restore(tmp_path / "renamed") == 3 and not warnings
  other = tmp_path / "other"
  shutil.copytree(tmp_path / "renamed" / "2", other / "70")
  assert restore(other) == 2
  assert "is the checkpoint of step 2, and is renamed to that" in warnings[0]
  assert os.listdir(other) == ["2"]


def test_fault_03_what_a_killed_save_leaves_is_removed(folder):
  shutil.copytree(folder / "3", folder / "4")
  (folder / "4" / "manifest.json").unlink()
  (folder / "4" / UNFINISHED).touch()
  shutil.copytree(folder / "4", folder / "5")  # two processes' worth
  (folder / "6.orbax-checkpoint-tmp").mkdir()
  (folder / "3" / UNFINISHED).touch()  # killed after the manifest was written
  assert restore(folder) == 3 and sorted(os.listdir(folder)) == ["1", "2", "3"]
  assert not (folder / "3" / UNFINISHED).exists()
