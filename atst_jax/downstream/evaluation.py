"""The skeleton of the evaluations: resolve, embed, probe, results, table.

A job's `resolve` opens encoder and data, fills and checks the config (`values`), and returns the
settings by name. `features` embeds. A probe gives rows; `finished` keeps each with its answers for
every test clip. `results_of` and `write_results` make results.json and the table.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import atst_jax
from atst_jax.data.dataset import Dataset, write_json
from atst_jax.downstream import bootstrap, tables
from atst_jax.downstream.features import Labels, task
from atst_jax.downstream.metrics import accuracy, mean_average_precision
from atst_jax.downstream.papers.tasks import TASKS
from atst_jax.downstream.splits import Split, make_splits
from atst_jax.runtime.workdir import agree, claim, continuation, keep_config, read_config
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

ROWS = 6  # format of finished rows; rows of another format are computed again
RESULTS = "results.json"
Part = tuple[str, Callable[[], list[dict]]]  # a name, and a function that computes its rows


def one_process(name: str) -> None:
  """Raises UserError if several processes run an evaluation that needs one."""
  if jax.process_count() > 1:
    raise UserError(
      f"{name} runs in one process, not in {jax.process_count()}; leave out --distributed"
    )


def divide(
  dataset: Dataset, labels: Labels, *, seed: int, select_on_test: bool = False, **ways
) -> list[Split]:
  """The divisions of `ways` (`way`, `num_folds`, `hold_out`). With `select_on_test` the test clips
  also choose, and the validation clips are trained on. Raises UserError (`make_splits`)."""
  splits = make_splits(
    ids=labels.ids,
    groups=labels.groups,
    targets=labels.targets,
    folds=labels.folds,
    splits=labels.splits,
    label_names=dataset.label_names,
    seed=seed,
    owned=dataset.manifest.get("groups", {}).get("divided_by_owner", False),
    **ways,
  )
  if select_on_test:
    log.warning(
      "--config.select_on_test: rates and epochs are chosen on the TEST clips, as for some "
      "published scores; these are too good"
    )
    splits = [Split(np.sort(np.concatenate([s.train, s.valid])), s.test, s.test) for s in splits]
  name, classes = dataset.manifest["name"], len(dataset.label_names)
  if name in TASKS and classes != TASKS[name].classes:
    log.warning(
      "%s has %d of the %d classes of %s: published scores do not compare",
      dataset.root,
      classes,
      TASKS[name].classes,
      TASKS[name].title,
    )
  return splits


def score_of(labels: Labels) -> Callable[[np.ndarray, np.ndarray], float]:
  """The score of a set, a function of logits (N, C) and targets (N, C): mAP of several labels, else
  accuracy."""
  if labels.multi_label:
    return lambda logits, targets: mean_average_precision(logits, targets)[0]
  return lambda logits, targets: accuracy(logits, targets.argmax(-1))


def frozen(
  job: Any,
  workdir: str,
  *,
  free_keys: tuple[str, ...],
  allow_changes: bool,
  parts: Callable[[Any, str], Iterator[Part]],
  results: Callable[[Any, list[dict]], dict],
) -> int:
  """Runs an evaluation of frozen vectors: probes every kind of them, keeps finished parts, writes
  the results. Returns 0.

  The workdir's config is that of its results, or else of its finished parts: a failure changes no
  record.

  Args:
    job: the result of a job's `resolve`; its `record` is the resolved config as JSON.
    free_keys: keys of the record that may change in the workdir.
    parts: function of the job and the folder of features; yields a name and a function that gives
      its rows.
    results: function of the job and all rows; returns the content of results.json.
  """
  record = job.record
  rows: list[dict] = []
  with contextlib.closing(claim(workdir)):
    agree([workdir], record, made_with(workdir), ignore=free_keys, allow_changes=allow_changes)
    for name, compute in parts(job, os.path.join(workdir, "features")):
      rows += finished(workdir, record, name, compute)
      log.info("%s: %.4f", name, rows[-1]["mean"])
    write_results(workdir, results(job, rows))
    keep_config([workdir], record)
  return 0


def made_with(workdir: str) -> dict | None:
  """The config of an evaluation's results, or else of its finished parts; None if there are
  none."""
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    return storage.read_json(os.path.join(workdir, RESULTS))["config"]
  return read_config(workdir) if storage.names(os.path.join(workdir, "rows")) else None


def belongs(record: dict, workdir: str, free_keys: tuple[str, ...]) -> str:
  """The line of `continuation` for an evaluation; raises its errors."""
  return continuation(record, workdir, free_keys, stored=made_with(workdir))


def finished(
  workdir: str, record: dict, name: str, compute: Callable[[], list[dict]]
) -> list[dict]:
  """The rows of `compute()`, or its earlier rows of the same name, config and version: a stopped
  evaluation does not repeat finished parts.

  Args:
    record: the resolved config as JSON, with the hashes of encoder and data.
    name: of the part, unique in the evaluation.
    compute: returns rows, each with its `Tested` under "tested" (`bootstrap.keep`).
  """
  key = json.dumps([record, name, atst_jax.__version__, ROWS], sort_keys=True)
  number = hashlib.sha256(key.encode()).hexdigest()[:16]
  path = os.path.join(workdir, "rows", f"{number}.json")
  try:
    rows = storage.read_json(path)["rows"]
    for row in rows:
      bootstrap.read_resampled(workdir, row)
    log.info("%s: read from %s", name, path)
    return rows
  except (OSError, ValueError, KeyError):  # absent or damaged
    pass
  rows = [
    bootstrap.keep(workdir, row, f"{number}-{index}.npz") for index, row in enumerate(compute())
  ]
  storage.make_folder(os.path.dirname(path))
  write_json(path, {"name": name, "rows": rows})
  return json.loads(json.dumps(rows))


def labelled_data(record: dict, dataset: Dataset, labels: Labels, splits: list[Split]) -> dict:
  """The section `data` of results.json. `groups` says what kept clips together in drawn
  divisions."""
  return {
    "name": dataset.manifest["name"],
    "path": record["data"]["path"],
    "fingerprint": record["data"]["fingerprint"],
    "task": task(dataset.label_names, labels),
    "clips": len(labels.ids),
    "classes": len(dataset.label_names),
    "multi_label": labels.multi_label,
    "divisions": [{key: len(part) for key, part in split._asdict().items()} for split in splits],
    "tested_classes": [int(labels.targets[split.test].any(0).sum()) for split in splits],
    "groups": dataset.manifest.get("groups", {}).get("by"),
  }


def results_of(
  record: dict,
  exported: dict,
  *,
  data: dict,
  metric: str,
  published: list,
  chance: float | None,
  rows: list[dict],
  selected_on_test: bool = False,
) -> dict:
  """The content of results.json. Scores are shares of 1, published ones percent.

  Args:
    record: the resolved config as JSON.
    exported: the encoder's config.
    data: the section of that name (`labelled_data`).
    published: rows of `papers.published`.
  """
  return {
    "job": record["job"],
    "protocol": record["protocol"],
    "data": data,
    "encoder": {
      "path": record["encoder"],
      **{key: exported[key] for key in ("params_hash", "frontend", "provenance")},
    },
    "config": record,
    "versions": {"atst_jax": atst_jax.__version__, "jax": jax.__version__},
    "metric": metric,
    "selected_on_test": selected_on_test,
    "published": [row._asdict() for row in published],
    "chance": chance,
    "rows": rows,
  }


def write_results(workdir: str, results: dict) -> None:
  """Writes results.json and results.md into the workdir, and prints the tables. Adds the
  differences between rows."""
  results = {**results, "differences": bootstrap.differences(workdir, results["rows"])}
  write_json(os.path.join(workdir, RESULTS), results)
  storage.write_text(os.path.join(workdir, "results.md"), tables.markdown(results))
  print(tables.text(results))


def describe_labelled(dataset: Dataset, labels: Labels, splits: list[Split]) -> list[str]:
  """Lines about a labelled set and its divisions."""
  parts = "; ".join(f"{len(s.train)} + {len(s.valid)} + {len(s.test)}" for s in splits)
  lines = [
    f"data        {dataset.root}: {len(labels.ids)} clips, {len(dataset.label_names)} classes, "
    f"{'several labels' if labels.multi_label else 'one label'} each",
    f"divisions   {len(splits)}, training + validation + test clips: {parts}",
  ]
  if groups := dataset.manifest.get("groups"):
    lines.append(f"groups      where divisions are drawn, each {groups['by']} is in one part")
  return lines
