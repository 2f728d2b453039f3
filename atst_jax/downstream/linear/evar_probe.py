"""The linear probe of BYOL-A's and the difference-aware paper's evaluations: standardised features,
a linear layer, Adam, early stopping, for all rates and seeds at once.

Source: the protocol of BYOL-A (Niizumi et al., 2023) as in EVAR: features standardised by the known
clips, PyTorch's initialisation of a linear layer, the cross entropy divided by the number of
classes, an L2 penalty inside Adam, batches of 200, patience of 20 epochs. EVAR watches the
validation accuracy; the papers say loss.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from atst_jax.downstream.linear.atst_probe import INIT_STREAM, Probe
from atst_jax.downstream.metrics import scale_of

PENALTY = 1e-8  # L2, added to the gradient
MONITORS = ("accuracy", "loss")


def _losses(params, x, targets, multi_label):
  """(B,) cross entropies divided by the number of classes, or means over the labels of the binary
  one."""
  weights, bias = params
  logits = jnp.dot(x, weights, precision="highest") + bias[None]
  if multi_label:
    return optax.losses.sigmoid_binary_cross_entropy(logits, targets).mean(-1), logits
  return optax.losses.softmax_cross_entropy(logits, targets) / targets.shape[-1], logits


# PyTorch's Adam with its weight decay, before the rate.
ADAM = optax.chain(
  optax.add_decayed_weights(PENALTY), optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
)


@functools.partial(
  jax.jit, static_argnames=("epochs", "batch_size", "patience", "monitor", "multi_label")
)
def _fit(
  features,
  mean,
  std,
  targets,
  index,
  valid,
  rates,
  seeds,
  *,
  epochs,
  batch_size,
  patience,
  monitor,
  multi_label,
):
  """(N, D), (D,), (D,), (N, C), (M,) and (V,) rows, (S, R), (S,) -> weights (S, R, D, C), bias,
  epochs (S, R)."""
  (M,), D, C, R = index.shape, features.shape[1], targets.shape[1], rates.shape[1]
  batch = min(batch_size, M)
  steps = -(-M // batch)

  # of a batch: all at once would fill memory twice
  scaled = lambda rows: (features[rows] - mean[None]) / std[None]

  def quality(params):
    losses, logits = _losses(params, scaled(valid), targets[valid], multi_label)
    if monitor == "loss":
      return -losses.mean()
    return (logits.argmax(-1) == targets[valid].argmax(-1)).mean()

  def update(params, moments, x, y, present, rate):
    loss = lambda params: (
      jnp.sum(_losses(params, x, y, multi_label)[0] * present) / jnp.sum(present)
    )
    direction, moments = ADAM.update(jax.grad(loss)(params), moments, params)
    return jax.tree.map(lambda p, d: p - rate * d, params, direction), moments

  def fit_seed(seed, rates):
    key = jax.random.key(seed, impl="threefry2x32")

    def step(carry, batch):
      rows, present = batch
      every_rate = jax.vmap(update, (0, 0, None, None, None, 0))
      params, moments = carry
      return every_rate(params, moments, scaled(rows), targets[rows], present, rates), None

    def epoch(state):
      params, moments, number, best, score, best_epoch = state
      order = jax.random.permutation(jax.random.fold_in(key, number), index)
      rows = jnp.pad(order, (0, steps * batch - M)).reshape(steps, batch)
      present = (jnp.arange(steps * batch) < M).astype(features.dtype).reshape(steps, batch)
      (params, moments), _ = jax.lax.scan(step, (params, moments), (rows, present))
      found = jax.vmap(quality)(params)
      # the later one of equal epochs is kept
      better = (found >= score) & (number - best_epoch <= patience)
      keep = lambda new, old: jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
      best, score = jax.tree.map(keep, params, best), keep(found, score)
      return params, moments, number + 1, best, score, jnp.where(better, number, best_epoch)

    def goes_on(state):
      number, best_epoch = state[2], state[5]
      return (number < epochs) & (number - best_epoch <= patience).any()

    draw = lambda stream, shape: (
      jax.random.uniform(jax.random.fold_in(key, stream), shape, minval=-1) / jnp.sqrt(D)
    )
    first = draw(INIT_STREAM, (D, C)), draw(INIT_STREAM - 1, (C,))
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (R, *x.shape)), first)
    moments = jax.vmap(ADAM.init)(params)
    start = params, moments, 0, params, jnp.full(R, -jnp.inf), jnp.zeros(R, jnp.int32)
    state = jax.lax.while_loop(goes_on, epoch, start)
    return *state[3], state[5]

  return jax.lax.map(lambda run: fit_seed(*run), (seeds, rates))


def fit(
  features,
  targets,
  index,
  valid,
  *,
  known,
  rates,
  seeds,
  epochs,
  batch_size,
  patience,
  monitor,
  multi_label,
) -> Probe:
  """Trains a probe for every seed and rate at once, each until `patience` epochs have not been
  better on `valid`.

  Each rate gives the parameters of its best epoch, the last one of equals. A rate that diverges
  gives its best epoch before that, or NaN.

  Args:
    features: (N, D) float32.
    targets: (N, C) 0 or 1; without `multi_label` one 1 in a row.
    index, valid: (M,) rows to train on, (V,) to stop by.
    known: rows whose mean and standard deviation scale the features; constant columns are only
      shifted.
    rates: (S, R) learning rates of Adam, constant.
    seeds: (S,) ints; a seed gives the weights and the order.
    epochs, batch_size: passes over the data at most; clips of a batch.
    patience: epochs.
    monitor: "accuracy" or "loss" of the validation clips.
    multi_label: binary cross entropy in place of cross entropy.
  """
  centre, factor = scale_of(np.asarray(features)[np.asarray(known)])
  std = jnp.asarray(1 / np.where(factor == 0, 1, factor), jnp.float32)
  mean = jnp.asarray(centre, jnp.float32)
  floats = lambda x: jnp.asarray(x, jnp.float32)
  weights, bias, _ = _fit(
    jnp.asarray(features),
    mean,
    std,
    floats(targets),
    jnp.asarray(index),
    jnp.asarray(valid),
    floats(rates),
    jnp.asarray(seeds, jnp.uint32),
    epochs=epochs,
    batch_size=batch_size,
    patience=patience,
    monitor=monitor,
    multi_label=multi_label,
  )
  every = lambda row: jnp.broadcast_to(row, (len(seeds), *row.shape))
  return Probe(weights, bias, every(mean), every(std))
