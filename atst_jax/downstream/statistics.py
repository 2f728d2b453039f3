"""Scores of several seeds as what a table prints."""

import numpy as np
import scipy.stats


def confidence(scores: list[float]) -> float | None:
  """Half the width of the 95 % confidence interval of the mean of n scores, by Student's t with n - 1 degrees."""
  if len(scores) < 2:
    return None
  return float(scipy.stats.t.ppf(0.975, len(scores) - 1) * np.std(scores, ddof=1) / np.sqrt(len(scores)))


def summary(per_seed: list[float]) -> dict:
  """{"mean", "std", "ci95", "per_seed"} of one score for each seed; spreads are None for a single one."""
  per_seed = [float(score) for score in per_seed]
  return {
    "mean": float(np.mean(per_seed)),
    "std": float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None,
    "ci95": confidence(per_seed),
    "per_seed": per_seed,
  }
