"""The page about a pre-training run, and the pictures beside it."""

import functools
import json
import os

import numpy as np
from markupsafe import Markup

from atst_jax.artifacts.model import load_model
from atst_jax.audio.frontend import FrontEnd
from atst_jax.data.dataset import Dataset
from atst_jax.data.dataset_page import contents, image
from atst_jax.downstream import tables
from atst_jax.figures import maps
from atst_jax.figures.attention import attention_figure
from atst_jax.figures.curves import training_curve
from atst_jax.figures.few_labels import few_labels_curve
from atst_jax.figures.pictures import Pictures
from atst_jax.figures.sounds import PLAYER_SECONDS, heard, player
from atst_jax.figures.view_sheet import sample, view_sheet
from atst_jax.objectives.registry import get_objective
from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.runtime.workdir import read_config, read_starts
from atst_jax.util import html_page, storage
from atst_jax.util.config import flatten
from atst_jax.util.errors import UserError
from atst_jax.util.html_page import note, table

PAGE = "report.html"
PAGE_BYTES = 12 << 20
PLAYERS = 24
ATTENTION_CLIPS = 2


def progress(config: dict, records: list[dict], starts: list[dict]) -> Markup:
  """The progress and the speed of the run."""
  trained = [r for r in records if r.get("clips_per_second")]
  if not trained:
    return note("no metrics yet: the first are written after log.every_steps steps")
  last, speed = trained[-1], np.array([r["clips_per_second"] for r in trained])
  steps = np.diff([0, *(r["step"] for r in trained)])
  low, middle, high = np.percentile(speed, (10, 50, 90))
  rows: list[list] = [
    ["steps", f"{last['step']:,} of {config['total_steps']:,}"],
    ["clips seen", f"{last['step'] * config['batch_size']:,}"],
    ["hours of training", f"{(steps * config['batch_size'] / speed).sum() / 3600:.2f}"],
    ["starts", len(starts)],
    ["clips per second: median, and 10 % to 90 %", f"{middle:.1f}, {low:.1f} to {high:.1f}"],
    [
      "time that waited for data: median",
      f"{100 * np.median([r['data_wait'] for r in trained]):.1f} %",
    ],
    ["steps without an update", f"{last.get('skipped') or 0:,.0f}"],
    ["times gone back to a checkpoint", f"{last.get('rollbacks') or 0:.0f}"],
    ["last loss", "not finite" if last["loss"] is None else f"{last['loss']:.4f}"],
  ]
  return table(["", "value"], rows, numbers=1)


def curves(config: dict, records: list[dict], pictures: Pictures) -> Markup | str:
  """A run's curves, or nothing before the first record of its training."""
  if all("online_seconds" in r for r in records):
    return ""
  return pictures.add(
    "training_curve",
    lambda path: training_curve(records, path, outputs=get_objective(config).outputs),
    "loss, spread of the outputs, schedules and speed over the steps",
  )


def views(config: dict, dataset: Dataset, pictures: Pictures) -> Markup:
  """A sheet of views of some of the set's clips."""
  if "tail" not in config:
    return note("the run was written by an older version, whose views this one cannot draw")
  if not (objective := get_objective(config)).has_views:
    return note(f"objective {objective.name}: its windows are not augmented views; none are drawn")
  (clips,) = sample(config, dataset, 1)
  return pictures.add(
    "views",
    lambda path: view_sheet(config, dataset, clips, path, config["seed"]),
    "clips, crops, views and mixtures",
  )


def online_scores(records: list[dict]) -> Markup | str:
  """The scores of the online evaluation, 20 lines at most, the last among them."""
  online = [r for r in records if "online_seconds" in r]
  if not online:
    return ""
  keys = [key for key in online[-1] if key.startswith("online_")]
  stride = -(-len(online) // 20)
  show = lambda value: "not finite" if value is None else f"{value:.4g}"
  rows = [[f"{r['step']:,}", *(show(r.get(key)) for key in keys)] for r in online[::-stride][::-1]]
  head = ["step", *(key.removeprefix("online_").replace("_", " ") for key in keys)]
  return _headed("Online", table(head, rows, numbers=len(head)))


def evaluation(folder: str, pictures: Pictures) -> Markup:
  """The table of an evaluation's workdir, and the curve if it is one of few labels. Raises
  UserError if there are no results."""
  path = os.path.join(folder, "results.json")
  try:
    results = storage.read_json(path)
    head, *rows = tables.cells(results)
    shown = table(head, rows, numbers=len(head) - 1)
    if results["job"] == "few":
      draw = functools.partial(few_labels_curve, results)
      shown += pictures.add(f"few_labels_{len(pictures.paths)}", draw, "score over labelled clips")
    if found := tables.intervals(results):
      shown += table(found[0], found[1:], numbers=len(found[0]) - 1)
    remarks = [Markup("<p>{}</p>").format(remark) for remark in tables.notes(results)]
    return _headed(tables.title(results), shown + Markup("").join(remarks))
  except FileNotFoundError:
    raise UserError(
      f"--results={folder}: {path} does not exist; give the workdir of an evaluation"
    ) from None
  except (KeyError, ValueError, TypeError) as error:
    raise UserError(
      f"{path} is not that of an evaluation ({type(error).__name__}: {error})"
    ) from error


def _headed(title: str, content: Markup) -> Markup:
  return Markup("<h3>{}</h3>{}").format(title, content)


def _details(summary: str, content: Markup) -> Markup:
  return Markup("<details><summary>{}</summary>{}</details>").format(summary, content)


def players(
  drawn: maps.Labelled, recordings: dict[str, str], frontend: FrontEnd
) -> list[maps.Player]:
  """Players of at most PLAYERS clips, class by class in turn, from recordings {id: path}."""
  rows = [
    row for row, clip in enumerate(drawn.clips) if clip.id.removesuffix("#0000") in recordings
  ]
  if not rows:
    raise UserError(
      f"--audio: none of its {len(recordings)} files is one of the data set's clips, whose ids "
      f"read like {drawn.clips[0].id!r}; give the folder that was prepared"
    )
  labels = drawn.labels[rows]
  # The place of a clip among those of its class.
  place = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])
  sample_rate, found = frontend.sample_rate, list[maps.Player]()
  for index in np.lexsort((labels, place)):
    clip = drawn.clips[rows[index]]
    if len(found) == PLAYERS:
      break
    path = recordings[clip.id.removesuffix("#0000")]
    # a file may go on behind the clip that was cut of it
    end = min(PLAYER_SECONDS, len(clip.mel) * frontend.hop_length / sample_rate)
    if (waveform := heard(path, sample_rate, 0.0, end)) is not None:
      found.append(maps.Player(rows[index], image(clip.mel), player(waveform, sample_rate)))
  return found


def embeddings(
  encoder: str, data: str, recordings: dict[str, str] | None, pictures: Pictures
) -> dict[str, Markup]:
  """The sections of an encoder: the map, and the attention of a transformer."""
  model, dataset = load_model(encoder), Dataset.load(data)
  drawn, names = maps.labelled(model, dataset, name=encoder), dataset.label_names
  heard = players(drawn, recordings, model.frontend) if recordings is not None else []
  title = f"{dataset.manifest['name']}: {len(drawn.clips)} clips, last block of {encoder}"
  pictures.add(
    "embeddings",
    lambda path: maps.embedding_map(drawn.points, drawn.labels, names, path, title=title),
    "map of the embeddings",
  )
  caption = (
    f"{title}. By t-SNE: neighbours mean something, distances and sizes of groups do not."
    + " Points with a dark rim can be heard: click." * bool(heard)
  )
  ids = [clip.id for clip in drawn.clips]
  body = maps.map_for_page(drawn.points, drawn.labels, names, ids, heard)
  sections = {"Embeddings": Markup("<p>{}</p>{}").format(caption, body)}
  if model.encoder.has_blocks:
    rows = np.unique(drawn.labels, return_index=True)[1][:ATTENTION_CLIPS]
    sections["Attention"] = Markup("").join(
      _attention(model, drawn.clips[row], names, f"attention_{number}", pictures)
      for number, row in enumerate(rows, 1)
    )
  return sections


def _attention(model, clip, label_names, name, pictures) -> Markup:
  title = f"{', '.join(label_names[i] for i in clip.labels)}: {clip.id}"
  draw = functools.partial(attention_figure, model, clip.mel.astype(np.float32), title=title)
  return pictures.add(name, draw, f"attention of CLS over {title}")


def data_section(dataset: Dataset) -> Markup:
  """A <details> with the report of a prepared set."""
  if "counts" not in dataset.manifest:
    return note(f"{dataset.root} was prepared by a version that counted nothing")
  return _details(dataset.root, contents(dataset))


def write_page(
  workdir: str,
  *,
  results: list[str],
  encoder: str | None,
  data: str | None,
  recordings: dict[str, str] | None,
) -> list[str]:
  """Writes the page of a pre-training run and its pictures into the workdir.

  Args:
    results: workdirs of evaluations.
    encoder: an export, and `data` a labelled set, for the map of embeddings.
    recordings: {id: path} of the set's clips that can be heard.

  Returns:
    The paths of the pictures, and last that of the page.

  Raises:
    UserError: something that is asked for cannot be shown.
  """
  config = read_config(workdir)
  if config["job"] != "pretrain":
    raise UserError(
      f"--workdir={workdir} holds a {config['job']!r} run; give that of a pre-training run"
    )
  records, starts = read_metrics(os.path.join(workdir, "metrics.jsonl")), read_starts(workdir)
  pictures = Pictures(workdir)
  evaluations = [evaluation(folder, pictures) for folder in results]
  scores = Markup("").join([online_scores(records), *evaluations])
  drawn = embeddings(encoder, data, recordings, pictures) if encoder and data else {}
  sections = {
    "Progress": progress(config, records, starts),
    "Curves": curves(config, records, pictures),
  }
  data_page = note("the run trains on noise (data.source=synthetic)")
  if config["data"]["source"] == "records":
    try:
      dataset = Dataset.load(config["data"]["path"])
      sections["Views"] = views(config, dataset, pictures)
      data_page = data_section(dataset)
    except UserError as error:
      data_page = note(f"neither data nor views can be shown here: {error}")
  sections["Evaluations"] = scores or note("none: --results=WORKDIR of an evaluation")
  sections |= drawn or {
    "Embeddings": note("none: --encoder and --data draw a map of a labelled set")
  }
  keys = [[key, json.dumps(value)] for key, value in flatten(config).items()]
  sections |= {
    "Data": data_page,
    "Config": _details("every key", table(["key", "value"], keys)),
    "Environment": environment(starts),
  }
  text = html_page.render(
    "figures/run_page.html",
    title=f"Pre-training in {os.path.basename(os.path.abspath(workdir))}",
    sections={name: content for name, content in sections.items() if content},
  )
  if len(text.encode()) > PAGE_BYTES:
    raise RuntimeError(f"the page has {len(text.encode())} bytes, more than {PAGE_BYTES}")
  path = os.path.join(workdir, PAGE)
  storage.write_text(path, text)
  return [*pictures.paths, path]


def environment(starts: list[dict]) -> Markup:
  """Every start of the run: when, where, from which step, and with which versions."""
  if not starts:
    return note("the run began with a version that did not record its starts")
  rows = [
    [
      s["time"],
      f"{s['step']:,}",
      s["host"],
      f"{s['devices']} x {s['device']}",
      s["processes"],
      s["python"],
      ", ".join(f"{name} {version}" for name, version in s["versions"].items()),
    ]
    for s in starts
  ]
  return table(
    ["start (UTC)", "from step", "host", "devices", "processes", "Python", "packages"], rows
  )
