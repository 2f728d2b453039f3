"""The tables of the evidence: what `launch/evidence.py` has measured, as Markdown.

Cells are percent. "±" is the standard deviation over pre-trainings (random rows: over draws of the
parameters). "[low, high]" is a 95 % interval of the mean over pre-trainings, for other test clips:
clips are drawn with replacement, those of a group together, the same ones for both sides of a
difference (`atst_jax/downstream/bootstrap.py`). "(low, high)" is one for other pre-trainings
(Student's t).
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
import scipy.stats
from evidence_sets import BGKNOWN, HEARD, TASKS, TITLES

from atst_jax.downstream import bootstrap
from atst_jax.util.markdown import table_lines

MEL = "mel mean and std"
KINDS = (
  "pre-trained, all blocks",
  "pre-trained, last block",
  "pre-trained",
  "random, all blocks",
  "random, last block",
  "random",
  MEL,
)


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


# of a variant: task -> kind of features -> seed -> row
Found = dict[str, dict[str, dict[int, Row]]]


def read(folder: pathlib.Path, seeds: list[int]) -> Found:
  """What is done so far of a variant, whose runs are `folder/seedN`."""
  found: Found = {}
  for seed in seeds:
    for task in TASKS:
      workdir = folder / f"seed{seed}" / task
      if (workdir / "results.json").is_file():
        results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
        for values in results["rows"]:
          kinds = found.setdefault(task, {})
          kinds.setdefault(values["name"], {})[seed] = Row(str(workdir), values)
  return found


def spread(values: list[float]) -> str:
  """Mean and, of several, standard deviation."""
  deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
  return f"{np.mean(values):.1f}{deviation}" if values else ""


def compared(one: dict[int, Row], other: dict[int, Row]) -> str:
  """The first's score less the other's, with its interval, over the seeds that both have."""
  seeds = [
    seed
    for seed in one
    if seed in other and bootstrap.comparable(one[seed].values, other[seed].values)
  ]
  if not seeds:
    return ""
  differences = [one[seed].resampled() - other[seed].resampled() for seed in seeds]
  low, high = bootstrap.interval(np.mean(differences, 0)) or (np.nan, np.nan)
  mean = np.mean([one[seed].score - other[seed].score for seed in seeds])
  return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def student(values: list[float]) -> str:
  """Mean and, of several, the 95 % interval of Student's t."""
  if len(values) < 2:
    return "".join(f"{value:+.1f}" for value in values)
  half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
  mean = np.mean(values)
  return f"{mean:+.1f} ({mean - half:+.1f}, {mean + half:+.1f})"


def _head(*first: str) -> list[str]:
  return [*first, *(TITLES[task] for task in TASKS)]


def _kinds(found: Found) -> list[str]:
  return [kind for kind in KINDS if any(kind in kinds for kinds in found.values())]


def never_heard(found: Found) -> list[str]:
  """Scores of every kind of features, what pre-training adds, and the spectra of the vectors."""
  kinds = _kinds(found)
  rows = lambda task, kind: found.get(task, {}).get(kind, {})
  scores = [_head("features", "runs")]
  for kind in kinds:
    number = max(len(rows(task, kind)) for task in TASKS)
    cells = [spread([row.score for row in rows(task, kind).values()]) for task in TASKS]
    # the statistics are the same in every run
    scores.append(
      [kind, 1, *(c.split(" ±")[0] for c in cells)] if kind == MEL else [kind, number, *cells]
    )
  added = [_head("exact probe, points")]
  for kind in kinds:
    if kind.startswith("pre-trained"):
      for other in (kind.replace("pre-trained", "random"), MEL):
        cells = [compared(rows(task, kind), rows(task, other)) for task in TASKS]
        added.append([f"{kind}, less {other}", *cells])
  spectra = [_head("features: directions for 90 %, 99 %; effective rank")]
  for kind in kinds:
    cells = []
    for task in TASKS:
      values = [row.values for row in rows(task, kind).values()]
      mean = lambda key, values=values: np.mean([v[key] for v in values])
      cells.append(
        f"{mean('directions_90'):.0f}, {mean('directions_99'):.0f}; {mean('effective_rank'):.1f}"
        if values
        else ""
      )
    spectra.append([kind, *cells])
  lines = []
  for table in (scores, added, spectra):
    lines += [*table_lines(table, numbers=len(TASKS)), ""]
  return lines


def _vectors(found: Found) -> str:
  return next(iter(kind for kind in _kinds(found) if kind.startswith("pre-trained")), "")


def parts(found: dict[str, Found], base: str) -> list[str]:
  """Scores of all blocks, a row for each variant, and their differences to `base`."""
  scores, less = [_head("variant", "runs")], [_head(f"less {base}, points")]
  for name, each in found.items():
    kind, first = _vectors(each), _vectors(found[base]) if base in found else ""
    rows = {task: each.get(task, {}).get(kind, {}) for task in TASKS}
    cells = [spread([row.score for row in rows[task].values()]) for task in TASKS]
    scores.append([name, max(map(len, rows.values())), *cells])
    if name != base and base in found:
      others = {task: found[base].get(task, {}).get(first, {}) for task in TASKS}
      less.append([name, *(compared(rows[task], others[task]) for task in TASKS)])
  lines = [*table_lines(scores, numbers=len(TASKS)), ""]
  return lines + ([*table_lines(less, numbers=len(TASKS)), ""] if len(less) > 1 else [])


def bgknown(output: pathlib.Path, variants: list[str], seeds: list[int], base: str) -> list[str]:
  """Scores of the exact probe under every condition, and what a variant adds to `base` at the same
  seed."""
  found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
  for variant in variants:
    for seed in seeds:
      path = output / variant / f"seed{seed}" / BGKNOWN / "results.json"
      if path.is_file():
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
          name = variant if row["features"].startswith("pre-trained") else ""
          columns = found.setdefault((name, row["features"]), {})
          columns.setdefault(row["name"], {})[seed] = 100 * row["exact"]["mean"]
  conditions = list(dict.fromkeys(c for columns in found.values() for c in columns))
  scores = [["variant", "features", *conditions]]
  less = [["variant", f"features, less {base}, points", *conditions]]
  for (variant, features), columns in found.items():
    cells = [spread(list(columns.get(c, {}).values())) for c in conditions]
    scores.append([variant, features, *cells])
    others = found.get((base, features), {})
    if variant not in ("", base) and others:
      at = lambda c, columns=columns, others=others: [
        value - others[c][seed]
        for seed, value in columns.get(c, {}).items()
        if seed in others.get(c, {})
      ]
      less.append([variant, features, *(student(at(c)) for c in conditions)])
  if len(scores) == 1:
    return []
  lines = [*table_lines(scores, numbers=len(conditions)), ""]
  return lines + ([*table_lines(less, numbers=len(conditions)), ""] if len(less) > 1 else [])


def mark(output: pathlib.Path, names: list[str], seeds: list[int]) -> list[str]:
  """The line that stands above every table if a pre-training has heard test clips, or may have."""
  told = []
  for name in names:
    for seed in seeds:
      path = output / name / f"seed{seed}" / HEARD
      if path.is_file() or any(path.parent.glob("*/results.json")):
        heard = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if heard is None:
          told.append(f"{name}, seed {seed}: not known")
        elif heard:
          told.append(f"{name}, seed {seed}: {len(heard)} clips, one is {heard[0]}")
  return [f"**Test clips were heard in pre-training** ({'; '.join(told)}).", ""] if told else []


def tables(output: pathlib.Path, variants: list[str], seeds: list[int], base: str) -> str:
  """Every table of what is done so far.

  Args:
    variants: folders of `output`; the base recipe, its changes, further encoders.
    base: of `variants`, that the others are compared with.
  """
  found = {name: each for name in variants if (each := read(output / name, seeds))}
  marked, lines = mark(output, variants, seeds), []
  for name, each in found.items():
    if name == base or base not in found:
      lines += [f"### {name}: clips never heard", "", *marked, *never_heard(each)]
  if len(found) > 1 and base in found:
    lines += ["### One change at a time", "", *marked, *parts(found, base)]
  if known := bgknown(output, variants, seeds, base):
    lines += ["### Sounds in known backgrounds", "", *marked, *known]
  return "\n".join(lines)
