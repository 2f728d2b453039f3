"""The optimum of a probe's objective on its training clips.

The objective is the cross entropy that both papers' probes minimise: the mean over clips, in nats;
with several labels the mean over clips and labels of the binary one. (EVAR's code divides it by the
number of classes and adds a penalty of 1e-8 |W|² / 2, which is left out here.) The minimum is over
all weights and biases of a linear layer. It does not depend on the normalisation of features.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special

from atst_jax.downstream.metrics import scale_of

ITERATIONS = 500  # of L-BFGS
GRADIENT = 1e-5  # the minimum counts as found if no number of the gradient is larger
OPERATIONS = 4e13  # of all iterations; some minutes on two cores
SMALLEST = 1e-10  # a relative variance below this is a rounding error


class Optimum(NamedTuple):
  """The smallest loss that was found: an upper bound of the minimum."""

  loss: float
  found: bool  # no number of its gradient in whitened directions is above GRADIENT


def cross_entropy(logits: np.ndarray, targets: np.ndarray, multi_label: bool) -> float:
  """The objective: (N, C), (N, C) -> nats."""
  logits, targets = logits.astype(np.float64), targets.astype(np.float64)
  if multi_label:
    return float(np.mean(np.logaddexp(0, logits) - logits * targets))
  return float(np.mean(scipy.special.logsumexp(logits, axis=1) - (logits * targets).sum(1)))


def optimum(x: np.ndarray, targets: np.ndarray, multi_label: bool) -> Optimum:
  """The objective's minimum over all linear layers.

  Clips with affinely independent features can have any logits: the infimum is 0. Otherwise L-BFGS
  runs in whitened directions, from the best constant logits, for ITERATIONS or as many as
  OPERATIONS allow.

  Args:
    x: (N, D) features of the clips that were trained on.
    targets: (N, C) 0 or 1; without `multi_label` one 1 in a row.
  """
  mean, factor = scale_of(x)
  z = (x[:, factor > 0] - mean[factor > 0]) * factor[factor > 0]
  if len(z) <= z.shape[1] + 1 and _independent(z):
    return Optimum(0.0, True)
  z, targets = _whitened(z), targets.astype(np.float64)
  (N, d), C = z.shape, targets.shape[1]

  def loss_and_gradient(flat):
    weights, bias = flat[: d * C].reshape(d, C), flat[d * C :]
    logits = z @ weights + bias
    odds = scipy.special.expit(logits) if multi_label else scipy.special.softmax(logits, axis=1)
    slope = (odds - targets) / (targets.size if multi_label else N)
    gradient = np.concatenate([(z.T @ slope).ravel(), slope.sum(0)])
    return cross_entropy(logits, targets, multi_label), gradient

  share = targets.mean(0).clip(0.5 / N, 1 - 0.5 / N)
  bias = scipy.special.logit(share) if multi_label else np.log(share)
  steps = int(min(ITERATIONS, 1 + OPERATIONS / (4 * N * (d + 1) * C)))
  result = scipy.optimize.minimize(
    loss_and_gradient,
    np.concatenate([np.zeros(d * C), bias]),
    jac=True,
    method="L-BFGS-B",
    options={"maxiter": steps, "maxfun": 2 * steps, "gtol": GRADIENT, "ftol": 0},
  )
  return Optimum(float(result.fun), bool(np.abs(result.jac).max() <= GRADIENT))


def _independent(z: np.ndarray) -> bool:
  """Whether (N, D) points are affinely independent."""
  gram = z @ z.T
  gram = gram / gram.diagonal().mean() + 1
  try:
    factor = scipy.linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
  except scipy.linalg.LinAlgError:
    return False
  return bool(factor.diagonal().min() ** 2 > SMALLEST)


def _whitened(z: np.ndarray) -> np.ndarray:
  """(N, D) centred -> (N, d) that span the same, nearly uncorrelated and of variance 1."""
  N, D = z.shape
  if N <= D:
    values, vectors = scipy.linalg.eigh(z @ z.T, overwrite_a=True, check_finite=False)
    return vectors[:, values > SMALLEST * values[-1]] * np.sqrt(N)
  gram = z.T @ z / N + SMALLEST * np.eye(D)  # its diagonal is 1
  factor = scipy.linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
  return scipy.linalg.solve_triangular(factor, z.T, lower=True, check_finite=False).T
