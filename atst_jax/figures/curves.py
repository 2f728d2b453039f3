"""The training curve of a run: losses, spread of the outputs, schedules, speed, online scores."""

import numpy as np

from atst_jax.figures.pictures import COLORS, save
from atst_jax.util.errors import UserError


def _smooth(values: np.ndarray) -> np.ndarray:
  """Mean over a centred window of about a twelfth of the curve; NaN left out."""
  half = len(values) // 25
  windows = [values[max(i - half, 0) : i + half + 1] for i in range(len(values))]
  return np.array([np.nanmean(w) if np.isfinite(w).any() else np.nan for w in windows])


def training_curve(records: list[dict], path: str, *, outputs: int) -> None:
  """Losses, spread of the outputs, schedules and speed over the steps.

  Args:
    records: of `metric_writer.read_metrics`.
    path: PNG to write.
    outputs: P, numbers in the projector's output. Unit vectors spread evenly over the sphere have a
      standard deviation of 1/√P in every one; collapsed ones have 0.

  Raises:
    UserError: there is no record yet.
  """
  from matplotlib.figure import Figure

  online = [r for r in records if "online_seconds" in r]  # records of their own
  records = [r for r in records if "online_seconds" not in r]
  if not records:
    raise UserError(
      "no metrics to plot yet; the first record is written after log.every_steps steps"
    )
  steps = np.array([r["step"] for r in records])
  column = lambda key: np.array([np.nan if r.get(key) is None else r[key] for r in records], float)
  figure = Figure(figsize=(11, 10.5 if online else 7), layout="constrained")
  axes = figure.subplots(3 if online else 2, 2)
  figure.set_layout_engine("constrained", h_pad=0.1)
  marker = "" if len(records) > 1 else "."  # one point makes no line

  def draw(axis, key, color, label):
    values = column(key)
    axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axis.plot(steps, _smooth(values), marker, color=color, linewidth=1.6, label=label)

  known = dict.fromkeys(key for r in records for key in r)
  names = {"loss": "total", "loss_byol": "BYOL"}
  terms = [key for key in known if key.startswith("loss")]
  shown = terms if len(terms) != 2 else terms[1:]  # with one term the total is that term
  for color, key in zip(COLORS, shown, strict=False):
    draw(axes[0, 0], key, color, names.get(key, key.removeprefix("loss_")))
  label = "2 - 2·cos" if "loss_byol" in known else "loss"
  axes[0, 0].set(title="Loss", ylabel=label, ylim=(0, None))
  networks = [name for name in ("student", "teacher") if f"std_{name}" in known]
  for color, name in zip(COLORS, networks, strict=False):
    draw(axes[0, 1], f"std_{name}", color, name)
  even = 1 / np.sqrt(outputs)
  axes[0, 1].axhline(
    even, color="0.35", linestyle="--", linewidth=1, label=f"1/√{outputs}, evenly spread"
  )
  axes[0, 1].set(
    title="Spread of the L2-normalised outputs (0: collapsed)", ylabel="standard deviation"
  )
  axes[0, 1].set_ylim(
    0, 1.25 * max(even, *(np.nanmax(column(f"std_{name}"), initial=0) for name in networks))
  )
  _schedules(axes[1, 0], steps, column, marker, averaged="ema_decay" in known)
  draw(axes[1, 1], "clips_per_second", COLORS[2], "clips/s")
  axes[1, 1].set(title="Speed", ylabel="clips per second", ylim=(0, None))
  if online:
    _online(axes[2], online)
  for axis in axes.flat:
    axis.set_xlabel("step")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(axis is axes[1, 0])
  for axis in axes[0]:
    axis.legend(frameon=False)
  save(figure, path)


def _online(axes, records) -> None:
  """Scores of the online evaluation to the left, the effective rank to the right."""
  steps = [r["step"] for r in records]
  values = lambda key: [np.nan if r.get(key) is None else r[key] for r in records]
  metric = next(key for key in records[-1] if key.startswith("online_ridge_")).rpartition("_")[2]
  shown = {
    "ridge": ("ridge probe", ".-"),
    "knn": ("nearest neighbours", ".-"),
    "mel": ("ridge probe of the mel", ".--"),
  }
  for color, (key, (label, line)) in zip(COLORS, shown.items(), strict=False):
    axes[0].plot(steps, values(f"online_{key}_{metric}"), line, color=color, label=label)
  axes[0].set(title="Online evaluation", ylabel={"map": "mAP"}.get(metric, metric), ylim=(0, 1))
  axes[0].legend(frameon=False)
  axes[1].plot(steps, values("online_effective_rank"), ".-", color=COLORS[3])
  axes[1].set(title="Effective rank of the embeddings", ylabel="dimensions", ylim=(0, None))


def _schedules(axis, steps, column, marker, *, averaged: bool) -> None:
  """The learning rate to the left; if there is a teacher, its 1 - decay to the right."""
  axis.plot(steps, column("learning_rate"), marker, color=COLORS[0])
  axis.set(title="Schedules", ylim=(0, None))
  axis.set_ylabel("learning rate", color=COLORS[0])
  axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
  if not averaged:
    return
  right = axis.twinx()
  right.plot(steps, 1 - column("ema_decay"), marker, color=COLORS[1])
  right.set_ylim(0, None)
  right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
  right.set_ylabel("1 - EMA decay of the teacher", color=COLORS[1])
