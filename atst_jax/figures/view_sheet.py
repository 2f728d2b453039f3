"""A picture of the augmentation: clips, their crops, both views, and the mixture of the
subtraction."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.audio.frontend import get_frontend
from atst_jax.data.dataset import Dataset
from atst_jax.data.input_pipeline import record_batches, synthetic_batches
from atst_jax.figures.pictures import TOP_DB, draw_mel, frequency_ticks, save
from atst_jax.method.mixtures import make_mixtures, mixing_options
from atst_jax.method.subtraction import Subtraction
from atst_jax.method.views import is_ragged, make_views

VIEW_COLORS = ("#00E5FF", "#7CFC00")  # of view 1 and 2; both stand out from the magma map
CLIPS = 4


def sample(config: dict, dataset: Dataset | None, number: int) -> Iterator[dict]:
  """`number` small batches for sheets, of different clips, as training reads them: shuffled, long
  clips cut.

  Args:
    config: resolved config of a pre-training run, as JSON.
    dataset: of the config; None for the synthetic source.
  """
  data, group = config["data"], config["views"]["group"]
  common = {
    "clip_frames": data["clip_frames"],
    "batch_size": group * -(-CLIPS // group),
    "seed": config["seed"],
  }
  if dataset is None:
    batches = synthetic_batches(n_mels=get_frontend(data["frontend"]).n_mels, **common)
  else:
    batches = record_batches(
      dataset,
      split=data["split"],
      streams=1,
      shuffle_window=data["shuffle_window"],
      reader="plain",  # the same batches, without the seconds that TensorFlow takes to load
      **common,
    )
  yield from itertools.islice(batches, number)


def draw(config: dict, dataset: Dataset | None, clips: dict, seed: int) -> dict:
  """The results of `make_views` and `make_mixtures` for a batch under a run's config, as numpy
  arrays.

  Args:
    dataset: of the clips, as in `sample`. As in training, it decides whether lengths are tracked.

  Returns:
    views (B, 2, T, F), length (B, 2), start (B, 2), shift (B / G, 2), weight (B, 2), box (B, 2, 4),
    segment (B, 2, T, F), post_std () and, if λ > 0, mixtures (B, 2 or 1, T, F), mixture_length (B,
    2) and gamma (B, 2).
  """
  views, subtraction = config["views"], Subtraction(**config["difference"])
  data = config["data"]
  ragged = is_ragged(
    data["clip_frames"] if dataset is None else dataset.min_frames(data["split"]),
    **{key: views[key] for key in ("padding", "crop_frames", "first_frames", "second_frames")},
  )
  mixing = mixing_options(views, subtraction, len(clips["length"]))

  @jax.jit
  def compute(key, mel, length):
    view_key, mix_key = jax.random.split(key)
    pair, length, drawn = make_views(
      view_key, mel, length, ragged=ragged, apart=bool(subtraction.weight), **views
    )
    full = jnp.full(pair.shape[:2], views["crop_frames"])
    out = {**drawn, "views": pair, "length": full if length is None else length}
    if subtraction.weight:
      mixtures, mixed, gamma = make_mixtures(mix_key, pair, length, drawn["post_std"], **mixing)
      out |= {
        "mixtures": mixtures,
        "mixture_length": full if mixed is None else mixed,
        "gamma": gamma,
      }
    return out

  return jax.tree.map(
    np.asarray, compute(jax.random.key(seed, impl="threefry2x32"), clips["mel"], clips["length"])
  )


def view_sheet(config: dict, dataset: Dataset | None, clips: dict, path: str, seed: int) -> None:
  """Draws the first clips of a batch, one in a row.

  From left to right: the clip in dB with the crops of both views; for each view its normalised crop
  on a canvas of zeros with the box of the random resize crop, and the view itself (after Mixup and
  the box); the mixture of view 1, if λ > 0.

  Args:
    config: resolved config of a pre-training run, as JSON.
    dataset: of the clips; None for the synthetic source.
    clips: {"mel": (B, T, F) dB, "length": (B,)}; B is a multiple of `views.group`.
    path: PNG to write.
    seed: of the draws.
  """
  from matplotlib.figure import Figure

  drawn = draw(config, dataset, clips, seed)
  rows = min(CLIPS, len(clips["length"]))
  titles = ["clip", "crop 1", "view 1", "crop 2", "view 2"] + ["mixture of view 1"] * (
    "mixtures" in drawn
  )
  figure = Figure(figsize=(3.1 * len(titles), 2.1 * rows + 1.2), layout="constrained")
  axes = figure.subplots(
    rows, len(titles), squeeze=False, width_ratios=[1.35] + [1] * (len(titles) - 1)
  )
  figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
  sheet = Sheet(config, clips, drawn, rows)
  for row in range(rows):
    sheet.clip(axes[row, 0], row)
    for view in (0, 1):
      sheet.crop(axes[row, 1 + 2 * view], row, view)
      sheet.view(axes[row, 2 + 2 * view], row, view)
    if "mixtures" in drawn:
      sheet.mixture(axes[row, 5], row)
  for axis in axes[-1]:
    axis.set_xlabel("seconds")
  for axis in axes[:, 0]:
    axis.set_ylabel("Hz")
  for axis in axes[:, 1:].flat:
    axis.set_yticklabels([])
  figure.colorbar(
    axes[0, 0].images[0],
    ax=axes[:, 0],
    location="bottom",
    shrink=0.8,
    aspect=30,
    pad=0.02,
    label="dB relative to the clip's maximum",
  )
  figure.colorbar(
    axes[0, 2].images[0],
    ax=axes[:, 1:],
    location="bottom",
    shrink=0.35,
    aspect=40,
    pad=0.02,
    label="normalised level",
  )
  save(figure, path, dpi=100)


class Sheet:
  """The panels of a sheet; `row` is a clip, `view` is 0 or 1. Panels of a kind share their axes and
  colours."""

  def __init__(self, config, clips, drawn, rows):
    frontend = get_frontend(config["data"]["frontend"])
    self.views, self.clips, self.drawn = config["views"], clips, drawn
    self.neighbour = Subtraction(**config["difference"]).neighbour
    self.hop = frontend.hop_length / frontend.sample_rate  # seconds
    self.bins, self.ticks = frontend.n_mels, frequency_ticks(frontend)
    self.longest = int(clips["length"][:rows].max())
    lengths = [drawn[key][:rows] for key in ("length", "mixture_length") if key in drawn]
    self.widest = int(np.max(lengths))
    shown = [
      drawn[key][row, view, : drawn["length"][row, view]].ravel()
      for key in ("segment", "views")
      for row in range(rows)
      for view in (0, 1)
    ]
    self.range = np.percentile(np.concatenate(shown), (1, 99.7))

  def _image(self, axis, mel, low, high, *, left, right, title):
    """(T, F) from 0 s on; the axis runs from frame `left` to frame `right`."""
    draw_mel(axis, mel, low, high, hop=self.hop)
    axis.set_xlim(left * self.hop, right * self.hop)
    axis.set_ylim(-0.5, self.bins - 0.5)
    axis.set_yticks(*self.ticks)
    axis.locator_params(axis="x", nbins=5)
    axis.tick_params(labelsize=7)
    axis.set_title(title, fontsize=9)

  def _box(self, axis, left, bottom, width, height, view):
    """A numbered box in frames and bins."""
    from matplotlib import patheffects
    from matplotlib.patches import Rectangle

    outline = [patheffects.Stroke(linewidth=3.2, foreground="black"), patheffects.Normal()]
    axis.add_patch(
      Rectangle(
        (left * self.hop, bottom - 0.5),
        width * self.hop,
        height,
        fill=False,
        linewidth=1.8,
        edgecolor=VIEW_COLORS[view],
        path_effects=outline,
      )
    )
    axis.annotate(
      f"{view + 1}",
      (left * self.hop, bottom + height - 0.5),
      xytext=(4, -3),
      textcoords="offset points",
      ha="left",
      va="top",
      color=VIEW_COLORS[view],
      fontsize=9,
      fontweight="bold",
      path_effects=outline,
    )

  def clip(self, axis, row):
    """The clip in dB below its maximum, with both crops; that of view 2 is drawn smaller, so that
    both can be seen."""
    mel = self.clips["mel"][row, : self.clips["length"][row]].astype(np.float32)
    self._image(
      axis, mel - mel.max(), -TOP_DB, 0, left=0, right=self.longest, title=f"clip {row + 1}"
    )
    for view in (0, 1):
      start, length = self.drawn["start"][row, view], self.drawn["length"][row, view]
      inset = self.bins * (0.02 + 0.16 * view)
      self._box(axis, start, inset, length, self.bins - 2 * inset, view)

  def crop(self, axis, row, view):
    """The normalised crop on its canvas, with the box that becomes the view."""
    top, left, height, width = self.drawn["box"][row, view]
    length = int(self.drawn["length"][row, view])
    canvas = int(np.floor(self.views["canvas_time"] * length))
    offset = (canvas - length) // 2
    self._image(
      axis,
      self.drawn["segment"][row, view, :length],
      *self.range,
      left=-offset,
      right=canvas - offset,
      title=f"crop {view + 1}, box {width * self.hop:.2g} s x {height} bins",
    )
    axis.set_facecolor(axis.images[0].to_rgba(0.0))  # the canvas
    self._box(axis, left - offset, top, width, height, view)

  def view(self, axis, row, view):
    """A view, with the Mixup partner and its weight."""
    group = self.views["group"]
    partner = row // group * group + (row % group + self.drawn["shift"][row // group, view]) % group
    mel = self.drawn["views"][row, view, : self.drawn["length"][row, view]]
    title = f"view {view + 1}, {self.drawn['weight'][row, view]:.2f} of clip {partner + 1}"
    self._image(axis, mel, *self.range, left=0, right=self.widest, title=title)

  def mixture(self, axis, row):
    """The mixture of view 1 with the next clip's of its group."""
    group = self.views["group"] if self.neighbour == "group" else len(self.drawn["gamma"])
    neighbour = row // group * group + (row + 1) % group
    mel = self.drawn["mixtures"][row, 0, : self.drawn["mixture_length"][row, 0]]
    title = f"mixture, γ = {self.drawn['gamma'][row, 0]:.2f} of clip {neighbour + 1}"
    self._image(axis, mel, *self.range, left=0, right=self.widest, title=title)
