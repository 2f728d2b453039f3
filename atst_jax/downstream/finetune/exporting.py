"""Exports a fine-tuning run as a classifier: the network of one epoch, seed and division. Its
validation clips choose the thresholds."""

import os
from collections.abc import Iterator

import numpy as np

import atst_jax
from atst_jax.artifacts import export
from atst_jax.artifacts.classifiers import scoring
from atst_jax.artifacts.classifiers.head import Head
from atst_jax.artifacts.classifiers.thresholds import (
  NO_CLIP,
  check_precision,
  described,
  with_thresholds,
)
from atst_jax.artifacts.folder import HEAD
from atst_jax.artifacts.model import Model
from atst_jax.artifacts.training_set import channels_of
from atst_jax.audio.frontend import FrontEnd
from atst_jax.data.labelled_batches import ClipReader, all_clips
from atst_jax.downstream.evaluation import score_of
from atst_jax.downstream.finetune.trained import Opened, choose, find_runs, open_run, restore
from atst_jax.method.views import FLOOR_DB
from atst_jax.models.encoders import make_encoder
from atst_jax.runtime.checkpoint import find_checkpoint
from atst_jax.runtime.workdir import read_config
from atst_jax.util import storage
from atst_jax.util.logs import log

BATCH = 32  # clips read at a time
FAR = 0.005  # a larger difference of scores that should be equal is reported


def export_run(
  workdir: str,
  output: str,
  *,
  epoch: str = "best",
  seed: int | None = None,
  fold: int | None = None,
  precision: float | None = None,
  data: str | None = None,
  encoder: str | None = None,
  **options,
) -> str:
  """Exports a classifier of a fine-tuning run. Returns a description of it.

  Args:
    workdir: may also be the run's `checkpoint.folder`.
    epoch: "best" on the validation clips, or "last".
    seed, fold: which of several runs; by default the one with the highest validation score.
    precision: that thresholds are chosen for; None: the best F1.
    data, encoder: paths of the run's prepared set and encoder, if they have moved.
    options: of `export.write`, without a length rule.

  Raises:
    UserError: there is no such run, or its data or encoder is missing.
  """
  check_precision(precision, "--precision")
  export.refuse_length(options)
  record, results = read_config(workdir), _results(workdir)
  folder, runs = find_runs(workdir, record, epoch)
  which = choose(runs, results, seed, fold, workdir)
  step, path, made_with = find_checkpoint(os.path.join(folder, which.folder))
  record = made_with or record
  run = open_run(record, data, encoder)
  multi_label = run.labels.multi_label
  check_precision(precision, "--precision", multi_label=multi_label)
  variables, number, valid = restore(path, step, record, run, which)
  told = which.of(results)
  scores = {
    "metric": "mAP" if multi_label else "accuracy",
    "valid": told.get("valid", valid),
    "test": told.get("score"),
  }
  head = _head(record, run, {**which._asdict(), "number": number, "scores": scores})
  chunk = run.exported["chunk_frames"]
  if not make_encoder(run.exported["encoder"]).has_blocks:
    chunk = max(chunk, run.frames)  # such kinds were trained on whole clips, in one pass
  settings = {
    "channels": channels_of(run.dataset.manifest),
    **{key: run.exported[key] for key in ("encoder", "normalization")},
    "chunk_frames": chunk,
    "tail": record["tail"],
    "max_seconds": run.exported["max_seconds"],
    "fill_frames": None,  # the head says how it was trained
  }
  split = run.splits[which.fold]
  config = {**run.exported, **settings, HEAD: head.to_json()}
  logits = scoring.score(Model(config, variables, run.filters), _clips(run, split.valid))
  targets = run.labels.targets[split.valid]
  found = score_of(run.labels)(logits, targets)
  if scores["valid"] is not None and abs(found - scores["valid"]) > FAR:
    log.warning(
      "the exported network scores %.4f on the validation clips, and %.4f in the run, which "
      "computed in %s",
      found,
      scores["valid"],
      record["dtype"],
    )
  if multi_label:
    head = with_thresholds(head, head.probabilities(logits), targets, precision)
  provenance = {
    "step": step,
    "atst_jax": atst_jax.__version__,
    "finetuned": {**which._asdict(), "number": number, "config": record},
    "parent": {key: run.exported[key] for key in ("params_hash", "provenance")},
  }
  frontend = FrontEnd.from_json(run.exported["frontend"])
  options = {**settings, "frontend": frontend, "provenance": provenance, **options}
  export.write(output, variables, head=head, **options)
  return (
    f"the classifier of seed {which.seed}, division {which.fold}, {epoch} epoch ({number}): "
    f"{len(head.labels)} labels, {described(head.to_json())}"
  )


def _results(workdir: str) -> dict | None:
  """results.json of a job that has ended."""
  try:
    return storage.read_json(os.path.join(workdir, "results.json"))
  except FileNotFoundError:
    return None


def _head(record: dict, run: Opened, about: dict) -> Head:
  """The head, its thresholds not chosen yet."""
  filled = record["padding"] == "silence"
  binary = run.labels.multi_label or record["mixup"]["probability"] > 0
  return Head(
    labels=tuple(run.dataset.label_names),
    multi_label=run.labels.multi_label,
    activation="sigmoid" if binary else "softmax",
    thresholds=(NO_CLIP,) * run.labels.targets.shape[1] if run.labels.multi_label else None,
    blocks=1,
    max_frames=run.frames if filled else run.most,
    crop="center",
    fill_frames=run.frames if filled else None,
    fill_db=FLOOR_DB if filled else None,
    about={
      "source": "fine-tuning",
      **about,
      "divisions": len(run.splits),
      "data": {"name": run.dataset.manifest["name"], "fingerprint": record["data"]["fingerprint"]},
      "selected_on_test": record["select_on_test"],
    },
  )


def _clips(run: Opened, index: np.ndarray) -> Iterator[np.ndarray]:
  """Yields the log-mels of clips, cropped as the run does."""
  reader = ClipReader(run.dataset, run.frames)
  left = len(index)
  numbers = all_clips(index, batch_size=BATCH, rows=(0, BATCH))
  for batch in reader.batches(numbers, run.labels.targets):
    for mel, length in list(zip(batch["mel"], batch["length"], strict=True))[:left]:
      yield mel[:length].astype(np.float32)
    left -= BATCH
