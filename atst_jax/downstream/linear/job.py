"""Linear evaluation: linear classifiers on the frozen vectors of an encoder and of two baselines.

A score alone means little: on small sets an encoder with random parameters, or the mean and
standard deviation of the log-mel spectrogram, score high as well. So every evaluation measures all
three with the same probe, divisions and seeds.

There are three protocols: "exact" (`exact`), "atst" (ATST 3.2 and the released scripts;
`atst_probe`) and "evar" (BYOL-A's and the difference-aware paper's; `evar_probe`). Rows of the last
two also have the exact probe's score, and the training loss's distance to its optimum (`optimum`).
Settings of tasks and published scores come from `papers`.
"""

import functools
import os
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts.folder import describe_encoder
from atst_jax.downstream import bootstrap, evaluation
from atst_jax.downstream.evaluation import describe_labelled, score_of
from atst_jax.downstream.linear import exact, exporting
from atst_jax.downstream.linear.probing import convergence, described, probe, tell_of_small
from atst_jax.downstream.linear.recipe import Evaluation, resolve, vectors
from atst_jax.downstream.metrics import chance, summary
from atst_jax.downstream.papers.published import published

# Paths do not change the computation; hashes identify encoder and data.
FREE_KEYS = ("encoder", "data.path")


def run_row(name: str, arrays: list[np.ndarray], job: Evaluation) -> list[dict]:
  """Probes one kind of features on every fold with every seed: its row, in a list."""
  score, targets, splits = score_of(job.labels), job.labels.targets, job.splits
  alone = job.training.protocol == "exact"
  # the exact probe draws nothing
  seeds = job.seeds[:1] if alone and len(arrays) == 1 else job.seeds
  spread = exact.spectra(name, arrays)
  readings = exact.read(
    arrays,
    targets,
    splits,
    seeds,
    score,
    penalties=job.penalties,
    knn=job.knn,
    refit=not job.select_on_test,
    groups=job.groups,
  )
  found = {(r.seed, r.fold): {"seed": r.seed, "fold": r.fold, **r.values} for r in readings}
  distinct = [run for run in found.values() if len(arrays) > 1 or run["seed"] == seeds[0]]
  of_exact = exact.summarised(name, distinct)
  if alone:
    runs = [{**run, "score": run["exact"]} for run in found.values()]
    logits = {(r.seed, r.fold): r.test_scores for r in readings}
    beside = {"penalties_at_edge": of_exact["at_edge"]}
  else:
    tell_of_small(name, arrays, job.training)
    probed = probe(arrays, job.labels, splits, seeds, job.training, score)
    told = described(probed, job.labels, splits, job.training.refit, score)
    runs = [{**found[run["seed"], run["fold"]], **run} for run in told]
    logits = {(run.seed, run.fold): run.result.test_logits for run in probed}
    beside = {"exact": of_exact, **convergence(name, runs)}
  by_seed = [[run["score"] for run in runs if run["seed"] == seed] for seed in seeds]
  tests = [split.test for split in splits]
  row = {
    "name": name,
    "features": name.partition(",")[0],
    "dimensions": arrays[0].shape[1],
    **summary([np.mean(scores) for scores in by_seed]),
    **beside,
    **{key: float(np.mean([run[key] for run in runs])) for key in ("knn", "knn_whitened")},
    **spread,
    "runs": runs,
    "tested": bootstrap.of_logits(
      bootstrap.design(tests, job.labels.ids, job.labels.groups),
      [np.stack([logits[seed, fold] for seed in seeds]) for fold in range(len(splits))],
      [targets[test] for test in tests],
      job.labels.multi_label,
    ),
  }
  return [row]


def parts(job: Evaluation, folder: str) -> Iterator[evaluation.Part]:
  """Every kind of features."""
  for name, arrays in vectors(job, folder):
    yield name, functools.partial(run_row, name, arrays, job)


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Evaluates, prints the table and writes results.json and results.md into the workdir, and the
  classifier where one is asked for. Returns 0.

  With `statistics` "data" the encoder normalises by the mean and deviation of the prepared set's
  training split, as BYOL-A does: of its clips as they are cut or filled, where they are. A set with
  folds has a single split: there these two numbers (no labels) include the tested clips.
  """
  evaluation.one_process("the linear evaluation")
  settings, config = exporting.take(config)
  job = resolve(config)
  exporting.is_written(settings, job)  # raises for a folder that holds anything else
  code = evaluation.frozen(
    job,
    workdir,
    free_keys=FREE_KEYS,
    allow_changes=allow_changed_config,
    parts=parts,
    results=_results,
  )
  exporting.write(settings, job, workdir)
  return code


def _results(job: Evaluation, rows: list[dict]) -> dict:
  multi_label, name = job.labels.multi_label, job.dataset.manifest["name"]
  return evaluation.results_of(
    job.record,
    job.model.config,
    data=evaluation.labelled_data(job.record, job.dataset, job.labels, job.splits),
    metric="mAP" if multi_label else "accuracy",
    published=published(job.record["protocol"], name),
    chance=chance(job.labels.targets, job.splits, multi_label),
    rows=rows,
    selected_on_test=job.select_on_test,
  )


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, data, divisions and the number of probes of a linear evaluation."""
  settings, config = exporting.take(config)
  job = resolve(config)
  there = ", is there already" if exporting.is_written(settings, job) else ""
  rates, folds, seeds = len(job.training.rates), len(job.splits), len(job.seeds)
  probes = (
    f"{folds * seeds * rates} of each kind of features: {folds} divisions x {seeds} seeds x "
    f"{rates} rates, {job.training.epochs} epochs"
  )
  if job.training.protocol == "exact":
    probes = f"{folds} divisions x {len(job.penalties)} penalties of each kind of features"
  chosen = job.record["exact"]["chosen_on"]
  return [
    f"workdir     {evaluation.belongs(job.record, workdir, FREE_KEYS)}",
    describe_encoder(job.record["encoder"], job.encoder.config),
    *describe_labelled(job.dataset, job.labels, job.splits),
    f"probes      {probes}, protocol {job.training.protocol}, exact.chosen_on={chosen}",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/, predictions/",
    *([f"classifier  {settings.folder}{there}"] if settings.folder else []),
  ]
