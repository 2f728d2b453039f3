"""ATST's encoder: a transformer over patches of log-mel frames."""

import flax.linen as nn
import jax
import jax.numpy as jnp

linear_init = nn.initializers.normal(0.02)  # the released trunc_normal cuts at ±2, a hundred standard deviations


def patchify(mel, frames):
  """(B, T, F) -> (B, T // frames, F · frames), mel-major inside a patch; left-over frames are dropped."""
  B, T, F = mel.shape
  N = T // frames
  return mel[:, : N * frames].reshape(B, N, frames, F).swapaxes(2, 3).reshape(B, N, F * frames)


class DropPath(nn.Module):
  """Stochastic depth: drops the whole branch of a clip with probability `rate`, scales the rest by 1 / (1 - rate)."""

  rate: float

  @nn.compact
  def __call__(self, x, *, train):
    if not train or self.rate == 0:
      return x
    keep = jax.random.bernoulli(self.make_rng("drop_path"), 1 - self.rate, (x.shape[0], 1, 1))
    return jnp.where(keep, x / (1 - self.rate), 0)


class Block(nn.Module):
  """Pre-norm transformer block: attention without query, key and value biases, MLP of 4 D with exact GELU."""

  heads: int
  drop_path: float
  dtype: jnp.dtype
  attention: str

  @nn.compact
  def __call__(self, x, num_tokens, train):
    """(B, N, D), (B,) valid tokens or None -> (B, N, D)."""
    B, N, D = x.shape
    dense = lambda features, name, use_bias=True: nn.Dense(
      features, use_bias=use_bias, dtype=self.dtype, kernel_init=linear_init, name=name
    )
    norm = lambda name: nn.LayerNorm(1e-6, dtype=self.dtype, use_fast_variance=False, name=name)
    qkv = dense(3 * D, "qkv", use_bias=False)(norm("norm1")(x)).reshape(B, N, 3, self.heads, D // self.heads)
    y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], key_value_seq_lengths=num_tokens,
                                     implementation=self.attention)  # fmt: skip
    y = dense(D, "proj")(y.reshape(B, N, D))
    x = x + DropPath(self.drop_path)(y, train=train)
    y = nn.gelu(dense(4 * D, "fc1")(norm("norm2")(x)), approximate=False)
    return x + DropPath(self.drop_path)(dense(D, "fc2")(y), train=train)


class Transformer(nn.Module):
  """ATST's encoder (paper 2.2.2, sizes of 3.1): patches of 4 frames, CLS, learned positions, pre-norm blocks.

  `max_frames` sizes the table of positions (1001 frames: 250 patches and CLS). Positions beyond the training crop are
  never trained: longer audio has to be cut into chunks of the crop's length.
  """

  width: int
  depth: int
  heads: int
  drop_path: float
  patch_frames: int
  max_frames: int
  dtype: jnp.dtype = jnp.float32
  attention: str = "xla"  # implementation of jax.nn.dot_product_attention
  remat: bool = False  # the backward pass keeps the inputs of the blocks only, and computes the rest again

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True):
    """Encodes normalised log-mel.

    Args:
      mel: (B, T, F), T at most `max_frames`.
      length: (B,) valid frames, or None if all are; attention never looks at patches that start after the last whole
        valid patch.
      train: whether branches are dropped.
      track: plays no part: there are no running statistics here.

    Returns:
      y (B, D) float32, the final-normed CLS; and {"blocks": (depth, B, 1 + N, D)}, every block's final-normed tokens.
    """
    del track
    if mel.shape[1] > self.max_frames:
      raise ValueError(f"{mel.shape[1]} frames, but encoder.max_frames is {self.max_frames}; cut the clip into chunks")
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
    make_block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
    blocks = []
    for i in range(self.depth):
      rate = self.drop_path * i / max(self.depth - 1, 1)  # 0 for the first block, drop_path for the last
      x = make_block(self.heads, rate, self.dtype, self.attention, name=f"block_{i:02d}")(x, num_tokens, train)
      blocks.append(x)
    y = norm(x[:, 0])
    return y, {"blocks": jnp.stack([norm(x) for x in blocks])}


def pool_blocks(blocks, length, *, patch_frames, num_blocks, mean_over=None):
  """The released code's embedding: [CLS of each block…, mean of each block's valid patches…], shallow to deep.

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
  mean = jnp.einsum("lbnd,bn->lbd", blocks[:, :, 1:], valid, precision="highest") / count[None, :, None]
  return jnp.concatenate([blocks[:, :, 0], mean]).swapaxes(0, 1).reshape(B, -1)
