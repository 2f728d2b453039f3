"""Conformer over log-mel, as Srivastava et al. (2021) pre-train it with the loss of wav2vec 2.0."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from atst_jax.models.depthwise import depthwise
from atst_jax.models.layers import (
  BatchNorm,
  Encoder,
  attend,
  patchify,
  torch_bias_init,
  torch_dense,
  torch_kernel_init,
)

STACKED = 2  # frames of 10 ms for each vector of 20 ms
EPSILON = 1e-5  # of LayerNorm, PyTorch's


def norm(x, name):
  """LayerNorm in float32. A module's method calls it."""
  return nn.LayerNorm(EPSILON, dtype=jnp.float32, use_fast_variance=False, name=name)(x)


class Dense(nn.Module):
  """A linear layer with PyTorch's initialisation."""

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    """(..., D) -> (..., features)."""
    return torch_dense(x, self.features, dtype=self.dtype, name="linear")


class FeedForward(nn.Module):
  """LayerNorm, linear layer, SiLU, linear layer; dropout behind each."""

  hidden: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, *, train):
    """(B, N, D) -> (B, N, D)."""
    drop = nn.Dropout(self.dropout, deterministic=not train)
    h = drop(nn.silu(Dense(self.hidden, self.dtype, name="in")(norm(x, "norm"))))
    return drop(Dense(x.shape[-1], self.dtype, name="out")(h))


class Depthwise(nn.Module):
  """A convolution over time of every channel for itself."""

  kernel: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    """(B, N, D) -> (B, N, D)."""
    D, half = x.shape[-1], self.kernel // 2
    kernel = self.param("kernel", torch_kernel_init, (self.kernel, 1, 1, D), jnp.float32)
    bias = self.param("bias", torch_bias_init(self.kernel), (D,), jnp.float32)
    x, kernel = x[:, :, None].astype(self.dtype), kernel.astype(self.dtype)
    x = depthwise(x, kernel, 1, ((half, half), (0, 0)))[:, :, 0]
    return x + bias.astype(self.dtype)[None, None]


class Convolution(nn.Module):
  """LayerNorm, linear layer to 2 D, GLU, depthwise convolution, BatchNorm, SiLU, linear layer."""

  kernel: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, valid, *, train, track):
    """(B, N, D), and which of them are valid (B, N, 1) or None for all -> (B, N, D). The
    convolution finds 0 where they are not."""
    D = x.shape[-1]
    h = nn.glu(Dense(2 * D, self.dtype, name="in")(norm(x, "norm")))
    h = h if valid is None else jnp.where(valid, h, 0)
    h = Depthwise(self.kernel, self.dtype, name="depthwise")(h)
    h = nn.silu(BatchNorm(name="batch_norm")(h, train=train, track=track)).astype(self.dtype)
    h = Dense(D, self.dtype, name="out")(h)
    return nn.Dropout(self.dropout, deterministic=not train)(h)


class Attention(nn.Module):
  """LayerNorm and self-attention with biases; dropout behind it."""

  heads: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, num_tokens, *, train):
    """(B, N, D), and how many of them are valid (B,) or None for all -> (B, N, D)."""
    B, N, D = x.shape
    qkv = Dense(3 * D, self.dtype, name="qkv")(norm(x, "norm"))
    q, k, v = (part.reshape(B, N, self.heads, -1) for part in jnp.split(qkv, 3, -1))
    y = attend(q, k, v, num_tokens, "xla").reshape(B, N, D)
    y = Dense(D, self.dtype, name="proj")(y)
    return nn.Dropout(self.dropout, deterministic=not train)(y)


class Block(nn.Module):
  """Half a feed-forward, attention, convolution, half a feed-forward, LayerNorm (Gulati et al.,
  2020; torchaudio)."""

  heads: int
  feed_forward: int
  kernel: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, num_tokens, valid, *, train=False, track=True):
    """(B, N, D) float32 -> the same.

    Args:
      num_tokens: (B,) vectors that attention looks at, or None for all.
      valid: (B, N, 1), what the convolution sees, or None for all.
    """
    size, dropout, dtype = self.feed_forward, self.dropout, self.dtype
    x = x + 0.5 * FeedForward(size, dropout, dtype, name="first")(x, train=train)
    x = x + Attention(self.heads, dropout, dtype, name="attention")(x, num_tokens, train=train)
    convolution = Convolution(self.kernel, dropout, dtype, name="convolution")
    x = x + convolution(x, valid, train=train, track=track)
    x = x + 0.5 * FeedForward(size, dropout, dtype, name="second")(x, train=train)
    return norm(x, "norm")


class Conformer(Encoder):
  """Two frames of log-mel stacked, a linear feature encoder, convolutional positions, conformer
  blocks; the mean over time.

  The paper's "large" has 12 blocks of width 768 and 88 million parameters, which a `feed_forward`
  of 1024 gives. Positions are a depthwise convolution of `position_kernel` vectors, added before
  the first block as in wav2vec 2.0; which the paper has is not known.
  """

  width: int
  depth: int
  heads: int
  feed_forward: int
  kernel: int  # vectors of 20 ms
  position_kernel: int  # the same
  dropout: float
  dtype: jnp.dtype = jnp.float32

  has_batch_norm = True
  maskable = True

  @property
  def hop(self) -> int:
    """Frames that are stacked."""
    return STACKED

  @property
  def title(self) -> str:
    """Its kind and depth."""
    return f"conformer of {self.depth} blocks"

  def check(self, n_mels: int) -> None:
    """Raises ValueError if the heads do not divide the width, or a kernel has no middle."""
    if self.width % self.heads:
      raise ValueError(f"encoder.width {self.width} is not divisible by encoder.heads {self.heads}")
    for name in ("kernel", "position_kernel"):
      if getattr(self, name) % 2 == 0:
        raise ValueError(f"encoder.{name} {getattr(self, name)} must be odd")

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False, hidden=None):
    """Encodes normalised log-mel.

    Args:
      mel: (B, T, F); an odd last frame is dropped.
      length: (B,) valid frames, or None if all are: the result is that of the clip alone. When
        training, BatchNorm's statistics would see the padding: pass None.
      train: whether BatchNorm uses the batch's statistics and dropout is on.
      track: whether BatchNorm's running statistics are updated, if training.
      tokens: not used, frames are always returned.
      hidden: (B, T // 2) bool, the vectors of the feature encoder that a learned one replaces;
        none of them by default.

    Returns:
      y (B, D) float32, the mean over valid frames, and {"frames": (B, T // 2, D), "features": (B,
      T // 2, D)} float32: what the blocks and what the feature encoder gives, nothing hidden.
    """
    del tokens
    features = Dense(self.width, self.dtype, name="features")(patchify(mel, STACKED))
    features = features.astype(jnp.float32)
    mask = self.param("mask_embed", nn.initializers.uniform(1.0), (self.width,), jnp.float32)
    x = features if hidden is None else jnp.where(hidden[..., None], mask[None, None], features)
    num_tokens = valid = None
    if length is not None:
      num_tokens = length // STACKED
      valid = (jnp.arange(x.shape[1])[None] < num_tokens[:, None])[..., None]
      x = jnp.where(valid, x, 0)
    places = Depthwise(self.position_kernel, self.dtype, name="positions")(x)
    x = x + nn.gelu(places, approximate=False)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    for i in range(self.depth):
      block = Block(
        self.heads, self.feed_forward, self.kernel, self.dropout, self.dtype, name=f"block_{i:02d}"
      )
      x = block(x, num_tokens, valid, train=train, track=track)
    before = {"frames": x, "features": features}
    if num_tokens is None or valid is None:
      return x.mean(1), before
    return jnp.where(valid, x, 0).sum(1) / jnp.maximum(num_tokens, 1)[:, None], before

  def flops(self, *, frames: int, n_mels: int) -> float:
    """Of linear layers, attention and convolutions."""
    N, D = frames // STACKED, self.width
    block = 8 * D * self.feed_forward + 14 * D**2 + 4 * N * D + 2 * self.kernel * D
    return N * (2 * STACKED * n_mels * D + 2 * self.position_kernel * D + self.depth * block)

  def onnx(self, g, x, length, variables, n_mels, mean_over=None, num_blocks=1):
    """The nodes of `__call__`."""
    del mean_over, num_blocks
    params, statistics = variables["params"], variables["batch_stats"]
    length = g.op("Div", length, g.const(STACKED, np.int64))
    whole = g.op("Mul", g.op("Div", g.size(x, 1), g.ints(STACKED)), g.ints(STACKED))
    x = g.op("Slice", x, g.ints(0), whole, g.ints(1))
    x = g.op("Reshape", x, g.ints(0, -1, STACKED, n_mels))
    x = g.op("Reshape", g.op("Transpose", x, perm=[0, 1, 3, 2]), g.ints(0, 0, n_mels * STACKED))
    x = g.dense(x, params["features"]["linear"])
    valid = g.mask(x, 1, length, [2])
    x = g.op("Where", valid, x, g.const(0))
    x = g.op("Add", x, g.gelu(_depthwise_nodes(g, x, params["positions"])))
    for i in range(self.depth):
      name = f"block_{i:02d}"
      x = self._block_nodes(g, x, length, valid, params[name], statistics[name])
    return g.mean(x, valid, g.op("Cast", length, to=1)), x

  def _block_nodes(self, g, x, length, valid, params: dict, statistics: dict) -> str:
    """Those of `Block`."""
    D, H = self.width, self.heads

    def forward(x, weights):
      h = g.dense(g.norm(x, weights["norm"], EPSILON), weights["in"]["linear"])
      h = g.dense(g.op("Mul", h, g.op("Sigmoid", h)), weights["out"]["linear"])
      return g.op("Add", x, g.op("Mul", h, g.const(0.5)))

    def heads(y, perm):
      return g.op("Transpose", g.op("Reshape", y, g.ints(0, 0, H, D // H)), perm=perm)

    x = forward(x, params["first"])
    attention = params["attention"]
    qkv = g.dense(g.norm(x, attention["norm"], EPSILON), attention["qkv"]["linear"])
    q, k, v = g.op("Split", qkv, g.ints(D, D, D), outputs=3, axis=-1)
    scores = g.op("MatMul", heads(q, [0, 2, 1, 3]), heads(k, [0, 2, 3, 1]))
    scores = g.op("Mul", scores, g.const((D // H) ** -0.5))
    seen = g.mask(x, 1, length, [1, 2])
    scores = g.op("Where", seen, scores, g.const(np.finfo(np.float32).min))
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), heads(v, [0, 2, 1, 3]))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, D))
    x = g.op("Add", x, g.dense(y, attention["proj"]["linear"]))
    module, running = params["convolution"], statistics["convolution"]["batch_norm"]
    h = g.dense(g.norm(x, module["norm"], EPSILON), module["in"]["linear"])
    h, gate = g.op("Split", h, g.ints(D, D), outputs=2, axis=-1)
    h = g.op("Where", valid, g.op("Mul", h, g.op("Sigmoid", gate)), g.const(0))
    norm = module["batch_norm"]
    arrays = (norm["scale"], norm["bias"], running["mean"], running["var"])
    h = g.op("Transpose", _depthwise_nodes(g, h, module["depthwise"]), perm=[0, 2, 1])
    h = g.op("BatchNormalization", h, *map(g.const, arrays), epsilon=BatchNorm.epsilon)
    h = g.op("Transpose", g.op("Mul", h, g.op("Sigmoid", h)), perm=[0, 2, 1])
    x = forward(g.op("Add", x, g.dense(h, module["out"]["linear"])), params["second"])
    return g.norm(x, params["norm"], EPSILON)


def _depthwise_nodes(g, x, weights: dict) -> str:
  """Those of `Depthwise`: (B, N, D) -> (B, N, D)."""
  kernel = np.asarray(weights["kernel"])[:, 0].transpose(2, 1, 0)
  half = kernel.shape[-1] // 2
  x = g.op("Transpose", x, perm=[0, 2, 1])
  options = {"pads": [half, half], "group": len(kernel)}
  x = g.op("Conv", x, g.const(kernel), g.const(weights["bias"]), **options)
  return g.op("Transpose", x, perm=[0, 2, 1])
