"""Checkpoints of a tiny state: saved, restored and compared, damaged; and exports that a run begins
with."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from atst_jax.artifacts.export import write
from atst_jax.audio.frontend import get_frontend
from atst_jax.models.encoders import make_encoder
from atst_jax.runtime.checkpoint import Checkpoints
from tests.tiny import tiny_config


def state_of(step):
  """Like a train state, tiny."""
  rng = np.random.default_rng(step)
  encoder = lambda: {
    "params": {"encoder": {"kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)}}
  }
  return {
    "step": jnp.int32(step),
    **encoder(),
    "teacher": {**encoder(), "batch_stats": {}},
    "batch_stats": {},
  }


ABSTRACT = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
  ),
  jax.eval_shape(lambda: state_of(0)),
)


def open_checkpoints(folder, keep=2, keep_every=100):
  return Checkpoints(str(folder), keep=keep, keep_every=keep_every)


def save(folder, *steps, **options):
  checkpoints = open_checkpoints(folder, **options)
  for step in steps:
    checkpoints.save(step, state_of(step), sound=True)
  checkpoints.close()


def restore(folder, **options):
  """The step that a new process would go on from; its state is compared."""
  checkpoints = open_checkpoints(folder)
  state = checkpoints.restore(ABSTRACT, **options)
  checkpoints.close()
  if state is None:
    return None
  jax.tree.map(np.testing.assert_array_equal, state, state_of(int(state["step"])))
  return int(state["step"])


def read_tree(path):
  """A saved tree as numpy arrays, on any devices."""
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    return checkpointer.restore(path, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree))


def largest(checkpoint: pathlib.Path):
  return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(checkpoint):
  path = max((checkpoint / "default").rglob("d/*"), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


# Of a convolutional encoder, whose width follows from the mel bins.
SMALL = {"byola.py": {"encoder__width": "1040", "encoder__hidden": "8"}}


MIN_MAX = {"kind": "min_max", "low": -90.0, "high": 30.0, "top_db": 80.0}


def parent(path, file="base.py", normalization=MIN_MAX, chunk_frames=32):
  """An export of random weights, sized as `tiny_config`."""
  encoder = tiny_config(file, **SMALL.get(file, {})).encoder.to_dict()
  module = make_encoder(encoder)
  noise = np.zeros((1, 32, 64), np.float32)
  variables = jax.jit(module.init)(jax.random.key(7), noise)
  write(
    str(path),
    variables,
    encoder=encoder,
    frontend=get_frontend(tiny_config(file).data.frontend),
    normalization=normalization,
    chunk_frames=chunk_frames,
    tail="weighted",
    provenance={},
  )
  return str(path)
