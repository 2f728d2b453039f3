"""Convolutions over clips that may be padded: a clip's result does not depend on the padding."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from atst_jax.models.depthwise import depthwise
from atst_jax.models.layers import Encoder

MOST_DEPTH = 64  # of a network from a file, whose program takes time to trace


class ConvNet(Encoder, kw_only=True):
  """What the networks for images share, of one channel and any size."""

  width: int
  stem: int  # channels of the first convolution
  depth: int  # blocks of the deepest stage
  dtype: jnp.dtype = jnp.float32

  has_batch_norm = True

  def check(self, n_mels: int) -> None:
    """Raises ValueError for more blocks than any network has."""
    if self.depth > MOST_DEPTH:
      raise ValueError(f"encoder.depth {self.depth} must be at most {MOST_DEPTH}")


def halved(size):
  """How many steps of 2 begin in `size` frames or bins."""
  return (size + 1) // 2


def within(x, length):
  """(B, T, F, C) -> the same with 0 behind each clip's end; `length` (B,), or None if all frames
  are valid."""
  if length is None:
    return x
  return jnp.where((jnp.arange(x.shape[1])[None] < length[:, None])[..., None, None], x, 0)


def mean_within(x, length):
  """(B, T, F, C) -> (B, C) float32, the mean over bins and valid frames."""
  x = within(x, length).astype(jnp.float32)
  if length is None:
    return x.mean((1, 2))
  return x.sum((1, 2)) / (x.shape[2] * jnp.maximum(length, 1))[:, None]


def conv_flops(frames, bins, kernel, inside, outside):
  """Floating-point operations of a convolution whose output has so many frames and bins. Of a
  depthwise one `inside` is 1."""
  return 2 * kernel**2 * inside * outside * frames * bins


class Conv(nn.Module):
  """A convolution of (B, T, F, C) with as many zeros before the first frame as behind the last:
  ceil(T / stride) frames come out.

  With `later`, the grid of a stride of 2 begins a frame and a bin later, and T // 2 come out, as
  Keras's networks pad inputs of unknown length.
  """

  features: int
  kernel: int
  kernel_init: Callable
  stride: int = 1
  depthwise: bool = False  # each channel for itself
  later: bool = False
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, length=None):
    """(B, T, F, C) and valid frames (B,) or None -> (B, T', F', features). What stands behind a
    clip's end is not looked at, and means nothing in the result."""
    inside = 1 if self.depthwise else x.shape[-1]
    shape = (self.kernel, self.kernel, inside, self.features)
    kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
    half = self.kernel // 2
    if self.kernel > 1:
      x = within(x, length)
    zeros = 2 * ((half - int(self.later and self.stride == 2), half),)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if self.depthwise:
      x = depthwise(x, kernel, self.stride, zeros)
    else:
      places = ("NHWC", "HWIO", "NHWC")
      strides = (self.stride, self.stride)
      x = jax.lax.conv_general_dilated(x, kernel, strides, zeros, dimension_numbers=places)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
      x = x + bias.astype(self.dtype)[None, None, None]
    return x
