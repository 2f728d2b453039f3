"""The learning rate of a probe: the one with the best validation score, seed by seed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from atst_jax.downstream.linear.atst_probe import Probe, scores
from atst_jax.downstream.splits import Split
from atst_jax.util.errors import UserError


class Result(NamedTuple):
  """Of one seed: the validation scores of all rates, and the test clips' logits at the best one."""

  rate: float
  # the best rate is the smallest or the largest of the grid, and better than all between them
  at_edge: bool
  valid_scores: tuple[float, ...]  # one for each rate; -inf if the probe diverged
  test_logits: np.ndarray  # (M, C)
  trained_logits: np.ndarray  # (T, C), of the clips that this probe was trained on, `trained_on`


def trained_on(split: Split, refit: bool) -> np.ndarray:
  """(T,) rows that the tested probe is trained on, sorted."""
  return np.sort(np.concatenate([split.train, split.valid])) if refit else split.train


def evaluate(
  fit: Callable[..., Probe], features, targets, split: Split, score, *, rates, seeds, refit
) -> list[Result]:
  """Chooses the rate on the validation clips alone, by seed, and applies the probe to the test
  clips.

  Args:
    fit: function of (rows to train on, rows to validate on, (S, R) rates); returns a probe for
      every seed and rate.
    features: (N, D) float32, on the device.
    targets: (N, C).
    score: function of (logits, targets), higher is better. The smallest of equally good rates is
      taken.
    rates: of ascending size.
    seeds: one result for each.
    refit: train once more with that rate on training and validation clips together, and test that
      probe; otherwise the probe that was validated is tested.

  Raises:
    UserError: the probe diverged at every rate.
  """
  grid = np.broadcast_to(np.asarray(rates, np.float32), (len(seeds), len(rates)))
  probe = fit(split.train, split.valid, grid)

  def validate(seed, rate):
    logits = scores(probe, features, split.valid, seed=seed, rate=rate)
    return score(logits, targets[split.valid]) if np.isfinite(logits).all() else -np.inf

  valid = np.array([[validate(s, r) for r in range(len(rates))] for s in range(len(seeds))])
  if (valid.max(-1) == -np.inf).any():
    raise UserError(
      f"the probe diverges at every learning rate of {tuple(rates)}; add smaller ones to "
      "--config.probe.learning_rates"
    )
  best = valid.argmax(-1)
  rows = trained_on(split, refit)
  if refit:
    probe = fit(rows, split.valid, grid[np.arange(len(seeds)), best][:, None])
  return [
    Result(
      rates[b],
      _at_edge(valid[s], b),
      tuple(valid[s].tolist()),
      scores(probe, features, split.test, seed=s, rate=0 if refit else b),
      scores(probe, features, rows, seed=s, rate=0 if refit else b),
    )
    for s, b in enumerate(best.tolist())
  ]


def _at_edge(valid: np.ndarray, best: int) -> bool:
  """Whether the best rate is the first or the last, and better than all between them: the grid may
  be too short."""
  return len(valid) > 2 and best in (0, len(valid) - 1) and bool((valid[best] > valid[1:-1]).all())
