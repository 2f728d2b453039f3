"""The page about a pre-training run: its sections, and the whole."""

import functools
import html
import io
import json
import os

import numpy as np

from atst_jax.artifacts.model import load_model
from atst_jax.audio.frontend import get_frontend
from atst_jax.data.dataset import Dataset
from atst_jax.data.dataset_page import contents, image
from atst_jax.downstream import tables
from atst_jax.figures import curves as plots
from atst_jax.figures import map_page, maps
from atst_jax.figures.attention import attention_figure
from atst_jax.figures.view_sheet import sample, view_sheet
from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.runtime.workdir import read_config, read_starts
from atst_jax.util import storage
from atst_jax.util.config import flatten
from atst_jax.util.errors import UserError
from atst_jax.util.html_page import data_uri, note, page, paragraph, picture, table

PAGE = "report.html"

PAGE_BYTES = 12 << 20

PLAYERS, PLAYER_SECONDS = 24, 6.0

ATTENTION_CLIPS = 2

STYLE = (
  map_page.STYLE + "h2{margin-top:1.6em;border-bottom:2px solid #0072B2}nav a{margin-right:1em}"
)


def progress(config: dict, records: list[dict], starts: list[dict]) -> str:
  """How far the run is, and how fast it went."""
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
    ["last loss", "not finite" if last["loss"] is None else f"{last['loss']:.4f}"],
  ]
  return table(["", "value"], rows, numbers=1)


def curves(config: dict, records: list[dict]) -> str:
  """The <img> of a run's curves, or nothing before its first record."""
  if not records:
    return ""
  draw = lambda path: plots.training_curve(records, path, outputs=config["heads"]["out"])
  return picture(draw, "loss, spread of the outputs, schedules and speed over the steps")


def views(config: dict, dataset: Dataset) -> str:
  """The <img> of a sheet of views of some of the set's clips."""
  frontend = get_frontend(config["data"]["frontend"])
  clips = next(iter(sample(config, dataset, 1)))
  return picture(
    lambda path: view_sheet(config, clips, path, config["seed"], frontend=frontend),
    "clips, crops, views and mixtures",
  )


def evaluations(records: list[dict], folders: list[str]) -> str:
  """The online scores, 20 at most, and the table of every evaluation."""
  parts = []
  if online := [r for r in records if "online_seconds" in r]:
    keys = [key for key in online[-1] if key.startswith("online_")]
    show = lambda value: "not finite" if value is None else f"{value:.4g}"
    rows = [
      [f"{r['step']:,}", *(show(r.get(key)) for key in keys)]
      for r in online[:: -(-len(online) // 20)][-20:]
    ]
    parts.append(
      "<h3>Online</h3>"
      + table(
        ["step", *(k.removeprefix("online_").replace("_", " ") for k in keys)],
        rows,
        numbers=len(keys) + 1,
      )
    )
  for folder in folders:
    path = os.path.join(folder, "results.json")
    try:
      results = json.loads(storage.read_text(path))
      head, *rows = tables.cells(results)
      parts.append(
        f"<h3>{html.escape(tables.title(results))}</h3>" + table(head, rows, numbers=len(head) - 1)
      )
    except FileNotFoundError:
      raise UserError(
        f"--results={folder}: {path} does not exist; give the workdir of an evaluation"
      ) from None
    except (KeyError, ValueError, TypeError) as error:
      raise UserError(
        f"{path} is not that of an evaluation ({type(error).__name__}: {error})"
      ) from error
  return "".join(parts)


def sound(path: str, sample_rate: int) -> str | None:
  """The start of a recording as a data URI: MP3 where libsndfile writes it, else WAV; None if it
  cannot be read."""
  import soundfile

  from atst_jax.audio.decode import load_audio

  try:
    waveform = load_audio(path, sample_rate)[: round(PLAYER_SECONDS * sample_rate)]
  except UserError:
    return None
  form, kind = (
    ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("WAV", "audio/wav")
  )
  file = io.BytesIO()
  soundfile.write(file, np.clip(waveform, -1, 1), sample_rate, format=form)
  return data_uri(file.getvalue(), kind)


def players(
  drawn: maps.Labelled, recordings: dict[str, str], sample_rate: int
) -> list[map_page.Player]:
  """Players of at most PLAYERS clips, class by class in turn, whose recordings are given: {id:
  path}."""
  rows = [
    row for row, clip in enumerate(drawn.clips) if clip.id.removesuffix("#0000") in recordings
  ]
  if not rows:
    raise UserError(
      f"--audio: none of its {len(recordings)} files is one of the data set's clips, whose ids read "
      f"like {drawn.clips[0].id!r}; give the folder that was prepared"
    )
  labels = drawn.labels[rows]
  # among its class
  place = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])
  found = []
  for index in np.lexsort((labels, place)):
    clip = drawn.clips[rows[index]]
    if len(found) < PLAYERS and (
      uri := sound(recordings[clip.id.removesuffix("#0000")], sample_rate)
    ):
      found.append(map_page.Player(rows[index], image(clip), uri))
  return found


def embeddings(encoder: str, data: str, recordings: dict[str, str] | None) -> dict[str, str]:
  """The sections of an encoder: the map, and the attention of a transformer."""
  model, dataset = load_model(encoder), Dataset.load(data)
  drawn = maps.labelled(model, dataset, name=encoder)
  heard = players(drawn, recordings, model.sample_rate) if recordings is not None else []
  caption = (
    f"{dataset.manifest['name']}: {len(drawn.clips)} clips, last block of {encoder}. By t-SNE: who is beside "
    "whom means something, distances and sizes do not."
    + " Points with a dark rim can be heard: click."
    * bool(heard)
  )
  body = map_page.embedding_map(
    drawn.points, drawn.labels, dataset.label_names, [c.id for c in drawn.clips], heard
  )
  sections = {"Embeddings": paragraph(caption) + body}
  if model.encoder.has_blocks:
    rows = np.unique(drawn.labels, return_index=True)[1][:ATTENTION_CLIPS]
    title = lambda clip: f"{', '.join(dataset.label_names[i] for i in clip.labels)}: {clip.id}"
    draw = lambda clip, path: attention_figure(
      model, clip.mel.astype(np.float32), path, title=title(clip)
    )
    sections["Attention"] = "".join(
      picture(functools.partial(draw, clip), f"attention of CLS over {title(clip)}")
      for clip in (drawn.clips[row] for row in rows)
    )
  return sections


def data_section(dataset: Dataset) -> str:
  """A <details> with the report of a prepared set."""
  if "counts" not in dataset.manifest:
    return note(f"{dataset.root} was prepared by a version that counted nothing")
  return f"<details><summary>{html.escape(dataset.root)}</summary>{contents(dataset)}</details>"


def render(
  workdir: str,
  *,
  results: list[str],
  encoder: str | None,
  data: str | None,
  recordings: dict[str, str] | None,
) -> str:
  """The page of a pre-training run's workdir. Raises UserError for what is asked for and cannot be
  shown."""
  config = read_config(workdir)
  if config["job"] != "pretrain":
    raise UserError(
      f"--workdir={workdir} holds a {config['job']!r} run; give that of a pre-training run"
    )
  records, starts = read_metrics(os.path.join(workdir, "metrics.jsonl")), read_starts(workdir)
  found = evaluations(records, results) or note("none: --results=WORKDIR of an evaluation")
  drawn = embeddings(encoder, data, recordings) if encoder and data else {}
  sections = {"Progress": progress(config, records, starts), "Curves": curves(config, records)}
  data_page = note("the run trains on noise (data.source=synthetic)")
  if config["data"]["source"] == "records":
    try:
      dataset = Dataset.load(config["data"]["path"])
      sections["Views"], data_page = views(config, dataset), data_section(dataset)
    except UserError as error:
      data_page = note(f"neither data nor views can be shown here: {error}")
  sections["Evaluations"] = found
  sections |= drawn or {
    "Embeddings": note("none: --encoder and --data draw a map of a labelled set")
  }
  sections["Data"] = data_page
  sections["Config"] = (
    "<details><summary>every key</summary>"
    + table(["key", "value"], [[key, json.dumps(value)] for key, value in flatten(config).items()])
    + "</details>"
  )
  sections["Environment"] = environment(starts)
  body = "".join(f'<h2 id="{name}">{name}</h2>{text}' for name, text in sections.items() if text)
  links = "".join(f'<a href="#{name}">{name}</a>' for name, text in sections.items() if text)
  return page(
    f"Pre-training in {os.path.basename(os.path.abspath(workdir))}",
    f"<nav>{links}</nav>{body}",
    style=STYLE,
    script=map_page.SCRIPT,
  )


def environment(starts: list[dict]) -> str:
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
