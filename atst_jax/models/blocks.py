"""The blocks of the transformers."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.models import fused, pallas_kernels
from atst_jax.models.fused import product
from atst_jax.models.layers import (
  DropPath,
  Encoder,
  Linear,
  Norm,
  attend,
  attention_weights,
  linear_init,
)


class Projections(nn.Module):
  """Queries, keys and values of all heads from one kernel (D, 3 D)."""

  dtype: jnp.dtype
  apart: bool  # three products, whose results need no split: less traffic, more calls
  use_bias: bool

  @nn.compact
  def __call__(self, x, queries):
    """(B, N, D) -> (B, queries, D) of the first tokens, and twice (B, N, D)."""
    D = x.shape[-1]
    kernel = self.param("kernel", linear_init, (D, 3 * D), jnp.float32).astype(self.dtype)
    parts = self._products(x, queries, kernel)
    if not self.use_bias:
      return parts
    bias = self.param("bias", nn.initializers.zeros, (3 * D,), jnp.float32).astype(self.dtype)
    return [y + b.reshape(1, 1, D) for y, b in zip(parts, jnp.split(bias, 3), strict=True)]

  def _products(self, x, queries, kernel):
    _, N, D = x.shape
    if self.apart:
      q, k, v = jnp.split(kernel, 3, 1)
      return product(x[:, :queries], q), product(x, k), product(x, v)
    if queries == N:
      return jnp.split(product(x, kernel), 3, -1)
    q, kv = jnp.split(kernel, [D], 1)
    return product(x[:, :queries], q), *jnp.split(product(x, kv), 2, -1)


class Branch(NamedTuple):
  """What is still to be added to the residual stream: (x + bias) * scale of each clip."""

  x: jax.Array
  scale: jax.Array
  bias: jax.Array


class Block(nn.Module):
  """Pre-norm transformer block: attention, MLP of 4 D with exact GELU."""

  heads: int
  drop_path: float
  dtype: jnp.dtype
  attention: str
  kernels: str
  whole: bool  # add the last branch here: one array to keep for a block that is computed again
  qkv_bias: bool = False  # of queries, keys and values; ATST has none

  @nn.compact
  def __call__(self, x, branch, num_tokens, queries, train):
    """One block over (B, N, D), to which `branch`, what the block before left, is added first.

    Args:
      num_tokens: (B,) valid tokens, or None if all are.
      queries: how many of the first tokens to compute.

    Returns:
      (B, queries, D) and a Branch to add to it, or None if that is done.
    """
    B, N, D = x.shape
    heads = (self.heads, D // self.heads)
    scale, bias = Norm(name="norm1")(D)
    if branch is None:
      n = fused.norm(x, scale, bias)
    else:
      x, n = fused.add_norm(x, *branch, scale, bias, self.kernels)
    projections = Projections(self.dtype, self.kernels == "pallas", self.qkv_bias, name="qkv")
    q, k, v = projections(n, queries)
    q, k, v = q.reshape(B, queries, *heads), k.reshape(B, N, *heads), v.reshape(B, N, *heads)
    # only where they are asked for: training computes nothing of it
    if self.is_mutable_collection("intermediates"):
      self.sow("intermediates", "attention", attention_weights(q[:, :1], k, num_tokens))
    y = attend(q, k, v, num_tokens, self.attention).reshape(B, queries, D)
    kernel, bias = Linear(D, name="proj")(D, self.dtype)
    kept = DropPath(self.drop_path)(B, train=train)
    x, n = fused.add_norm(
      x[:, :queries], product(y, kernel), kept, bias, *Norm(name="norm2")(D), self.kernels
    )
    kernel, bias = Linear(4 * D, name="fc1")(D, self.dtype)
    h = product(n, kernel)
    out, out_bias = Linear(D, name="fc2")(4 * D, self.dtype)
    y = fused.gelu_product(h, bias, out, self.kernels)
    branch = Branch(y, DropPath(self.drop_path)(B, train=train), out_bias)
    return (fused.add(x, *branch), None) if self.whole else (x, branch)


def pool_blocks(blocks, length, *, patch_frames, num_blocks, mean_over=None):
  """The released code's embedding: [CLS of each block…, mean of each block's valid patches…],
  shallow to deep.

  Args:
    blocks: (depth, B, 1 + N, D) of `Transformer`.
    length: (B,) valid frames.
    num_blocks: how many of the last blocks to take.
    mean_over: (B,) frames whose patches the sum is divided by; `length` by default.

  Returns:
    (B, 2 · num_blocks · D).
  """
  blocks = blocks[-num_blocks:]
  _, B, tokens, _ = blocks.shape
  valid = (jnp.arange(tokens - 1)[None] < length[:, None] // patch_frames).astype(blocks.dtype)
  count = (length if mean_over is None else mean_over) // patch_frames + 1e-6
  mean = (
    jnp.einsum("lbnd,bn->lbd", blocks[:, :, 1:], valid, precision="highest") / count[None, :, None]
  )
  return jnp.concatenate([blocks[:, :, 0], mean]).swapaxes(0, 1).reshape(B, -1)


def block_nodes(g, x: str, valid: str, weights: dict, heads: int) -> str:
  """The ONNX nodes of `Block`.

  Args:
    g: the `programs.graph.Graph`.
    x, valid: names of (B, N, D), and of (B, 1, 1, N) bool: the tokens that are seen.
    weights: of the block.

  Returns:
    The name of (B, N, D).
  """
  D = weights["proj"]["kernel"].shape[0]

  def apart(y, perm):
    return g.op("Transpose", g.op("Reshape", y, g.ints(0, 0, heads, D // heads)), perm=perm)

  qkv = g.op("MatMul", g.norm(x, weights["norm1"]), g.const(weights["qkv"]["kernel"]))
  if "bias" in weights["qkv"]:
    qkv = g.op("Add", qkv, g.const(weights["qkv"]["bias"]))
  q, k, v = g.op("Split", qkv, g.ints(D, D, D), outputs=3, axis=-1)
  scores = g.op("MatMul", apart(q, [0, 2, 1, 3]), apart(k, [0, 2, 3, 1]))
  scores = g.op("Mul", scores, g.const((D // heads) ** -0.5))
  scores = g.op("Where", valid, scores, g.const(np.finfo(np.float32).min))
  y = g.op("MatMul", g.op("Softmax", scores, axis=-1), apart(v, [0, 2, 1, 3]))
  y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, D))
  x = g.op("Add", x, g.dense(y, weights["proj"]))
  y = g.gelu(g.dense(g.norm(x, weights["norm2"]), weights["fc1"]))
  return g.op("Add", x, g.dense(y, weights["fc2"]))


class BlockEncoder(Encoder, kw_only=True):
  """What the transformers share: their sizes, how their blocks are computed, and the blocks."""

  width: int
  depth: int
  heads: int
  drop_path: float
  patch_frames: int
  dtype: jnp.dtype = jnp.float32
  attention: str = "xla"  # or "cudnn" (`attend`)
  kernels: str = "xla"  # or "pallas" (`fused`)
  # the backward pass keeps the inputs of the blocks only, and computes the rest again
  remat: bool = False

  @property
  def hop(self) -> int:
    """Frames of a patch."""
    return self.patch_frames

  def check(self, n_mels: int) -> None:
    """Raises ValueError if the heads do not divide the width."""
    if self.width % self.heads:
      raise ValueError(f"encoder.width {self.width} is not divisible by encoder.heads {self.heads}")

  def unsuited(self) -> dict[str, str]:
    """cuDNN takes heads of some sizes, the kernels take widths of whole tiles."""
    needs, head = {}, self.width // self.heads
    if head % 8 or head > 128:
      needs["cudnn"] = f"heads of a multiple of 8, up to 128 (encoder.width / heads is {head})"
    if not pallas_kernels.fits_width(self.width):
      needs["pallas"] = f"an encoder.width that 64 divides (it is {self.width})"
    return needs

  def filled(self, x, num_tokens):
    """(B, N, D) and valid tokens (B,) or None -> the same with whole tiles of tokens for the
    kernels, which is an even number of them for cuDNN."""
    B, N, _ = x.shape
    missing = -N % pallas_kernels.ROWS
    if not missing or (self.attention, self.kernels) == ("xla", "xla"):
      return x, num_tokens
    num_tokens = jnp.full((B,), N, jnp.int32) if num_tokens is None else num_tokens
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0))), num_tokens

  def make_blocks(self, **options) -> list[Block]:
    """All blocks; the rate of stochastic depth grows from 0. `__call__` calls it."""
    make = nn.remat(Block, static_argnums=(4, 5)) if self.remat else Block
    how = (self.dtype, self.attention, self.kernels, self.remat)
    rates = [self.drop_path * i / max(self.depth - 1, 1) for i in range(self.depth)]
    return [
      make(self.heads, rate, *how, name=f"block_{i:02d}", **options) for i, rate in enumerate(rates)
    ]
