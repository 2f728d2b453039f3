"""What the evaluations do alike: divisions, scores, finished rows, and what their results say."""

import hashlib
import json
import os
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

import atst_jax
from atst_jax.data.dataset import Dataset, write_json
from atst_jax.downstream import features, tables
from atst_jax.downstream.features import Labels
from atst_jax.downstream.metrics import accuracy, mean_average_precision
from atst_jax.downstream.papers.published import published
from atst_jax.downstream.papers.tasks import TASKS
from atst_jax.downstream.splits import Split, make_splits
from atst_jax.util import config as configs
from atst_jax.util.logs import log

Row = TypeVar("Row", dict, list[dict])


def divide(config: ConfigDict, dataset: Dataset, labels: Labels) -> list[Split]:
  """The divisions that `splits` of the config asks for. Under `select_on_test` the test clips also
  choose, and what would have chosen is trained on. Raises UserError (`make_splits`)."""
  splits = make_splits(
    ids=labels.ids,
    groups=labels.groups,
    targets=labels.targets,
    folds=labels.folds,
    splits=labels.splits,
    label_names=dataset.label_names,
    seed=config.seed,
    owned=dataset.manifest.get("groups", {}).get("divided_by_owner", False),
    **config.splits,
  )
  if config.select_on_test:
    log.warning(
      "--config.select_on_test: rates and epochs are chosen on the TEST clips, as for some published "
      "scores; these are too good"
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
  """The function of logits (N, C) and targets (N, C) that a set is scored by: mAP of several
  labels, else accuracy."""
  if labels.multi_label:
    return lambda logits, targets: mean_average_precision(logits, targets)[0]
  return lambda logits, targets: accuracy(logits, targets.argmax(-1))


def chance(targets: np.ndarray, splits: list[Split], multi_label: bool) -> float:
  """What needs no features: the share of the training clips' commonest class, or the labels' mean
  prevalence."""
  if multi_label:
    prevalence = [targets[s.test].mean(0) for s in splits]
    return float(np.mean([p[p > 0].mean() for p in prevalence]))
  return float(np.mean([targets[s.test, targets[s.train].sum(0).argmax()].mean() for s in splits]))


def results_of(
  config: ConfigDict,
  exported: dict,
  dataset: Dataset,
  labels: Labels,
  splits: list[Split],
  rows: list[dict],
) -> dict:
  """The content of results.json: scores are shares of 1, published ones percent. `exported` is the
  encoder's config."""
  return {
    "job": config.job,
    "protocol": config.protocol,
    "data": {
      "name": dataset.manifest["name"],
      "path": dataset.root,
      "fingerprint": config.data.fingerprint,
      "clips": len(labels.ids),
      "classes": len(dataset.label_names),
      "multi_label": labels.multi_label,
      "divisions": [{key: len(part) for key, part in split._asdict().items()} for split in splits],
    },
    "encoder": {
      "path": config.encoder,
      **{k: exported[k] for k in ("params_hash", "frontend", "provenance")},
    },
    "config": configs.to_json(config),
    "versions": {"atst_jax": atst_jax.__version__, "jax": jax.__version__},
    "metric": "mAP" if labels.multi_label else "accuracy",
    "selected_on_test": config.select_on_test,
    "published": [row._asdict() for row in published(config.protocol, dataset.manifest["name"])],
    "chance": chance(labels.targets, splits, labels.multi_label),
    "rows": rows,
  }


def finished(workdir: str, config: ConfigDict, name: str, compute: Callable[[], Row]) -> Row:
  """`compute()`, or what it returned before for the same name under the same config and version, as
  JSON: an evaluation that was stopped does not repeat what is done.

  Args:
    config: resolved, so that it holds the hashes of encoder and data.
    name: of the row, unique in the evaluation.
  """
  key = json.dumps([configs.to_json(config), name, atst_jax.__version__], sort_keys=True)
  path = os.path.join(workdir, "rows", f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json")
  try:
    with open(path, encoding="utf-8") as file:
      row = json.load(file)["row"]
    log.info("%s: read from %s", name, path)
    return row
  except (FileNotFoundError, json.JSONDecodeError, KeyError):
    pass
  row = json.loads(json.dumps(compute()))
  os.makedirs(os.path.dirname(path), exist_ok=True)
  write_json(path, {"name": name, "row": row})
  return row


def write_results(workdir: str, results: dict) -> None:
  """results.json and results.md in the workdir, and the table on the terminal."""
  write_json(os.path.join(workdir, "results.json"), results)
  tables.write_markdown(os.path.join(workdir, "results.md"), results)
  print(tables.table(results))


def describe_labelled(config: ConfigDict, dataset: Dataset) -> tuple[list, list[str]]:
  """(divisions of a labelled set, lines about it)."""
  labels = features.read_labels(dataset)
  splits = divide(config, dataset, labels)
  parts = "; ".join(f"{len(s.train)} + {len(s.valid)} + {len(s.test)}" for s in splits)
  lines = [
    f"data        {dataset.root}: {len(labels.ids)} clips, {len(dataset.label_names)} classes, "
    f"{'several labels' if labels.multi_label else 'one label'} each",
    f"divisions   {len(splits)}, training + validation + test clips: {parts}",
  ]
  if groups := dataset.manifest.get("groups"):
    lines.append(f"groups      where divisions are drawn, each {groups['by']} is in one part")
  return splits, lines
