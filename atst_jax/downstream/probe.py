"""ATST's linear probe: parameter-free batch normalisation and a linear layer, by SGD, for all rates and seeds at once.

Source: the released code's frozen evaluation (its linear head, its SGD and its cosine over epochs; ATST 3.2 says
"to 1e-6" where the code anneals to 0).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.errors import UserError

MOMENTUM = 0.9  # of SGD
KEEP = 0.9  # of the running statistics (PyTorch's momentum 0.1)
EPSILON = 1e-5
INIT_STD = 0.01  # of the weights; the bias starts at 0
INIT_STREAM = 2**32 - 1  # folded into a seed for the weights; epochs count from 0


class Probe(NamedTuple):
  """S seeds, R rates, D features, C classes. The statistics do not depend on the rate."""

  weights: jax.Array  # (S, R, D, C)
  bias: jax.Array  # (S, R, C)
  mean: jax.Array  # (S, D), running
  var: jax.Array  # (S, D), running, unbiased


def _loss(params, x, targets, valid, multi_label):
  """Mean over valid clips of the cross entropy, or over clips and labels of the binary one. (B, D), (B, C), (B,)."""
  weights, bias = params
  logits = jnp.dot(x, weights, precision="highest") + bias[None]
  if multi_label:
    losses = jnp.mean(jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits))), -1)
  else:
    losses = -jnp.sum(targets * jax.nn.log_softmax(logits), -1)
  return jnp.sum(losses * valid) / jnp.sum(valid)


def _normalize(x, valid):
  """(B, D) with its valid rows normalised, their mean, and their unbiased variance."""
  count = jnp.sum(valid)
  over_rows = lambda x: jnp.dot(valid, x, precision="highest") / count  # as products: sums over rows are slow on a CPU
  mean = over_rows(x)
  x = x - mean[None]
  var = over_rows(jnp.square(x))
  return x / jnp.sqrt(var + EPSILON)[None], mean, var * count / jnp.maximum(count - 1, 1)


@functools.partial(jax.jit, static_argnames=("epochs", "batch_size", "multi_label"))
def _fit(features, targets, index, rates, seeds, *, epochs, batch_size, multi_label):
  """(N, D), (N, C), (M,) rows to train on, (S, R) step sizes, (S,) -> Probe."""
  (M,), D, C, R = index.shape, features.shape[1], targets.shape[1], rates.shape[1]
  batch = min(batch_size, M)
  steps = -(-M // batch)

  def update(params, velocity, x, y, valid, rate):
    grads = jax.grad(_loss)(params, x, y, valid, multi_label)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
    return jax.tree.map(lambda p, v: p - rate * v, params, velocity), velocity

  def fit_seed(seed, rates):
    key = jax.random.key(seed)

    def step(state, batch):
      params, velocity, mean, var = state
      rows, valid, rate = batch
      x, batch_mean, unbiased = _normalize(features[rows], valid)
      every_rate = jax.vmap(update, (0, 0, None, None, None, 0))
      params, velocity = every_rate(params, velocity, x, targets[rows], valid, rate)
      return (params, velocity, KEEP * mean + (1 - KEEP) * batch_mean, KEEP * var + (1 - KEEP) * unbiased), None

    def epoch(state, number):
      order = jax.random.permutation(jax.random.fold_in(key, number), index)
      rows = jnp.pad(order, (0, steps * batch - M)).reshape(steps, batch)
      valid = (jnp.arange(steps * batch) < M).astype(features.dtype).reshape(steps, batch)
      rate = rates * 0.5 * (1 + jnp.cos(jnp.pi * number / epochs))
      return jax.lax.scan(step, state, (rows, valid, jnp.broadcast_to(rate, (steps, R))))[0], None

    weights = INIT_STD * jax.random.normal(jax.random.fold_in(key, INIT_STREAM), (D, C))
    params = jnp.broadcast_to(weights, (R, D, C)), jnp.zeros((R, C))
    state = params, jax.tree.map(jnp.zeros_like, params), jnp.zeros(D), jnp.ones(D)
    (params, _, mean, var), _ = jax.lax.scan(epoch, state, jnp.arange(epochs))
    return Probe(*params, mean, var)

  return jax.lax.map(lambda run: fit_seed(*run), (seeds, rates))


def fit(features, targets, index, *, rates, seeds, epochs, batch_size, multi_label) -> Probe:
  """Trains a probe for every seed and rate at once; a batch is gathered once for all rates of a seed.

  Every epoch visits each clip once in a new order; the last batch may be smaller. A training set below `batch_size` is
  one batch. The rate is annealed to 0 by a cosine over the epochs, constant within one.

  Args:
    features: (N, D) float32, on the device.
    targets: (N, C) 0 or 1; without `multi_label` one 1 in a row.
    index: (M,) rows to train on.
    rates: (S, R) learning rates for a batch of 256; the step is rate · batch_size / 256, with the nominal batch size
      (released code).
    seeds: (S,) ints; a seed gives the weights and the order.
    epochs: passes over the data.
    batch_size: clips of a batch.
    multi_label: binary cross entropy in place of cross entropy.
  """
  rates = jnp.asarray(rates, jnp.float32) * (batch_size / 256)
  return _fit(features, jnp.asarray(targets, jnp.float32), jnp.asarray(index), rates, jnp.asarray(seeds, jnp.uint32),
              epochs=epochs, batch_size=batch_size, multi_label=multi_label)  # fmt: skip


@jax.jit
def _scores(features, index, weights, bias, mean, var):
  x = (features[index] - mean[None]) / jnp.sqrt(var + EPSILON)[None]
  return jnp.dot(x, weights, precision="highest") + bias[None]


def scores(probe: Probe, features, index, *, seed: int, rate: int) -> np.ndarray:
  """(N, D), (M,) rows -> (M, C) logits of the probe of one seed and rate (positions, not values)."""
  return np.asarray(_scores(features, jnp.asarray(index), probe.weights[seed, rate], probe.bias[seed, rate],
                            probe.mean[seed], probe.var[seed]))  # fmt: skip


class Result(NamedTuple):
  """Of one seed: what validation said of every rate, and the test clips' logits at the best one."""

  rate: float
  at_edge: bool  # the best rate is the smallest or the largest of the grid, and better than all between them
  valid_scores: tuple[float, ...]  # one for each rate; -inf where the probe diverged
  test_logits: np.ndarray  # (M, C)


def evaluate(features, targets, split, score, *, rates, seeds, epochs, batch_size, refit, multi_label) -> list[Result]:
  """Chooses the rate on the validation clips alone, by seed, and applies the probe to the test clips.

  Args:
    features: (N, D) float32, on the device.
    targets: (N, C).
    split: `splits.Split`.
    score: function of (logits, targets), higher is better. Of rates that score the same, the smallest is taken.
    rates: of ascending size.
    seeds: one result for each.
    refit: train once more with that rate on training and validation clips together, and test that probe; otherwise the
      probe that was validated is tested.

  Raises:
    UserError: the probe diverged at every rate.
  """
  options = {"seeds": seeds, "epochs": epochs, "batch_size": batch_size, "multi_label": multi_label}
  grid = np.broadcast_to(np.asarray(rates, np.float32), (len(seeds), len(rates)))
  probe = fit(features, targets, split.train, rates=grid, **options)

  def validate(seed, rate):
    logits = scores(probe, features, split.valid, seed=seed, rate=rate)
    return score(logits, targets[split.valid]) if np.isfinite(logits).all() else -np.inf

  valid = np.array([[validate(s, r) for r in range(len(rates))] for s in range(len(seeds))])
  if (valid.max(-1) == -np.inf).any():
    raise UserError(f"the probe diverges at every learning rate of {tuple(rates)}; add smaller ones to "
                    "--config.probe.learning_rates")  # fmt: skip
  best = valid.argmax(-1)
  if refit:
    both = np.sort(np.concatenate([split.train, split.valid]))
    probe = fit(features, targets, both, rates=grid[np.arange(len(seeds)), best][:, None], **options)
  return [
    Result(rates[b], _at_edge(valid[s], b), tuple(valid[s].tolist()),
           scores(probe, features, split.test, seed=s, rate=0 if refit else b))
    for s, b in enumerate(best.tolist())
  ]  # fmt: skip


def _at_edge(valid: np.ndarray, best: int) -> bool:
  """Whether the best rate is the first or the last, and better than all between them: the grid may be too short."""
  return len(valid) > 2 and best in (0, len(valid) - 1) and bool((valid[best] > valid[1:-1]).all())
