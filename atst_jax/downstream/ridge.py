"""The exact probe: ridge regression on the classes' indicators, solved in closed form.

X is standardised by the N clips that are trained on; W = (XᵀX + αN·I)⁻¹Xᵀ(Y - ȳ), scores are XW +
ȳ. The penalty grows with N, so that one grid of α serves sets of every size. Nothing is drawn and
nothing has to converge. The online evaluation and the linear evaluation both use this module.

The smaller of the two systems of equations is solved, that of the D features or that of the N
clips; n is its size. Up to EIGEN one eigendecomposition serves all penalties. A larger system is
factorised for each penalty: Cholesky's n³/3 operations are far fewer than about 9 n³. Features are
standardised in blocks: beside them lie two n x n matrices of float64, 5.4 GB for 18,432.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg.blas import dsyr
from threadpoolctl import threadpool_limits

from atst_jax.downstream.metrics import scale_of
from atst_jax.downstream.splits import Split

EIGEN = 2048  # size of a system, up to which it is decomposed once
# Rows that two threads factorise: OpenBLAS 0.3.30 (SciPy 1.17) crashes at 16,000, not at 12,000.
THREADED = 8192
BLOCK = 1024  # clips, or features, that are in float64 at a time
PARTS = 10  # at most, of groups that are left out in turn


class Result(NamedTuple):
  """Of one division: the test clips' score, and what known clips said of the penalties."""

  score: float
  penalty: float
  at_edge: bool  # it is the smallest or the largest of the grid, and better than all between
  valid_scores: tuple[float, ...]  # one for each penalty
  test_scores: np.ndarray  # (M, C), of the test clips


class Layer(NamedTuple):
  """What was fitted, in float64: scores are (x - mean) @ weights + base."""

  mean: np.ndarray  # (D,)
  weights: np.ndarray  # (D, C)
  base: np.ndarray  # (C,)

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """(M, D) features -> (M, C) scores, a block of clips at a time."""
    blocks = (x[i : i + BLOCK] for i in range(0, len(x), BLOCK))
    return np.concatenate([(block - self.mean) @ self.weights + self.base for block in blocks])


def fit(x: np.ndarray, targets: np.ndarray, penalties: Sequence[float]) -> Iterator[Layer]:
  """Gives for each α a function from features (M, D) to scores (M, C), in float64.

  Args:
    x: (N, D) features; constant columns play no part.
    targets: (N, C) 0 or 1, one or several 1 in a row.
    penalties: α, above 0.
  """
  return _System.of(x, targets).layers(penalties)


def parts_of(groups: np.ndarray) -> np.ndarray:
  """(N,) groups -> (N,) parts from 0: the groups, or PARTS parts of whole ones if there are more;
  the next largest goes to the smallest part, as in scikit-learn's GroupKFold."""
  names, members, counts = np.unique(groups, return_inverse=True, return_counts=True)
  if len(names) <= PARTS:
    return members
  part, sizes = np.zeros(len(names), int), np.zeros(PARTS, int)
  for group in np.argsort(counts)[::-1]:
    part[group] = sizes.argmin()
    sizes[part[group]] += counts[group]
  return part[members]


def leave_out(
  x: np.ndarray, targets: np.ndarray, parts: np.ndarray, penalties: Sequence[float]
) -> Iterator[np.ndarray]:
  """Yields for each α scores (N, C) of every clip by the ridge regression of the clips of the other
  parts. The scale of the features and the penalty α·N stay those of all clips.

  Up to EIGEN in closed form: of the hat matrix H of all clips and the residuals R, those of a part
  g are (I - H_gg)⁻¹ R_g without it (leave-one-out is a part of one).

  Args:
    x: (N, D) features.
    targets: (N, C) 0 or 1.
    parts: (N,) int, at least two different ones.
    penalties: α, above 0.
  """
  members = [np.flatnonzero(parts == part) for part in np.unique(parts)]
  if max(min(x.shape), *map(len, members)) > EIGEN:
    yield from _one_by_one(x, targets, members, penalties)
    return
  system = _System.of(x, targets)
  values, vectors = scipy.linalg.eigh(system.gram, lower=True, overwrite_a=True, check_finite=False)
  values, centred = np.maximum(values, 0), targets - system.base
  basis, powers = vectors, values  # H = basis · powers / (values + α·N) · basisᵀ + 1/N
  if not system.dual:
    standardised = _Standardised(x, system.mean, system.factor)
    basis = np.concatenate([block @ vectors for _, block in standardised.rows()])
    powers = np.ones_like(values)
  projected = basis.T @ centred
  for penalty in penalties:
    weights = powers / (values + penalty * len(x))
    residuals, scores = centred - basis @ (weights[:, None] * projected), np.empty(targets.shape)
    for rows in members:
      alone = np.eye(len(rows)) - (basis[rows] * weights) @ basis[rows].T - 1 / len(x)
      scores[rows] = targets[rows] - np.linalg.solve(alone, residuals[rows])
    yield scores


def _one_by_one(x, targets, members: list[np.ndarray], penalties) -> np.ndarray:
  """(penalties, N, C) of `leave_out`, by a regression for each part."""
  N, (_, factor) = len(x), scale_of(x)
  scores = np.empty((len(penalties), *targets.shape))
  for rows in members:
    others = np.setdiff1d(np.arange(N), rows)
    system = _System.of(x[others], targets[others], factor)
    layers = system.layers([penalty * N / len(others) for penalty in penalties])
    for place, layer in enumerate(layers):
      scores[place, rows] = layer(x[rows])
  return scores


class _Standardised(NamedTuple):
  """(N, D) features whose standardised values are made block by block."""

  x: np.ndarray
  mean: np.ndarray
  factor: np.ndarray

  def columns(self) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, self.x.shape[1], BLOCK):
      part = slice(start, start + BLOCK)
      yield part, (self.x[:, part] - self.mean[part]) * self.factor[part]

  def rows(self) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(self.x), BLOCK):
      part = slice(start, start + BLOCK)
      yield part, (self.x[part] - self.mean) * self.factor

  def normal_equations(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, n) of which the lower triangle is filled, and (n, C): XXᵀ and the targets if N < D, else
    XᵀX and Xᵀ targets."""
    N, D = self.x.shape
    gram = np.zeros((min(N, D),) * 2, order="F")  # LAPACK works on it in place
    if N < D:
      for _, block in self.columns():
        _add_products(gram, block.T)
      return gram, targets
    side = np.zeros((D, targets.shape[1]))
    for part, block in self.rows():
      _add_products(gram, block)
      side += block.T @ targets[part]
    return gram, side

  def transposed_times(self, y: np.ndarray) -> np.ndarray:
    """Xᵀy, (N, C) -> (D, C)."""
    return np.concatenate([block.T @ y for _, block in self.columns()])


def _add_products(gram: np.ndarray, block: np.ndarray) -> None:
  """Adds blockᵀ·block of (k, n) to (n, n)'s lower triangle; by panels, as dsyrk has that fault."""
  for start in range(0, len(gram), BLOCK):
    panel, end = slice(start, start + BLOCK), start + BLOCK
    gram[panel, :end] += (block[:, :end].T @ block[:, panel]).T


class _System(NamedTuple):
  """The equations of N standardised clips, of size n = min(N, D)."""

  clips: int  # N
  mean: np.ndarray  # (D,), as is the factor
  factor: np.ndarray
  base: np.ndarray  # (C,) the targets' mean
  gram: np.ndarray  # (n, n), of which the lower triangle is filled
  side: np.ndarray  # (n, C)
  dual: _Standardised | None  # the features, where there are fewer clips than features

  @classmethod
  def of(cls, x: np.ndarray, targets: np.ndarray, factor: np.ndarray | None = None) -> "_System":
    """Of (N, D) features and (N, C) targets. `factor` (D,) scales the features, by default to a
    standard deviation of 1."""
    mean, own = scale_of(x)
    standardised = _Standardised(x, mean, own if factor is None else factor)
    base = targets.mean(0)
    gram, side = standardised.normal_equations(targets - base)
    dual = standardised if len(x) < x.shape[1] else None
    return cls(len(x), standardised.mean, standardised.factor, base, gram, side, dual)

  def layers(self, penalties: Sequence[float]) -> Iterator[Layer]:
    """As `fit`. The matrix of a small system is overwritten, unless there is one penalty."""
    small = len(self.gram) <= EIGEN and len(penalties) > 1
    solve = _decompose(self.gram, self.side) if small else _factorise(self.gram, self.side)
    for penalty in penalties:
      weights = solve(penalty * self.clips)
      if self.dual:
        weights = self.dual.transposed_times(weights)
      yield Layer(self.mean, self.factor[:, None] * weights, self.base)

  def added(self, x: np.ndarray, targets: np.ndarray) -> "_System | None":
    """Adds clips in place; returns the new system. Earlier clips are not read again, which saves
    nine tenths of the products of a large set. None where this cannot be done: for small systems,
    more features than clips, and features that were constant before."""
    constant, more = self.factor == 0, _Standardised(x, self.mean, self.factor)
    if self.dual or len(self.gram) <= EIGEN or (x[:, constant] != self.mean[constant]).any():
      return None
    N, gram, side, total = self.clips + len(x), self.gram, self.side, np.zeros(len(self.mean))
    for part, block in more.rows():
      _add_products(gram, block)
      side += block.T @ targets[part]
      total += block.sum(0)
    base, shift = (self.base * self.clips + targets.sum(0)) / N, total / N
    gram = dsyr(-float(N), shift, lower=1, a=gram, overwrite_a=1)
    side -= N * np.outer(shift, base)
    deviation = np.sqrt(gram.diagonal() / N)  # in the units of the clips before
    factor = np.divide(1, deviation, out=np.zeros_like(deviation), where=~constant)
    for array in (gram, side):
      array *= factor[:, None]
    gram *= factor
    mean = self.mean + np.divide(shift, self.factor, out=np.zeros_like(shift), where=~constant)
    return _System(N, mean, self.factor * factor, base, gram, side, None)


def _decompose(gram: np.ndarray, side: np.ndarray) -> Callable[[float], np.ndarray]:
  """shift -> (gram + shift·I)⁻¹ side, by one eigendecomposition for all shifts."""
  values, vectors = scipy.linalg.eigh(gram, lower=True, overwrite_a=True, check_finite=False)
  projected = vectors.T @ side
  return lambda shift: vectors @ (projected / (np.maximum(values, 0) + shift)[:, None])


def _factorise(gram: np.ndarray, side: np.ndarray) -> Callable[[float], np.ndarray]:
  """The same by a Cholesky factorisation for each shift."""

  def solve(shift):
    shifted = gram.copy(order="F")
    shifted.ravel(order="K")[:: len(gram) + 1] += shift  # the diagonal
    with threadpool_limits(1 if len(gram) > THREADED else None, "blas"):
      factor = scipy.linalg.cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)
      return scipy.linalg.cho_solve(factor, side, check_finite=False)

  return solve


def last_best(scores: Sequence[float]) -> int:
  """The place of the highest score; of equal ones the last, which is the largest penalty's."""
  return len(scores) - 1 - int(np.argmax(scores[::-1]))


def evaluate(
  x: np.ndarray,
  targets: np.ndarray,
  split: Split,
  score: Callable[[np.ndarray, np.ndarray], float],
  penalties: Sequence[float],
  *,
  refit: bool = True,
  groups: np.ndarray | None = None,
) -> Result:
  """Scores the test clips with the best α of the validation clips, or by `groups` of all known.

  Args:
    x, targets: (N, D) and (N, C).
    split: rows to `train` on, to choose the penalty (`valid`), and to `test`. Divisions keep the
      clips of a group together, so that the penalty is chosen on other groups than it is fitted on.
    score: of (scores, targets); higher is better. Of equal penalties the largest is taken.
    penalties: α, ascending.
    refit: fit once more with that α, on training and validation clips together.
    groups: (N,) int: the training and validation clips of each are left out in turn (`parts_of`,
      `leave_out`), and all their scores together choose. Needs `refit`.
  """
  rows = np.sort(np.concatenate([split.train, split.valid]))
  if groups is not None:
    assert refit, "what is left out in turn is known in the end"
    known, y = x[rows], targets[rows]
    left_out = leave_out(known, y, parts_of(groups[rows]), penalties)
    chosen = tuple(score(scores, y) for scores in left_out)
    (layer,) = _System.of(known, y).layers([penalties[last_best(chosen)]])
    return _result(layer(x[split.test]), targets[split.test], score, penalties, chosen)
  system, known, valid = _System.of(x[split.train], targets[split.train]), x[split.valid], []
  for layer in system.layers(penalties):
    valid.append(score(layer(known), targets[split.valid]))
    if valid[-1] >= max(valid):
      chosen_layer = layer
  if refit:
    more = system.added(known, targets[split.valid]) or _System.of(x[rows], targets[rows])
    (chosen_layer,) = more.layers([penalties[last_best(valid)]])
  return _result(chosen_layer(x[split.test]), targets[split.test], score, penalties, tuple(valid))


def _result(found, targets, score, penalties, valid: tuple[float, ...]) -> Result:
  """`found` are the test clips' scores, `valid` the score of each penalty."""
  best = last_best(valid)
  at_end = len(valid) > 2 and best in (0, len(valid) - 1)
  return Result(
    score(found, targets), penalties[best], at_end and valid[best] > max(valid[1:-1]), valid, found
  )
