"""What an encoder is, and parts of networks: pooling, attention, BYOL's heads, BatchNorm."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

# ATST's linear layers; the released trunc_normal cuts at ±2, a hundred standard deviations
linear_init = nn.initializers.normal(0.02)


class Encoder(nn.Module):
  """An encoder, and what the code around it asks of its kind. A new kind overrides what it needs.

  Its fields are the keys of a config's `encoder` section. `__call__(mel, length=None, *,
  train=False, track=True, tokens=False)` takes normalised log-mel (B, T, F) and valid frames (B,)
  or None. It returns y (B, D) float32, what the projector sees, and what lies before it:
  {"frames": (B, N, D)}, or {"blocks": (depth, B, 1 + N, D)} of a kind with blocks.
  """

  has_blocks = False  # behind a CLS token: its attention, layers to choose from, stochastic depth
  has_batch_norm = False  # padding inside a batch would change its statistics
  maskable = False  # `__call__` takes `hidden`, which of its "features" a learned vector replaces
  any_length = False  # nothing is bound to the length of the training crop
  # evaluated as BYOL-A is: clips of the task's length, standardised by the task's statistics
  unit_protocol = False
  choices: ClassVar[dict[str, tuple[str, ...]]] = {}  # of fields that are names
  family = ""  # of the released PyTorch files that it can be written to and read from

  @property
  def hop(self) -> int:
    """Input frames for each vector over time."""
    raise NotImplementedError

  @property
  def centre(self) -> float:
    """The middle of what the first vector over time sees, in frames behind the first one."""
    return (self.hop - 1) / 2

  @property
  def context(self) -> int | None:
    """Frames (n · hop) that a frame's vector sees around it; given, y is their `pool_frames`."""
    return None

  @property
  def blocks(self) -> int:
    """Blocks whose vectors can be taken."""
    return 1

  @property
  def rounding(self) -> float:
    """What the numbers of a vector are rounded to."""
    return 0.0

  @property
  def title(self) -> str:
    """What it is, for people."""
    return type(self).__name__

  def check(self, n_mels: int) -> None:
    """Raises ValueError for sizes that do not fit each other or the mel bins."""

  def unsuited(self) -> dict[str, str]:
    """What the implementations of NVIDIA's GPUs need and it does not have: "cudnn" (attention) or
    "pallas" (kernels) -> the flags to set."""
    return dict.fromkeys(("cudnn", "pallas"), "--config.encoder.kind=transformer")

  def size(self, num_blocks: int) -> int:
    """Numbers in a vector of `pool`."""
    return self.width

  def pool(self, y, before, length, *, num_blocks, mean_over=None):
    """The vectors (B, `size`) of clips, from what `__call__` returned for `length` (B,) frames."""
    return y

  def frames(self, before):
    """The vectors over time (B, N, D), from what `__call__` returned."""
    return before["frames"]

  def flops(self, *, frames: int, n_mels: int) -> float:
    """Floating-point operations of one clip's y."""
    raise NotImplementedError

  def torch_names(self) -> dict[str, tuple[str, ...]]:
    """Name in its family's PyTorch files -> path in the variables, of every tensor."""
    raise NotImplementedError

  def onnx(
    self, g, x: str, length: str, variables: dict, n_mels: int, mean_over=None, num_blocks=1
  ):
    """Adds its nodes to an ONNX graph.

    Args:
      g: the `programs.graph.Graph`.
      x, length: names of the input (B, T, F), T at least `hop`, and of its valid frames (B,) int64.
      variables: its arrays.
      n_mels: F.
      mean_over: name of `pool`'s argument, (B,) int64; `length` by default.
      num_blocks: of `pool`.

    Returns:
      The names of the vectors (B, D') of `pool` and of `frames`.
    """
    raise NotImplementedError


def pool_frames(frames, length=None):
  """Maximum plus mean over the valid vectors of a clip: (B, N, D), (B,) or None -> (B, D) (BYOL-A).

  The gradient of `x.max()` goes where x equals the maximum. A compiler may compute x anew for that
  comparison, with another rounding, and then the gradient is lost. Here it goes to the vector that
  was chosen; of equal maxima, to the first.
  """
  place = jnp.arange(frames.shape[1])[None, :, None]
  if length is None:
    chosen = frames.argmax(1, keepdims=True)
    mean = frames.mean(1)
  else:
    valid = place < length[:, None, None]
    chosen = jnp.where(valid, frames, -jnp.inf).argmax(1, keepdims=True)
    mean = jnp.where(valid, frames, 0).sum(1) / jnp.maximum(length, 1)[:, None]
  return jnp.where(place == chosen, frames, 0).sum(1) + mean


def patchify(mel, frames):
  """(B, T, F) -> (B, T // frames, F · frames), mel-major inside a patch; left-over frames are
  dropped."""
  B, T, F = mel.shape
  N = T // frames
  return mel[:, : N * frames].reshape(B, N, frames, F).swapaxes(2, 3).reshape(B, N, F * frames)


class Linear(nn.Module):
  """The parameters of a linear layer, whose product and bias are computed apart."""

  features: int

  @nn.compact
  def __call__(self, width, dtype):
    """Kernel (width, features) of `dtype` and bias (features,) float32."""
    kernel = self.param("kernel", linear_init, (width, self.features), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
    return kernel.astype(dtype), bias


class Norm(nn.Module):
  """The parameters of a LayerNorm."""

  @nn.compact
  def __call__(self, width):
    """Scale and bias (width,) float32."""
    scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
    return scale, self.param("bias", nn.initializers.zeros, (width,), jnp.float32)


class DropPath(nn.Module):
  """Stochastic depth: what a clip's branch is multiplied by, 0 with probability `rate`, or else
  1 / (1 - rate)."""

  rate: float

  @nn.compact
  def __call__(self, clips, *, train):
    """(clips,) float32; all 1 unless in training."""
    if not train or self.rate == 0:
      return jnp.ones((clips,), jnp.float32)
    keep = jax.random.bernoulli(self.make_rng("drop_path"), 1 - self.rate, (clips, 1, 1))
    return keep[:, 0, 0] / (1 - self.rate)


def attention_weights(q, k, num_tokens):
  """softmax(q·kᵀ / √(D / H)) in float32 over the first `num_tokens` (B,) of each clip, or all.

  Args:
    q: (B, M, H, D / H).
    k: (B, N, H, D / H).

  Returns:
    (B, H, M, N).
  """
  q, k = q.swapaxes(1, 2), k.swapaxes(1, 2)
  scores = jnp.matmul(q, k.swapaxes(2, 3), preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  if num_tokens is not None:
    valid = jnp.arange(k.shape[2])[None] < num_tokens[:, None]
    scores = jnp.where(valid[:, None, None], scores, jnp.finfo(jnp.float32).min)
  return jax.nn.softmax(scores)


def attend(q, k, v, num_tokens, implementation):
  """Attention over the first `num_tokens` (B,) of each clip, or all if None; softmax in float32.

  "xla" multiplies with the heads first: on a CPU a step is a tenth faster than with
  jax.nn.dot_product_attention, which computes "cudnn".

  Args:
    q: (B, M, H, D / H).
    k, v: (B, N, H, D / H).

  Returns:
    (B, M, H, D / H).
  """
  if implementation == "cudnn" and q.shape[1] > 1:  # one query, of the last block, stays with XLA
    # Without a gradient for an odd number of tokens (jax 0.10 to 0.12, NotImplementedError).
    lengths = {"query_seq_lengths": num_tokens, "key_value_seq_lengths": num_tokens}
    return jax.nn.dot_product_attention(q, k, v, **lengths, implementation="cudnn")
  weights = attention_weights(q, k, num_tokens).astype(v.dtype)
  return jnp.matmul(weights, v.swapaxes(1, 2)).swapaxes(1, 2)


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
    """(..., D) -> (..., out) float32; `train` normalises by the batch and updates statistics."""
    dense = functools.partial(torch_dense, use_bias=self.use_bias, dtype=self.dtype)
    h = BatchNorm(name="norm")(dense(x, self.hidden, name="hidden"), train=train)
    return dense(nn.relu(h).astype(self.dtype), self.out, name="out").astype(jnp.float32)


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
    channels, axes = x.shape[-1], tuple(range(x.ndim - 1))
    wide = lambda v: v.reshape((1,) * len(axes) + (-1,))
    x = x.astype(jnp.float32)
    if self.affine:
      scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
      bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
    running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
    if train:
      mean = x.mean(axes)
      var = jnp.square(x - wide(mean)).mean(axes)
      if track and not self.is_initializing():
        count = x.size // channels
        keep = self.momentum
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * var * count / max(count - 1, 1)
    else:
      mean, var = running_mean.value, running_var.value
    if not self.affine:
      return (x - wide(mean)) / wide(jnp.sqrt(var + self.epsilon))
    factor = scale / jnp.sqrt(var + self.epsilon)
    return (x - wide(mean)) * wide(factor) + wide(bias)


# U(±1 / sqrt(fan_in))
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias_init(fan_in):
  """U(±1 / sqrt(fan_in)), for the bias of a layer of `fan_in` inputs."""
  limit = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


def torch_dense(x, features, *, name, dtype=None, use_bias=True):
  """(..., D) -> (..., features) by a linear layer `name` of the module that calls this, with
  PyTorch's initialisation."""
  return nn.Dense(
    features,
    use_bias,
    dtype=dtype,
    kernel_init=torch_kernel_init,
    bias_init=torch_bias_init(x.shape[-1]),
    name=name,
  )(x)
