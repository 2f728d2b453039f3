"""Scores of classifiers and of embeddings, in numpy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

MOST_CLIPS = 4096  # of a spectrum; its time grows with their cube
SHARES = 5  # directions with a reported share of the variance


def _finite(**arrays) -> None:
  for name, x in arrays.items():
    bad = int(np.size(x) - np.isfinite(x).sum())
    if bad:
      raise ValueError(f"{name}: {bad} of {np.size(x)} values are NaN or infinite")


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
  """Share of clips whose highest score is that of their label.

  Args:
    scores: (N, C), higher means likelier; among equal scores the first class counts.
    labels: (N,) class indices.

  Raises:
    ValueError: a score is NaN or infinite.
  """
  _finite(scores=scores)
  return float((scores.argmax(-1) == labels).mean())


def average_precision(
  scores: np.ndarray, targets: np.ndarray, counts: np.ndarray | None = None
) -> np.ndarray:
  """Area under the step-wise precision-recall curve, Σ (R_n - R_{n-1})·P_n over the distinct
  scores: (B,), one for each row of `counts`.

  Clips of equal score enter together, as in scikit-learn's average_precision_score, which is 2 to 6
  times slower and takes one set of weights at a time.

  Args:
    scores: (N,).
    targets: (N,) 0 or 1.
    counts: (B, N) how often each clip counts; once by default. NaN if no clip with a 1 counts.
  """
  order = np.argsort(-scores, kind="stable")
  ranked, hits = scores[order], np.flatnonzero(targets[order])
  # precision is taken behind the last clip of the same score
  last = len(ranked) - 1 - np.searchsorted(ranked[::-1], ranked[hits], side="left")
  weights = np.ones((1, len(order))) if counts is None else counts[:, order]
  above = np.cumsum(weights, -1)[:, last]
  own = weights[:, hits]
  found = np.cumsum(own, -1)[:, np.searchsorted(hits, last, side="right") - 1]
  precision = np.divide(found, above, out=np.zeros_like(above), where=above > 0)
  positives = own.sum(-1)
  area = (own * precision).sum(-1)
  return np.divide(area, positives, out=np.full_like(area, np.nan), where=positives > 0)


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
  """(mAP, labels present): the unweighted mean of the average precision of every label that occurs
  (ATST 3.2).

  Args:
    scores: (N, C).
    targets: (N, C) 0 or 1.

  Raises:
    ValueError: a score is NaN or infinite, or no label occurs.
  """
  _finite(scores=scores)
  present = np.flatnonzero(targets.any(0))
  if not len(present):
    raise ValueError(f"none of the {targets.shape[1]} labels occurs in the {len(targets)} clips")
  found = [average_precision(scores[:, c], targets[:, c])[0] for c in present]
  return float(np.mean(found)), len(present)


def d_prime(scores: np.ndarray, targets: np.ndarray) -> float:
  """√2·Φ⁻¹(mean AUC of the labels that some clips have and some have not): AudioSet's second
  measure (Gemmeke 2017).

  Infinite for a perfect order.

  Args:
    scores: (N, C).
    targets: (N, C) 0 or 1.

  Raises:
    ValueError: a score is NaN or infinite, or every label is of all clips or of none.
  """
  from sklearn.metrics import roc_auc_score

  _finite(scores=scores)
  split = np.flatnonzero(targets.any(0) & ~targets.all(0))
  if not len(split):
    raise ValueError(f"none of the {targets.shape[1]} labels divides the {len(targets)} clips")
  mean = roc_auc_score(targets[:, split], scores[:, split])
  return float(2**0.5 * scipy.stats.norm.ppf(mean))


def hits_at(similarity: np.ndarray, wanted: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
  """(len(ks), N) whether each query's wanted candidate is among the K most similar.

  For candidates that are as similar as the wanted one, the mean over their orders counts: if all
  are equal the result is K / M, not 1. (scikit-learn's top_k_accuracy_score decides by their
  place.)

  Args:
    similarity: (N, M) of queries and candidates, higher is nearer.
    wanted: (N,) index of each query's candidate.
    ks: each at least 1.

  Raises:
    ValueError: a similarity is NaN or infinite, or a K is below 1.
  """
  _finite(similarity=similarity)
  if min(ks) < 1:
    raise ValueError(f"R@K for K = {min(ks)}: K must be at least 1")
  own = np.take_along_axis(similarity, np.asarray(wanted)[:, None], -1)
  nearer, tied = (similarity > own).sum(-1), (similarity == own).sum(-1)  # tied: with itself
  return np.array([np.clip((k - nearer) / tied, 0, 1) for k in ks])


class Spectrum(NamedTuple):
  """The spread of the vectors' variance over directions, from the covariance's eigenvalues λ,
  largest first. All 0 if vectors do not vary."""

  shares: tuple[float, ...]  # of the variance, of each of the first SHARES directions
  directions_90: int  # the fewest directions that hold 90 % of the variance
  directions_99: int
  participation_ratio: float  # (Σλ)² / Σλ²: 1 on a line, D where all directions vary alike
  effective_rank: float  # exp(H(p)), p = λ / Σλ


def spectrum(x: np.ndarray) -> Spectrum:
  """The spectrum of vectors without standardisation, from at most MOST_CLIPS of them, evenly taken.

  H is the entropy in nats, so that the effective rank lies between 1 (all on one line) and
  min(N - 1, D) (equal along every axis). It uses squared singular values; Roy and Vetterli (2007)
  use unsquared ones. Vectors that do not vary have rank 0.

  Args:
    x: (N, D).

  Raises:
    ValueError: a feature is NaN or infinite.
  """
  _finite(features=x)
  x = x[:: -(-len(x) // MOST_CLIPS)].astype(np.float64)
  mean, factor = scale_of(x)
  x = (x - mean) * (factor > 0)  # constant columns leave no rounding errors
  gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
  variance = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
  if variance[0] == 0:
    return Spectrum((0.0,) * min(SHARES, x.shape[1]), 0, 0, 0.0, 0.0)
  share = variance / variance.sum()
  held, there = np.cumsum(share), share[share > 0]
  return Spectrum(
    tuple(share[:SHARES].tolist()),
    int(np.searchsorted(held, 0.90) + 1),
    int(np.searchsorted(held, 0.99) + 1),
    float(1 / np.sum(share**2)),
    float(np.exp(-np.sum(there * np.log(there)))),
  )


def scale_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(mean, factor) of every column, float64: (x - mean) · factor has standard deviation 1, or is 0
  for a constant column."""
  mean = x.mean(0, dtype=np.float64)
  # Column by column in blocks, since numpy would make a float64 copy of all of x.
  std = np.concatenate(
    [x[:, i : i + 256].std(0, dtype=np.float64) for i in range(0, x.shape[1], 256)]
  )
  return mean, np.divide(1, std, out=np.zeros_like(std), where=std > 1e-9 * (1 + np.abs(mean)))


def knn_scores(train_x, train_y, test_x, *, k: int) -> np.ndarray:
  """(N, C) votes of the k nearest training clips by cosine of standardised, L2-normalised features.

  Equal votes are decided by the sum of the neighbours' cosines, which is added, scaled to less than
  half a vote.

  Args:
    train_x, test_x: (M, D) and (N, D).
    train_y: (M, C) 0 or 1.
    k: neighbours; at most M.

  Raises:
    ValueError: a feature is NaN or infinite, or k is not between 1 and M.
  """
  _finite(train_x=train_x, test_x=test_x)
  if not 1 <= k <= len(train_x):
    raise ValueError(f"k = {k} neighbours of {len(train_x)} training clips")
  mean, factor = scale_of(train_x)

  # In float32 and in place, so that features of a large set fill memory only once more.
  def unit(x):
    x = np.subtract(x, mean.astype(np.float32), dtype=np.float32)
    x *= factor.astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return x

  train_x, out = unit(train_x), np.empty((len(test_x), train_y.shape[1]))
  for start in range(0, len(test_x), 1024):
    cosine = unit(test_x[start : start + 1024]) @ train_x.T
    nearest = np.argsort(-cosine, axis=-1, kind="stable")[:, :k]
    votes = train_y[nearest].astype(np.float64)  # (n, k, C)
    weight = 1 + np.take_along_axis(cosine, nearest, -1) / (2 * (k + 1))
    out[start : start + 1024] = np.einsum("nkc,nk->nc", votes, weight)
  return out


def chance(targets: np.ndarray, splits: Sequence, multi_label: bool) -> float:
  """The score without features. One label: the better of two answers, always the training clips'
  commonest class, or one of the trained classes drawn evenly. Several: the labels' mean prevalence.
  """
  if multi_label:
    prevalence = [targets[s.test].mean(0) for s in splits]
    return float(np.mean([p[p > 0].mean() for p in prevalence]))
  trained = [targets[s.train].sum(0) for s in splits]
  commonest = [targets[s.test, t.argmax()].mean() for s, t in zip(splits, trained, strict=True)]
  return float(max(np.mean(commonest), np.mean([1 / (t > 0).sum() for t in trained])))


def confidence(scores: list[float]) -> float | None:
  """Half the width of the 95 % confidence interval of the mean of n scores, by Student's t with n -
  1 degrees."""
  if len(scores) < 2:
    return None
  return float(
    scipy.stats.t.ppf(0.975, len(scores) - 1) * np.std(scores, ddof=1) / np.sqrt(len(scores))
  )


def summary(per_seed: list[float]) -> dict:
  """{"mean", "std", "ci95", "per_seed"} of one score for each seed; spreads are None for a single
  one."""
  per_seed = [float(score) for score in per_seed]
  return {
    "mean": float(np.mean(per_seed)),
    "std": float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None,
    "ci95": confidence(per_seed),
    "per_seed": per_seed,
  }
