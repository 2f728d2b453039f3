"""Scores against scikit-learn, worked examples and slow twins."""

import numpy as np
import pytest

from atst_jax.downstream import metrics
from atst_jax.downstream.splits import Split


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.mark.parametrize("levels", [3, 20, 10**9])
def test_fault_38_mean_average_precision_is_that_of_scikit_learn_with_and_without_ties(rng, levels):
  from sklearn.metrics import average_precision_score

  scores = rng.integers(levels, size=(200, 7)) / levels
  targets = (rng.random((200, 7)) < [0.5, 0.3, 0.1, 0.02, 0, 1, 0.2]).astype(np.uint8)
  present = np.flatnonzero(targets.any(0))
  expected = [average_precision_score(targets[:, c], scores[:, c]) for c in present]
  value, count = metrics.mean_average_precision(scores, targets)
  assert count == len(present) == 6
  np.testing.assert_allclose(value, np.mean(expected), atol=1e-12, rtol=0)


def test_average_precision_of_a_worked_example():
  # Ranks 1 and 3 are hits: (1/1 + 2/3) / 2.
  assert metrics.average_precision(
    np.array([4.0, 3, 2, 1]), np.array([1, 0, 1, 0])
  ) == pytest.approx(5 / 6, abs=1e-15)


def test_fault_38_mean_average_precision_without_any_label_raises():
  with pytest.raises(ValueError, match="none of the 2 labels occurs in the 3 clips"):
    metrics.mean_average_precision(np.zeros((3, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize("score", [metrics.accuracy, metrics.mean_average_precision])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fault_38_scores_that_are_not_finite_raise(score, value):
  scores = np.zeros((4, 2))
  scores[1, 0] = value
  with pytest.raises(ValueError, match="scores: 1 of 8 values are NaN or infinite"):
    score(scores, np.eye(2)[[0, 1, 0, 1]])


def test_accuracy():
  scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5], [0.1, 0.2]])
  assert metrics.accuracy(scores, np.array([1, 0, 0, 0])) == 0.75


def test_effective_rank_counts_equal_directions_and_ignores_offset_and_scale():
  square = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
  assert metrics.spectrum(square).effective_rank == pytest.approx(2)
  assert metrics.spectrum(7 * square + 100).effective_rank == pytest.approx(2)
  assert metrics.spectrum(np.array([[0.0, 0], [1, 2], [2, 4]])).effective_rank == pytest.approx(1)
  assert metrics.spectrum(np.ones((5, 3))).effective_rank == 0


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_effective_rank_is_the_entropy_of_squared_singular_values(rng, shape):
  x = rng.normal(size=shape) * rng.uniform(0.1, 3, shape[1])
  energy = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
  share = energy / energy.sum()
  share = share[share > 1e-15]
  assert metrics.spectrum(x).effective_rank == pytest.approx(
    np.exp(-(share * np.log(share)).sum()), rel=1e-9
  )


def test_effective_rank_of_nan_raises():
  with pytest.raises(ValueError, match="features: 1 of 4"):
    metrics.spectrum(np.array([[1.0, np.nan], [0, 1]]))


def test_scale_zeroes_constant_columns(rng):
  x = rng.normal(3, 2, (50, 600))
  x[:, 300] = 1e3
  mean, factor = metrics.scale_of(x)
  std = ((x - mean) * factor).std(0)
  assert factor[300] == std[300] == 0
  np.testing.assert_allclose(np.delete(std, 300), 1)
  np.testing.assert_allclose(mean, x.mean(0))


def slow_knn(train_x, train_y, test_x, k):
  """One clip at a time: the class with most votes, of equal ones that with the larger sum of
  cosines."""
  mean, std = train_x.mean(0), train_x.std(0)
  unit = lambda v: (v - mean) / std / np.linalg.norm((v - mean) / std)
  out = []
  for x in test_x:
    cosines = np.array([unit(x) @ unit(t) for t in train_x])
    nearest = sorted(range(len(train_x)), key=lambda i: -cosines[i])[:k]
    classes = sorted({train_y[i] for i in nearest})
    votes = {
      c: (
        sum(train_y[i] == c for i in nearest),
        sum(cosines[i] for i in nearest if train_y[i] == c),
      )
      for c in classes
    }
    out.append(max(classes, key=lambda c: votes[c]))
  return np.array(out)


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_knn_is_that_of_a_slow_twin(rng, k):
  train_x, test_x = (
    rng.normal(size=(40, 6)) * [1, 50, 1, 1, 0.01, 1] + 20,
    rng.normal(size=(60, 6)) + 20,
  )
  train_y = rng.integers(4, size=40)
  expected = slow_knn(train_x, train_y, test_x, k)
  scores = metrics.knn_scores(train_x, np.eye(4)[train_y], test_x, k=k)
  np.testing.assert_array_equal(scores.argmax(-1), expected)


def test_more_votes_win_however_near_the_others_are():
  train_x, labels = (
    np.array([[1, 1], [1.1, 1], [-1, -1], [-1, 0.5], [0, -1]]),
    np.array([0, 0, 1, 1, 1]),
  )
  scores = metrics.knn_scores(train_x, np.eye(2)[labels], np.ones((1, 2)), k=5)
  assert scores.argmax(-1).tolist() == [1]


def test_knn_refuses_more_neighbours_than_clips_and_nan():
  x = y = np.eye(3)
  with pytest.raises(ValueError, match="k = 4 neighbours of 3"):
    metrics.knn_scores(x, y, x, k=4)
  with pytest.raises(ValueError, match="test_x: 9 of 9"):
    metrics.knn_scores(x, y, x * np.nan, k=1)


@pytest.mark.parametrize("levels", [3, 10**9])
def test_d_prime_is_that_of_scikit_learns_mean_auc(rng, levels):
  import scipy.stats
  from sklearn.metrics import roc_auc_score

  scores = rng.integers(levels, size=(200, 6)) / levels
  targets = (rng.random((200, 6)) < [0.5, 0.3, 0.02, 0, 1, 0.2]).astype(np.uint8)
  scores += targets / 3
  aucs = [roc_auc_score(targets[:, c], scores[:, c]) for c in (0, 1, 2, 5)]
  assert metrics.d_prime(scores, targets) == pytest.approx(
    np.sqrt(2) * scipy.stats.norm.ppf(np.mean(aucs)), rel=1e-9
  )


def test_d_prime_of_a_worked_example():
  # Two normal distributions of deviation 1 whose means are 1.5 apart have d' = 1.5.
  rng = np.random.default_rng(3)
  targets = np.repeat([0, 1], 100_000)
  scores = rng.normal(size=200_000) + 1.5 * targets
  assert metrics.d_prime(scores[:, None], targets[:, None]) == pytest.approx(1.5, abs=0.02)
  assert metrics.d_prime(targets[:, None] * 1.0, targets[:, None]) == np.inf
  with pytest.raises(ValueError, match="none of the 1 labels divides the 3 clips"):
    metrics.d_prime(np.zeros((3, 1)), np.ones((3, 1)))


def test_recall_at_k_is_scikit_learns_top_k_accuracy(rng):
  from sklearn.metrics import top_k_accuracy_score

  similarity, wanted = rng.normal(size=(60, 25)), rng.integers(25, size=60)
  expected = [
    top_k_accuracy_score(wanted, similarity, k=k, labels=np.arange(25)) for k in (1, 5, 10)
  ]
  np.testing.assert_allclose(
    metrics.hits_at(similarity, wanted, (1, 5, 10)).mean(-1), expected, atol=1e-12
  )


def test_recall_of_equal_similarities_is_chance():
  recalls = metrics.hits_at(np.ones((4, 20)), np.arange(4), (1, 5, 10, 20, 30)).mean(-1)
  assert recalls.tolist() == [0.05, 0.25, 0.5, 1, 1]
  hits = metrics.hits_at(np.array([[3.0, 2, 2]]), np.array([2]), (1, 2, 3))
  assert hits.tolist() == [[0], [0.5], [1]]
  with pytest.raises(ValueError, match="K must be at least 1"):
    metrics.hits_at(np.ones((2, 2)), np.arange(2), (0, 1))
  with pytest.raises(ValueError, match="similarity: 1 of 4"):
    metrics.hits_at(np.array([[np.nan, 1], [1, 1]]), np.arange(2), (1,))


def test_chance_is_the_commonest_training_class_or_the_mean_prevalence():
  split = Split(np.arange(5), np.arange(5, 6), np.arange(6, 10))
  targets = np.eye(3, dtype=int)[[1, 1, 1, 0, 2, 2, 0, 1, 0, 0]]
  assert metrics.chance(targets, [split], False) == pytest.approx(1 / 3)
  common = np.eye(3, dtype=int)[[1, 1, 1, 0, 2, 2, 1, 1, 0, 2]]
  assert metrics.chance(common, [split], False) == 0.5
  targets[6:, 2] = [1, 1, 1, 0]
  assert metrics.chance(targets, [split], True) == pytest.approx((0.75 + 0.25 + 0.75) / 3)
