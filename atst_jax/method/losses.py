"""The losses of BYOL and of the subtraction, and what tells a healthy network from a collapsed
one."""

import jax.numpy as jnp


def l2_normalize(x):
  """(..., P) -> (..., P) of unit length; PyTorch's `normalize` with its epsilon of 1e-12."""
  square = jnp.sum(jnp.square(x), -1, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(square, 1e-24))


def cosine_loss(prediction, target):
  """2 - 2·cos, averaged over all rows: (..., P), (..., P) -> () in [0, 4] (BYOL; difference-aware
  paper Eq. 1, 3)."""
  return 2 - 2 * jnp.mean(jnp.sum(l2_normalize(prediction) * l2_normalize(target), -1))


def cross_loss(predictions, targets):
  """Every view's prediction against the other view's target, averaged: (B, 2 or 1, P), (B, 2, P) ->
  ().

  With one prediction, view 1's, it is one direction alone. ATST's paper writes the sum of both
  directions, its released code takes the mean; AdamW cancels the factor.
  """
  return cosine_loss(predictions, targets[:, ::-1][:, : predictions.shape[1]])


def output_std(x):
  """Standard deviation over rows of L2-normalised outputs, averaged over dimensions: (..., P) ->
  ().

  Unit vectors spread evenly over the sphere give 1/sqrt(P); a collapsed network gives about 0
  (released monitor).
  """
  rows = l2_normalize(x).reshape(-1, x.shape[-1])
  return jnp.mean(jnp.sqrt(jnp.var(rows, axis=0, ddof=1) + 1e-6))


def output_rank(x):
  """Participation ratio (Σλ)² / Σλ² of the covariance of L2-normalised outputs: (..., P) -> () in
  [1, P].

  exp of the eigenvalues' Rényi entropy of order 2, so at most the effective rank
  (`metrics.spectrum`), and it needs no eigenvalues. Outputs that do not vary at all have 0,
  or by rounding 1.
  """
  rows = l2_normalize(x).reshape(-1, x.shape[-1])
  rows = rows - jnp.mean(rows, axis=0, keepdims=True)
  covariance = jnp.matmul(rows.T, rows, precision="highest") / rows.shape[0]
  return jnp.square(jnp.trace(covariance)) / jnp.maximum(jnp.sum(jnp.square(covariance)), 1e-30)
