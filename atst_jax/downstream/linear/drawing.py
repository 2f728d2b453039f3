"""Draws of few labelled clips, and the penalty of an exact probe that they choose."""

import collections
from collections.abc import Callable, Sequence

import numpy as np

from atst_jax.downstream import ridge


def draw(
  targets: np.ndarray, pool: np.ndarray, sources: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
  """Sorted rows with `number` clips of every class, or all clips of a class that has fewer.

  Args:
    targets: (N, C) 0 or 1. If clips have several labels, a label can get more than `number`.
    pool: rows to draw from.
    sources: (N,) int; clips of a group have the same.
  """
  shuffled, chosen = rng.permutation(pool), np.array([], int)
  for label in np.argsort(targets[pool].sum(0), kind="stable"):
    have = chosen[targets[chosen, label] > 0]
    there = shuffled[(targets[shuffled, label] > 0) & ~np.isin(shuffled, chosen)]
    times, turns = collections.Counter(sources[have].tolist()), []
    for source in sources[there].tolist():  # each group's first clip, then each one's second, …
      turns.append(times[source])
      times[source] += 1
    wanted = max(0, number - len(have))
    chosen = np.concatenate([chosen, there[np.argsort(turns, kind="stable")][:wanted]])
  return np.sort(chosen)


def choose_penalty(
  x: np.ndarray,
  targets: np.ndarray,
  sources: np.ndarray,
  penalties: Sequence[float],
  score: Callable[[np.ndarray, np.ndarray], float],
  *,
  default: float,
) -> float:
  """The penalty with the best score when each group is left out in turn, and scored by a probe of
  the others. The largest of equals; `default` if no class has clips of two groups.

  Args:
    x, targets, sources: (N, D), (N, C) and (N,) of the drawn clips.
    score: of (scores, targets).
  """
  labels = range(targets.shape[1])
  in_several = [len(np.unique(sources[targets[:, label] > 0])) > 1 for label in labels]
  judged = targets[:, in_several].any(-1)
  if not judged.any():
    return default
  found = [
    score(scores[judged], targets[judged])
    for scores in ridge.leave_out(x, targets, sources, penalties)
  ]
  return penalties[ridge.last_best(found)]
