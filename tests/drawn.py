"""Parameters and statistics by numpy, for which nothing is compiled; the loss of them on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.models.encoders import make_encoder
from atst_jax.objectives.objective import Loss, Student
from atst_jax.objectives.registry import get_objective
from atst_jax.runtime.mesh import make_mesh, put_batch


def drawn(shapes) -> dict:
  """Variables of these shapes that are not fresh: biases, scales and statistics have moved."""
  rng = np.random.default_rng(0)

  def draw(path, x):
    if path[-1].key in ("scale", "var"):
      values = rng.uniform(0.5, 1.5, x.shape)
    elif x.ndim > 1:
      values = rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape)
    else:
      values = rng.normal(0, 0.1, x.shape)
    return np.asarray(values, x.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def drawn_encoder(module, n_mels: int, frames: int = 96) -> dict:
  """`drawn` variables of an encoder."""
  return drawn(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, frames, n_mels))))


def first_loss(config, devices: int, batch: dict, variables: dict | None = None) -> Loss:
  """What a resolved config's objective finds in step 0 for a batch that lies on so many devices;
  by default with `drawn` variables."""
  objective = get_objective(config)
  network = objective.make_network(
    make_encoder(config.encoder), dtype=jnp.float32, accumulation=config.compute.accumulation
  )
  if variables is None:
    rngs = {"params": jax.random.key(0)}
    variables = drawn(jax.eval_shape(lambda: objective.initialise(network, rngs, 64)))
  key = jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), 0)

  def loss(variables, batch):
    draw_key, network_key = jax.random.split(key)
    student = Student(network, variables["params"], variables.get("batch_stats", {}), network_key)
    return objective.loss(student, batch, draw_key)

  mesh = make_mesh(data=-1, fsdp=1, devices=jax.devices()[:devices])
  return jax.device_get(jax.jit(loss)(variables, put_batch(mesh, batch)))
