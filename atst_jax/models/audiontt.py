"""BYOL-A's encoders: AudioNTT2020 (v1) and AudioNTT2022 (v2)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.models.layers import (
  BatchNorm,
  Encoder,
  pool_frames,
  torch_bias_init,
  torch_dense,
  torch_kernel_init,
)

CHANNELS = 64
BLOCKS = {"AudioNTT2022": 2, "AudioNTT2020": 3}  # convolutions, each of which halves the frames


@jax.custom_jvp
def _larger(a, b):
  """The maximum of two arrays, whose gradient is the first's where they are equal, as in PyTorch's
  pooling; that of `jnp.maximum` is shared."""
  return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(primals, tangents):
  (a, b), (da, db) = primals, tangents
  return jnp.maximum(a, b), jnp.where(a >= b, da, db)


def _halved(x):
  """Maxima of 2 x 2: (B, T, F, C) -> (B, T // 2, F // 2, C).

  The gradient of a reduce-window takes twice as long on a CPU. Of equal maxima the lowest bin's
  first frame takes it, as in PyTorch, where frames are the last axis.
  """
  B, T, F, C = x.shape
  x = x[:, : T // 2 * 2, : F // 2 * 2].reshape(B, T // 2, 2, F // 2, 2, C)
  x = _larger(x[:, :, 0], x[:, :, 1])
  return _larger(x[:, :, :, 0], x[:, :, :, 1])


class AudioNTT(Encoder):
  """Blocks of convolution, BatchNorm, ReLU and pooling, a perceptron for every frame, and pooling
  over time.

  "AudioNTT2022" (BYOL-A v2): two blocks; a frame's vector is the `width` of the concatenation of
  the 64·F/4 convolutional features and the perceptron's output. "AudioNTT2020" (v1): three blocks;
  the perceptron's output alone. Initialisation is PyTorch's default.
  """

  version: str
  width: int
  hidden: int
  dropout: float
  dtype: jnp.dtype = jnp.float32

  has_batch_norm = True
  any_length = True
  unit_protocol = True
  choices: ClassVar = {"version": tuple(BLOCKS)}
  family = "byola"

  @property
  def stages(self) -> int:
    """Blocks of convolution."""
    return BLOCKS[self.version]

  @property
  def hop(self) -> int:
    """Every stage halves the frames."""
    return 2**self.stages

  @property
  def context(self) -> int:
    """A convolution sees one frame of its stage on either side: 1 + 2 + … are below the hop."""
    return self.hop

  @property
  def title(self) -> str:
    """Its version."""
    return self.version

  def features(self, n_mels: int) -> int:
    """Convolutional features of a frame."""
    return CHANNELS * (n_mels >> self.stages)

  def check(self, n_mels: int) -> None:
    """Raises ValueError if the width holds no convolutional features."""
    features = self.features(n_mels)
    if not features or (self.version == "AudioNTT2022" and self.width <= features):
      raise ValueError(
        f"encoder.width {self.width} must be above the {features} convolutional features, "
        "which are a part of AudioNTT2022's vector"
      )

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False):
    """Encodes standardised log-mel.

    Args:
      mel: (B, T, F); T and F are halved by every block, the odd frame or bin dropped.
      length: (B,) valid frames, at least 2^blocks, or None if all are. Where the input is 0 behind
        them, the result is that of the clip alone. When training, BatchNorm's statistics would see
        the padding: pass None.
      train: whether BatchNorm uses the batch's statistics and dropout is on.
      track: whether BatchNorm's running statistics are updated, if training.
      tokens: not used, frames are always returned.

    Returns:
      y (B, D) float32 and {"frames": (B, T // 2^blocks, D)} float32, which `pool_frames` pools to
      y.
    """
    del tokens
    x = mel[..., None].astype(self.dtype)  # (B, T, F, 1)
    for i in range(self.stages):
      fan_in = 9 * x.shape[-1]
      x = nn.Conv(
        CHANNELS,
        (3, 3),
        padding=1,
        dtype=self.dtype,
        kernel_init=torch_kernel_init,
        bias_init=torch_bias_init(fan_in),
        name=f"conv_{i}",
      )(x)
      x = nn.relu(BatchNorm(name=f"norm_{i}")(x, train=train, track=track)).astype(self.dtype)
      x = _halved(x)
      # the next convolution must find zeros behind the clip's end, as at an array's border
      if length is not None:
        length = length // 2
        x = jnp.where((jnp.arange(x.shape[1])[None] < length[:, None])[..., None, None], x, 0)
    features = x.reshape(*x.shape[:2], -1)  # (B, N, F' · C), mel-major

    def dense(x, features, name):
      return nn.relu(torch_dense(x, features, dtype=self.dtype, name=name))

    stacked = self.version == "AudioNTT2022"
    h = nn.Dropout(self.dropout, deterministic=not train)(dense(features, self.hidden, "fc1"))
    frames = dense(h, self.width - features.shape[-1] if stacked else self.width, "fc2")
    if stacked:
      frames = jnp.concatenate([features, frames], -1)
    frames = frames.astype(jnp.float32)
    return pool_frames(frames, length), {"frames": frames}

  def flops(self, *, frames: int, n_mels: int) -> float:
    """Of convolutions and perceptron."""
    features, stacked, total, channels = self.features(n_mels), self.version == "AudioNTT2022", 0, 1
    for _ in range(self.stages):
      total += 2 * 9 * channels * CHANNELS * frames * n_mels
      frames, n_mels, channels = frames // 2, n_mels // 2, CHANNELS
    out = self.width - features if stacked else self.width
    return total + 2 * frames * self.hidden * (features + out)

  def torch_names(self) -> dict[str, tuple[str, ...]]:
    """Of BYOL-A's released files, running statistics included."""
    names = {}
    for i in range(self.stages):
      conv, norm = f"features.{4 * i}", f"features.{4 * i + 1}"
      names |= {
        f"{conv}.weight": ("params", f"conv_{i}", "kernel"),
        f"{conv}.bias": ("params", f"conv_{i}", "bias"),
        f"{norm}.weight": ("params", f"norm_{i}", "scale"),
        f"{norm}.bias": ("params", f"norm_{i}", "bias"),
        f"{norm}.running_mean": ("batch_stats", f"norm_{i}", "mean"),
        f"{norm}.running_var": ("batch_stats", f"norm_{i}", "var"),
      }
    for i, name in ((0, "fc1"), (3, "fc2")):
      names |= {
        f"fc.{i}.weight": ("params", name, "kernel"),
        f"fc.{i}.bias": ("params", name, "bias"),
      }
    return names

  def onnx(self, g, x, length, variables, n_mels, mean_over=None, num_blocks=1):
    """The nodes of `__call__`."""
    del mean_over, num_blocks
    params, statistics = variables["params"], variables["batch_stats"]
    x = g.op("Unsqueeze", x, g.ints(1))  # (B, C, T, F)
    for i in range(self.stages):
      conv, norm, running = params[f"conv_{i}"], params[f"norm_{i}"], statistics[f"norm_{i}"]
      kernel = g.const(np.transpose(conv["kernel"], (3, 2, 0, 1)))
      x = g.op("Conv", x, kernel, g.const(conv["bias"]), pads=[1, 1, 1, 1])
      arrays = (norm["scale"], norm["bias"], running["mean"], running["var"])
      x = g.op("BatchNormalization", x, *map(g.const, arrays), epsilon=1e-5)
      x = g.op("MaxPool", g.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
      length = g.op("Div", length, g.const(2, np.int64))
      x = g.op("Where", g.mask(x, 2, length, [1, 3]), x, g.const(0))
    x = g.op(
      "Reshape", g.op("Transpose", x, perm=[0, 2, 3, 1]), g.ints(0, 0, self.features(n_mels))
    )
    frames = g.op("Relu", g.dense(g.op("Relu", g.dense(x, params["fc1"])), params["fc2"]))
    if self.version == "AudioNTT2022":
      frames = g.op("Concat", x, frames, axis=2)
    valid = g.mask(frames, 1, length, [2])
    count = g.op("Max", g.op("Cast", length, to=1), g.const(1))
    peak = g.op("ReduceMax", g.op("Where", valid, frames, g.const(-np.inf)), axes=[1], keepdims=0)
    return g.op("Add", peak, g.mean(frames, valid, count)), frames
