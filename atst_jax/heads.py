"""Projector and predictor: the two-layer perceptrons of BYOL."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from atst_jax.batch_norm import BatchNorm

torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(±1 / sqrt(fan_in))


def torch_bias_init(fan_in):
  """U(±1 / sqrt(fan_in)), PyTorch's default for the bias of a layer of `fan_in` inputs."""
  limit = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


class MLPHead(nn.Module):
  """Linear, BatchNorm, ReLU, Linear: (..., D) -> (..., out) float32.

  ATST's released heads have no biases (4096 hidden, 256 out); BYOL-A's have. Initialisation is PyTorch's default.
  """

  hidden: int
  out: int
  use_bias: bool
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train):
    def dense(features, fan_in, name):
      return nn.Dense(features, use_bias=self.use_bias, dtype=self.dtype, kernel_init=torch_kernel_init,
                      bias_init=torch_bias_init(fan_in), name=name)  # fmt: skip

    h = dense(self.hidden, x.shape[-1], "hidden")(x)
    h = nn.relu(BatchNorm(name="norm")(h, train=train)).astype(self.dtype)
    return dense(self.out, self.hidden, "out")(h).astype(jnp.float32)
