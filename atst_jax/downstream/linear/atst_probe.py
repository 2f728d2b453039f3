"""ATST's linear probe: parameter-free batch normalisation and a linear layer, by SGD, for all rates
and seeds at once.

Source: the released code's frozen evaluation (its linear head, its SGD and its cosine over epochs;
ATST 3.2 says "to 1e-6" where the code anneals to 0).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

MOMENTUM = 0.9  # of SGD
KEEP = 0.9  # of the running statistics (PyTorch's momentum 0.1)
EPSILON = 1e-5
INIT_STD = 0.01  # of the weights; the bias starts at 0
INIT_STREAM = 2**32 - 1  # folded into a seed for the weights; epochs count from 0


class Probe(NamedTuple):
  """S seeds, R rates, D features, C classes: logits are (x - mean) / std @ weights + bias. The
  statistics do not depend on the rate."""

  weights: jax.Array  # (S, R, D, C)
  bias: jax.Array  # (S, R, C)
  mean: jax.Array  # (S, D)
  std: jax.Array  # (S, D), above 0


def _loss(params, x, targets, valid, multi_label):
  """Mean over valid clips of the cross entropy, or over clips and labels of the binary one. (B, D),
  (B, C), (B,)."""
  weights, bias = params
  logits = jnp.dot(x, weights, precision="highest") + bias[None]
  if multi_label:
    losses = optax.losses.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
  else:
    losses = optax.losses.softmax_cross_entropy(logits, targets)
  return jnp.sum(losses * valid) / jnp.sum(valid)


def _normalize(x, valid):
  """(B, D) with its valid rows normalised, their mean, and their unbiased variance."""
  count = jnp.sum(valid)
  # as products: sums over rows are slow on a CPU
  over_rows = lambda x: jnp.dot(valid, x, precision="highest") / count
  mean = over_rows(x)
  x = x - mean[None]
  var = over_rows(jnp.square(x))
  return x / jnp.sqrt(var + EPSILON)[None], mean, var * count / jnp.maximum(count - 1, 1)


def _average_precision(logits, targets):
  """(V, C), (V, C) -> (): the mean over classes that have a clip; equal logits in their order."""
  order = jnp.argsort(-logits, axis=0)
  hits = jnp.take_along_axis(targets, order, axis=0)
  precision = jnp.cumsum(hits, axis=0) / (1.0 + jnp.arange(len(hits)))[:, None]
  count = hits.sum(0)
  found = (precision * hits).sum(0) / jnp.maximum(count, 1)
  return jnp.sum(found) / jnp.maximum(jnp.sum(count > 0), 1)


def _score(logits, targets, multi_label):
  """The score that chooses an epoch: mAP, or accuracy; -1 if logits are not finite."""
  if multi_label:
    score = _average_precision(logits, targets)
  else:
    score = jnp.mean(logits.argmax(-1) == targets.argmax(-1), dtype=jnp.float32)
  return jnp.where(jnp.isfinite(logits).all(), score, -1.0)


def _absorb(params, mean, var):
  """Weights (R, D, C) and bias (R, C) with the normalisation folded in."""
  weights, bias = params
  weights = weights / jnp.sqrt(var + EPSILON)[None, :, None]
  return weights, bias - jnp.einsum("d,rdc->rc", mean, weights, precision="highest")


@functools.partial(jax.jit, static_argnames=("epochs", "batch_size", "multi_label"))
def _fit(features, targets, index, rates, seeds, *, epochs, batch_size, multi_label, watched=None):
  """(N, D), (N, C), (M,) rows to train on, (S, R) step sizes, (S,), (V,) rows or None -> Probe."""
  (M,), D, C, R = index.shape, features.shape[1], targets.shape[1], rates.shape[1]
  batch = min(batch_size, M)
  steps = -(-M // batch)

  def update(params, velocity, x, y, valid, rate):
    grads = jax.grad(_loss)(params, x, y, valid, multi_label)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
    return jax.tree.map(lambda p, v: p - rate * v, params, velocity), velocity

  def fit_seed(seed, rates):
    key = jax.random.key(seed, impl="threefry2x32")

    def step(state, batch):
      params, velocity, mean, var = state
      rows, valid, rate = batch
      x, batch_mean, unbiased = _normalize(features[rows], valid)
      every_rate = jax.vmap(update, (0, 0, None, None, None, 0))
      params, velocity = every_rate(params, velocity, x, targets[rows], valid, rate)
      return (
        params,
        velocity,
        KEEP * mean + (1 - KEEP) * batch_mean,
        KEEP * var + (1 - KEEP) * unbiased,
      ), None

    def keep_better(best, state):
      """The better of two epochs, for each rate; the first of equals."""
      weights, bias = _absorb(state[0], *state[2:])
      logits = jnp.einsum("vd,rdc->rvc", features[watched], weights, precision="highest")
      logits = logits + bias[:, None]
      score = jax.vmap(lambda x: _score(x, targets[watched], multi_label))(logits)
      better = score > best[0]
      pick = lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
      return jax.tree.map(pick, (score, weights, bias), best)

    def epoch(carry, number):
      state, best = carry
      order = jax.random.permutation(jax.random.fold_in(key, number), index)
      rows = jnp.pad(order, (0, steps * batch - M)).reshape(steps, batch)
      valid = (jnp.arange(steps * batch) < M).astype(features.dtype).reshape(steps, batch)
      rate = rates * 0.5 * (1 + jnp.cos(jnp.pi * number / epochs))
      state, _ = jax.lax.scan(step, state, (rows, valid, jnp.broadcast_to(rate, (steps, R))))
      return (state, best if watched is None else keep_better(best, state)), None

    weights = INIT_STD * jax.random.normal(jax.random.fold_in(key, INIT_STREAM), (D, C))
    params = jnp.broadcast_to(weights, (R, D, C)), jnp.zeros((R, C))
    state = params, jax.tree.map(jnp.zeros_like, params), jnp.zeros(D), jnp.ones(D)
    best = None
    if watched is not None:
      best = jnp.full(R, -jnp.inf), *jax.tree.map(jnp.zeros_like, params)
    (state, best), _ = jax.lax.scan(epoch, (state, best), jnp.arange(epochs))
    if best is not None:
      _, weights, bias = best
      return Probe(weights, bias, jnp.zeros(D), jnp.ones(D))
    params, _, mean, var = state
    return Probe(*params, mean, jnp.sqrt(var + EPSILON))

  return jax.lax.map(lambda run: fit_seed(*run), (seeds, rates))


def fit(
  features, targets, index, *, rates, seeds, epochs, batch_size, multi_label, watched=None
) -> Probe:
  """Trains a probe for every seed and rate at once. All rates of a seed share the batches.

  Every epoch visits each clip once in a new order; the last batch may be smaller. A training set
  below `batch_size` is one batch. The rate is annealed to 0 by a cosine over the epochs, and is
  constant within one.

  Args:
    features: (N, D) float32, on the device.
    targets: (N, C) 0 or 1; without `multi_label` one 1 in a row.
    index: (M,) rows to train on.
    rates: (S, R) learning rates for a batch of 256; the step is rate · batch_size / 256, with the
      nominal batch size (released code).
    seeds: (S,) ints; a seed gives the weights and the order.
    epochs: passes over the data.
    batch_size: clips of a batch.
    multi_label: binary cross entropy in place of cross entropy.
    watched: (V,) rows of validation clips. For each seed and rate the best epoch on them is
      returned, by accuracy or mAP, as in the released code. By default the last one is.
  """
  rates = jnp.asarray(rates, jnp.float32) * (batch_size / 256)
  return _fit(
    features,
    jnp.asarray(targets, jnp.float32),
    jnp.asarray(index),
    rates,
    jnp.asarray(seeds, jnp.uint32),
    epochs=epochs,
    batch_size=batch_size,
    multi_label=multi_label,
    watched=None if watched is None else jnp.asarray(watched),
  )


@jax.jit
def _scores(features, index, weights, bias, mean, std):
  x = (features[index] - mean[None]) / std[None]
  return jnp.dot(x, weights, precision="highest") + bias[None]


def scores(probe: Probe, features, index, *, seed: int, rate: int) -> np.ndarray:
  """(N, D), (M,) rows -> (M, C) logits of the probe of one seed and rate (positions, not
  values)."""
  return np.asarray(
    _scores(
      features,
      jnp.asarray(index),
      probe.weights[seed, rate],
      probe.bias[seed, rate],
      probe.mean[seed],
      probe.std[seed],
    )
  )
