"""EfficientNet-B0 over log-mel, COLA's encoder, with the constants of Keras's implementation."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from atst_jax.models.convnets import nodes
from atst_jax.models.convnets.parts import Conv, ConvNet, conv_flops, mean_within, within
from atst_jax.models.layers import BatchNorm, DropPath

RESCALING = 1 / 255  # Keras's first layer, meant for images; it is there for log-mel, too
# B0's: kernel, blocks, channels, expansion, stride
STAGES = (
  (3, 1, 16, 1, 1),
  (3, 2, 24, 6, 2),
  (5, 2, 40, 6, 2),
  (3, 3, 80, 6, 2),
  (5, 3, 112, 6, 1),
  (5, 4, 192, 6, 2),
  (3, 1, 320, 6, 1),
)
STEM, DEEPEST = 32, 4  # B0's channels of the first convolution, and blocks of its deepest stage
# Keras's initialisation, by the fan of its kernels' shapes
init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
EPSILON = 1e-3
Norm = functools.partial(BatchNorm, momentum=0.99, epsilon=EPSILON)


class Sizes(NamedTuple):
  """Of a block: channels in and out, and between them; channels of its squeeze-and-excitation."""

  kernel: int
  stride: int
  inside: int
  wide: int
  squeezed: int
  outside: int


def rounded(channels: float) -> int:
  """Keras's `round_filters`: the nearest multiple of 8 that is not below 90 %."""
  near = max(8, int(channels + 4) // 8 * 8)
  return near + 8 if near < 0.9 * channels else near


class Block(nn.Module):
  """Expansion, depthwise convolution, squeeze-and-excitation, projection (MBConv)."""

  sizes: Sizes
  drop_path: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, length, *, train, track):
    """(B, T, F, C) and valid frames (B,) or None -> (B, T // stride, …, C')."""
    sizes, conv = self.sizes, functools.partial(Conv, kernel_init=init, dtype=self.dtype)

    def norm(x, name):
      return Norm(name=name)(x, train=train, track=track).astype(self.dtype)

    h = x
    if sizes.wide != sizes.inside:
      h = nn.silu(norm(conv(sizes.wide, 1, name="expand")(h), "expand_norm"))
    depthwise = Conv(
      sizes.wide,
      sizes.kernel,
      depthwise_init,
      stride=sizes.stride,
      later=True,
      depthwise=True,
      dtype=self.dtype,
      name="depthwise",
    )
    h = nn.silu(norm(depthwise(h, length), "depthwise_norm"))
    if length is not None and sizes.stride == 2:
      length = length // 2
    gate = mean_within(h, length)[:, None, None]
    gate = nn.silu(conv(sizes.squeezed, 1, use_bias=True, name="squeeze")(gate))
    h = h * nn.sigmoid(conv(sizes.wide, 1, use_bias=True, name="excite")(gate))
    h = norm(conv(sizes.outside, 1, name="project")(h), "project_norm")
    if sizes.stride == 1 and sizes.inside == sizes.outside:
      kept = DropPath(self.drop_path)(x.shape[0], train=train)
      h = x + h * kept[:, None, None, None].astype(self.dtype)
    return h


class EfficientNet(ConvNet):
  """EfficientNet-B0 (Tan and Le, 2019) of one channel, global maximum over time and bins (COLA).

  Keras's: input times 1/255, stochastic depth that grows with the block, BatchNorm of momentum 0.99
  and epsilon 1e-3, zeros as for inputs of unknown length (COLA builds it so). `width` 1280, `stem`
  32, `depth` 4 and `drop_path` 0.2 are B0. Other values of `stem` and `depth` scale the channels
  and the number of blocks of every stage in proportion (Keras's `width_coefficient` and
  `depth_coefficient`).
  """

  drop_path: float

  @property
  def hop(self) -> int:
    """Five strides of 2."""
    return 32

  @property
  def centre(self) -> float:
    """Each stride begins a frame later (`Conv.later`): 1 + 2 + 4 + 8 + 16 frames."""
    return self.hop - 1

  @property
  def title(self) -> str:
    """Its size."""
    sizes = (self.width, self.stem, self.depth)
    return "EfficientNet-B0" if sizes == (1280, STEM, DEEPEST) else f"EfficientNet of {self.stem}"

  def plan(self) -> Iterator[Sizes]:
    """The sizes of every block."""
    inside = rounded(self.stem)
    for kernel, blocks, channels, expansion, stride in STAGES:
      outside = rounded(channels * self.stem / STEM)
      for i in range(-(-blocks * self.depth // DEEPEST)):
        squeezed = max(1, inside // 4)
        yield Sizes(kernel, 1 if i else stride, inside, inside * expansion, squeezed, outside)
        inside = outside

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False):
    """Encodes log-mel (COLA's is of magnitudes, in nepers).

    Args:
      mel: (B, T, F).
      length: (B,) valid frames, or None if all are: the result is that of the clip alone. When
        training, BatchNorm's statistics would see the padding: pass None.
      train: whether BatchNorm uses the batch's statistics and branches are dropped.
      track: whether BatchNorm's running statistics are updated, if training.
      tokens: not used, frames are always returned.

    Returns:
      y (B, width) float32, the maximum over time and bins, and {"frames": (B, T // 32, width)}
      float32, the maximum over bins.
    """
    del tokens
    conv = functools.partial(Conv, kernel_init=init, dtype=self.dtype)

    def norm(x, name):
      return nn.silu(Norm(name=name)(x, train=train, track=track)).astype(self.dtype)

    x = mel[..., None] * RESCALING
    x = norm(
      conv(rounded(self.stem), 3, stride=2, later=True, name="stem_conv")(x, length), "stem_norm"
    )
    length = None if length is None else length // 2
    blocks = list(self.plan())
    for i, sizes in enumerate(blocks):
      block = Block(sizes, self.drop_path * i / len(blocks), self.dtype, name=f"block_{i:02d}")
      x = block(x, length, train=train, track=track)
      if length is not None and sizes.stride == 2:
        length = length // 2
    x = norm(conv(self.width, 1, name="top_conv")(x), "top_norm").astype(jnp.float32)
    frames = x.max(2)
    if length is None:
      return frames.max(1), {"frames": frames}
    valid = jnp.arange(frames.shape[1])[None] < length[:, None]
    y = jnp.where(valid[..., None], frames, -jnp.inf).max(1)
    return y, {"frames": within(frames[:, :, None], length)[:, :, 0]}

  def flops(self, *, frames: int, n_mels: int) -> float:
    """Of the convolutions."""
    frames, n_mels = frames // 2, n_mels // 2
    total, outside = conv_flops(frames, n_mels, 3, 1, rounded(self.stem)), 0
    for sizes in self.plan():
      if sizes.wide != sizes.inside:
        total += conv_flops(frames, n_mels, 1, sizes.inside, sizes.wide)
      if sizes.stride == 2:
        frames, n_mels = frames // 2, n_mels // 2
      total += conv_flops(frames, n_mels, sizes.kernel, 1, sizes.wide)
      total += 4 * sizes.wide * sizes.squeezed
      outside = sizes.outside
      total += conv_flops(frames, n_mels, 1, sizes.wide, outside)
    return total + conv_flops(frames, n_mels, 1, outside, self.width)

  def onnx(self, g, x, length, variables, n_mels, mean_over=None, num_blocks=1):
    """The nodes of `__call__`."""
    del mean_over, num_blocks
    params, statistics = variables["params"], variables["batch_stats"]

    def norm(x, name):
      return nodes.silu(g, nodes.norm(g, x, params[name], statistics[name], EPSILON))

    x = g.op("Mul", g.op("Unsqueeze", x, g.ints(1)), g.const(RESCALING))
    x = nodes.conv(g, x, length, params["stem_conv"], stride=2, later=True)
    x, length, bins = norm(x, "stem_norm"), _half(g, length), n_mels // 2
    for i, sizes in enumerate(self.plan()):
      name = f"block_{i:02d}"
      x = _block_nodes(g, x, length, sizes, params[name], statistics[name], bins)
      if sizes.stride == 2:
        length, bins = _half(g, length), bins // 2
    x = norm(nodes.conv(g, x, length, params["top_conv"]), "top_norm")
    frames = g.op("Transpose", g.op("ReduceMax", x, axes=[3], keepdims=0), perm=[0, 2, 1])
    valid = g.mask(frames, 1, length, [2])
    top = g.op("Where", valid, frames, g.const(-np.inf))
    y = g.op("ReduceMax", top, axes=[1], keepdims=0)
    return y, g.op("Where", valid, frames, g.const(0))


def _half(g, length: str) -> str:
  """The valid frames behind a stride of 2."""
  return g.op("Div", length, g.const(2, np.int64))


def _block_nodes(g, x, length, sizes: Sizes, params: dict, statistics: dict, bins: int) -> str:
  """The nodes of `Block`."""

  def norm(x, name):
    return nodes.norm(g, x, params[name], statistics[name], EPSILON)

  h = x
  if sizes.wide != sizes.inside:
    h = nodes.conv(g, h, length, params["expand"])
    h = nodes.silu(g, norm(h, "expand_norm"))
  h = nodes.conv(g, h, length, params["depthwise"], stride=sizes.stride, later=True, depthwise=True)
  h = nodes.silu(g, norm(h, "depthwise_norm"))
  if sizes.stride == 2:
    length, bins = _half(g, length), bins // 2
  count = g.op("Mul", g.op("Cast", length, to=1), g.const(bins))
  total = g.op("ReduceSum", nodes.within(g, h, length), g.ints(2, 3), keepdims=1)
  gate = g.op("Div", total, g.op("Unsqueeze", count, g.ints(1, 2, 3)))
  gate = nodes.silu(g, nodes.conv(g, gate, length, params["squeeze"]))
  gate = g.op("Sigmoid", nodes.conv(g, gate, length, params["excite"]))
  h = nodes.conv(g, g.op("Mul", h, gate), length, params["project"])
  h = norm(h, "project_norm")
  if sizes.stride == 1 and sizes.inside == sizes.outside:
    return g.op("Add", x, h)
  return h
