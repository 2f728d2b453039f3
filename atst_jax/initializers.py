"""PyTorch's default initialisation of linear and convolutional layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(±1 / sqrt(fan_in))


def torch_bias_init(fan_in):
  """U(±1 / sqrt(fan_in)), for the bias of a layer of `fan_in` inputs."""
  limit = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)
