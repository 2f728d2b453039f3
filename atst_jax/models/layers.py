"""Parts that the encoders and the method share: the heads of BYOL, BatchNorm, PyTorch's
initialisers."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLPHead(nn.Module):
  """Linear, BatchNorm, ReLU, Linear: (..., D) -> (..., out) float32.

  ATST's released heads have no biases (4096 hidden, 256 out); BYOL-A's have. Initialisation is
  PyTorch's default.
  """

  hidden: int
  out: int
  use_bias: bool
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train):
    """(..., D) -> (..., out) float32; `train` normalises by the batch and updates the running
    statistics."""

    def dense(features, fan_in, name):
      return nn.Dense(
        features,
        use_bias=self.use_bias,
        dtype=self.dtype,
        kernel_init=torch_kernel_init,
        bias_init=torch_bias_init(fan_in),
        name=name,
      )

    h = dense(self.hidden, x.shape[-1], "hidden")(x)
    h = nn.relu(BatchNorm(name="norm")(h, train=train)).astype(self.dtype)
    return dense(self.out, self.hidden, "out")(h).astype(jnp.float32)


class BatchNorm(nn.Module):
  """Normalises over every axis but the last, with the statistics of the global batch when training.

  flax's own keeps the biased variance; released checkpoints were written by PyTorch, whose running
  variance is the unbiased one. `momentum` is the share of the old value (PyTorch's 0.1 is 0.9
  here). Statistics are float32.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  affine: bool = True  # a learned scale and bias after it

  @nn.compact
  def __call__(self, x, *, train, track=True):
    """(..., C) -> (..., C) float32; the running statistics are updated if training and `track`."""
    channels = x.shape[-1]
    x = x.astype(jnp.float32)
    if self.affine:
      scale = self.param("scale", nn.initializers.ones, (channels,))
      bias = self.param("bias", nn.initializers.zeros, (channels,))
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
    if train:
      axes = tuple(range(x.ndim - 1))
      mean = x.mean(axes)
      var = jnp.square(x - mean.reshape((1,) * len(axes) + (-1,))).mean(axes)
      if track and not self.is_initializing():
        count = x.size // channels
        keep = self.momentum
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * var * count / max(count - 1, 1)
    else:
      mean, var = running_mean.value, running_var.value
    shape = (1,) * (x.ndim - 1) + (-1,)
    if not self.affine:
      return (x - mean.reshape(shape)) / jnp.sqrt(var + self.epsilon).reshape(shape)
    factor = scale / jnp.sqrt(var + self.epsilon)
    return (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)


# U(±1 / sqrt(fan_in))
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias_init(fan_in):
  """U(±1 / sqrt(fan_in)), for the bias of a layer of `fan_in` inputs."""
  limit = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)
