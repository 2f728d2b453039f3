"""Linear probes of every seed on every division, for the linear evaluation and BgKnown."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from atst_jax.downstream import features
from atst_jax.downstream.features import Labels
from atst_jax.downstream.linear import atst_probe, evar_probe, optimum, selection
from atst_jax.downstream.splits import Split
from atst_jax.util.logs import log


@dataclasses.dataclass(frozen=True)
class Training:
  """Settings of a probe's training, and of the choice of its rate."""

  protocol: str  # "atst", "evar" or "exact"
  rates: tuple[float, ...]
  epochs: int
  batch_size: int
  refit: bool
  patience: int  # of "evar"
  monitor: str  # of "evar"; with several labels it watches the loss
  # of "evar": features are scaled by the training clips alone, not by the validation clips too
  scaled_by_train: bool
  best_epoch: bool = False  # of "atst": the epoch that is best on the validation clips is tested


class Run(NamedTuple):
  """Of one seed on one division."""

  seed: int
  fold: int
  vectors: np.ndarray  # (N, D) that were probed
  result: selection.Result


def probe(
  arrays: list[np.ndarray],
  labels: Labels,
  splits: list[Split],
  seeds: list[int],
  training: Training,
  score: Callable[[np.ndarray, np.ndarray], float],
) -> list[Run]:
  """Probes (N, D) vectors, shared by all seeds or one array for each."""
  runs = []
  for array, group in features.with_seeds(arrays, seeds):
    x = jnp.asarray(array)
    for fold, split in enumerate(splits):
      results = selection.evaluate(
        fitter(training, x, labels, split, group),
        x,
        labels.targets,
        split,
        score,
        seeds=group,
        rates=training.rates,
        refit=training.refit,
      )
      pairs = zip(group, results, strict=True)
      runs += [Run(seed, fold, array, result) for seed, result in pairs]
  return runs


def tell_of_small(name: str, arrays: list[np.ndarray], training: Training) -> None:
  """Warns of vectors that are too small for the protocol "atst", whose probe adds a constant to
  their variance: it sees almost nothing of them. The paper's constant stays."""
  variance = float(np.median([x.var(0) for x in arrays]))
  if training.protocol == "atst" and variance < atst_probe.EPSILON:
    log.warning(
      "%s: the vectors have a variance of %.1e (median), to which the protocol atst adds %g before "
      "it divides: the probe sees little of them, and its score is too low for that reason alone; "
      "compare the exact probe's",
      name,
      variance,
      atst_probe.EPSILON,
    )


def described(
  runs: list[Run], labels: Labels, splits: list[Split], refit: bool, score
) -> list[dict]:
  """The entry of each run in results.json."""
  away = distances(runs, labels, splits, refit)
  return [
    {
      "seed": run.seed,
      "fold": run.fold,
      "score": score(run.result.test_logits, labels.targets[splits[run.fold].test]),
      "learning_rate": run.result.rate,
      "at_edge": run.result.at_edge,
      "valid_scores": [v if np.isfinite(v) else None for v in run.result.valid_scores],
      **distance,
    }
    for run, distance in zip(runs, away, strict=True)
  ]


def convergence(name: str, runs: list[dict]) -> dict:
  """The mean `train_loss`, `optimum` and `above_optimum` of `described` runs, also as a line of the
  log. Warns if the grid of rates was too short."""
  edges = sorted({run["learning_rate"] for run in runs if run["at_edge"]})
  if edges:
    log.warning(
      "%s: the best learning rate is at the end of the grid in %d of %d runs (%s); extend "
      "--config.probe.learning_rates",
      name,
      sum(run["at_edge"] for run in runs),
      len(runs),
      edges,
    )
  loss, best = (float(np.mean([run[key] for run in runs])) for key in ("train_loss", "optimum"))
  log.info(
    "%s: training loss %.4f; the optimum of all linear layers on the same vectors is %s%.4f",
    name,
    loss,
    "" if all(run["optimum_found"] for run in runs) else "at most ",
    best,
  )
  return {"train_loss": loss, "optimum": best, "above_optimum": loss - best}


def distances(runs: list[Run], labels: Labels, splits: list[Split], refit: bool) -> list[dict]:
  """The distance of each run from the optimum of its objective on its training clips (`optimum`):
  `train_loss`, `optimum`, and whether that is the minimum (`optimum_found`) or an upper bound of
  it."""
  known: dict[tuple[int, int], optimum.Optimum] = {}  # shared by the seeds of an array
  found = []
  for run in runs:
    rows, key = selection.trained_on(splits[run.fold], refit), (id(run.vectors), run.fold)
    targets, multi_label = labels.targets[rows], labels.multi_label
    if key not in known:
      known[key] = optimum.optimum(run.vectors[rows], targets, multi_label)
    loss = optimum.cross_entropy(run.result.trained_logits, targets, multi_label)
    best = known[key]
    found.append({"train_loss": loss, "optimum": best.loss, "optimum_found": best.found})
  return found


def test_logits(runs: list[Run], seeds: list[int], folds: int) -> list[np.ndarray]:
  """Of each division, (S, N, C) logits of the test clips."""
  found = {(run.seed, run.fold): run.result.test_logits for run in runs}
  return [np.stack([found[seed, fold] for seed in seeds]) for fold in range(folds)]


def fitter(training: Training, x, labels: Labels, split: Split, seeds: list[int]):
  """The protocol's probe of features (N, D) on one division, as an argument of
  `selection.evaluate`."""
  options = {
    "seeds": seeds,
    "epochs": training.epochs,
    "batch_size": training.batch_size,
    "multi_label": labels.multi_label,
  }
  if training.protocol == "atst":
    return lambda index, valid, rates: atst_probe.fit(
      x,
      labels.targets,
      index,
      rates=rates,
      watched=valid if training.best_epoch else None,
      **options,
    )
  known = split.train if training.scaled_by_train else np.union1d(split.train, split.valid)
  return lambda index, valid, rates: evar_probe.fit(
    x,
    labels.targets,
    index,
    valid,
    known=known,
    rates=rates,
    patience=training.patience,
    monitor="loss" if labels.multi_label else training.monitor,
    **options,
  )
