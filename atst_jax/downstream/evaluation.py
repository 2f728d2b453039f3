"""What every evaluation on a labelled set does alike: its divisions, its score, and what its
results say of it."""

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

import atst_jax
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import evaluation, features
from atst_jax.downstream.features import Labels
from atst_jax.downstream.metrics import accuracy, mean_average_precision
from atst_jax.downstream.papers.published import published
from atst_jax.downstream.papers.tasks import TASKS
from atst_jax.downstream.splits import Split, make_splits
from atst_jax.util import config as configs
from atst_jax.util.logs import log


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


def describe_labelled(config: ConfigDict, dataset: Dataset) -> tuple[list, list[str]]:
  """(divisions of a labelled set, lines about it)."""
  labels = features.read_labels(dataset)
  splits = evaluation.divide(config, dataset, labels)
  parts = "; ".join(f"{len(s.train)} + {len(s.valid)} + {len(s.test)}" for s in splits)
  return splits, [
    f"data        {dataset.root}: {len(labels.ids)} clips, {len(dataset.label_names)} classes, "
    f"{'several labels' if labels.multi_label else 'one label'} each",
    f"divisions   {len(splits)}, training + validation + test clips: {parts}",
  ]
