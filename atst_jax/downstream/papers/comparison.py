"""Puts our results into the rows and columns of the papers' tables, with the run of each score."""

import collections
import itertools
from typing import NamedTuple

from atst_jax.downstream import bootstrap
from atst_jax.downstream.papers.places import Place, place
from atst_jax.downstream.papers.published import TABLES, Table
from atst_jax.downstream.papers.runs import Run, choose_rates
from atst_jax.downstream.papers.tasks import TASKS
from atst_jax.models.encoders import ENCODERS
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

CHANCE = "chance"


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


class _Entry(NamedTuple):
  """A row of results, and where it stands."""

  run: Run
  note: str  # of its cell
  row: dict
  place: Place


def compare(runs: list[Run]) -> list[Comparison]:
  """The papers' tables that any of the runs belongs to, published rows first.

  Lines of one name whose features differ, such as those of two encoders that are called alike, end
  with digits of them (`params_hash`). Tasks of one name that ask for other labels or clips are
  columns of their own: the first has the name, the others end with digits.

  Raises UserError if no run belongs to a table.
  """
  chosen = choose_rates(runs)
  placed = {key: _entries(table, chosen) for key, table in TABLES.items()}
  every = {entry.place[:3] for entries in placed.values() for entry in entries}
  names = collections.Counter(line for line, _, _ in every)
  shared, tasks = {name for name, times in names.items() if times > 1}, _tasks(runs)
  found = [
    _comparison(key, TABLES[key], entries, shared, tasks)
    for key, entries in placed.items()
    if entries
  ]
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


def _entries(table: Table, chosen: list[tuple[Run, str]]) -> list[_Entry]:
  """The rows of the runs that belong to a table."""
  found = []
  for run, note in chosen:
    results, config = run.results, run.results["encoder"]["provenance"].get("config")
    if results["protocol"] != table.protocol or results["job"] == "few":
      continue
    if table.ablation and not (config and ENCODERS[config["encoder"]["kind"]].has_blocks):
      continue
    places = [place(results, row, views=table.ablation) for row in results["rows"]]
    found += [
      _Entry(run, note, row, where)
      for row, where in zip(results["rows"], places, strict=True)
      if where.kind == "ours" or not table.ablation
    ]
  return found


def _tasks(runs: list[Run]) -> dict[str, str]:
  """What each run asks of its clips, by its path, as digits: those of the data where results of an
  earlier version do not say."""
  data = {run.path: run.results["data"] for run in runs}
  found = {path: each.get("fingerprint", "") for path, each in data.items()}
  known = {found[path]: each["task"] for path, each in data.items() if "task" in each}
  return {path: known.get(fingerprint, fingerprint) for path, fingerprint in found.items()}


def _comparison(
  key: str, table: Table, entries: list[_Entry], shared: set[str], tasks: dict[str, str]
) -> Comparison:
  """Args:
  shared: names of lines that several features have.
  tasks: by the path of a run.
  """
  columns, lines = dict(table.columns), []
  for method in table.rows:
    of, kind = method.spreads, "ci95" if method.spreads else ""
    cells = {c: Cell(score, of.get(c), kind, None) for c, score in method.scores.items()}
    lines.append(Line(method.name, "published", cells))
  spread = "ci95" if table.protocol == "evar" else "std"
  ours: dict[str, Line] = {}
  asked: dict[str, dict[str, str]] = {}  # of a column's name: the column of every task
  for run, note, row, (name, kind, features, column) in entries:
    name, first, task = f"{name} ({features})" if name in shared else name, column, tasks[run.path]
    columns.setdefault(first, TASKS[first].title if first in TASKS else first)
    known = asked.setdefault(first, {})
    column = known.setdefault(task, f"{first} ({task[:6]})" if known else first)
    columns.setdefault(column, columns[first] + column.removeprefix(first))
    _put(ours, name, kind, column, _cell(row, spread, run, note)._replace(row=row))
    if exact := row.get("exact"):
      _put(ours, f"{name}, exact probe", kind, column, _cell(exact, spread, run, note))
    chance = run.results.get("chance")
    if chance is not None and not table.ablation:
      _put(ours, CHANCE, "baseline", column, Cell(100 * chance, None, "", run))
  order = lambda line: (line.kind != "ours", line.name.startswith(CHANCE))
  return Comparison(key, table, columns, lines + sorted(ours.values(), key=order))


def _cell(scores: dict, spread: str, run: Run, note: str) -> Cell:
  width = None if scores[spread] is None else 100 * scores[spread]
  return Cell(100 * scores["mean"], width, spread if width is not None else "", run, note)


def _put(lines: dict[str, Line], name: str, kind: str, column: str, cell: Cell) -> None:
  """Puts a score into the line of that name, or, where another one stands there, into a line that
  also names the run. No score replaces another; a baseline's same score is put once."""
  of_name = [x for x in lines.values() if x.name == name or x.name.startswith(f"{name} (")]
  there = [line.cells[column][:2] for line in of_name if column in line.cells]
  if kind == "baseline" and cell[:2] in there:
    return
  run = cell.run.path if cell.run else ""
  numbered = (f"{name} ({run}, {number})" for number in itertools.count(2))
  names = itertools.chain((name, f"{name} ({run})"), numbered)
  free = next(x for x in names if x not in lines or column not in lines[x].cells)
  lines.setdefault(free, Line(free, kind, {})).cells[column] = cell


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
