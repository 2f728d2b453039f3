"""The probe in closed form: equal to scikit-learn's ridge regression, and blind to the test
clips."""

import numpy as np
import pytest

from atst_jax.downstream import ridge
from atst_jax.downstream.metrics import accuracy
from atst_jax.downstream.splits import Split


def data(n=60, d=10, classes=3, seed=0):
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % classes
  x = rng.normal(size=(n, d)) * 3 + 5 + 2 * rng.normal(size=(classes, d))[labels]
  return x.astype(np.float32), np.eye(classes, dtype=np.uint8)[labels]


# fewer and more features than clips: both systems of equations
@pytest.mark.parametrize("d", [10, 200])
def test_scores_are_those_of_scikit_learn(d):
  from sklearn.linear_model import Ridge
  from sklearn.preprocessing import StandardScaler

  x, targets = data(d=d)
  x[:, 3] = 7  # constant
  scaler = StandardScaler().fit(x[:40].astype(np.float64))
  for penalty, predict in zip(
    (0.01, 1.0), ridge.fit(x[:40], targets[:40], (0.01, 1.0)), strict=True
  ):
    model = Ridge(alpha=penalty * 40).fit(scaler.transform(x[:40].astype(np.float64)), targets[:40])
    np.testing.assert_allclose(
      predict(x[40:]), model.predict(scaler.transform(x[40:].astype(np.float64))), atol=1e-6
    )


def test_the_validation_clips_choose_and_the_test_clips_do_not():
  x, targets = data(n=90, d=40)
  split = Split(np.arange(30), np.arange(30, 60), np.arange(60, 90))
  score = lambda scores, targets: accuracy(scores, targets.argmax(-1))
  grid = (1e-3, 1e-1, 10.0, 1e5)
  found, penalty = ridge.evaluate(x, targets, split, score, grid)
  valid = [
    score(p(x[split.valid]), targets[split.valid]) for p in ridge.fit(x[:30], targets[:30], grid)
  ]
  assert penalty == max(p for p, v in zip(grid, valid, strict=True) if v == max(valid))
  (both,) = ridge.fit(x[:60], targets[:60], [penalty])
  assert found == score(both(x[60:]), targets[60:]) > 0.5
  shuffled = targets.copy()
  shuffled[60:] = targets[60:][::-1]
  assert ridge.evaluate(x, shuffled, split, score, grid)[1] == penalty
