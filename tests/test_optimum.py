"""The distance of a probe from its objective's optimum, against scikit-learn without a penalty."""

import numpy as np
import pytest

from atst_jax.downstream.linear import optimum


def noisy(n, d, classes=3, seed=0):
  """Features of very different scales and correlated, and labels that they tell in part."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) * np.geomspace(1, 1e-3, d)) + 5
  scores = (x - x.mean(0)) / x.std(0) @ rng.normal(size=(d, classes)) + rng.gumbel(
    size=(n, classes), scale=3
  )
  return x.astype(np.float32), np.eye(classes, dtype=np.uint8)[scores.argmax(1)]


def test_the_optimum_is_that_of_scikit_learn_without_a_penalty():
  from sklearn.linear_model import LogisticRegression
  from sklearn.preprocessing import StandardScaler

  x, targets = noisy(300, 8)
  found = optimum.optimum(x, targets, False)
  z = StandardScaler().fit_transform(x.astype(np.float64))
  model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=100_000).fit(z, targets.argmax(1))
  expected = optimum.cross_entropy(model.decision_function(z), targets, False)
  assert found.found and found.loss == pytest.approx(expected, abs=1e-6) and found.loss > 0.3


def test_of_several_labels_each_is_a_problem_of_its_own():
  x, targets = noisy(200, 6)
  targets = targets | np.roll(targets, 1, axis=1)
  found = optimum.optimum(x, targets, True)
  alone = [optimum.optimum(x, targets[:, [c]], True).loss for c in range(3)]
  assert found.found and found.loss == pytest.approx(np.mean(alone), abs=1e-6)


def test_independent_clips_reach_any_logits():
  """21 points of 20 dimensions are affinely independent. A 22nd clip of the same features and
  another label leaves the two at 0.5 each."""
  x, targets = noisy(21, 20)
  assert optimum.optimum(x, targets, False) == (0, True)
  x, targets = np.concatenate([x, x[:1]]), np.concatenate([targets, np.roll(targets[:1], 1)])
  assert optimum.optimum(x, targets, False).loss == pytest.approx(2 * np.log(2) / 22, abs=2e-3)


def test_features_that_do_not_vary_leave_the_entropy_of_the_labels():
  targets = np.eye(2)[[0, 0, 0, 1]]
  share = np.array([0.75, 0.25])
  found = optimum.optimum(np.full((4, 5), 0.1), targets, False)
  assert found.loss == pytest.approx(-(share * np.log(share)).sum(), abs=1e-6)


def test_cross_entropies_of_known_logits():
  logits, targets = np.log([[0.5, 0.25, 0.25]]), np.array([[0, 1, 0]])
  assert optimum.cross_entropy(logits, targets, False) == pytest.approx(np.log(4))
  assert optimum.cross_entropy(np.zeros((2, 3)), np.ones((2, 3)), True) == pytest.approx(np.log(2))
