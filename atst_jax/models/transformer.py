"""ATST's encoder: a transformer over patches of log-mel frames."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# the released trunc_normal cuts at ±2, a hundred standard deviations
linear_init = nn.initializers.normal(0.02)


def patchify(mel, frames):
  """(B, T, F) -> (B, T // frames, F · frames), mel-major inside a patch; left-over frames are
  dropped."""
  B, T, F = mel.shape
  N = T // frames
  return mel[:, : N * frames].reshape(B, N, frames, F).swapaxes(2, 3).reshape(B, N, F * frames)


class DropPath(nn.Module):
  """Stochastic depth: drops the whole branch of a clip with probability `rate`, scales the rest by
  1 / (1 - rate)."""

  rate: float

  @nn.compact
  def __call__(self, x, *, train):
    """(B, N, D) -> (B, N, D); `x` itself unless in training."""
    if not train or self.rate == 0:
      return x
    keep = jax.random.bernoulli(self.make_rng("drop_path"), 1 - self.rate, (x.shape[0], 1, 1))
    return jnp.where(keep, x / (1 - self.rate), 0)


def gelu(x):
  """Exact GELU in float32. By erf, which XLA computes in one pass; jax.nn.gelu's erfc takes three
  on a CPU."""
  x32 = x.astype(jnp.float32)
  return (0.5 * x32 * (1 + jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype)


def attention_weights(q, k, num_tokens):
  """softmax(q·kᵀ / √(D / H)) over the first `num_tokens` (B,) of each clip, or all if None, in
  float32.

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

  Heads come first in the products of "xla": faster by a tenth of a step on a CPU than
  jax.nn.dot_product_attention, which computes "cudnn".

  Args:
    q: (B, M, H, D / H).
    k, v: (B, N, H, D / H).

  Returns:
    (B, M, H, D / H).
  """
  if implementation != "xla":
    return jax.nn.dot_product_attention(
      q, k, v, key_value_seq_lengths=num_tokens, implementation=implementation
    )
  return jnp.matmul(attention_weights(q, k, num_tokens).astype(v.dtype), v.swapaxes(1, 2)).swapaxes(
    1, 2
  )


class Projections(nn.Module):
  """Queries, keys and values of all heads, without biases, from one kernel (D, 3 D)."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, queries):
    """(B, N, D) -> (B, queries, D) of the first tokens, and (B, N, 2 D)."""
    B, N, D = x.shape
    kernel = self.param("kernel", linear_init, (D, 3 * D)).astype(self.dtype)
    product = lambda x, kernel: (x.reshape(-1, D) @ kernel).reshape(B, -1, kernel.shape[1])
    if queries < N:
      return product(x[:, :queries], kernel[:, :D]), product(x, kernel[:, D:])
    return tuple(jnp.split(product(x, kernel), [D], -1))


class Block(nn.Module):
  """Pre-norm transformer block: attention without query, key and value biases, MLP of 4 D with
  exact GELU."""

  heads: int
  drop_path: float
  dtype: jnp.dtype
  attention: str

  @nn.compact
  def __call__(self, x, num_tokens, queries, train):
    """(B, N, D), (B,) valid tokens or None -> (B, queries, D), of the first tokens."""
    B, N, D = x.shape
    heads = (self.heads, D // self.heads)
    # Rows of one matrix: products over two axes are slower to differentiate on a CPU.
    dense = lambda features, name: (
      lambda x: nn.Dense(features, dtype=self.dtype, kernel_init=linear_init, name=name)(
        x.reshape(B * queries, -1)
      )
    )
    norm = lambda name: nn.LayerNorm(1e-6, dtype=self.dtype, use_fast_variance=False, name=name)
    q, kv = Projections(self.dtype, name="qkv")(norm("norm1")(x), queries)
    kv = kv.reshape(B, N, 2, *heads)
    q = q.reshape(B, queries, *heads)
    # only where they are asked for: training computes nothing of it
    if self.is_mutable_collection("intermediates"):
      self.sow("intermediates", "attention", attention_weights(q[:, :1], kv[:, :, 0], num_tokens))
    y = attend(q, kv[:, :, 0], kv[:, :, 1], num_tokens, self.attention)
    x = x[:, :queries] + DropPath(self.drop_path)(
      dense(D, "proj")(y).reshape(B, queries, D), train=train
    )
    y = gelu(dense(4 * D, "fc1")(norm("norm2")(x)))
    return x + DropPath(self.drop_path)(dense(D, "fc2")(y).reshape(B, queries, D), train=train)


class Transformer(nn.Module):
  """ATST's encoder (paper 2.2.2, sizes of 3.1): patches of 4 frames, CLS, learned positions,
  pre-norm blocks.

  `max_frames` sizes the table of positions (1001 frames: 250 patches and CLS). Positions beyond the
  training crop are never trained: longer audio has to be cut into chunks of the crop's length.
  """

  width: int
  depth: int
  heads: int
  drop_path: float
  patch_frames: int
  max_frames: int
  dtype: jnp.dtype = jnp.float32
  attention: str = "xla"  # or "cudnn" (`attend`)
  # the backward pass keeps the inputs of the blocks only, and computes the rest again
  remat: bool = False

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False):
    """Encodes normalised log-mel.

    Args:
      mel: (B, T, F), T at most `max_frames`.
      length: (B,) valid frames, or None if all are; attention never looks at patches that start
        after the last whole valid patch.
      train: whether branches are dropped, and y alone is wanted: the last block then computes CLS
        only.
      track: plays no part: there are no running statistics here.
      tokens: whether more than y is wanted when training, too.

    Returns:
      y (B, D) float32, the final-normed CLS; and, if not training or with `tokens`, {"blocks":
      (depth, B, 1 + N, D)}, every block's final-normed tokens. With `mutable=["intermediates"]`
      each block leaves its `attention`, (B, H, 1, 1 + N), the weights that CLS gives to the tokens.
    """
    del track
    if mel.shape[1] > self.max_frames:
      raise ValueError(
        f"{mel.shape[1]} frames, but encoder.max_frames is {self.max_frames}; cut the clip into chunks"
      )
    positions = self.max_frames // self.patch_frames
    x = patchify(mel, self.patch_frames).astype(self.dtype)
    x = nn.Dense(self.width, dtype=self.dtype, kernel_init=linear_init, name="patch_embed")(x)
    B, N, D = x.shape
    cls_token = self.param("cls_token", linear_init, (1, 1, D))
    pos_embed = self.param("pos_embed", linear_init, (1, positions + 1, D))
    x = jnp.concatenate([jnp.broadcast_to(cls_token, (B, 1, D)).astype(self.dtype), x], 1)
    x = x + pos_embed[:, : N + 1].astype(self.dtype)
    num_tokens = None if length is None else length // self.patch_frames + 1
    norm = nn.LayerNorm(1e-6, dtype=jnp.float32, use_fast_variance=False, name="norm")
    make_block = nn.remat(Block, static_argnums=(3, 4)) if self.remat else Block
    only_cls, blocks = train and not tokens, []
    for i in range(self.depth):
      # 0 for the first block, drop_path for the last
      rate = self.drop_path * i / max(self.depth - 1, 1)
      x = make_block(self.heads, rate, self.dtype, self.attention, name=f"block_{i:02d}")(
        x, num_tokens, 1 if only_cls and i == self.depth - 1 else N + 1, train
      )
      blocks.append(x)
    y = norm(x[:, 0])
    if only_cls:
      return y, {}
    return y, {"blocks": jnp.stack([norm(x) for x in blocks])}


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


def transformer_forward(*, frames, n_mels, width, depth, patch_frames) -> float:
  """FLOPs of ATST's encoder on one clip for its CLS token, of which alone the last block asks
  everything."""
  patches = frames // patch_frames
  tokens = patches + 1
  # Keys and values of all tokens; queries, projection and perceptron of some; scores and their
  # product.
  block = lambda queries: (
    4 * tokens * width**2 + 20 * queries * width**2 + 4 * queries * tokens * width
  )
  return 2 * patches * patch_frames * n_mels * width + (depth - 1) * block(tokens) + block(1)
