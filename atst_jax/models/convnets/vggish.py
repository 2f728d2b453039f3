"""VGGish (Hershey et al., 2017): a network trained with labels, here to be embedded with."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from atst_jax.models.convnets.parts import conv_flops
from atst_jax.models.layers import Encoder

EXAMPLE = 96  # frames: 0.96 s
# of every convolution: its place among the released code's layers, channels in those of the first,
# whether a pooling follows
CONVOLUTIONS = (
  (0, 1, True),
  (3, 2, True),
  (6, 4, False),
  (8, 4, True),
  (11, 8, False),
  (13, 8, True),
)
DENSE = (0, 2, 4)  # places of the linear layers among the released `embeddings`
HALVINGS = 4
CLIP, LEVELS = 2.0, 255  # of the released post-processor
OUTPUTS = ("embedding", "quantized")
# He et al.'s. The original's N(0, 0.01²) leaves millionths of the input behind nine layers: nothing
# to compare a trained network with.
init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class VGGish(Encoder):
  """Examples of 96 frames, each for itself: six convolutions, four poolings, three linear layers,
  with a ReLU behind each, the last too (harritaylor/torchvggish, whose weights `convert` reads).

  Released: `width` 128, `hidden` 4096, `channels` 64. `output` "quantized" puts the released
  post-processor behind it: principal components, clipped, as whole numbers from 0 to 255. A clip's
  vector is the mean of its whole examples.
  """

  width: int
  hidden: int
  channels: int  # of the first convolution
  output: str
  dtype: jnp.dtype = jnp.float32

  choices: ClassVar = {"output": OUTPUTS[:1]}  # what can be trained
  family = "vggish"

  @property
  def hop(self) -> int:
    """Frames of an example."""
    return EXAMPLE

  @property
  def rounding(self) -> float:
    """Whole numbers behind the post-processor."""
    return float(self.output == "quantized")

  def check(self, n_mels: int) -> None:
    """Raises ValueError for bins that four poolings do not divide, or an unknown output."""
    if n_mels % 2**HALVINGS:
      raise ValueError(f"VGGish needs mel bins of a multiple of {2**HALVINGS}, not {n_mels}")
    if self.output not in OUTPUTS:
      raise ValueError(f"encoder.output {self.output!r} must be one of {', '.join(OUTPUTS)}")

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False):
    """Encodes ln(mel magnitude + 0.01).

    Args:
      mel: (B, T, F), T at least 96.
      length: (B,) valid frames, or None if all are.
      train, track, tokens: not used: nothing is drawn, there are no running statistics, and frames
        are always returned.

    Returns:
      y (B, width) float32 and {"frames": (B, T // 96, width)} float32, whose mean y is.
    """
    del train, track, tokens
    B, T, F = mel.shape
    N = T // EXAMPLE
    # bins before frames: kernels of PyTorch's files turned over have that order
    x = mel[:, : N * EXAMPLE].reshape(B * N, EXAMPLE, F).swapaxes(1, 2)[..., None]
    for i, (_, factor, pooled) in enumerate(CONVOLUTIONS):
      x = nn.relu(
        nn.Conv(
          self.channels * factor,
          (3, 3),
          padding=1,
          dtype=self.dtype,
          kernel_init=init,
          name=f"conv_{i}",
        )(x)
      )
      x = nn.max_pool(x, (2, 2), (2, 2)) if pooled else x
    x = x.swapaxes(1, 2).reshape(B, N, -1)  # of an example: frames, bins, channels
    for i, features in enumerate((self.hidden, self.hidden, self.width)):
      x = nn.relu(nn.Dense(features, dtype=self.dtype, kernel_init=init, name=f"fc_{i}")(x))
    frames = x.astype(jnp.float32)
    if self.output == "quantized":
      frames = Quantizer(name="pca")(frames)
    if length is None:
      return frames.mean(1), {"frames": frames}
    count = length // EXAMPLE
    valid = (jnp.arange(N)[None] < count[:, None])[..., None]
    return jnp.where(valid, frames, 0).sum(1) / jnp.maximum(count, 1)[:, None], {"frames": frames}

  def flops(self, *, frames: int, n_mels: int) -> float:
    """Of convolutions and linear layers, for every example."""
    total, inside, T, F = 0, 1, EXAMPLE, n_mels
    for _, factor, pooled in CONVOLUTIONS:
      total += conv_flops(T, F, 3, inside, self.channels * factor)
      inside = self.channels * factor
      T, F = (T // 2, F // 2) if pooled else (T, F)
    total += 2 * self.hidden * (T * F * inside + self.hidden + self.width)
    total += 2 * self.width**2 * (self.output == "quantized")
    return frames // EXAMPLE * total

  def torch_names(self) -> dict[str, tuple[str, ...]]:
    """Of harritaylor/torchvggish."""
    layers = {f"features.{place}": f"conv_{i}" for i, (place, _, _) in enumerate(CONVOLUTIONS)}
    layers |= {f"embeddings.{place}": f"fc_{i}" for i, place in enumerate(DENSE)}
    names: dict[str, tuple[str, ...]] = {}
    for theirs, ours in layers.items():
      names[f"{theirs}.weight"] = ("params", ours, "kernel")
      names[f"{theirs}.bias"] = ("params", ours, "bias")
    if self.output == "quantized":
      names["pproc.pca_eigen_vectors"] = ("params", "pca", "kernel")
      names["pproc.pca_means"] = ("params", "pca", "mean")
    return names

  def onnx(self, g, x, length, variables, n_mels, mean_over=None, num_blocks=1):
    """The nodes of `__call__`."""
    del mean_over, num_blocks
    params = variables["params"]
    whole = g.op("Mul", g.op("Div", g.size(x, 1), g.ints(EXAMPLE)), g.ints(EXAMPLE))
    batch = g.size(x, 0)
    x = g.op("Slice", x, g.ints(0), whole, g.ints(1))
    x = g.op("Reshape", x, g.ints(-1, 1, EXAMPLE, n_mels))  # (B · N, 1, T, F)
    for i, (_, _, pooled) in enumerate(CONVOLUTIONS):
      kernel, bias = params[f"conv_{i}"]["kernel"], params[f"conv_{i}"]["bias"]
      kernel = g.const(np.asarray(kernel).T)  # out, in, time, mel
      x = g.op("Relu", g.op("Conv", x, kernel, g.const(bias), pads=[1, 1, 1, 1]))
      if pooled:
        x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    inputs = params["fc_0"]["kernel"].shape[0]
    x = g.op("Transpose", x, perm=[0, 2, 3, 1])
    x = g.op("Reshape", x, g.op("Concat", batch, g.ints(-1, inputs), axis=0))
    for i in range(len(DENSE)):
      x = g.op("Relu", g.dense(x, params[f"fc_{i}"]))
    if self.output == "quantized":
      x = g.op("Sub", x, g.const(params["pca"]["mean"]))
      x = g.op("MatMul", x, g.const(params["pca"]["kernel"]))
      x = g.op("Add", g.op("Clip", x, g.const(-CLIP), g.const(CLIP)), g.const(CLIP))
      x = g.op("Round", g.op("Mul", x, g.const(LEVELS / (2 * CLIP))))
    count = g.op("Div", length, g.const(EXAMPLE, np.int64))
    valid = g.mask(x, 1, count, [2])
    count = g.op("Max", g.op("Cast", count, to=1), g.const(1))
    return g.mean(x, valid, count), x


class Quantizer(nn.Module):
  """The released post-processor: principal components of an embedding, clipped to ±2, mapped to
  0…255 and rounded."""

  @nn.compact
  def __call__(self, x):
    """(B, N, D) -> (B, N, D) whole numbers, float32."""
    D = x.shape[-1]
    kernel = self.param("kernel", nn.initializers.orthogonal(), (D, D), jnp.float32)
    mean = self.param("mean", nn.initializers.zeros, (1, D), jnp.float32)
    components = jnp.matmul(x - mean[None], kernel, precision="highest")
    clipped = jnp.clip(components, -CLIP, CLIP)
    return jnp.round((clipped + CLIP) * (LEVELS / (2 * CLIP)))
