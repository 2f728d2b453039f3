"""SSAST's encoder: a transformer over patches of frequency and time."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from atst_jax.models import fused
from atst_jax.models.blocks import BlockEncoder, block_nodes
from atst_jax.models.layers import linear_init, torch_bias_init, torch_kernel_init

FIRST = 2  # tokens before the patches: CLS and DIST (DeiT's distillation token)


def unfold(mel, patch_mels: int, patch_frames: int):
  """Cuts log-mel into patches without overlap.

  Args:
    mel: (B, T, F); frames and bins that make no whole patch are dropped.

  Returns:
    (B, rows, times, patch_mels · patch_frames); inside a patch bin by bin, of each all its frames.
  """
  B, T, F = mel.shape
  rows, times = F // patch_mels, T // patch_frames
  mel = mel[:, : times * patch_frames, : rows * patch_mels]
  mel = mel.reshape(B, times, patch_frames, rows, patch_mels)
  return mel.transpose(0, 3, 1, 4, 2).reshape(B, rows, times, patch_mels * patch_frames)


def place(table, count, times: int):
  """The positions of clips of so many patches over time, from a table for M of them.

  A shorter clip has the centre of the table, a longer one interpolates it linearly, edges of cells
  on edges (SSAST's fine-tuning).

  Args:
    table: (M, ...).
    count: (B,) patches over time of each clip.
    times: that they are padded to.

  Returns:
    (B, times, ...).
  """
  M, at = table.shape[0], jnp.arange(times)[None]
  count = jnp.maximum(count, 1)[:, None]
  centre = table[jnp.clip(at + M // 2 - count // 2, 0, M - 1)]
  if isinstance(times, int) and times <= M:  # an exported program's may be free
    return centre
  spread = jnp.clip((at + 0.5) * M / count - 0.5, 0, M - 1)
  below = jnp.floor(spread).astype(jnp.int32)
  wide = lambda x: x.reshape(*x.shape, *[1] * (table.ndim - 1))
  share = wide(spread - below)
  between = (1 - share) * table[below] + share * table[jnp.minimum(below + 1, M - 1)]
  return jnp.where(wide(count > M), between, centre)


class PatchEmbed(nn.Module):
  """The linear layer of a patch; its kernel is a convolution's, (frames, mels, 1, D)."""

  width: int
  patch_mels: int
  patch_frames: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, patches):
    """(..., mels · frames) of `unfold` -> (..., D)."""
    size, D = self.patch_mels * self.patch_frames, self.width
    shape = (self.patch_frames, self.patch_mels, 1, D)
    kernel = self.param("kernel", torch_kernel_init, shape, jnp.float32)
    bias = self.param("bias", torch_bias_init(size), (D,), jnp.float32)
    kernel = kernel.swapaxes(0, 1).reshape(size, D).astype(self.dtype)
    y = patches.astype(self.dtype) @ kernel
    return y + bias.astype(self.dtype).reshape([1] * (y.ndim - 1) + [D])


class PatchTransformer(BlockEncoder):
  """SSAST's encoder (paper 2.1, released code): patches of `patch_mels` bins and `patch_frames`
  frames, CLS and DIST, learned positions, pre-norm blocks. A vector is the mean over patches.

  `position_frames` sizes the table of positions (`place`): the frames of a clip of pre-training.
  """

  patch_mels: int
  position_frames: int

  maskable = True
  family = "ssast"

  @property
  def title(self) -> str:
    """Its kind and depth."""
    return f"patch transformer of {self.depth} blocks"

  def check(self, n_mels: int) -> None:
    """Raises ValueError if patches do not divide the mel bins, or heads the width."""
    super().check(n_mels)
    if n_mels % self.patch_mels:
      raise ValueError(
        f"encoder.patch_mels {self.patch_mels} does not divide the {n_mels} mel bins"
      )
    if self.position_frames < self.patch_frames:
      raise ValueError(
        f"encoder.position_frames {self.position_frames} is shorter than a patch of "
        f"{self.patch_frames} frames"
      )

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False, hidden=None):
    """Encodes normalised log-mel.

    Args:
      mel: (B, T, F).
      length: (B,) valid frames, or None if all are: the result is that of the clip alone.
      train: whether branches are dropped.
      track, tokens: not used: there are no running statistics, and tokens are always returned.
      hidden: (B, N) bool, the embedded patches that a learned vector replaces; None: none of them.
        Patches are counted row of bins by row of bins, N = rows · times.

    Returns:
      y (B, D) float32, the mean over valid patches, and {"frames": (B, times, D), the mean over the
      rows; "tokens": (B, N, D), every patch's; "features": (B, N, D), the embedded patches, nothing
      hidden}. All float32.
    """
    del track, tokens
    B, D = mel.shape[0], self.width
    patches = unfold(mel, self.patch_mels, self.patch_frames)
    rows, times = patches.shape[1:3]
    embed = PatchEmbed(D, self.patch_mels, self.patch_frames, self.dtype, name="patch_embed")
    # inside, time by time: so what is valid comes first
    inside = lambda x: x.reshape(B, rows, times, -1).swapaxes(1, 2).reshape(B, times * rows, -1)
    outside = lambda x: x.reshape(B, times, rows, -1).swapaxes(1, 2).reshape(B, rows * times, -1)
    x = features = embed(inside(patches))
    xavier = nn.initializers.normal(D**-0.5)  # of (1, 1, D) by PyTorch's count
    mask = self.param("mask_embed", xavier, (1, 1, D), jnp.float32)
    if hidden is not None:
      x = jnp.where(inside(hidden), mask.astype(self.dtype), x)
    count = None if length is None else length // self.patch_frames
    x = self._with_positions(x, rows, times, count)
    x = self._through_blocks(x, None if count is None else FIRST + rows * count, train)
    x = nn.LayerNorm(1e-6, dtype=jnp.float32, use_fast_variance=False, name="norm")(x)
    x = x[:, FIRST:]
    frames = x.reshape(B, times, rows, D).mean(2)
    if count is None:
      y = frames.mean(1)
    else:
      heard = jnp.arange(times)[None] < count[:, None]
      y = jnp.where(heard[..., None], frames, 0).sum(1) / jnp.maximum(count, 1)[:, None]
    features = outside(features).astype(jnp.float32)
    return y, {"frames": frames, "tokens": outside(x), "features": features}

  def _with_positions(self, x, rows, times, count):
    """(B, times · rows, D) -> (B, 2 + times · rows, D), with CLS, DIST and positions."""
    B, _, D = x.shape
    M = self.position_frames // self.patch_frames
    named = lambda name, size: self.param(name, linear_init, (1, size, D), jnp.float32)
    first = jnp.concatenate([named("cls_token", 1), named("dist_token", 1)], 1)
    positions = named("pos_embed", FIRST + rows * M)
    table = positions[0, FIRST:].reshape(rows, M, D).swapaxes(0, 1)
    count = jnp.full((1,), times) if count is None else count
    placed = place(table, count, times).reshape(-1, times * rows, D)
    first = jnp.broadcast_to(first + positions[:, :FIRST], (B, FIRST, D)).astype(self.dtype)
    return jnp.concatenate([first, x + placed.astype(self.dtype)], 1)

  def _through_blocks(self, x, num_tokens, train):
    """(B, N, D) -> (B, N, D): every block, of which the first `num_tokens` (B,) are seen."""
    N, branch = x.shape[1], None
    x, num_tokens = self.filled(x, num_tokens)
    for block in self.make_blocks(qkv_bias=True):
      x, branch = block(x, branch, num_tokens, x.shape[1], train)
    return (x if branch is None else fused.add(x, *branch))[:, :N]

  def flops(self, *, frames: int, n_mels: int) -> float:
    """Operations for all tokens, of which y is the mean."""
    D, patch = self.width, self.patch_mels * self.patch_frames
    patches = (frames // self.patch_frames) * (n_mels // self.patch_mels)
    tokens = patches + FIRST
    return 2 * patches * patch * D + self.depth * (24 * tokens * D**2 + 4 * tokens**2 * D)

  def torch_names(self) -> dict[str, tuple[str, ...]]:
    """Of SSAST's released checkpoints."""
    linear, norm = {"weight": "kernel", "bias": "bias"}, {"weight": "scale", "bias": "bias"}
    layers = {"patch_embed.proj": ("patch_embed", linear), "norm": ("norm", norm)}
    for i in range(self.depth):
      for theirs, ours in (
        *(("norm1", "norm1"), ("attn.qkv", "qkv"), ("attn.proj", "proj")),
        *(("norm2", "norm2"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")),
      ):
        kinds = norm if ours.startswith("norm") else linear
        layers[f"blocks.{i}.{theirs}"] = (f"block_{i:02d}/{ours}", kinds)
    names: dict[str, tuple[str, ...]] = {"module.mask_embed": ("params", "mask_embed")}
    names |= {
      f"module.v.{name}": ("params", name) for name in ("cls_token", "dist_token", "pos_embed")
    }
    for name, (path, kinds) in layers.items():
      for theirs, ours in kinds.items():
        names[f"module.v.{name}.{theirs}"] = ("params", *path.split("/"), ours)
    return names

  def onnx(self, g, x, length, variables, n_mels, mean_over=None, num_blocks=1):
    """The nodes of `__call__`."""
    del mean_over, num_blocks
    params, P, D = variables["params"], self.patch_frames, self.width
    rows, M = n_mels // self.patch_mels, self.position_frames // self.patch_frames
    count = g.op("Div", length, g.const(P, np.int64))
    whole = g.op("Mul", g.op("Div", g.size(x, 1), g.ints(P)), g.ints(P))
    x = g.op("Slice", x, g.ints(0), whole, g.ints(1))
    x = g.op("Reshape", x, g.ints(0, -1, P, rows, self.patch_mels))
    x = g.op("Transpose", x, perm=[0, 1, 3, 4, 2])
    times = g.range(g.size(x, 1))
    x = g.op("Reshape", x, g.ints(0, -1, self.patch_mels * P))
    embed = params["patch_embed"]
    kernel = np.swapaxes(embed["kernel"], 0, 1).reshape(-1, D)
    x = g.dense(x, {"kernel": kernel, "bias": embed["bias"]})
    table = np.swapaxes(np.reshape(params["pos_embed"][0, FIRST:], (rows, M, D)), 0, 1)
    placed = _place_nodes(g, table.reshape(M, rows * D), count, times)
    x = g.op("Add", x, g.op("Reshape", placed, g.ints(0, -1, D)))
    first = np.concatenate([params["cls_token"], params["dist_token"]], 1)
    first = g.const(first + params["pos_embed"][:, :FIRST])
    first = g.op("Expand", first, g.op("Concat", g.size(x, 0), g.ints(FIRST, D), axis=0))
    x = g.op("Concat", first, x, axis=1)
    seen = g.op("Add", g.op("Mul", count, g.const(rows, np.int64)), g.const(FIRST, np.int64))
    seen = g.mask(x, 1, seen, [1, 2])
    for i in range(self.depth):
      x = block_nodes(g, x, seen, params[f"block_{i:02d}"], self.heads)
    last = g.ints(np.iinfo(np.int64).max)
    x = g.op("Slice", g.norm(x, params["norm"]), g.ints(FIRST), last, g.ints(1))
    frames = g.op("ReduceMean", g.op("Reshape", x, g.ints(0, -1, rows, D)), axes=[2], keepdims=0)
    return g.mean(frames, g.mask(frames, 1, count, [2]), g.op("Cast", count, to=1)), frames


def _place_nodes(g, table, count: str, times: str) -> str:
  """Those of `place`, of a table (M, D) and names of counts (B,) and places (T,), int64."""
  M, one = len(table), g.const(1, np.int64)
  count = g.op("Unsqueeze", g.op("Max", count, one), g.ints(1))
  times = g.op("Unsqueeze", times, g.ints(0))
  half = g.op("Sub", g.const(M // 2, np.int64), g.op("Div", count, g.const(2, np.int64)))
  centre = g.op("Cast", g.op("Add", times, half), to=1)
  spread = g.op("Mul", g.op("Add", g.op("Cast", times, to=1), g.const(0.5)), g.const(M))
  spread = g.op("Sub", g.op("Div", spread, g.op("Cast", count, to=1)), g.const(0.5))
  at = g.op("Where", g.op("Greater", count, g.const(M, np.int64)), spread, centre)
  at = g.op("Clip", at, g.const(0), g.const(M - 1))
  below = g.op("Floor", at)
  share = g.op("Unsqueeze", g.op("Sub", at, below), g.ints(2))
  below = g.op("Cast", below, to=7)
  above = g.op("Min", g.op("Add", below, one), g.const(M - 1, np.int64))
  low, high = (g.op("Gather", g.const(table), place, axis=0) for place in (below, above))
  return g.op("Add", low, g.op("Mul", share, g.op("Sub", high, low)))
