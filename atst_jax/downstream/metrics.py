"""Scores of classifiers and of embeddings, in numpy."""

import numpy as np
import scipy.stats


def _finite(**arrays) -> None:
  for name, x in arrays.items():
    bad = int(np.size(x) - np.isfinite(x).sum())
    if bad:
      raise ValueError(f"{name}: {bad} of {np.size(x)} values are NaN or infinite")


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
  """Share of clips whose highest score is that of their label.

  Args:
    scores: (N, C), higher means likelier; of equal scores the first class counts.
    labels: (N,) class indices.

  Raises:
    ValueError: a score is NaN or infinite.
  """
  _finite(scores=scores)
  return float((scores.argmax(-1) == labels).mean())


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
  """Area under the step-wise precision-recall curve, Σ (R_n - R_{n-1})·P_n over the distinct
  scores.

  Clips of equal score enter together, as in scikit-learn's average_precision_score.

  Args:
    scores: (N,).
    targets: (N,) 0 or 1, at least one 1.
  """
  order = np.argsort(-scores, kind="stable")
  hits = np.cumsum(targets[order])
  # of every run of equal scores
  last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
  recall = hits[last] / hits[-1]
  return float(np.sum(np.diff(recall, prepend=0) * hits[last] / (last + 1)))


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
  return float(np.mean([average_precision(scores[:, c], targets[:, c]) for c in present])), len(
    present
  )


def roc_auc(scores: np.ndarray, targets: np.ndarray) -> float:
  """Probability that a positive clip scores higher than a negative one; equal scores count half.

  Args:
    scores: (N,).
    targets: (N,) 0 or 1, at least one of each.
  """
  _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
  rank = (np.cumsum(count) - (count - 1) / 2)[place]  # of equal scores the mean of theirs, from 1
  positives = int(targets.sum())
  if not 0 < positives < len(targets):
    raise ValueError(
      f"{positives} of {len(targets)} clips are positive; at least one of each kind is needed"
    )
  above = rank[targets.astype(bool)].sum() - positives * (positives + 1) / 2
  return float(above / (positives * (len(targets) - positives)))


def d_prime(scores: np.ndarray, targets: np.ndarray) -> float:
  """√2·Φ⁻¹(mean AUC of the labels that some clips have and some have not): AudioSet's second
  measure (Gemmeke 2017).

  Infinite where the order is perfect.

  Args:
    scores: (N, C).
    targets: (N, C) 0 or 1.

  Raises:
    ValueError: a score is NaN or infinite, or every label is of all clips or of none.
  """
  import scipy.stats

  _finite(scores=scores)
  split = np.flatnonzero(targets.any(0) & ~targets.all(0))
  if not len(split):
    raise ValueError(f"none of the {targets.shape[1]} labels divides the {len(targets)} clips")
  mean = np.mean([roc_auc(scores[:, c], targets[:, c]) for c in split])
  return float(2**0.5 * scipy.stats.norm.ppf(mean))


def recall_at(similarity: np.ndarray, wanted: np.ndarray, ks: tuple[int, ...]) -> list[float]:
  """R@K: the share of queries whose wanted candidate is among the K most similar, for each K.

  Of candidates as similar as the wanted one, the expectation over their order counts: equal
  similarities give K / M, not 1.

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
  return [float(np.clip((k - nearer) / tied, 0, 1).mean()) for k in ks]


def effective_rank(x: np.ndarray) -> float:
  """exp(H(p)), p_i = σ_i² / Σ σ_j², with σ the singular values of x after subtracting the mean of
  every column.

  H is the entropy in nats. p is the share of the variance along each principal axis, so the result
  lies between 1 (all on one line) and min(N - 1, D) (equal along every axis). Squared singular
  values: Roy and Vetterli (2007) take them unsquared. Features that do not vary have rank 0.

  Args:
    x: (N, D) features, as they are (not standardised).

  Raises:
    ValueError: a feature is NaN or infinite.
  """
  _finite(features=x)
  x = x.astype(np.float64)
  x = x - x.mean(0)
  gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
  variance = np.maximum(np.linalg.eigvalsh(gram), 0)
  if variance.sum() == 0:
    return 0.0
  share = variance[variance > 0] / variance.sum()
  return float(np.exp(-np.sum(share * np.log(share))))


def scale_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(mean, factor) of every column, float64: (x - mean) · factor has standard deviation 1, or is 0
  if constant."""
  mean = x.mean(0, dtype=np.float64)
  # Column by column in blocks, since numpy would make a float64 copy of all of x.
  std = np.concatenate(
    [x[:, i : i + 256].std(0, dtype=np.float64) for i in range(0, x.shape[1], 256)]
  )
  return mean, np.divide(1, std, out=np.zeros_like(std), where=std > 1e-9 * (1 + np.abs(mean)))


def knn_scores(train_x, train_y, test_x, *, k: int) -> np.ndarray:
  """(N, C) votes of the k nearest training clips by cosine of standardised, L2-normalised features.

  Equal votes are decided by the sum of the neighbours' cosines: it is added, scaled to less than
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

  # in float32 and in place: features of a large set fill memory once more, not four times
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
