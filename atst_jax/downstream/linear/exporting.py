"""Exports the probe of a linear evaluation as a classifier. Validation clips choose its rate or
penalty. It is fitted once more on all labelled clips, or on those of the first division."""

import contextlib
import dataclasses
import json
import os
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts import export
from atst_jax.artifacts.classifiers.head import MOST_FRAMES, Head, folded
from atst_jax.artifacts.classifiers.thresholds import (
  NO_CLIP,
  check_precision,
  described,
  with_thresholds,
)
from atst_jax.artifacts.folder import EMBEDDING, HEAD, read
from atst_jax.artifacts.training_set import channels_of
from atst_jax.downstream import ridge
from atst_jax.downstream.features import silence_db
from atst_jax.downstream.linear.probing import fitter
from atst_jax.downstream.linear.recipe import Evaluation, vectors
from atst_jax.downstream.linear.selection import trained_on
from atst_jax.downstream.splits import Split
from atst_jax.util import storage
from atst_jax.util.config import flatten
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

CLIPS = ("all", "division")


class Settings(NamedTuple):
  """What is exported, if anything."""

  folder: str | None
  precision: float | None  # of the thresholds; None: the best F1
  clips: str  # "all", or "division": those that the first division's tested probe knows


class Chosen(NamedTuple):
  """A probe: its row of results.json, and the place of its rate or penalty in the grid."""

  row: dict
  place: int


def take(config: ConfigDict) -> tuple[Settings, ConfigDict]:
  """The settings of the export, and the config without them, since they do not change what is
  measured. Raises UserError for values that cannot be, and for settings of no export."""
  for key in ("export_clips", "export_precision"):
    if config.export is None and config[key] is not None:
      raise UserError(
        f"--config.{key}={config[key]} is of the classifier that --config.export=FOLDER writes; "
        "give that too, or leave it out"
      )
  clips = config.export_clips or ("division" if config.protocol == "evar" else "all")
  if clips not in CLIPS:
    raise UserError(f"--config.export_clips={clips}: choose one of {', '.join(CLIPS)}")
  check_precision(config.export_precision, "--config.export_precision")
  if config.protocol == "evar" and clips == "all":
    raise UserError(
      "--config.export_clips=all: the protocol evar stops by validation clips, and none would be "
      "left; set --config.export_clips=division"
    )
  settings = Settings(config.export, config.export_precision, clips)
  rest = config.copy_and_resolve_references()
  with rest.unlocked():
    for key in ("export", "export_precision", "export_clips"):
      del rest[key]
  return settings, rest


def is_written(settings: Settings, job: Evaluation) -> bool:
  """Whether the folder holds the classifier of this very evaluation. Raises UserError for a folder
  that holds anything else, and for a precision where no threshold is asked."""
  multi_label = job.labels.multi_label
  check_precision(settings.precision, "--config.export_precision", multi_label=multi_label)
  if not settings.folder or not os.path.exists(settings.folder):
    return False
  about: dict = {}
  with contextlib.suppress(UserError):  # of no export, or a damaged one
    about = (read(settings.folder)[0][HEAD] or {"about": {}})["about"]
  if _identity(about) != _identity(_made_of(settings, job)):
    raise UserError(
      f"--config.export={settings.folder} exists and is not the classifier of this evaluation; "
      "choose another folder or remove it"
    )
  return True


def _made_of(settings: Settings, job: Evaluation) -> dict:
  """The entries of a head's `about` on which all others depend."""
  return {
    "config": job.record,
    "export": {"precision": settings.precision, "clips": settings.clips},
  }


def _identity(about: dict) -> str:
  """Those entries as text that can be compared, without paths: hashes identify encoder and data."""
  config = about.get("config")
  config = flatten(config) if isinstance(config, dict) else {}
  kept = {key: x for key, x in config.items() if key not in ("encoder", "data.path")}
  return json.dumps([kept, about.get("export")], sort_keys=True)


def write(settings: Settings, job: Evaluation, workdir: str) -> None:
  """Writes the classifier of an evaluation that has ended, if one is asked for."""
  if not settings.folder:
    return
  if is_written(settings, job):
    log.info("%s: holds this evaluation's classifier, nothing to do", settings.folder)
    return
  rows = storage.read_json(os.path.join(workdir, "results.json"))["rows"]
  chosen = _choose([row for row in rows if row["features"] == "pre-trained"], job, settings.clips)
  found = vectors(job, os.path.join(workdir, "features"))
  (x,) = next(arrays for name, arrays in found if name == chosen.row["name"])
  whole = settings.clips == "all"
  split = job.splits[0]
  if whole:
    split = Split(np.arange(len(job.labels.ids)), split.valid, split.test)
  weights = _fit(job, x, split, chosen.place, refit=not whole and _refits(job), last=whole)
  head = _head(job, chosen, x.shape[1], split, whole)
  head = dataclasses.replace(head, about={**head.about, **_made_of(settings, job)})
  if head.multi_label:
    splits = job.splits if whole else job.splits[:1]
    logits = np.concatenate([_validated(job, x, split, chosen.place) for split in splits])
    targets = np.concatenate([job.labels.targets[split.valid] for split in splits])
    head = with_thresholds(head, head.probabilities(logits), targets, settings.precision)
  config = job.model.config
  export.write(
    settings.folder,
    {**job.model.variables, HEAD: weights},
    frontend=job.model.frontend,
    head=head,
    provenance=config["provenance"],
    channels=channels_of(job.dataset.manifest),
    **{key: config[key] for key in EMBEDDING},
  )
  log.info(
    "%s: the classifier of %s (%.1f in the table), %s; %s",
    settings.folder,
    chosen.row["name"],
    100 * chosen.row["mean"],
    head.about["fitted"],
    described(head.to_json()),
  )


def _grid(job: Evaluation) -> tuple[str, tuple[float, ...]]:
  """The name of what was chosen, and its values."""
  if job.training.protocol == "exact":
    return "penalty", job.penalties
  return "learning_rate", job.training.rates


def _choose(rows: list[dict], job: Evaluation, clips: str) -> Chosen:
  """The kind of vectors and the rate or penalty with the best validation score: the mean over all
  divisions and seeds, or that of the first division and seed."""
  name, _ = _grid(job)
  key = "penalty_valid_scores" if name == "penalty" else "valid_scores"
  best: dict[float, Chosen] = {}
  for row in rows:
    runs = row["runs"] if clips == "all" else row["runs"][:1]
    scores = [[-np.inf if x is None else x for x in run[key]] for run in runs]
    mean = np.mean(scores, axis=0)
    # of equal ones the strongest penalty, or the smallest rate
    place = ridge.last_best(mean) if name == "penalty" else int(mean.argmax())
    best.setdefault(float(mean[place]), Chosen(row, place))
  return best[max(best)]


def _fit(job: Evaluation, x, split: Split, place: int, *, refit: bool, last: bool) -> dict:
  """The weights of a head.

  Args:
    x: (N, D) vectors.
    place: in the grid.
    refit: as of `selection.evaluate`.
    last: no clips are left to choose an epoch by.
  """
  rows, targets = trained_on(split, refit), job.labels.targets
  _, grid = _grid(job)
  if job.training.protocol == "exact":
    (layer,) = ridge.fit(x[rows], targets[rows], [grid[place]])
    bias = layer.base - layer.mean @ layer.weights
    return {"kernel": layer.weights.astype(np.float32), "bias": bias.astype(np.float32)}
  training = dataclasses.replace(job.training, best_epoch=job.training.best_epoch and not last)
  fit = fitter(training, jnp.asarray(x), job.labels, split, job.seeds[:1])
  probe = fit(rows, split.valid, np.array([[grid[place]]], np.float32))
  return folded(probe.weights[0, 0], probe.bias[0, 0], probe.mean[0], probe.std[0])


def _refits(job: Evaluation) -> bool:
  """Whether the tested probe also knew the validation clips."""
  return not job.select_on_test if job.training.protocol == "exact" else job.training.refit


def _validated(job: Evaluation, x, split: Split, place: int) -> np.ndarray:
  """(V, C) logits of a division's validation clips, by a probe that does not know them."""
  weights = _fit(job, x, split, place, refit=False, last=False)
  return x[split.valid] @ weights["kernel"] + weights["bias"]


def _head(job: Evaluation, chosen: Chosen, width: int, split: Split, whole: bool) -> Head:
  """The head, its thresholds not chosen yet."""
  labels, protocol = job.labels, job.training.protocol
  name, grid = _grid(job)
  known = len(trained_on(split, not whole and _refits(job)))
  metric = "mAP" if labels.multi_label else "accuracy"
  tested = chosen.row["mean"] if whole else chosen.row["runs"][0]["score"]
  activation = "sigmoid" if labels.multi_label else "softmax"
  depth = job.model.depth
  return Head(
    labels=tuple(job.dataset.label_names),
    multi_label=labels.multi_label,
    activation="clip" if protocol == "exact" else activation,
    thresholds=(NO_CLIP,) * labels.targets.shape[1] if labels.multi_label else None,
    blocks=depth if width == job.model.width(depth) else 1,
    max_frames=min(job.unit or job.max_frames, MOST_FRAMES),
    crop="start" if job.unit else "center",
    fill_frames=job.unit,
    fill_db=silence_db(job.dataset.frontend) if job.unit else None,
    about={
      "source": "linear evaluation",
      "protocol": protocol,
      "features": chosen.row["name"],
      name: grid[chosen.place],
      "seed": job.seeds[0],
      "fitted": f"on all {known} labelled clips" if whole else f"on {known} clips of division 0",
      "scores": {"metric": metric, "test": tested},
      "data": {
        "name": job.dataset.manifest["name"],
        "fingerprint": job.record["data"]["fingerprint"],
      },
      "selected_on_test": job.select_on_test,
    },
  )
