"""The attention of a transformer's CLS token: weights, and a picture of them."""

from typing import NamedTuple

import jax
import numpy as np

from atst_jax.artifacts.model import Model
from atst_jax.figures.pictures import COLORS, TOP_DB, draw_mel, frequency_ticks, literal, save
from atst_jax.util.errors import UserError

HEADS = 12  # rows drawn, at most


class Attention(NamedTuple):
  """The attention over one clip, in chunks. The weights of a chunk's patches and its CLS add up to
  1."""

  patches: np.ndarray  # (depth, H, N) of all whole patches
  cls: np.ndarray  # (depth, H, chunks) of each chunk's CLS itself
  starts: list[int]  # first patch of each chunk
  tokens: list[int]  # patches and CLS of each chunk


def cls_attention(model: Model, mel: np.ndarray) -> Attention:
  """The attention of CLS in (T, F) dB of the model's front-end. Raises UserError if there is no
  CLS, or no patch."""
  if not model.encoder.has_blocks:
    raise UserError("a convolutional encoder has no attention; give a transformer")
  if len(mel) < model.hop:
    raise UserError(f"a clip of {len(mel)} frames; this encoder needs at least {model.hop}")
  longest = model.chunk_frames // model.hop * model.hop
  peak = np.full(1, mel.max(), np.float32)

  @jax.jit
  def compute(variables, chunk, length):
    _, found = model.encoder.apply(
      variables, model.normalized(chunk, peak, length), length, mutable=["intermediates"]
    )
    blocks = found["intermediates"]
    return [blocks[name]["attention"][0] for name in sorted(blocks)]  # block_00, block_01, …

  patches, own, starts, tokens = [], [], [], []
  for start in range(0, len(mel) // model.hop * model.hop, longest):
    frames = min(longest, len(mel) - start)
    chunk = np.zeros((1, longest, mel.shape[1]), np.float32)
    chunk[0, :frames] = mel[start : start + frames]
    weights = np.stack(
      [
        np.asarray(w)[0, :, 0]
        for w in compute(model.variables, chunk, np.full(1, frames, np.int32))
      ]
    )
    own.append(weights[:, :, :1])
    patches.append(weights[:, :, 1 : 1 + frames // model.hop])
    starts.append(start // model.hop)
    tokens.append(1 + frames // model.hop)
  return Attention(np.concatenate(patches, -1), np.concatenate(own, -1), starts, tokens)


def attention_figure(model: Model, mel: np.ndarray, path: str, *, title: str = "") -> None:
  """Draws the attention of CLS over the log-mel of a clip. A line over the spectrogram is the last
  block's, the mean of its heads. Below are every head of the last block, and every block (mean of
  its heads).

  Args:
    mel: (T, F) dB of the model's front-end.
    path: PNG to write.
    title: a line above the picture.
  """
  from matplotlib import patheffects
  from matplotlib.figure import Figure

  found = cls_attention(model, mel)
  depth, heads, N = found.patches.shape
  seconds = model.frontend.hop_length / model.sample_rate
  edges = np.arange(N + 1) * model.hop * seconds
  rows = min(heads, HEADS)
  figure = Figure(figsize=(10, 5.4 + 0.16 * (rows + depth)), layout="constrained")
  top, middle, bottom = figure.subplots(
    3, 1, sharex=True, height_ratios=[4, 1 + 0.2 * rows, 1 + 0.2 * depth]
  )
  shown = mel.astype(np.float32) - float(mel.max())
  image = draw_mel(top, shown, -TOP_DB, 0, hop=seconds)
  top.set_yticks(*frequency_ticks(model.frontend))
  top.set_ylabel("Hz")
  figure.colorbar(image, ax=top, pad=0.06, label="dB below the maximum")
  # In multiples of even attention over the chunk, so that chunks of all lengths compare.
  ratio = found.patches * np.repeat(found.tokens, np.diff([*found.starts, N]))
  line, mean = top.twinx(), ratio[-1].mean(0)
  outline = [patheffects.Stroke(linewidth=4, foreground="black"), patheffects.Normal()]
  line.step(
    edges,
    np.append(mean, mean[-1]),
    where="post",
    color=COLORS[5],
    linewidth=1.8,
    path_effects=outline,
  )
  line.axhline(
    1,
    color="white",
    linestyle=":",
    linewidth=1.2,
    path_effects=[patheffects.withStroke(linewidth=2.4, foreground="black")],
  )
  line.set_ylim(0, max(2, 1.5 * mean.max()))
  line.set_ylabel("attention of the last block\n(1: even)")
  top.set_title(literal(title), fontsize=10)
  for axis, weights, name in (
    (middle, ratio[-1, :rows], "head of\nthe last block"),
    (bottom, ratio.mean(1), "block,\nmean of heads"),
  ):
    high = max(2.0, float(np.percentile(weights, 99.5)))
    mesh = axis.pcolormesh(
      edges, np.arange(len(weights) + 1) + 0.5, weights, cmap="cividis", vmin=0, vmax=high
    )
    axis.set_yticks(np.unique(np.linspace(1, len(weights), min(len(weights), 6)).round()))
    axis.set_ylabel(name)
    axis.invert_yaxis()
    figure.colorbar(mesh, ax=axis, pad=0.06, label="times even", extend="max")
  for axis in (top, middle, bottom):
    for start in found.starts[1:]:
      axis.axvline(start * model.hop * seconds, color="white", linewidth=1, linestyle="--")
  bottom.set_xlabel("seconds" + (", dashed: where a chunk begins" if len(found.starts) > 1 else ""))
  bottom.set_xlim(0, len(mel) * seconds)
  save(figure, path)
