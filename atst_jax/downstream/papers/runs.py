"""Finished evaluations: reads their results, and takes one of several learning rates."""

import hashlib
import json
import os
from typing import NamedTuple

from atst_jax.downstream.finetune.job import FREE_KEYS, NAMED_KEYS
from atst_jax.runtime.workdir import differences
from atst_jax.util import storage
from atst_jax.util.errors import UserError

NEEDED = ("job", "protocol", "data", "encoder", "config", "metric", "selected_on_test", "rows")
RATE = "optimizer.base_lr"


class Run(NamedTuple):
  """A results.json and where it lies."""

  path: str
  results: dict

  @property
  def config_hash(self) -> str:
    """8 hexadecimal digits over the whole config."""
    text = json.dumps(self.results["config"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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
  """Of fine-tunings that differ in nothing but the learning rate, those of the rate that the
  validation clips prefer, and a note that says of which. All other runs as they are."""
  groups: list[list[Run]] = []
  for run in runs:
    alike = (group for group in groups if _differ_in_rate(group[0].results, run.results))
    if group := next(alike, None):
      group.append(run)
    else:
      groups.append([run])
  rate = lambda run: run.results["config"]["optimizer"]["base_lr"]
  chosen = []
  for group in groups:
    if len(group) == 1 or len(rates := sorted({*map(rate, group)})) == 1:
      chosen += [(run, "") for run in group]
      continue
    # of equal ones the smaller rate
    best = rate(max(group, key=lambda run: (run.results["rows"][0]["valid"], -rate(run))))
    note = f"rate {best:g} of {', '.join(f'{r:g}' for r in rates)}, by validation"
    chosen += [(run, note) for run in group if rate(run) == best]
  return chosen


def _differ_in_rate(one: dict, other: dict) -> bool:
  """Whether both are fine-tunings that compute the same but for the rate."""
  if {one["protocol"], other["protocol"]} != {"finetune"}:
    return False
  return not differences(one["config"], other["config"], (*FREE_KEYS, *NAMED_KEYS, RATE))
