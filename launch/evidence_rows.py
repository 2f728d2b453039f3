"""What `launch/evidence.py` has measured, read for its tables: scores of rows, their intervals, and
those of differences."""

import json
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.stats
from evidence_sets import TASKS

from atst_jax.downstream import bootstrap
from atst_jax.downstream.tables import column, line


class Row(NamedTuple):
  """A kind of features on the test clips of a task, of one pre-training."""

  workdir: str
  values: dict  # of results.json

  @property
  def score(self) -> float:
    """Percent."""
    return 100 * self.values["mean"]

  def resampled(self) -> np.ndarray:
    """(draws,) percent on other test clips."""
    return 100 * bootstrap.read_resampled(self.workdir, self.values)


Rows = dict[int, Row]  # by seed
Kinds = dict[str, Rows]  # by kind of features
Found = dict[str, Kinds]  # of a variant, by task


def read_columns(folder: pathlib.Path, seeds: list[int], task: str) -> dict[str, Kinds]:
  """What is done so far of a task, by the columns of its table, of the runs `folder/seedN`."""
  found: dict[str, Kinds] = {}
  for seed in seeds:
    workdir = folder / f"seed{seed}" / task
    if (workdir / "results.json").is_file():
      results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
      for values in results["rows"]:
        if "test" in values:  # not chance
          rows = found.setdefault(column(values), {}).setdefault(line(values), {})
          rows[seed] = Row(str(workdir), values)
  return found


def read(folder: pathlib.Path, seeds: list[int]) -> Found:
  """What is done so far of a variant."""
  found = {task: read_columns(folder, seeds, task) for task in TASKS}
  return {task: columns[""] for task, columns in found.items() if columns}


def spread(values: list[float]) -> str:
  """Mean and, of several, standard deviation."""
  deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
  return f"{np.mean(values):.1f}{deviation}" if values else ""


def known(rows: Rows) -> list[float]:
  """Percent of the known clips at the penalty that they choose, parts of them left out of the probe
  in turn; of every pre-training."""
  best = lambda row: [max(run["penalty_valid_scores"]) for run in row.values["runs"]]
  return [100 * float(np.mean(best(row))) for row in rows.values()]


def directions(each: Iterable[Rows]) -> str:
  """For 99 % of the variance, the fewest and the most of any task and pre-training."""
  numbers = [row.values["directions_99"] for rows in each for row in rows.values()]
  return f"{min(numbers):.0f} to {max(numbers):.0f}" if numbers else ""


def runs(each: Iterable[Rows]) -> str:
  """The number of pre-trainings in every cell of a line, said once where it is the same."""
  numbers = [len(rows) for rows in each]
  return str(numbers[0]) if len(set(numbers)) == 1 else "/".join(map(str, numbers))


def scored(rows: Rows) -> str:
  """The score with its interval."""
  if not rows:
    return ""
  low, high = _interval([row.resampled() for row in rows.values()])
  return f"{spread([row.score for row in rows.values()])} [{low:.1f}, {high:.1f}]"


def _interval(resampled: list[np.ndarray]) -> list[float]:
  return bootstrap.interval(np.mean(resampled, 0)) or [np.nan, np.nan]


def paired(one: Rows, other: Rows) -> list[int]:
  """The seeds that both have, on the same draws."""
  both = [seed for seed in one if seed in other]
  return [seed for seed in both if bootstrap.comparable(one[seed].values, other[seed].values)]


def compared(one: Rows, other: Rows) -> str:
  """The first's score less the other's over the seeds that both have, with its interval for other
  test clips and, of several seeds, that for other pre-trainings."""
  seeds = paired(one, other)
  if not seeds:
    return ""
  low, high = _interval([one[seed].resampled() - other[seed].resampled() for seed in seeds])
  values = [one[seed].score - other[seed].score for seed in seeds]
  return f"{np.mean(values):+.1f} [{low:+.1f}, {high:+.1f}]{_student(values)}"


def _student(values: list[float]) -> str:
  """The 95 % interval of Student's t of a mean."""
  if len(values) < 2:
    return ""
  half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
  return f" ({np.mean(values) - half:+.1f}, {np.mean(values) + half:+.1f})"
