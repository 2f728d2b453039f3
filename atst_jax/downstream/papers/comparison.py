"""Puts our results into the rows and columns of the papers' tables, with the run of each score."""

import hashlib
import itertools
import json
import os
from typing import NamedTuple

from atst_jax.downstream import bootstrap
from atst_jax.downstream.papers.published import TABLES, Table
from atst_jax.downstream.papers.tasks import TASKS
from atst_jax.models.encoders import ENCODERS
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

NEEDED = ("job", "protocol", "data", "encoder", "config", "metric", "selected_on_test", "rows")
SIZES = {(384, 12): "ATST Small", (768, 12): "ATST Base"}


class Run(NamedTuple):
  """A results.json and where it lies."""

  path: str
  results: dict

  @property
  def config_hash(self) -> str:
    """8 hexadecimal digits over the whole config."""
    text = json.dumps(self.results["config"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Cell(NamedTuple):
  """A score in percent. `run` is None for a published one."""

  score: float
  spread: float | None
  spread_kind: str  # "std", "ci95" or ""
  run: Run | None
  note: str = ""
  row: dict | None = None  # of the run's results

  @property
  def interval(self) -> tuple[float, float] | None:
    """In percent: what other test clips might have given (`bootstrap`)."""
    found = (self.row or {}).get("test", {}).get("interval")
    return (100 * found[0], 100 * found[1]) if found else None


class Difference(NamedTuple):
  """Of two cells of a column, scored on the same test clips, in percent."""

  column: str
  of: str  # name of the line
  less: str
  mean: float
  interval: tuple[float, float]
  is_difference: bool


class Line(NamedTuple):
  """A row of a comparison. `kind`: "published", "ours" or "baseline"."""

  name: str
  kind: str
  cells: dict[str, Cell]


class Comparison(NamedTuple):
  """Runs and published scores in the columns of one table of a paper; `key` is that of
  `published.TABLES`."""

  key: str
  table: Table
  columns: dict[str, str]  # the paper's, then those of sets that the paper does not have
  lines: list[Line]


def read_runs(paths: list[str]) -> list[Run]:
  """The runs of workdirs, or of results.json files. Raises UserError for a path that is none, or
  read twice."""
  runs = []
  for path in paths:
    file = path if path.endswith(".json") else os.path.join(path, "results.json")
    try:
      results = json.loads(storage.read_text(file))
    except (FileNotFoundError, NotADirectoryError):
      raise UserError(
        f"{file} does not exist: {path!r} is not the workdir of a finished evaluation"
      ) from None
    except (OSError, ValueError) as error:
      raise UserError(f"{file}: cannot be read ({error}); run the evaluation again") from error
    missing = [key for key in NEEDED if not isinstance(results, dict) or key not in results]
    if missing:
      raise UserError(
        f"{file}: not results of this schema, it lacks {', '.join(missing)}; run the evaluation "
        "again"
      )
    runs.append(Run(os.path.dirname(file) or ".", results))
  names = [os.path.realpath(run.path) for run in runs]
  for name in names:
    if names.count(name) > 1:
      raise UserError(f"{name} is given {names.count(name)} times; name every run once")
  return runs


def choose_rates(runs: list[Run]) -> list[tuple[Run, str]]:
  """Of fine-tunings that differ in nothing but the learning rate, the one that the validation clips
  prefer, and a note that says of how many. All other runs as they are."""
  groups: dict[str, list[Run]] = {}
  for run in runs:
    key = run.path
    if run.results["protocol"] == "finetune":
      config = json.loads(json.dumps(run.results["config"]))
      config["optimizer"].pop("base_lr")
      for free in ("encoder", "compute", "mesh", "log", "checkpoint", "platform"):
        config.pop(free)
      config["data"].pop("path")
      key = json.dumps(config, sort_keys=True)
    groups.setdefault(key, []).append(run)
  rate = lambda run: run.results["config"]["optimizer"]["base_lr"]
  chosen = []
  for group in groups.values():
    if len(group) == 1:
      chosen.append((group[0], ""))
      continue
    # of equal ones the smaller rate
    best = max(group, key=lambda run: (run.results["rows"][0]["valid"], -rate(run)))
    tried = ", ".join(f"{r:g}" for r in sorted(map(rate, group)))
    chosen.append((best, f"rate {rate(best):g} of {tried}, by validation"))
  return chosen


def _architecture(encoder: dict) -> str:
  if not ENCODERS[encoder["kind"]].has_blocks:
    return encoder.get("version", encoder["kind"])
  return SIZES.get(
    (encoder["width"], encoder["depth"]), f"ATST {encoder['depth']} x {encoder['width']}"
  )


def describe(results: dict, *, views: bool) -> str:
  """The encoder in words, as far as its provenance says: name, size, λ and steps; with `views` its
  segments in place of λ and steps."""
  encoder = results["encoder"]
  name, provenance = os.path.basename(encoder["path"].rstrip("/")), encoder["provenance"]
  config = provenance.get("config")
  if not config:
    return name
  kind = _architecture(config["encoder"])
  if (objective := config.get("objective", "byol")) != "byol":
    return f"{name}: {kind}, {objective}, {provenance.get('step')} steps"
  if views:
    frontend, frames = encoder["frontend"], config["views"]["crop_frames"]
    seconds = round(frames * frontend["hop_length"] / frontend["sample_rate"], 1)
    segments = {"single": "single segment", "two": "two segments"}[config["views"]["segments"]]
    return f"{name}: {kind}, {segments}, {seconds:g} s"
  return f"{name}: {kind}, λ = {config['difference']['weight']:g}, {provenance.get('step')} steps"


def _column(results: dict, row: dict) -> str:
  if results["protocol"] == "difference":
    return row["name"]
  name = results["data"]["name"]
  # a scene of other pairs than the published ones is another column
  if results["protocol"] == "retrieval":
    return " ".join([*([] if name.startswith("apwd") else [name]), row["scene"], row["name"]])
  return name


def _label(results: dict, row: dict, views: bool) -> tuple[str, str]:
  """(name, kind) of the line that a row of results belongs to."""
  protocol, encoder = results["protocol"], describe(results, views=views)
  features, name = row.get("features", "pre-trained"), row["name"]
  if protocol in ("difference", "retrieval"):
    data, (kind, _, part) = results["data"]["name"], features.partition(", ")
    ours = kind == "pre-trained" and row.get("system", "audio + text") == "audio + text"
    parts = [
      *((encoder, part) if kind == "pre-trained" else (features,)),
      data if protocol == "difference" else "",
      "" if ours else row.get("system", ""),
      f"weight {row['weight']:g}" if row.get("weight") not in (None, 1) else "",
    ]
    return ", ".join(filter(None, parts)), "ours" if ours else "baseline"
  if features == "pre-trained":
    rest = name.removeprefix("pre-trained").removeprefix(", ")
    return f"{encoder}{', ' if rest else ''}{rest}", "ours"
  config = results["encoder"]["provenance"].get("config")
  size = f"{_architecture(config['encoder'])}, " if config and features == "random" else ""
  return f"{size}{name}", "baseline"


def compare(runs: list[Run]) -> list[Comparison]:
  """The papers' tables that any of the runs belongs to, published rows first. Raises UserError if
  there is none."""
  found, chosen = [], choose_rates(runs)
  for key, table in TABLES.items():
    mine = [
      (run, note)
      for run, note in chosen
      if run.results["protocol"] == table.protocol and run.results["job"] != "few"
    ]
    if table.ablation:
      mine = [
        (run, note)
        for run, note in mine
        if "config" in run.results["encoder"]["provenance"]
        and ENCODERS[run.results["encoder"]["provenance"]["config"]["encoder"]["kind"]].has_blocks
      ]
    if mine:
      found.append(_comparison(key, table, mine))
  known = sorted({table.protocol for table in TABLES.values()})
  is_left = lambda r: r["protocol"] not in known or r["job"] == "few"
  if found and (left := [run.path for run in runs if is_left(run.results)]):
    log.warning("in no table, and left out: %s", ", ".join(left))
  if not found:
    raise UserError(
      f"none of the {len(runs)} runs belongs to a table; their protocols must be of "
      f"{', '.join(known)}"
    )
  return found


def _comparison(key: str, table: Table, mine: list[tuple[Run, str]]) -> Comparison:
  columns, lines = dict(table.columns), []
  for row in table.rows:
    kind = "ci95" if row.spreads else ""
    cells = {c: Cell(score, row.spreads.get(c), kind, None) for c, score in row.scores.items()}
    lines.append(Line(row.name, "published", cells))
  spread = "ci95" if table.protocol == "evar" else "std"
  ours: dict[str, Line] = {}
  chances: dict[str, Cell] = {}
  for run, note in mine:
    results = run.results
    for row in results["rows"]:
      name, kind = _label(results, row, table.ablation)
      if table.ablation and kind != "ours":
        continue
      column = _column(results, row)
      task = TASKS.get(column)
      columns.setdefault(column, task.title if task else column)
      width = None if row[spread] is None else 100 * row[spread]
      cell = Cell(100 * row["mean"], width, spread if width is not None else "", run, note, row)
      before = ours.get(name, Line(name, kind, {})).cells.get(column)
      if before and kind == "baseline" and before[:2] == cell[:2]:
        continue  # the same baseline of another encoder's evaluation
      if before:
        name = f"{name} ({run.path})"  # evaluated twice: a line of its own
      ours.setdefault(name, Line(name, kind, {})).cells[column] = cell
      if exact := row.get("exact"):
        beside = f"{name}, exact probe"
        width = None if exact[spread] is None else 100 * exact[spread]
        cell = Cell(100 * exact["mean"], width, spread if width is not None else "", run, note)
        ours.setdefault(beside, Line(beside, kind, {})).cells[column] = cell
      if results.get("chance") is not None and not table.ablation:
        chances[column] = Cell(100 * results["chance"], None, "", run)
  order = {"ours": 0, "baseline": 1}
  lines += sorted(ours.values(), key=lambda line: order[line.kind])
  if chances:
    lines.append(Line("chance", "baseline", chances))
  return Comparison(key, table, columns, lines)


def average(comparison: Comparison, line: Line) -> float | None:
  """The mean over the table's averaged columns, where a line has them all."""
  wanted = comparison.table.averaged
  if not wanted or not all(c in line.cells for c in wanted):
    return None
  return sum(line.cells[c].score for c in wanted) / len(wanted)


def differences(comparison: Comparison) -> list[Difference]:
  """In each column, the score of our first line less that of every other line on the same test
  clips, draw by draw. Runs without their predictions are left out."""
  out = []
  for column in comparison.columns:
    cells = [(line.name, line.cells[column]) for line in comparison.lines if column in line.cells]
    mine = [(name, cell.run, cell.row) for name, cell in cells if cell.run and cell.row]
    for (one, run, row), (other, another, less) in itertools.product(mine[:1], mine[1:]):
      if not bootstrap.comparable(row, less):
        continue
      try:
        first = bootstrap.read_resampled(run.path, row)
        found = bootstrap.difference(first, bootstrap.read_resampled(another.path, less))
      except (OSError, ValueError):
        continue
      if found["interval"] is not None:
        low, high = (100 * end for end in found["interval"])
        mean = 100 * (row["mean"] - less["mean"])
        out.append(Difference(column, one, other, mean, (low, high), found["is_difference"]))
  return out
