"""ATST's encoder: a transformer over patches of log-mel frames."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from atst_jax.models import fused
from atst_jax.models.blocks import BlockEncoder, block_nodes, pool_blocks
from atst_jax.models.layers import linear_init, patchify


class Transformer(BlockEncoder):
  """ATST's encoder (paper 2.2.2, sizes of 3.1): patches of 4 frames, CLS, learned positions,
  pre-norm blocks.

  `max_frames` sizes the table of positions (1001 frames: 250 patches and CLS). Positions beyond the
  training crop are never trained: longer audio has to be cut into chunks of the crop's length.
  """

  max_frames: int

  has_blocks = True
  family = "atst"

  @property
  def blocks(self) -> int:
    """All of them."""
    return self.depth

  @property
  def title(self) -> str:
    """Its kind and depth."""
    return f"transformer of {self.depth} blocks"

  def size(self, num_blocks: int) -> int:
    """CLS and mean of each block."""
    return 2 * num_blocks * self.width

  def pool(self, y, before, length, *, num_blocks, mean_over=None):
    """`pool_blocks`."""
    return pool_blocks(
      before["blocks"],
      length,
      patch_frames=self.patch_frames,
      num_blocks=num_blocks,
      mean_over=mean_over,
    )

  def frames(self, before):
    """The last block's patch tokens."""
    return before["blocks"][-1, :, 1:]

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False):
    """Encodes normalised log-mel.

    Args:
      mel: (B, T, F), T at most `max_frames`.
      length: (B,) valid frames, or None if all are; attention never looks at patches that start
        after the last whole valid patch.
      train: whether branches are dropped, and y alone is wanted: the last block then computes CLS
        only.
      track: not used, there are no running statistics.
      tokens: whether more than y is wanted when training, too.

    Returns:
      y (B, D) float32, the final-normed CLS; and, if not training or with `tokens`, {"blocks":
      (depth, B, 1 + N, D)}, every block's final-normed tokens. With `mutable=["intermediates"]`
      each block leaves its `attention`, (B, H, 1, 1 + N), the weights that CLS gives to the tokens
      (and 0 for tokens that fill up tiles, where `attention` or `kernels` is not "xla").
    """
    del track
    if mel.shape[1] > self.max_frames:
      raise ValueError(
        f"{mel.shape[1]} frames, but encoder.max_frames is {self.max_frames}; "
        "cut the clip into chunks"
      )
    positions = self.max_frames // self.patch_frames
    x = patchify(mel, self.patch_frames).astype(self.dtype)
    x = nn.Dense(self.width, dtype=self.dtype, kernel_init=linear_init, name="patch_embed")(x)
    B, N, D = x.shape
    cls_token = self.param("cls_token", linear_init, (1, 1, D), jnp.float32)
    pos_embed = self.param("pos_embed", linear_init, (1, positions + 1, D), jnp.float32)
    x = jnp.concatenate([jnp.broadcast_to(cls_token, (B, 1, D)).astype(self.dtype), x], 1)
    x = x + pos_embed[:, : N + 1].astype(self.dtype)
    num_tokens = None if length is None else length // self.patch_frames + 1
    x, num_tokens = self.filled(x, num_tokens)
    norm = nn.LayerNorm(1e-6, dtype=jnp.float32, use_fast_variance=False, name="norm")
    only_cls, blocks, branch = train and not tokens, [], None
    for i, block in enumerate(self.make_blocks()):
      queries = 1 if only_cls and i == self.depth - 1 else x.shape[1]
      x, branch = block(x, branch, num_tokens, queries, train)
      if not only_cls or i == self.depth - 1:
        total = x if branch is None else fused.add(x, *branch)
        blocks.append(total[:, : N + 1])
    y = norm(blocks[-1][:, 0])
    if only_cls:
      return y, {}
    return y, {"blocks": jnp.stack([norm(x) for x in blocks])}

  def flops(self, *, frames: int, n_mels: int) -> float:
    """Operations for CLS, of which alone the last block asks everything."""
    D, patches = self.width, frames // self.patch_frames
    tokens = patches + 1

    def block(queries):
      # keys and values of all tokens; queries, projection and perceptron of some; both products
      return 4 * tokens * D**2 + 20 * queries * D**2 + 4 * queries * tokens * D

    embedding = 2 * patches * self.patch_frames * n_mels * D
    return embedding + (self.depth - 1) * block(tokens) + block(1)

  def torch_names(self) -> dict[str, tuple[str, ...]]:
    """Of ATST's released checkpoints."""
    linear, norm = {"weight": "kernel", "bias": "bias"}, {"weight": "scale", "bias": "bias"}
    layers = {"patch_embed.patch_embed": ("patch_embed", linear), "norm": ("norm", norm)}
    for i in range(self.depth):
      layers |= {
        f"blocks.{i}.norm1": (f"block_{i:02d}/norm1", norm),
        f"blocks.{i}.attn.qkv": (f"block_{i:02d}/qkv", {"weight": "kernel"}),
        f"blocks.{i}.attn.proj": (f"block_{i:02d}/proj", linear),
        f"blocks.{i}.norm2": (f"block_{i:02d}/norm2", norm),
        f"blocks.{i}.mlp.fc1": (f"block_{i:02d}/fc1", linear),
        f"blocks.{i}.mlp.fc2": (f"block_{i:02d}/fc2", linear),
      }
    names: dict[str, tuple[str, ...]] = {"cls_token": ("params", "cls_token")}
    names["pos_embed"] = ("params", "pos_embed")
    for name, (path, kinds) in layers.items():
      for theirs, ours in kinds.items():
        names[f"{name}.{theirs}"] = ("params", *path.split("/"), ours)
    return names

  def onnx(self, g, x, length, variables, n_mels, mean_over=None, num_blocks=1):
    """The nodes of `__call__`, `pool` and `frames`."""
    params, P, D = variables["params"], self.patch_frames, self.width
    mean_over = g.op("Div", length if mean_over is None else mean_over, g.const(P, np.int64))
    length = g.op("Div", length, g.const(P, np.int64))  # whole patches
    whole = g.op("Mul", g.op("Div", g.size(x, 1), g.ints(P)), g.ints(P))
    x = g.op("Reshape", g.op("Slice", x, g.ints(0), whole, g.ints(1)), g.ints(0, -1, P, n_mels))
    x = g.op("Reshape", g.op("Transpose", x, perm=[0, 1, 3, 2]), g.ints(0, 0, n_mels * P))
    x = g.dense(x, params["patch_embed"])
    shape = g.op("Concat", g.size(x, 0), g.ints(1, D), axis=0)
    x = g.op("Concat", g.op("Expand", g.const(params["cls_token"]), shape), x, axis=1)
    positions = g.op("Slice", g.const(params["pos_embed"]), g.ints(0), g.size(x, 1), g.ints(1))
    x = g.op("Add", x, positions)
    valid = g.mask(x, 1, g.op("Add", length, g.const(1, np.int64)), [1, 2])

    pooled = []
    for i in range(self.depth):
      x = block_nodes(g, x, valid, params[f"block_{i:02d}"], self.heads)
      if i >= self.depth - num_blocks:
        pooled.append(g.pool(g.norm(x, params["norm"]), length, mean_over))
    cls, means, frames = zip(*pooled, strict=True)
    return g.op("Concat", *cls, *means, axis=1), frames[-1]
