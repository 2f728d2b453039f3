"""Projector and predictor: the two-layer perceptrons of BYOL."""

import flax.linen as nn
import jax.numpy as jnp

from atst_jax.batch_norm import BatchNorm
from atst_jax.initializers import torch_bias_init, torch_kernel_init


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
    """(..., D) -> (..., out) float32; `train` normalises by the batch and updates the running statistics."""

    def dense(features, fan_in, name):
      return nn.Dense(features, use_bias=self.use_bias, dtype=self.dtype, kernel_init=torch_kernel_init,
                      bias_init=torch_bias_init(fan_in), name=name)  # fmt: skip

    h = dense(self.hidden, x.shape[-1], "hidden")(x)
    h = nn.relu(BatchNorm(name="norm")(h, train=train)).astype(self.dtype)
    return dense(self.out, self.hidden, "out")(h).astype(jnp.float32)
