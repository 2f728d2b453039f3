"""The tables of the evidence: what `launch/evidence.py` has measured, as Markdown.

Cells are percent. "±" is the standard deviation over pre-trainings (random rows: over draws of the
parameters). "[low, high]" is a 95 % interval of the mean over pre-trainings, for other test clips:
clips are drawn with replacement, those of a group together, the same ones for both sides of a
difference (`atst_jax/downstream/bootstrap.py`). "(low, high)" behind it is one for other
pre-trainings (Student's t). Columns "runs" give the number of pre-trainings, of every task where
they differ.
"""

import json
import pathlib
from collections.abc import Iterable

import numpy as np
from evidence_rows import (
  Found,
  Rows,
  compared,
  directions,
  known,
  paired,
  read,
  read_columns,
  runs,
  scored,
  spread,
)
from evidence_sets import BGKNOWN, HEARD, PAIRS, TASKS, TITLES, TRIAL_TITLES

from atst_jax.util.markdown import table_lines

MEL, PRETRAINED = "mel mean and std", "pre-trained"
LAST = "pre-trained, last block"
KINDS = (
  "pre-trained, all blocks",
  "pre-trained, last block",
  "pre-trained",
  "random, all blocks",
  "random, last block",
  "random",
  MEL,
)
DIRECTIONS = "directions for 99 %"
KNOWN = "known clips left out of the probe in turn"
MIXTURES = {BGKNOWN: "Sounds in known backgrounds", PAIRS: "Retrieval by a sound and a sentence"}


def _kinds(found: Found) -> list[str]:
  return [kind for kind in KINDS if any(kind in kinds for kinds in found.values())]


def _of_tasks(found: Found, kind: str) -> list[Rows]:
  return [found.get(task, {}).get(kind, {}) for task in TASKS]


def _twins(kind: str) -> tuple[str, str]:
  """What a kind of pre-trained features is compared with."""
  return kind.replace(PRETRAINED, "random"), MEL


def _penalties(rows: Rows) -> str:
  """Those of every run; a star: at the end of the grid, and better than all between its ends."""
  chosen = [run for row in rows.values() for run in row.values["runs"]]
  return ", ".join(f"{run['penalty']:g}{'*' * run['penalty_at_edge']}" for run in chosen)


def _neighbours(rows: Rows) -> str:
  keys = ("knn", "knn_whitened")
  found = [[100 * row.values[key] for row in rows.values()] for key in keys]
  return "; ".join(map(spread, found)) if rows else ""


def _spectrum(rows: Rows) -> str:
  mean = lambda key: np.mean([row.values[key] for row in rows.values()])
  if not rows:
    return ""
  numbers = f"{mean('directions_90'):.0f}, {mean('directions_99'):.0f}"
  return f"{numbers}; {mean('effective_rank'):.1f}"


def _tasks(titles: list[str]) -> list[str]:
  """Without what is tested."""
  return [title.partition(",")[0] for title in titles]


def never_heard(found: Found, titles: list[str]) -> list[str]:
  """Scores of every kind of features, what pre-training adds, scores of known clips, nearest
  neighbours, penalties and the spectra of the vectors."""
  kinds = _kinds(found)
  scores = [["exact probe", "runs", *titles]]
  for kind in kinds:
    cells = [spread([row.score for row in rows.values()]) for rows in _of_tasks(found, kind)]
    if kind == MEL:  # the same in every run
      cells = [cell.split(" ±")[0] for cell in cells]
    scores.append([kind, "1" if kind == MEL else runs(_of_tasks(found, kind)), *cells])
  added = [["exact probe, points", "runs", *titles]]
  for kind in kinds:
    for other in _twins(kind) if kind.startswith(PRETRAINED) else ():
      both = list(zip(_of_tasks(found, kind), _of_tasks(found, other), strict=True))
      number = runs(dict.fromkeys(paired(*rows)) for rows in both)
      added.append([f"{kind}, less {other}", number, *(compared(*rows) for rows in both)])
  tables = [scores, added]
  for title, cell in (
    (KNOWN, lambda rows: spread(known(rows))),
    ("nearest neighbours: raw; whitened", _neighbours),
    ("penalties chosen (* at the end of the grid)", _penalties),
    ("directions for 90 %, 99 %; effective rank", _spectrum),
  ):
    heads = _tasks(titles) if title == KNOWN else titles
    tables.append([[title, *heads], *([k, *map(cell, _of_tasks(found, k))] for k in kinds)])
  return _lines(tables, len(TASKS))


def _lines(tables: list[list[list[str]]], numbers: int) -> list[str]:
  """Of those that have a line besides their head."""
  lines = []
  for table in tables:
    if len(table) > 1:
      lines += [*table_lines(table, numbers=numbers), ""]
  return lines


def _vectors(found: Found) -> str:
  return next(iter(kind for kind in _kinds(found) if kind.startswith(PRETRAINED)), "")


def parts(
  found: dict[str, Found], base: str, titles: list[str], changes: dict[str, str]
) -> list[str]:
  """Scores of all blocks, a row for each variant, their differences to `base`, and scores of known
  clips.

  Args:
    changes: of trials, by name: what each is.
  """
  more = ["values"] if changes else []
  scores = [["variant", *more, DIRECTIONS, "runs", *titles]]
  less = [[f"less {base}, points", "runs", *titles]]
  left_out = [[f"variant, {KNOWN}", "runs", *_tasks(titles)]]
  first = _of_tasks(found[base], _vectors(found[base])) if base in found else []
  for name, each in found.items():
    rows = _of_tasks(each, _vectors(each))
    cells = [spread([row.score for row in task.values()]) for task in rows]
    about = [changes[name]] if changes else []
    scores.append([name, *about, directions(rows), runs(rows), *cells])
    left_out.append([name, runs(rows), *(spread(known(task)) for task in rows)])
    if name != base and first:
      both = list(zip(rows, first, strict=True))
      number = runs(dict.fromkeys(paired(*pair)) for pair in both)
      less.append([name, number, *(compared(*pair) for pair in both)])
  return _lines([scores, less, left_out], len(TASKS))


def objectives(found: dict[str, Found], base: str, titles: list[str]) -> list[str]:
  """Scores of each objective beside its encoder with random parameters, and what it adds to that
  and to `base`, whose last block stands beside all blocks; then scores of known clips. `found` has
  `base` too."""
  scores = [["objective", "features", "numbers", DIRECTIONS, "runs", *titles]]
  added = [["objective", "points", "runs", *titles]]
  left_out = [[f"objective, {KNOWN}", "features", "runs", *_tasks(titles)]]
  for name, each in found.items():
    vectors = _vectors(each)
    rows, twin = _of_tasks(each, vectors), _of_tasks(each, _twins(vectors)[0])
    for kind, cells in ((vectors, rows), (_twins(vectors)[0], twin)):
      sizes = {row.values["dimensions"] for task in cells for row in task.values()}
      size = "/".join(map(str, sorted(sizes)))
      scores.append([name, kind, size, directions(cells), runs(cells), *map(scored, cells)])
      left_out.append([name, kind, runs(cells), *(spread(known(task)) for task in cells)])
    others = {_twins(vectors)[0]: twin, MEL: _of_tasks(each, MEL)}
    if name != base and base in found:
      for kind in dict.fromkeys((_vectors(found[base]), LAST)):
        others[f"{base}, {kind}"] = _of_tasks(found[base], kind)
    for other, against in others.items():
      both = list(zip(rows, against, strict=True))
      if not any(paired(*pair) for pair in both):
        continue
      cells = [compared(*pair) for pair in both]
      added.append([name, f"less {other}", runs(dict.fromkeys(paired(*p)) for p in both), *cells])
  return _lines([scores, added, left_out], len(TASKS))


def mixtures(
  output: pathlib.Path, variants: list[str], seeds: list[int], base: str, task: str
) -> list[str]:
  """Scores under every condition with their intervals, what pre-training adds, and what a variant
  adds to `base` at the same seed."""
  every = {name: read_columns(output / name, seeds, task) for name in variants}
  found = {name: each for name, each in every.items() if each}
  columns = list(dict.fromkeys(c for each in found.values() for c in each))
  scores = [["variant", "features", "runs", *columns]]
  added = [["variant", "features, points", "runs", *columns]]
  less = [["variant", f"features, less {base}, points", "runs", *columns]]
  for name, each in found.items():
    of = lambda variant, kind: [found[variant].get(c, {}).get(kind, {}) for c in columns]
    for kind in dict.fromkeys(kind for kinds in each.values() for kind in kinds):
      rows = of(name, kind)
      scores.append([name, kind, runs(rows), *map(scored, rows)])
      if not kind.startswith(PRETRAINED):
        continue
      twins = (kind.replace(PRETRAINED, "random"), kind.replace(PRETRAINED, "mel"), "mel")
      for other in dict.fromkeys(twins):
        both = list(zip(rows, of(name, other), strict=True))
        if any(paired(*pair) for pair in both):
          cells = [compared(*pair) for pair in both]
          added.append([name, f"{kind}, less {other}", runs(of(name, other)), *cells])
      if name != base and base in found:
        both = list(zip(rows, of(base, kind), strict=True))
        cells = [compared(*pair) for pair in both]
        less.append([name, kind, runs(dict.fromkeys(paired(*p)) for p in both), *cells])
  return _lines([scores, added, less], len(columns))


def mark(output: pathlib.Path, names: list[str], seeds: list[int]) -> list[str]:
  """The line that stands above every table if a pre-training has heard test clips, or may have; it
  may where what was measured is another encoder than the one that was looked at."""
  told = []
  for name in names:
    for seed in seeds:
      path = output / name / f"seed{seed}" / HEARD
      read = lambda path: json.loads(path.read_text(encoding="utf-8"))
      measured = [read(p)["encoder"]["params_hash"] for p in path.parent.glob("*/results.json")]
      found = read(path) if path.is_file() else None
      if not measured and found is None:
        continue
      known = isinstance(found, dict) and set(measured) <= {found["params_hash"]}
      if not known or found["heard"] is None:
        told.append(f"{name}, seed {seed}: not known")
      elif found["heard"]:
        clips = found["heard"]
        told.append(f"{name}, seed {seed}: {len(clips)} clips, one is {clips[0]}")
  return [f"**Test clips were heard in pre-training** ({'; '.join(told)}).", ""] if told else []


def tables(
  output: pathlib.Path,
  variants: list[str],
  seeds: list[int],
  base: str,
  changes: dict[str, str],
  comparators: Iterable[str] = (),
) -> str:
  """Every table of what is done so far.

  Args:
    variants: folders of `output`; the base recipe, its changes, further encoders.
    base: of `variants`, that the others are compared with.
    changes: of trials, by name: what each is; {} otherwise.
    comparators: those of `variants` with an objective of their own.
  """
  titles = list((TRIAL_TITLES if changes else TITLES).values())
  found = {name: each for name in variants if (each := read(output / name, seeds))}
  marked, lines = mark(output, variants, seeds), []
  for name, each in found.items():
    if name == base or base not in found:
      lines += [f"### {name}: clips never heard", "", *marked, *never_heard(each, titles)]
  changed = {name: each for name, each in found.items() if name not in comparators}
  if len(changed) > 1 and base in changed:
    lines += ["### One change at a time", "", *marked, *parts(changed, base, titles, changes)]
  if any(name in comparators for name in found):
    others = {name: found[name] for name in found if name == base or name in comparators}
    lines += ["### Other objectives", "", *marked, *objectives(others, base, titles)]
  for task, title in MIXTURES.items():
    if known := mixtures(output, variants, seeds, base, task):
      lines += [f"### {title}", "", *marked, *known]
  return "\n".join(lines)
