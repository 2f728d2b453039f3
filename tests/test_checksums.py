"""What was saved is what is restored: on other devices, in a store, by another version, by the
checksums of its arrays."""

import os
import shutil

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from atst_jax.pretraining import recipe
from atst_jax.runtime import checksums
from atst_jax.runtime.checkpoint import find_checkpoint
from atst_jax.runtime.checkpoint_folder import CheckpointFolder, entries, newest_good
from atst_jax.runtime.checksums import array_checksums, checksum_on_host, fetch
from atst_jax.runtime.mesh import make_mesh
from atst_jax.runtime.trees import restore_encoder
from atst_jax.util import storage
from tests.checkpoints import open_checkpoints
from tests.tiny import ROOT, tiny_config


def test_fault_07_restore_onto_other_device_counts(tmp_path):
  """8 -> 4 -> 2 -> 1 devices, sharded otherwise each time: the same arrays, by their checksums."""
  values = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)

  def abstract(devices, spec):
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 1), ("data", "fsdp"))
    return {
      "w": jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=NamedSharding(mesh, spec))
    }

  state = {"w": jax.device_put(values, abstract(8, P("data"))["w"].sharding)}
  sums = fetch(array_checksums({"w": values})[0])
  for step, (devices, spec) in enumerate(
    [(8, P("data")), (4, P(None, "data")), (2, P()), (1, P())]
  ):
    target = abstract(devices, spec)
    checkpoints = open_checkpoints(tmp_path)
    if step:
      state = checkpoints.restore(target)
    assert state["w"].sharding.is_equivalent_to(target["w"].sharding, 2)
    np.testing.assert_array_equal(state["w"], values)
    assert fetch(array_checksums(state)[0]) == sums
    checkpoints.save(step + 1, state, sound=True)
    checkpoints.close()


def test_a_checksum_sees_every_bit_and_every_place():
  x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
  checksum = lambda x: fetch(array_checksums({"x": x})[0])["x"]
  flipped, swapped = x.copy(), x.copy()
  flipped.view(np.uint32)[5, 3] ^= 1
  swapped[[1, 4]] = swapped[[4, 1]]
  negative = np.where(x == x[0, 0], -x, x)
  assert len({checksum(x) for x in (x, flipped, swapped, negative, x.T.copy())}) == 5
  expected = int(
    (x.view(np.uint32).ravel().astype(np.uint64) * (2 * np.arange(24, dtype=np.uint64) + 1)).sum()
    % 2**32
  )
  assert checksum(x) == checksum_on_host(x) == expected and checksum(np.int32(7)) == 7
  assert checksum_on_host(x.T) == checksum(x.T.copy())
  assert checksum_on_host(np.array(7, np.int32)) == 7


def test_a_folder_in_a_store_is_verified_alike():
  """The same files in an object store: begun, verified, damaged, set aside, and removed there
  (without Orbax's part)."""
  fs = fsspec.filesystem("memory", use_listings_cache=False)
  fs.store.clear()
  folder = CheckpointFolder("memory://bucket/checkpoints")
  for step in (1, 2, 3):
    folder.begin(step, 100)
    for name in ("default/a", "default/d/b"):
      with storage.writing(f"{folder.path(step)}/{name}") as file:
        file.write(bytes([step]) * 50)
    if step == 2:
      assert entries(folder.folder)[0].fault  # it does not count yet
    folder.finish(step, {"sound": True, "state": {}})
    folder.drop_old(step, keep=2, keep_every=100)
  assert storage.names(folder.folder) == ["2", "3"] and checksums.check(folder.path(3))["step"] == 3
  with storage.writing(f"{folder.path(3)}/default/d/b") as file:
    file.write(b"\3" * 49 + b"\2")
  faults = {}
  assert newest_good(folder.folder, entries(folder.folder), faults).step == 2
  assert faults == {"3": "the contents of default/d/b are not what was written"}
  assert folder.choose({}, sound_only=False) == 2
  assert storage.names(folder.folder) == ["2", "3.damaged"]
  folder.begin(4, 100)
  folder.clean()
  assert storage.names(folder.folder) == ["2", "3.damaged"]


def _golden_program():
  """The smallest train state, on one device."""
  config = recipe.resolve(
    tiny_config(
      encoder__width="4", encoder__depth="1", heads__hidden="4", heads__out="4", guard__window="4"
    ),
    None,
  )
  return recipe.compile_for(
    config, make_mesh(data=1, fsdp=1, devices=jax.devices()[:1]), ragged=False
  )


def test_fault_41_an_old_checkpoint_restores(tmp_path):
  """Written by jax 0.10.2 and orbax-checkpoint 0.12.8 (UPDATE_GOLDEN=1 writes it anew, where the
  state has changed).

  Every array is compared with its checksum by the restore itself; the encoder is read as an export
  reads it.
  """
  golden, program = ROOT / "tests" / "golden" / "checkpoint", _golden_program()
  if os.environ.get("UPDATE_GOLDEN"):
    shutil.rmtree(golden, ignore_errors=True)
    checkpoints = open_checkpoints(golden)
    checkpoints.save(7, program.init(jax.random.key(0))._replace(step=jnp.int32(7)), sound=True)
    checkpoints.close()
  assert sum(p.stat().st_size for p in golden.rglob("*") if p.is_file()) < 200_000
  shutil.copytree(golden, tmp_path / "golden")
  checkpoints = open_checkpoints(tmp_path / "golden")
  state = checkpoints.restore(program.state)
  checkpoints.close()
  assert int(state.step) == 7 and jax.tree.structure(state) == jax.tree.structure(program.state)
  step, path, config = find_checkpoint(str(tmp_path / "golden"))
  variables = restore_encoder(path, network="teacher")
  jax.tree.map(np.testing.assert_array_equal, variables["params"], state.teacher.params["encoder"])
  assert (
    step == 7 and config is None and float(jnp.abs(state.params["encoder"]["cls_token"]).max()) > 0
  )
