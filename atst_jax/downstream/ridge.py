"""A linear probe in closed form: ridge regression on the classes' indicators.

X is standardised by the N clips that are trained on; W = (XᵀX + αN·I)⁻¹Xᵀ(Y - ȳ), scores are XW +
ȳ. The penalty grows with N, so that one grid of α serves sets of every size.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg

from atst_jax.downstream.metrics import scale_of


def fit(
  x: np.ndarray, targets: np.ndarray, penalties: Sequence[float]
) -> list[Callable[[np.ndarray], np.ndarray]]:
  """Functions from features (M, D) to scores (M, C), one for each α, in float64.

  Args:
    x: (N, D) features; constant columns play no part.
    targets: (N, C) 0 or 1.
    penalties: α, above 0.
  """
  (N, D), base = x.shape, targets.mean(0)
  mean, factor = scale_of(x)
  x = (x - mean) * factor
  dual = N < D  # the smaller of the two systems of equations; they have the same solution
  gram, side = (x @ x.T, targets - base) if dual else (x.T @ x, x.T @ (targets - base))

  def predictor(penalty):
    solved = scipy.linalg.solve(gram + penalty * N * np.eye(len(gram)), side, assume_a="pos")
    weights = factor[:, None] * (x.T @ solved if dual else solved)
    return lambda x: (x - mean) @ weights + base

  return [predictor(penalty) for penalty in penalties]


def evaluate(
  x: np.ndarray, targets: np.ndarray, split, score: Callable, penalties: Sequence[float]
):
  """(score of the test clips, α): the α that the validation clips prefer, then fitted on them and
  the training clips.

  Args:
    split: rows to `train` on, to choose the penalty (`valid`), and to `test`.
    score: of (scores, targets); higher is better. Of equal penalties the largest is taken.
    penalties: α, ascending.
  """
  fits = fit(x[split.train], targets[split.train], penalties)
  valid = [score(predict(x[split.valid]), targets[split.valid]) for predict in fits]
  penalty = penalties[len(valid) - 1 - int(np.argmax(valid[::-1]))]
  both = np.concatenate([split.train, split.valid])
  (predict,) = fit(x[both], targets[both], [penalty])
  return score(predict(x[split.test]), targets[split.test]), penalty
