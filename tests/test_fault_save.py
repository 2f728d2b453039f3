"""Saves: killed at any instant, on a full disk, of a state that is not finite; there always is a
good checkpoint."""

import os
import pathlib
import subprocess
import time

import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.runtime import checkpoint, checksums, trees
from atst_jax.runtime.checkpoint_folder import CheckpointFolder
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError
from tests.checkpoints import ABSTRACT, flip, open_checkpoints, restore, save, state_of


class Killed(BaseException):
  pass


def test_fault_04_there_is_a_good_checkpoint_at_every_instant(tmp_path, monkeypatch):
  """Death before every single operation on files of a save and of the removal it entails, halves of
  them too."""
  operations = ("write_text", "remove", "remove_folder", "make_folder", "move_folder")
  real = {name: getattr(storage, name) for name in operations}
  removed = real["remove_folder"]

  def halfway(path):
    """Of a folder that is being removed, some files are gone."""
    files = sorted(p for p in pathlib.Path(path).rglob("*") if p.is_file())
    for file in files[: len(files) // 2]:
      file.unlink()

  last = 0
  for deadline in range(1, 40):
    folder = tmp_path / str(deadline)
    save(folder, 1, keep=1)
    left = deadline

    def dying(name):
      def act(path, *args):
        nonlocal left
        left -= 1
        if left == 0:
          if name == "remove_folder":
            halfway(path)
          raise Killed
        return real[name](path, *args)

      return act

    for name in operations:
      monkeypatch.setattr(storage, name, dying(name))
    checkpoints = None
    try:
      checkpoints = open_checkpoints(folder, keep=1)
      checkpoints.save(2, state_of(2), sound=True)
      checkpoints.close()
    except Killed:
      if checkpoints:
        checkpoints._thread.shutdown()
        checkpoints._checkpointer.close()
    for name in operations:
      monkeypatch.setattr(storage, name, real[name])
    step = restore(folder)
    assert step in (1, 2) and step >= last, deadline
    last = step
    if left > 0:
      break
  assert left > 0 and deadline > 6 and last == 2 and os.listdir(folder) == ["2"] and removed


def test_fault_04_sound_checkpoints_are_kept(tmp_path):
  """The newest `keep` sound ones, the multiples of keep_every, and the newest; a rollback finds a
  sound one."""
  checkpoints = open_checkpoints(tmp_path, keep=2, keep_every=4)
  for step, sound in (
    (2, True),
    (4, True),
    (5, False),
    (6, True),
    (8, True),
    (10, True),
    (11, False),
  ):
    checkpoints.save(step, state_of(step), sound=sound)
  checkpoints.save(11, state_of(11), sound=False)  # a step that is there is left alone
  checkpoints.close()
  assert sorted(map(int, os.listdir(tmp_path))) == [4, 8, 10, 11]
  assert restore(tmp_path) == 11 and restore(tmp_path, sound_only=True) == 10


def test_fault_04_what_stays_for_good_does_so_whatever_a_later_start_asks(tmp_path):
  """Its manifest says so. Older versions did not: there this start's `keep_every` decides, or that
  of the checkpoint's config."""
  save(tmp_path, *range(10, 80, 10), keep=2, keep_every=20)
  names = lambda: sorted(map(int, os.listdir(tmp_path)))
  assert names() == [20, 40, 60, 70]
  save(tmp_path, 80, keep=2, keep_every=50_000)
  assert names() == [20, 40, 60, 70, 80]
  for step in names():
    facts = checksums.read(str(tmp_path / str(step)))
    older = {key: value for key, value in facts.items() if key not in ("stays", "files")}
    if step == 40:
      (tmp_path / "40" / "config.json").write_text('{"checkpoint": {"keep_every": 20}}')
    checksums.write(str(tmp_path / str(step)), older)
  save(tmp_path, 90, keep=1, keep_every=30)
  assert names() == [40, 60, 90]


def test_fault_02_saves_follow_each_other(tmp_path, monkeypatch):
  """A save that is asked for while another runs waits for it; the same step is saved once."""
  finish, order = CheckpointFolder.finish, []

  def slow(self, step, *facts):
    time.sleep(0.2)
    order.append(step)
    finish(self, step, *facts)

  monkeypatch.setattr(CheckpointFolder, "finish", slow)
  checkpoints = open_checkpoints(tmp_path)
  for step in (1, 1, 2, 2):
    checkpoints.save(step, state_of(step), sound=True)
    checkpoints.poll()
  checkpoints.reread(ABSTRACT)
  checkpoints.close()
  assert order == [1, 2] and restore(tmp_path) == 2


@pytest.fixture
def small_disk(tmp_path):
  """A disk of 1 MiB."""
  disk = tmp_path / "disk"
  disk.mkdir()
  if (
    os.geteuid()
    or subprocess.run(
      ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
      check=False,
      capture_output=True,
    ).returncode
  ):
    pytest.skip("only root can mount a small disk")
  yield disk
  subprocess.run(["umount", str(disk)], check=True)


def test_fault_09_too_little_room_is_said_before_a_save(tmp_path, monkeypatch):
  save(tmp_path, 3)
  monkeypatch.setattr(storage, "free_bytes", lambda path: 1000)
  checkpoints = open_checkpoints(tmp_path)
  with pytest.raises(
    StoreError, match=r"needs 0.0 MiB, 0.0 are free; make room.*checkpoints there are whole"
  ):
    checkpoints.save(4, state_of(4), sound=True)
  checkpoints.close()
  assert restore(tmp_path) == 3 and StoreError.exit_code == 74


def test_fault_09_a_full_disk_is_reported_at_once(small_disk, monkeypatch):
  """Not at the next save; the checkpoint before is whole."""
  monkeypatch.setattr(storage, "free_bytes", lambda path: float("inf"))
  save(small_disk, 1)
  checkpoints = open_checkpoints(small_disk)
  big = state_of(2) | {
    "params": jnp.asarray(np.random.default_rng(0).normal(size=(1 << 20,)), jnp.float32)
  }
  checkpoints.save(2, big, sound=True)
  deadline = time.time() + 60
  with pytest.raises(
    StoreError, match=r"checkpoint of step 2 in .* could not be saved \(.*those before it are whole"
  ):
    while time.time() < deadline:
      checkpoints.poll()
      time.sleep(0.01)
  checkpoints.close()
  assert restore(small_disk) == 1 and os.listdir(small_disk) == ["1"]


def test_fault_09_what_does_not_read_back_ends_the_run(tmp_path):
  checkpoints = open_checkpoints(tmp_path)
  for step in (1, 2):
    checkpoints.save(step, state_of(step), sound=True)
  checkpoints.wait()
  flip(tmp_path / "2")
  with pytest.raises(StoreError, match=r"step 2 .*does not read back"):
    checkpoints.reread(ABSTRACT)
  checkpoints.close()


def test_fault_05_what_does_not_read_back_never_counts(tmp_path):
  """Orbax merges what it has written by a search in which `[x]` finds nothing. The folder looks
  whole, and its hashes are right; it never replaces an older checkpoint."""
  save(tmp_path / "x", 1)
  os.rename(tmp_path / "x", tmp_path / "[x]")
  checkpoints = open_checkpoints(tmp_path / "[x]", keep=1)
  checkpoints.save(2, state_of(2), sound=True)
  with pytest.raises(StoreError, match=r"of step 2 in .* could not be saved"):
    checkpoints.wait()
  checkpoints.close()
  assert restore(tmp_path / "[x]") == 1 and os.listdir(tmp_path / "[x]") == ["1"]


def test_fault_05_the_first_save_of_a_process_is_compared(tmp_path, monkeypatch):
  """Every array with its checksum, as it was on the device. Later ones are not read."""
  read, times = checkpoint.restore_alone, []

  def other(path, like):
    found = read(path, like)
    times.append(path)
    found["params"]["encoder"]["kernel"][3, 3] += len(times) == 1
    return found

  monkeypatch.setattr(checkpoint, "restore_alone", other)
  checkpoints = open_checkpoints(tmp_path)
  for step in (1, 2, 3):
    checkpoints.save(step, state_of(step), sound=True)
    if step == 1:
      with pytest.raises(StoreError, match=r"1 arrays do not read back, .*params/encoder/kernel"):
        checkpoints.wait()
  checkpoints.close()
  assert len(times) == 2 and sorted(os.listdir(tmp_path)) == ["1", "2", "3"]
  assert restore(tmp_path) == 3 and sorted(os.listdir(tmp_path)) == ["2", "3"]


@pytest.mark.parametrize(
  ("name", "message"), [("[x]", r"holds \[, with which Orbax"), ("x", "cannot be read back")]
)
def test_fault_10_a_folder_that_keeps_no_arrays_is_refused(tmp_path, monkeypatch, name, message):
  """Before the first step; a good one is left as it was."""
  trees.try_out(str(tmp_path / "good"))
  assert not os.listdir(tmp_path)
  monkeypatch.setattr(trees, "restore_alone", lambda path, like: {"x": like["x"] + 1})
  with pytest.raises(UserError, match=message):
    trees.try_out(str(tmp_path / name))


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, warnings):
  checkpoints = open_checkpoints(tmp_path)
  broken = state_of(1) | {"params": jnp.array([1.0, np.inf])}
  assert not checkpoints.save(1, broken, sound=True)
  checkpoints.close()
  assert not os.listdir(tmp_path)
  assert "step 1 is not saved: 1 arrays are not finite, the first is params" in warnings[0]
