"""One page about a run, for a browser without a network: `report.html` in its workdir.

  python -m atst_jax.report --workdir=runs/base [--results=runs/linear …] \
    [--encoder=encoders/base --data=data/esc10 [--audio=recordings/esc10]]

How far the run is, its curves and speed, a sheet of its views, scores of the online and of other evaluations, a map of
a labelled set's embeddings with players for some of its clips, what CLS attends to, the data, the config, and where it
ran. The page is one file of at most PAGE_BYTES, loads nothing, and says what it could not show.
"""

import functools
import html
import io
import json
import os
import sys

import numpy as np

from atst_jax import map_page, maps, plots, storage
from atst_jax.attention import attention_figure
from atst_jax.command import Parser, guard
from atst_jax.config import flatten
from atst_jax.downstream import difference_table, retrieval_table
from atst_jax.downstream import table as plain_table
from atst_jax.errors import UserError
from atst_jax.frontend import get_frontend
from atst_jax.html_page import data_uri, note, page, paragraph, picture, table
from atst_jax.logs import read_metrics
from atst_jax.model import load_model
from atst_jax.records import Dataset
from atst_jax.view_sheet import sample, view_sheet
from atst_jax.workdir import read_config, read_starts

PAGE = "report.html"
PAGE_BYTES = 12 << 20
PLAYERS, PLAYER_SECONDS = 24, 6.0
ATTENTION_CLIPS = 2
TABLES = {"difference": difference_table, "retrieval": retrieval_table}  # of other jobs: plain_table
STYLE = map_page.STYLE + "h2{margin-top:1.6em;border-bottom:2px solid #0072B2}nav a{margin-right:1em}"


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
    ["time that waited for data: median", f"{100 * np.median([r['data_wait'] for r in trained]):.1f} %"],
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
  return picture(lambda path: view_sheet(config, clips, path, config["seed"], frontend=frontend),
                 "clips, crops, views and mixtures")  # fmt: skip


def evaluations(records: list[dict], folders: list[str]) -> str:
  """The online scores, 20 at most, and the table of every evaluation."""
  parts = []
  if online := [r for r in records if "online_seconds" in r]:
    keys = [key for key in online[-1] if key.startswith("online_")]
    show = lambda value: "not finite" if value is None else f"{value:.4g}"
    rows = [[f"{r['step']:,}", *(show(r.get(key)) for key in keys)] for r in online[:: -(-len(online) // 20)][-20:]]
    parts.append("<h3>Online</h3>" + table(["step", *(k.removeprefix("online_").replace("_", " ") for k in keys)], rows,
                                          numbers=len(keys) + 1))  # fmt: skip
  for folder in folders:
    path = os.path.join(folder, "results.json")
    try:
      results = json.loads(storage.read_text(path))
      tables = TABLES.get(results["job"], plain_table)
      head, *rows = tables.cells(results)
      parts.append(f"<h3>{html.escape(tables.title(results))}</h3>" + table(head, rows, numbers=len(head) - 1))
    except FileNotFoundError:
      raise UserError(f"--results={folder}: {path} does not exist; give the workdir of an evaluation") from None
    except (KeyError, ValueError, TypeError) as error:
      raise UserError(f"{path} is not that of an evaluation ({type(error).__name__}: {error})") from error
  return "".join(parts)


def sound(path: str, sample_rate: int) -> str | None:
  """The start of a recording as a data URI: MP3 where libsndfile writes it, else WAV; None if it cannot be read."""
  import soundfile

  from data_pipeline.audio import load_audio

  try:
    waveform = load_audio(path, sample_rate)[: round(PLAYER_SECONDS * sample_rate)]
  except UserError:
    return None
  form, kind = ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("WAV", "audio/wav")
  file = io.BytesIO()
  soundfile.write(file, np.clip(waveform, -1, 1), sample_rate, format=form)
  return data_uri(file.getvalue(), kind)


def players(drawn: maps.Labelled, audio: str, label_names: list[str], sample_rate: int) -> list[map_page.Player]:
  """Players of at most PLAYERS clips, class by class in turn, whose recordings lie in the folder (or manifest)."""
  from data_pipeline.report_page import image
  from data_pipeline.sources import list_sources

  paths = {source.id: source.path for source in list_sources(audio).sources}
  rows = [row for row, clip in enumerate(drawn.clips) if clip.id.removesuffix("#0000") in paths]
  if not rows:
    raise UserError(f"--audio={audio}: none of its {len(paths)} files is one of the data set's clips, whose ids read "
                    f"like {drawn.clips[0].id!r}; give the folder that was prepared")  # fmt: skip
  labels = drawn.labels[rows]
  place = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])  # among its class
  found = []
  for index in np.lexsort((labels, place)):
    clip = drawn.clips[rows[index]]
    if len(found) < PLAYERS and (uri := sound(paths[clip.id.removesuffix("#0000")], sample_rate)):
      found.append(map_page.Player(rows[index], image(clip), uri))
  return found


def embeddings(encoder: str, data: str, audio: str | None) -> dict[str, str]:
  """The sections of an encoder: the map, and the attention of a transformer."""
  model, dataset = load_model(encoder), Dataset.load(data)
  drawn = maps.labelled(model, dataset, name=encoder)
  heard = players(drawn, audio, dataset.label_names, model.sample_rate) if audio else []
  caption = (f"{dataset.manifest['name']}: {len(drawn.clips)} clips, last block of {encoder}. By t-SNE: who is beside "
             "whom means something, distances and sizes do not."
             + " Points with a dark rim can be heard: click." * bool(heard))  # fmt: skip
  body = map_page.embedding_map(drawn.points, drawn.labels, dataset.label_names, [c.id for c in drawn.clips], heard)
  sections = {"Embeddings": paragraph(caption) + body}
  if model.config["encoder"]["kind"] == "transformer":
    rows = np.unique(drawn.labels, return_index=True)[1][:ATTENTION_CLIPS]
    title = lambda clip: f"{', '.join(dataset.label_names[i] for i in clip.labels)}: {clip.id}"
    draw = lambda clip, path: attention_figure(model, clip.mel.astype(np.float32), path, title=title(clip))
    sections["Attention"] = "".join(
      picture(functools.partial(draw, clip), f"attention of CLS over {title(clip)}")
      for clip in (drawn.clips[row] for row in rows))  # fmt: skip
  return sections


def data_section(dataset: Dataset) -> str:
  """A <details> with the report of a prepared set."""
  from data_pipeline.report_page import contents

  if "counts" not in dataset.manifest:
    return note(f"{dataset.root} was prepared by a version that counted nothing")
  return f"<details><summary>{html.escape(dataset.root)}</summary>{contents(dataset)}</details>"


def render(workdir: str, *, results: list[str], encoder: str | None, data: str | None, audio: str | None) -> str:
  """The page of a pre-training run's workdir. Raises UserError for what is asked for and cannot be shown."""
  config = read_config(workdir)
  if config["job"] != "pretrain":
    raise UserError(f"--workdir={workdir} holds a {config['job']!r} run; give that of a pre-training run")
  records, starts = read_metrics(os.path.join(workdir, "metrics.jsonl")), read_starts(workdir)
  found = evaluations(records, results) or note("none: --results=WORKDIR of an evaluation")
  drawn = embeddings(encoder, data, audio) if encoder and data else {}
  sections = {"Progress": progress(config, records, starts), "Curves": curves(config, records)}
  data_page = note("the run trains on noise (data.source=synthetic)")
  if config["data"]["source"] == "records":
    try:
      dataset = Dataset.load(config["data"]["path"])
      sections["Views"], data_page = views(config, dataset), data_section(dataset)
    except UserError as error:
      data_page = note(f"neither data nor views can be shown here: {error}")
  sections["Evaluations"] = found
  sections |= drawn or {"Embeddings": note("none: --encoder and --data draw a map of a labelled set")}
  sections["Data"] = data_page
  sections["Config"] = "<details><summary>every key</summary>" + table(
    ["key", "value"], [[key, json.dumps(value)] for key, value in flatten(config).items()]) + "</details>"  # fmt: skip
  sections["Environment"] = environment(starts)
  body = "".join(f'<h2 id="{name}">{name}</h2>{text}' for name, text in sections.items() if text)
  links = "".join(f'<a href="#{name}">{name}</a>' for name, text in sections.items() if text)
  return page(f"Pre-training in {os.path.basename(os.path.abspath(workdir))}", f"<nav>{links}</nav>{body}", style=STYLE,
              script=map_page.SCRIPT)  # fmt: skip


def environment(starts: list[dict]) -> str:
  """Every start of the run: when, where, from which step, and with which versions."""
  if not starts:
    return note("the run began with a version that did not record its starts")
  rows = [[s["time"], f"{s['step']:,}", s["host"], f"{s['devices']} x {s['device']}", s["processes"], s["python"],
           ", ".join(f"{name} {version}" for name, version in s["versions"].items())] for s in starts]  # fmt: skip
  return table(["start (UTC)", "from step", "host", "devices", "processes", "Python", "packages"], rows)


def main(argv=None) -> int:
  """Returns the exit code, that of `command.guard`."""
  parser = Parser("atst_jax.report", __doc__)
  parser.add_argument("--workdir", required=True, help="folder of a pre-training run; the page is written there")
  parser.add_argument("--results", action="append", default=[], help="workdir of an evaluation; may be repeated")
  parser.add_argument("--encoder", help="exported encoder, for the map of embeddings and the attention")
  parser.add_argument("--data", help="prepared labelled data set, for the map")
  parser.add_argument("--audio", help="the folder or manifest that --data was prepared from, to hear some of its clips")
  return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  path = os.path.join(flags.workdir, PAGE)
  if (flags.encoder is None) != (flags.data is None) or (flags.audio and not flags.data):
    raise UserError("the map of embeddings needs both --encoder and --data, and --audio needs them too")
  text = render(flags.workdir, results=flags.results, encoder=flags.encoder, data=flags.data, audio=flags.audio)
  if len(text.encode()) > PAGE_BYTES:
    raise RuntimeError(f"the page has {len(text.encode())} bytes, more than {PAGE_BYTES}")
  storage.write_text(path, text)
  print(path)


if __name__ == "__main__":
  sys.exit(main())
