"""Checkpoints that prove themselves: whatever breaks one, the newest good one is used, and there always is one."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import time

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import ROOT, tiny_config

from atst_jax import manifest, recipe, storage
from atst_jax.checkpoint import Checkpoints, restore_encoder
from atst_jax.errors import StoreError, UserError
from atst_jax.fingerprint import fetch, fingerprint
from atst_jax.logs import log
from atst_jax.mesh import make_mesh
from atst_jax.shelf import UNFINISHED, Shelf, entries, newest_good


def _state(step):
  """Like a train state, tiny."""
  rng = np.random.default_rng(step)
  encoder = lambda: {"params": {"encoder": {"kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)}}}
  return {"step": jnp.int32(step), **encoder(), "teacher": {**encoder(), "batch_stats": {}}, "batch_stats": {}}


ABSTRACT = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
  jax.eval_shape(lambda: _state(0)),
)


def _open(folder, keep=2, keep_every=100):
  return Checkpoints(str(folder), keep=keep, keep_every=keep_every)


def _save(folder, *steps, **options):
  checkpoints = _open(folder, **options)
  for step in steps:
    checkpoints.save(step, _state(step), sound=True)
  checkpoints.close()


def _restore(folder, **options):
  """The step that a new process would go on from; its state is compared."""
  checkpoints = _open(folder)
  state = checkpoints.restore(ABSTRACT, **options)
  checkpoints.close()
  if state is None:
    return None
  jax.tree.map(np.testing.assert_array_equal, state, _state(int(state["step"])))
  return int(state["step"])


@pytest.fixture
def warnings(monkeypatch):
  found = []
  monkeypatch.setattr(log, "warning", lambda message, *args: found.append(message % args))
  return found


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  folder = tmp_path_factory.mktemp("three") / "checkpoints"
  _save(folder, 1, 2, 3, keep=3)
  return folder


@pytest.fixture
def folder(three, tmp_path):
  """A copy of three checkpoints, which is a good one itself (row 6)."""
  shutil.copytree(three, tmp_path / "copy")
  return tmp_path / "copy"


def _largest(checkpoint: pathlib.Path):
  return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _flip(checkpoint):
  path = max((checkpoint / "default").rglob("d/*"), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


DAMAGE = {
  "the contents of default/.* are not what was written": _flip,
  r"has \d+ bytes instead of": lambda c: os.truncate(_largest(c / "default"), 100),
  "is missing": lambda c: _largest(c / "default").unlink(),
  "no manifest.json": lambda c: (c / "manifest.json").unlink(),
  "manifest.json cannot be read": lambda c: os.truncate(c / "manifest.json", 50),
  "is not that of a checkpoint": lambda c: (c / "manifest.json").write_text('{"files": {}}'),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_fault_05_damage_to_the_newest_checkpoint_falls_back(folder, message, warnings):
  DAMAGE[message](folder / "3")
  assert _restore(folder) == 2
  assert len(warnings) == 1
  assert re.search(f"going on from checkpoint 2, since 3: .*{message}", warnings[0])
  assert sorted(os.listdir(folder)) == ["1", "2", "3.damaged"]
  _save(folder, 3)  # its name is free again
  assert _restore(folder) == 3 and len(warnings) == 1


def test_fault_05_no_good_checkpoint_is_refused_every_time(folder):
  """Never from scratch in silence, and nothing is moved."""
  for step in "123":
    _flip(folder / step)
  for _ in range(2):
    with pytest.raises(UserError, match=r"(?s)no checkpoint is good:\n  3: the contents.*\n  2: .*\n  1: .*move them"):
      _restore(folder)
  assert sorted(os.listdir(folder)) == ["1", "2", "3"] and _restore(folder / "none") is None


def test_fault_05_going_back_never_ends_at_the_start_in_silence(folder):
  """Where no manifest can be read, none says whether its checkpoint was sound."""
  for step in "123":
    os.truncate(folder / step / "manifest.json", 50)
  with pytest.raises(UserError, match="no checkpoint is good"):
    Shelf(str(folder)).choose({}, sound_only=True)


def test_fault_05_arrays_that_were_read_wrongly_are_noticed(folder, warnings):
  """All files agree, and yet the arrays are not those that were saved."""
  path = folder / "3" / "manifest.json"
  found = json.loads(path.read_text())
  found["state"]["params/encoder/kernel"] ^= 1
  path.write_text(json.dumps(found))
  assert _restore(folder) == 2
  assert "3: 1 arrays are not what was saved, the first is params/encoder/kernel" in warnings[0]


def test_fault_05_export_reads_the_newest_good_checkpoint(folder, warnings):
  _flip(folder / "3")
  variables, step = restore_encoder(str(folder))
  np.testing.assert_array_equal(variables["params"]["kernel"], _state(2)["teacher"]["params"]["encoder"]["kernel"])
  assert step == 2 and "checkpoint 2 is read, since 3: the contents" in warnings[0]
  with pytest.raises(UserError, match=r"no good checkpoint of step 3 \(3: the contents.*there are \[1, 2, 3\]"):
    restore_encoder(str(folder), 3)
  assert sorted(os.listdir(folder)) == ["1", "2", "3"]  # a reader moves nothing


def test_fault_06_a_copied_or_renamed_checkpoint_loads(folder, tmp_path, warnings):
  assert _restore(folder) == 3
  os.rename(folder, tmp_path / "renamed")
  assert _restore(tmp_path / "renamed") == 3 and not warnings
  other = tmp_path / "other"
  shutil.copytree(tmp_path / "renamed" / "2", other / "70")
  assert _restore(other) == 2
  assert "is the checkpoint of step 2, and is renamed to that" in warnings[0] and os.listdir(other) == ["2"]


def test_fault_03_what_a_killed_save_leaves_is_removed(folder):
  shutil.copytree(folder / "3", folder / "4")
  (folder / "4" / "manifest.json").unlink()
  (folder / "4" / UNFINISHED).touch()
  shutil.copytree(folder / "4", folder / "5")  # two processes' worth
  (folder / "6.orbax-checkpoint-tmp").mkdir()
  (folder / "3" / UNFINISHED).touch()  # killed after the manifest was written
  assert _restore(folder) == 3 and sorted(os.listdir(folder)) == ["1", "2", "3"]
  assert not (folder / "3" / UNFINISHED).exists()


class Killed(BaseException):
  pass


def test_fault_04_there_is_a_good_checkpoint_at_every_instant(tmp_path, monkeypatch):
  """Death before every single operation on files of a save and of the removal it entails, halves of them too."""
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
    _save(folder, 1, keep=1)
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
      checkpoints = _open(folder, keep=1)
      checkpoints.save(2, _state(2), sound=True)
      checkpoints.close()
    except Killed:
      if checkpoints:
        checkpoints._prover.shutdown()
        checkpoints._checkpointer.close()
    for name in operations:
      monkeypatch.setattr(storage, name, real[name])
    step = _restore(folder)
    assert step in (1, 2) and step >= last, deadline
    last = step
    if left > 0:
      break
  assert left > 0 and deadline > 6 and last == 2 and os.listdir(folder) == ["2"] and removed


def test_fault_04_sound_checkpoints_are_kept(tmp_path):
  """The newest `keep` sound ones, the multiples of keep_every, and the newest; a rollback finds a sound one."""
  checkpoints = _open(tmp_path, keep=2, keep_every=4)
  for step, sound in ((2, True), (4, True), (5, False), (6, True), (8, True), (10, True), (11, False)):
    checkpoints.save(step, _state(step), sound=sound)
  checkpoints.save(11, _state(11), sound=False)  # a step that is there is left alone
  checkpoints.close()
  assert sorted(map(int, os.listdir(tmp_path))) == [4, 8, 10, 11]
  assert _restore(tmp_path) == 11 and _restore(tmp_path, sound_only=True) == 10


def test_fault_02_saves_follow_each_other(tmp_path, monkeypatch):
  """A save that is asked for while another runs waits for it; the same step is saved once."""
  finish, order = Shelf.finish, []

  def slow(self, step, facts):
    time.sleep(0.2)
    order.append(step)
    finish(self, step, facts)

  monkeypatch.setattr(Shelf, "finish", slow)
  checkpoints = _open(tmp_path)
  for step in (1, 1, 2, 2):
    checkpoints.save(step, _state(step), sound=True)
    checkpoints.poll()
  checkpoints.reread(ABSTRACT)
  checkpoints.close()
  assert order == [1, 2] and _restore(tmp_path) == 2


def test_fault_09_too_little_room_is_said_before_a_save(folder, monkeypatch):
  monkeypatch.setattr(storage, "free_bytes", lambda path: 1000)
  checkpoints = _open(folder)
  with pytest.raises(StoreError, match=r"needs 0.0 MiB, 0.0 are free; make room.*checkpoints there are whole"):
    checkpoints.save(4, _state(4), sound=True)
  checkpoints.close()
  assert _restore(folder) == 3 and StoreError.exit_code == 74


@pytest.fixture
def small_disk(tmp_path):
  """A disk of 1 MiB."""
  disk = tmp_path / "disk"
  disk.mkdir()
  if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False,
                                    capture_output=True).returncode:  # fmt: skip
    pytest.skip("only root can mount a small disk")
  yield disk
  subprocess.run(["umount", str(disk)], check=True)


def test_fault_09_a_full_disk_is_reported_at_once(small_disk, monkeypatch):
  """Not at the next save; the checkpoint before is whole."""
  monkeypatch.setattr(storage, "free_bytes", lambda path: float("inf"))
  _save(small_disk, 1)
  checkpoints = _open(small_disk)
  big = _state(2) | {"params": jnp.asarray(np.random.default_rng(0).normal(size=(1 << 20,)), jnp.float32)}
  checkpoints.save(2, big, sound=True)
  deadline = time.time() + 60
  with pytest.raises(StoreError, match=r"checkpoint of step 2 in .* could not be saved \(.*those before it are whole"):
    while time.time() < deadline:
      checkpoints.poll()
      time.sleep(0.01)
  checkpoints.close()
  assert _restore(small_disk) == 1 and os.listdir(small_disk) == ["1"]


def test_fault_09_what_does_not_read_back_ends_the_run(tmp_path):
  checkpoints = _open(tmp_path)
  for step in (1, 2):
    checkpoints.save(step, _state(step), sound=True)
  checkpoints.wait()
  _flip(tmp_path / "2")
  with pytest.raises(StoreError, match=r"step 2 .*does not read back"):
    checkpoints.reread(ABSTRACT)
  checkpoints.close()


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, warnings):
  checkpoints = _open(tmp_path)
  broken = _state(1) | {"params": jnp.array([1.0, np.inf])}
  assert not checkpoints.save(1, broken, sound=True)
  checkpoints.close()
  assert not os.listdir(tmp_path) and "step 1 is not saved: 1 arrays are not finite, the first is params" in warnings[0]


def test_fault_07_restore_onto_other_device_counts(tmp_path):
  """8 -> 4 -> 2 -> 1 devices, sharded otherwise each time: the same arrays, by their marks."""
  values = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)

  def abstract(devices, spec):
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 1), ("data", "fsdp"))
    return {"w": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=NamedSharding(mesh, spec))}

  state = {"w": jax.device_put(values, abstract(8, P("data"))["w"].sharding)}
  marks = fetch(fingerprint({"w": values})[0])
  for step, (devices, spec) in enumerate([(8, P("data")), (4, P(None, "data")), (2, P()), (1, P())]):
    target = abstract(devices, spec)
    checkpoints = _open(tmp_path)
    if step:
      state = checkpoints.restore(target)
    assert state["w"].sharding.is_equivalent_to(target["w"].sharding, 2)
    np.testing.assert_array_equal(state["w"], values)
    assert fetch(fingerprint(state)[0]) == marks
    checkpoints.save(step + 1, state, sound=True)
    checkpoints.close()


def test_a_mark_sees_every_bit_and_every_place():
  x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
  mark = lambda x: fetch(fingerprint({"x": x})[0])["x"]
  flipped, swapped = x.copy(), x.copy()
  flipped.view(np.uint32)[5, 3] ^= 1
  swapped[[1, 4]] = swapped[[4, 1]]
  negative = np.where(x == x[0, 0], -x, x)
  assert len({mark(x) for x in (x, flipped, swapped, negative, x.T.copy())}) == 5
  expected = int((x.view(np.uint32).ravel().astype(np.uint64) * (2 * np.arange(24, dtype=np.uint64) + 1)).sum() % 2**32)
  assert mark(x) == expected and mark(np.int32(7)) == 7


def test_a_folder_in_a_store_is_proved_alike():
  """The same files in an object store: begun, proved, damaged, set aside, and removed there (without Orbax's part)."""
  fs = fsspec.filesystem("memory", use_listings_cache=False)
  fs.store.clear()
  shelf = Shelf("memory://bucket/checkpoints")
  for step in (1, 2, 3):
    shelf.begin(step, 100)
    for name in ("default/a", "default/d/b"):
      with storage.writing(f"{shelf.path(step)}/{name}") as file:
        file.write(bytes([step]) * 50)
    if step == 2:
      assert entries(shelf.folder)[0].fault  # it does not count yet
    shelf.finish(step, {"sound": True, "state": {}})
    shelf.drop_old(step, keep=2, keep_every=100)
  assert storage.names(shelf.folder) == ["2", "3"] and manifest.check(shelf.path(3))["step"] == 3
  with storage.writing(f"{shelf.path(3)}/default/d/b") as file:
    file.write(b"\3" * 49 + b"\2")
  faults = {}
  assert newest_good(shelf.folder, entries(shelf.folder), faults).step == 2
  assert faults == {"3": "the contents of default/d/b are not what was written"}
  assert shelf.choose({}, sound_only=False) == 2 and storage.names(shelf.folder) == ["2", "3.damaged"]
  shelf.begin(4, 100)
  shelf.clean()
  assert storage.names(shelf.folder) == ["2", "3.damaged"]


def _golden_program():
  """The smallest train state, on one device."""
  config = recipe.resolve(tiny_config(encoder__width="4", encoder__depth="1", heads__hidden="4", heads__out="4",
                                      guard__window="4"), None)  # fmt: skip
  return recipe.compile_for(config, make_mesh(data=1, fsdp=1, devices=jax.devices()[:1]), ragged=False)


def test_fault_41_an_old_checkpoint_restores(tmp_path):
  """Written by jax 0.10.2 and orbax-checkpoint 0.12.8 (UPDATE_GOLDEN=1 writes it anew, where the state has changed).

  Every array is compared with its mark by the restore itself; the encoder is read as an export reads it.
  """
  golden, program = ROOT / "tests" / "golden" / "checkpoint", _golden_program()
  if os.environ.get("UPDATE_GOLDEN"):
    shutil.rmtree(golden, ignore_errors=True)
    checkpoints = _open(golden)
    checkpoints.save(7, program.init(jax.random.key(0))._replace(step=jnp.int32(7)), sound=True)
    checkpoints.close()
  assert sum(p.stat().st_size for p in golden.rglob("*") if p.is_file()) < 200_000
  shutil.copytree(golden, tmp_path / "golden")
  checkpoints = _open(tmp_path / "golden")
  state = checkpoints.restore(program.state)
  checkpoints.close()
  assert int(state.step) == 7 and jax.tree.structure(state) == jax.tree.structure(program.state)
  variables, step = restore_encoder(str(tmp_path / "golden"))
  jax.tree.map(np.testing.assert_array_equal, variables["params"], state.teacher.params["encoder"])
  assert step == 7 and float(jnp.abs(state.params["encoder"]["cls_token"]).max()) > 0
