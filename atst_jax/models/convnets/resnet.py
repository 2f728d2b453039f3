"""ResNet-50 over log-mel, TRILL's encoder."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from atst_jax.models.convnets import nodes
from atst_jax.models.convnets.parts import Conv, ConvNet, conv_flops, halved, within
from atst_jax.models.layers import BatchNorm, torch_dense

BLOCKS, DEEPEST = (3, 4, 6, 3), 6  # of ResNet-50's stages
EXPANSION = 4  # a block's output, in its inner channels
init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al.; torchvision


class Sizes(NamedTuple):
  """Of a block: stride, channels in and inner ones; whether its input needs a projection."""

  stride: int
  inside: int
  inner: int
  projected: bool


class Bottleneck(nn.Module):
  """Convolutions of 1, 3 and 1, the middle one with the stride (v1.5), and the input added."""

  sizes: Sizes
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, length, *, train, track):
    """(B, T, F, C) and valid frames (B,) or None -> (B, ceil(T / stride), …, 4 · inner)."""
    sizes = self.sizes
    conv = functools.partial(Conv, kernel_init=init, dtype=self.dtype)

    def norm(x, name):
      return BatchNorm(name=name)(x, train=train, track=track).astype(self.dtype)

    h = nn.relu(norm(conv(sizes.inner, 1, name="conv_0")(x), "norm_0"))
    h = conv(sizes.inner, 3, stride=sizes.stride, name="conv_1")(h, length)
    h = nn.relu(norm(h, "norm_1"))
    h = norm(conv(EXPANSION * sizes.inner, 1, name="conv_2")(h), "norm_2")
    if sizes.projected:
      shortcut = conv(EXPANSION * sizes.inner, 1, stride=sizes.stride, name="shortcut")
      x = norm(shortcut(x), "shortcut_norm")
    return nn.relu(x + h)


class ResNet(ConvNet):
  """ResNet-50 (He et al., 2016; v1.5) of one channel, mean over time and bins, a linear layer.

  `width` 512, `stem` 64 and `depth` 6 are ResNet-50 with TRILL's 512 numbers. Other values of
  `stem` and `depth` scale the channels and the number of blocks of every stage in proportion.
  `stem_stride` is 2 for images; 1, as in Hershey et al. (2017), leaves 6 x 4 places of 96 x 64.
  """

  stem_stride: int

  @property
  def hop(self) -> int:
    """The pooling and three stages halve the frames, and the first convolution may."""
    return 16 * self.stem_stride

  @property
  def centre(self) -> float:
    """The first frame: every stride is padded alike on both sides."""
    return 0.0

  @property
  def title(self) -> str:
    """Its size."""
    return "ResNet-50" if (self.stem, self.depth) == (64, DEEPEST) else f"ResNet of {self.stem}"

  def check(self, n_mels: int) -> None:
    """Raises ValueError for a stride that is none, and for more blocks than any network has."""
    if self.stem_stride > 2:
      raise ValueError(f"encoder.stem_stride {self.stem_stride} must be 1 or 2")
    super().check(n_mels)

  def plan(self) -> Iterator[Sizes]:
    """The sizes of every block."""
    inside = self.stem
    for stage, blocks in enumerate(BLOCKS):
      inner = self.stem << stage
      for i in range(-(-blocks * self.depth // DEEPEST)):
        yield Sizes(2 if stage and not i else 1, inside, inner, not i)
        inside = EXPANSION * inner

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False):
    """Encodes log-mel.

    Args:
      mel: (B, T, F).
      length: (B,) valid frames, or None if all are: the result is that of the clip alone. When
        training, BatchNorm's statistics would see the padding: pass None.
      train: whether BatchNorm uses the batch's statistics.
      track: whether BatchNorm's running statistics are updated, if training.
      tokens: not used, frames are always returned.

    Returns:
      y (B, width) float32 and {"frames": (B, ceil(T / hop), width)} float32, whose mean y is.
    """
    del tokens
    conv = functools.partial(Conv, kernel_init=init, dtype=self.dtype)
    x = conv(self.stem, 7, stride=self.stem_stride, name="stem_conv")(mel[..., None], length)
    length = halved(length) if length is not None and self.stem_stride == 2 else length
    x = nn.relu(BatchNorm(name="stem_norm")(x, train=train, track=track)).astype(self.dtype)
    # behind the end 0, below which no value is
    x = nn.max_pool(within(x, length), (3, 3), (2, 2), ((1, 1), (1, 1)))
    length = None if length is None else halved(length)
    for i, sizes in enumerate(self.plan()):
      block = Bottleneck(sizes, self.dtype, name=f"block_{i:02d}")
      x = block(x, length, train=train, track=track)
      if length is not None and sizes.stride == 2:
        length = halved(length)
    x = x.astype(jnp.float32).mean(2)  # (B, N, C)
    frames = within(torch_dense(x, self.width, name="out")[:, :, None], length)[:, :, 0]
    if length is None:
      return frames.mean(1), {"frames": frames}
    return frames.sum(1) / jnp.maximum(length, 1)[:, None], {"frames": frames}

  def flops(self, *, frames: int, n_mels: int) -> float:
    """Of convolutions and the linear layer."""
    if self.stem_stride == 2:
      frames, n_mels = halved(frames), halved(n_mels)
    total, outside = conv_flops(frames, n_mels, 7, 1, self.stem), self.stem
    frames, n_mels = halved(frames), halved(n_mels)
    for sizes in self.plan():
      outside = EXPANSION * sizes.inner
      total += conv_flops(frames, n_mels, 1, sizes.inside, sizes.inner)
      if sizes.stride == 2:
        frames, n_mels = halved(frames), halved(n_mels)
      total += conv_flops(frames, n_mels, 3, sizes.inner, sizes.inner)
      total += conv_flops(frames, n_mels, 1, sizes.inner, outside)
      if sizes.projected:
        total += conv_flops(frames, n_mels, 1, sizes.inside, outside)
    return total + 2 * frames * outside * self.width

  def onnx(self, g, x, length, variables, n_mels, mean_over=None, num_blocks=1):
    """The nodes of `__call__`."""
    del mean_over, num_blocks
    params, statistics = variables["params"], variables["batch_stats"]
    conv = functools.partial(nodes.conv, g)
    x = g.op("Unsqueeze", x, g.ints(1))
    x = conv(x, length, params["stem_conv"], stride=self.stem_stride)
    length = nodes.halved(g, length) if self.stem_stride == 2 else length
    x = g.op("Relu", nodes.norm(g, x, params["stem_norm"], statistics["stem_norm"]))
    x = nodes.within(g, x, length)
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    length = nodes.halved(g, length)
    for i, sizes in enumerate(self.plan()):
      ours, running = params[f"block_{i:02d}"], statistics[f"block_{i:02d}"]
      norm = lambda x, name, ours=ours, running=running: nodes.norm(g, x, ours[name], running[name])
      h = g.op("Relu", norm(conv(x, length, ours["conv_0"]), "norm_0"))
      h = conv(h, length, ours["conv_1"], stride=sizes.stride)
      h = norm(conv(g.op("Relu", norm(h, "norm_1")), length, ours["conv_2"]), "norm_2")
      if sizes.projected:
        x = norm(conv(x, length, ours["shortcut"], stride=sizes.stride), "shortcut_norm")
      x = g.op("Relu", g.op("Add", x, h))
      length = nodes.halved(g, length) if sizes.stride == 2 else length
    x = g.op("Transpose", g.op("ReduceMean", x, axes=[3], keepdims=0), perm=[0, 2, 1])
    frames = g.dense(x, params["out"])
    valid = g.mask(frames, 1, length, [2])
    frames = g.op("Where", valid, frames, g.const(0))
    return g.mean(frames, valid, g.op("Cast", length, to=1)), frames
