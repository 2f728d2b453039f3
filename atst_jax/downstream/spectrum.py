"""How the variance of vectors is spread over directions.

What tells classes apart may lie in directions that hardly vary. Distances, and a probe that is
trained for a while, see the few directions that vary most.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

from atst_jax.downstream.metrics import scale_of

MOST_CLIPS = 4096  # evenly taken: the time grows with their cube
SHARES = 5  # directions whose share is reported


class Spectrum(NamedTuple):
  """Of the covariance's eigenvalues λ, largest first; all 0 where vectors do not vary."""

  shares: tuple[float, ...]  # of the variance, of each of the first SHARES directions
  directions_90: int  # the fewest directions that hold 90 % of the variance
  directions_99: int
  participation_ratio: float  # (Σλ)² / Σλ²: 1 on a line, D where all directions vary alike
  effective_rank: float  # exp(entropy of λ / Σλ), `metrics.effective_rank`


def spectrum(x: np.ndarray) -> Spectrum:
  """The spectrum of (N, D) vectors as they are, from at most MOST_CLIPS of them.

  Raises ValueError if a number is NaN or infinite.
  """
  x = x[:: -(-len(x) // MOST_CLIPS)].astype(np.float64)
  if not np.isfinite(x).all():
    raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} numbers are NaN or infinite")
  mean, factor = scale_of(x)
  x = (x - mean) * (factor > 0)  # constant columns leave no rounding errors
  gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
  variance = np.maximum(scipy.linalg.eigvalsh(gram, check_finite=False)[::-1], 0)
  if variance[0] == 0:
    return Spectrum((0.0,) * min(SHARES, x.shape[1]), 0, 0, 0.0, 0.0)
  share = variance / variance.sum()
  held = np.cumsum(share)
  there = share[share > 0]
  return Spectrum(
    tuple(share[:SHARES].tolist()),
    int(np.searchsorted(held, 0.90) + 1),
    int(np.searchsorted(held, 0.99) + 1),
    float(1 / np.sum(share**2)),
    float(np.exp(-np.sum(there * np.log(there)))),
  )
