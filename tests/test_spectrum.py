"""The spectrum of vectors whose directions are known, and whitening by the smaller side."""

import numpy as np
import pytest

from atst_jax.artifacts.collection import neighbours
from atst_jax.downstream.linear import exact
from atst_jax.downstream.metrics import spectrum
from atst_jax.util.errors import UserError


def vectors(variances, n=64, d=20, seed=0):
  """(n, d) whose covariance has exactly these eigenvalues, in directions of no axis."""
  rng = np.random.default_rng(seed)
  sides = np.linalg.qr(np.c_[np.ones(n), rng.normal(size=(n, len(variances)))])[0][:, 1:]
  axes = np.linalg.qr(rng.normal(size=(d, len(variances))))[0]
  return (sides * np.sqrt(n * np.array(variances))) @ axes.T + 7


@pytest.mark.parametrize("d", [20, 200])
def test_shares_directions_and_participation(d):
  found = spectrum(vectors([50, 30, 11, 8.5, 0.5], d=d))
  np.testing.assert_allclose(found.shares, [0.5, 0.3, 0.11, 0.085, 0.005], atol=1e-6)
  assert (found.directions_90, found.directions_99) == (3, 4)
  assert found.participation_ratio == pytest.approx(
    100**2 / (50**2 + 30**2 + 11**2 + 8.5**2 + 0.25)
  )


def test_equal_directions_and_none():
  assert spectrum(vectors([2] * 6))[1:] == pytest.approx((6, 6, 6, 6))
  assert spectrum(np.full((9, 3), 0.1)) == ((0.0, 0.0, 0.0), 0, 0, 0.0, 0.0)
  with pytest.raises(ValueError, match="1 of 6 values are NaN"):
    spectrum(np.array([[1, np.nan, 0], [0, 1, 2]]))


def test_whitening_of_wide_vectors_is_that_of_all_their_numbers(monkeypatch):
  """Fewer clips than numbers: the other side of the matrix. More than WIDEST numbers: fewer
  clips."""
  x = vectors([50, 5, 0.5], d=200)
  white = neighbours.whitening(x)
  project = lambda white: (x - white.mean) @ white.directions
  np.testing.assert_allclose(project(white).T @ project(white) / len(x), np.eye(3), atol=1e-3)
  narrow = neighbours.whitening(x @ np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:20].T)
  assert narrow.directions.shape == (20, 3)
  monkeypatch.setattr(neighbours, "WIDEST", 32)
  half = neighbours.whitening(x)
  assert half.directions.shape == (200, 3)
  np.testing.assert_allclose(half.mean, x[::2].mean(0), rtol=1e-5)


def test_vectors_that_do_not_vary_are_refused():
  with pytest.raises(UserError, match=r"all 9 clips are the same.*an earlier checkpoint"):
    exact.spectra("pre-trained", [np.full((9, 4), 0.1, np.float32)])
