"""Pictures of a run: its training curve, a sheet of its views, a map of its embeddings.

  python -m atst_jax.plots --workdir=runs/base [--encoder=encoders/base --data=data/esc10]

Writes training_curve.png and views.png into the workdir of a pre-training run and, given an encoder and a labelled data
set, embeddings.png.
"""

import argparse
import os
import sys

import numpy as np

from atst_jax import storage
from atst_jax.errors import UserError
from atst_jax.logs import read_metrics
from atst_jax.metrics import scale_of
from atst_jax.model import load_model
from atst_jax.records import Dataset
from atst_jax.view_sheet import view_sheet
from atst_jax.workdir import read_config

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, for every kind of sight
MAX_POINTS = 2000  # of the map: t-SNE's time grows faster than its number of points
PCA_DIMENSIONS = 50  # before t-SNE, as van der Maaten and Hinton (2008)


def save(figure, path: str) -> None:
  """Writes a PNG, whole or not at all."""
  with storage.writing(path) as file:
    figure.savefig(file, format="png", dpi=110)


def _smooth(values: np.ndarray) -> np.ndarray:
  """Mean over a centred window of about a twelfth of the curve; NaN left out."""
  half = len(values) // 25
  return np.array([np.nanmean(values[max(i - half, 0) : i + half + 1])
                   if np.isfinite(values[max(i - half, 0) : i + half + 1]).any() else np.nan
                   for i in range(len(values))])  # fmt: skip


def training_curve(records: list[dict], path: str, *, outputs: int) -> None:
  """Losses, spread of the outputs, schedules and speed over the steps.

  Args:
    records: of `logs.read_metrics`.
    path: PNG to write.
    outputs: P, numbers in the projector's output. Unit vectors spread evenly over the sphere have a standard deviation
      of 1/√P in every one; collapsed ones have 0.

  Raises:
    UserError: there is no record yet.
  """
  from matplotlib.figure import Figure

  if not records:
    raise UserError("no metrics to plot yet; the first record is written after log.every_steps steps")
  steps = np.array([r["step"] for r in records])
  column = lambda key: np.array([np.nan if r.get(key) is None else r[key] for r in records], float)
  figure = Figure(figsize=(11, 7), layout="constrained")
  axes = figure.subplots(2, 2)

  def draw(axis, key, color, label):
    values = column(key)
    axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axis.plot(steps, _smooth(values), color=color, linewidth=1.6, label=label)

  names = {"loss": "total", "loss_byol": "BYOL", "loss_difference": "difference"}
  terms = [key for key in names if key in records[-1]]
  shown = terms if len(terms) != 2 else terms[1:]  # with one term the total is that term
  for color, key in zip(COLORS, shown, strict=False):
    draw(axes[0, 0], key, color, names[key])
  axes[0, 0].set(title="Loss", ylabel="2 - 2·cos", ylim=(0, None))
  draw(axes[0, 1], "std_student", COLORS[0], "student")
  draw(axes[0, 1], "std_teacher", COLORS[1], "teacher")
  even = 1 / np.sqrt(outputs)
  axes[0, 1].axhline(even, color="0.35", linestyle="--", linewidth=1, label=f"1/√{outputs}, evenly spread")
  axes[0, 1].set(title="Spread of the L2-normalised outputs (0: collapsed)", ylabel="standard deviation")
  axes[0, 1].set_ylim(0, 1.25 * max(even, *(np.nanmax(column(k), initial=0) for k in ("std_student", "std_teacher"))))
  _schedules(axes[1, 0], steps, column)
  draw(axes[1, 1], "clips_per_second", COLORS[2], "clips/s")
  axes[1, 1].set(title="Speed", ylabel="clips per second", ylim=(0, None))
  for axis in axes.flat:
    axis.set_xlabel("step")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(axis is axes[1, 0])
  for axis in axes[0]:
    axis.legend(frameon=False)
  save(figure, path)


def _schedules(axis, steps, column) -> None:
  """The learning rate to the left, the teacher's 1 - decay to the right."""
  axis.plot(steps, column("learning_rate"), color=COLORS[0])
  axis.set(title="Schedules", ylim=(0, None))
  axis.set_ylabel("learning rate", color=COLORS[0])
  axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
  right = axis.twinx()
  right.plot(steps, 1 - column("ema_decay"), color=COLORS[1])
  right.set_ylim(0, None)
  right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
  right.set_ylabel("1 - EMA decay of the teacher", color=COLORS[1])


def embedding_map(features: np.ndarray, labels: np.ndarray, label_names: list[str], path: str, *, title="") -> None:
  """t-SNE of standardised features after PCA, coloured by class; at most MAX_POINTS clips, drawn with a fixed seed.

  Args:
    features: (N, D), at least 4 clips.
    labels: (N,) class indices.
    label_names: of the classes.
    path: PNG to write.
    title: a line above the picture.
  """
  import matplotlib
  from matplotlib.figure import Figure
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits

  if len(features) < 4:
    raise UserError(f"{len(features)} clips make no map; at least 4 are needed")
  chosen = np.sort(np.random.default_rng(0).permutation(len(features))[:MAX_POINTS])
  x = features[chosen]
  mean, factor = scale_of(x)
  x = (x - mean) * factor
  with threadpool_limits(1):  # t-SNE's threads wait busily for each other: on shared cores 25 times slower than one
    x = PCA(min(PCA_DIMENSIONS, *x.shape), random_state=0).fit_transform(x)
    points = TSNE(2, perplexity=min(30, (len(x) - 1) / 3), init="pca", random_state=0).fit_transform(x)
  y = labels[chosen]
  classes = np.unique(y)
  palette = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20" if len(classes) <= 20 else "turbo"]
  spread = np.arange(len(classes)) if len(classes) <= 20 else np.linspace(0, 1, len(classes))
  columns = -(-len(classes) // 30)
  figure = Figure(figsize=(8.5 + 1.6 * columns, 7.5), layout="constrained")
  axis = figure.subplots()
  for number, (c, place) in enumerate(zip(classes, spread, strict=True)):
    marker = "os^Dv"[number // 10 % 5]
    axis.scatter(*points[y == c].T, s=16, color=palette(place), marker=marker, linewidths=0, alpha=0.8,
                 label=label_names[c])  # fmt: skip
  axis.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2", title=title)
  axis.spines[["top", "right"]].set_visible(False)
  figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", ncols=columns, frameon=False, fontsize=9)
  save(figure, path)


def _plot_views(config: dict, path: str) -> None:
  """The views of some clips of the run's own data."""
  dataset = Dataset.load(config["data"]["path"])
  frames, wanted = config["data"]["clip_frames"], max(4, config["views"]["group"])
  wanted = -(-wanted // config["views"]["group"]) * config["views"]["group"]
  mel = np.zeros((wanted, frames, dataset.frontend.n_mels), np.float16)
  length = np.zeros(wanted, np.int32)
  every = max(1, dataset.num_clips(config["data"]["split"]) // wanted)
  for number, clip in enumerate(dataset.clips(config["data"]["split"])):
    if number % every == 0 and number // every < wanted:
      length[number // every] = min(len(clip.mel), frames)
      mel[number // every, : len(clip.mel)] = clip.mel[:frames]
  view_sheet(config, {"mel": mel, "length": length}, path, seed=config["seed"], frontend=dataset.frontend)


def _plot_embeddings(encoder: str, data: str, path: str) -> None:
  """The map of a labelled data set, from the encoder's last block; clips without label are left out."""
  model, dataset = load_model(encoder), Dataset.load(data)
  if dataset.frontend.hash != model.frontend.hash:
    raise UserError(f"{data} was prepared with the front-end {dataset.frontend.name!r}, the encoder {encoder} expects "
                    f"{model.frontend.name!r}; prepare the data with --frontend={model.frontend.name}")  # fmt: skip
  clips = [clip for split in dataset.splits for clip in dataset.clips(split) if clip.labels]
  if not clips:
    raise UserError(f"{data}: no clip has a label; a map needs a labelled data set")
  every = np.random.default_rng(0).permutation(len(clips))[:MAX_POINTS]
  features = model.embed((clips[i].mel.astype(np.float32) for i in every), num_blocks=1)
  labels = np.array([clips[i].labels[0] for i in every])
  title = f"{dataset.manifest['name']}: {len(every)} clips, last block of {encoder}"
  embedding_map(features, labels, dataset.label_names, path, title=title)


def main(argv=None) -> int:
  parser = argparse.ArgumentParser("python -m atst_jax.plots", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
  parser.add_argument("--workdir", required=True, help="folder of a pre-training run")
  parser.add_argument("--encoder", help="exported encoder, for the map of embeddings")
  parser.add_argument("--data", help="prepared labelled data set, for the map of embeddings")
  flags = parser.parse_args(argv)
  try:
    if (flags.encoder is None) != (flags.data is None):
      raise UserError("the map of embeddings needs both --encoder and --data")
    config = read_config(flags.workdir)
    if config["job"] != "pretrain":
      raise UserError(f"--workdir={flags.workdir} holds a {config['job']!r} run; give that of a pre-training run")
    if "tail" not in config:
      raise UserError(f"--workdir={flags.workdir} was written by an older version, whose views this one cannot draw")
    place = lambda name: os.path.join(flags.workdir, f"{name}.png")
    records = read_metrics(os.path.join(flags.workdir, "metrics.jsonl"))
    training_curve(records, place("training_curve"), outputs=config["heads"]["out"])
    written = ["training_curve"]
    if config["data"]["source"] == "records":
      _plot_views(config, place("views"))
      written.append("views")
    if flags.encoder:
      _plot_embeddings(flags.encoder, flags.data, place("embeddings"))
      written.append("embeddings")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
  print("\n".join(place(name) for name in written))
  return 0


if __name__ == "__main__":
  sys.exit(main())
