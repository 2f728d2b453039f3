"""Adapters on frozen embeddings that bring a sound with a sentence to the sound that answers.

Source: Takeuchi et al. (Interspeech 2022) as the difference-aware paper uses it (5.3, Fig. 3):
frozen audio and text encoders, adapters with GELU, contrastive learning and the classification of
events, cosine similarity, Adam. Of what neither tells, the simplest: an adapter is Linear, GELU,
Linear beside a linear shortcut, then layer normalisation; one serves query and answer; a query is
the sum of its adapted sound and text; the loss is the symmetric InfoNCE over the batch with a
learned temperature, and the events of the answer are classified from query and answer.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

INIT_STREAM = 2**32 - 1  # folded into a seed for the parameters; epochs count from 0
MAX_SCALE = 100.0  # of the cosines: temperatures below 0.01 are taken for it, as in CLIP
EPSILON = 1e-6  # of the layer normalisation
# what a query is made of
SYSTEMS = {"audio + text": (True, True), "audio": (True, False), "text": (False, True)}


class Data(NamedTuple):
  """N clips, U sentences, P pairs, on the device."""

  audio: jax.Array  # (N, D)
  texts: jax.Array  # (U, E)
  labels: jax.Array  # (N, C) 0 or 1, of the events
  query: jax.Array  # (P,) rows of `audio`
  target: jax.Array  # (P,)
  text: jax.Array  # (P,) rows of `texts`


class Fitted(NamedTuple):
  """Of S seeds."""

  params: dict  # each with a leading S, of the best epoch
  valid_loss: np.ndarray  # (S,) of it
  epoch: np.ndarray  # (S,) its number, from 1
  curve: np.ndarray  # (S, epochs) of the validation loss


def _linear(key, inputs: int, outputs: int) -> dict:
  weights = jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(inputs)
  return {"weights": weights, "bias": jnp.zeros(outputs)}


def _apply(linear: dict, x):
  return jnp.dot(x, linear["weights"], precision="highest") + linear["bias"][None]


def init(
  key, *, audio: int, text: int, classes: int, hidden: int, width: int, temperature: float
) -> dict:
  """Parameters: adapters of `audio` and `text` numbers to `width`, the classifier, the
  temperature's logarithm."""
  keys = iter(jax.random.split(key, 7))
  adapter = lambda inputs: {
    "first": _linear(next(keys), inputs, hidden),
    "second": _linear(next(keys), hidden, width),
    "shortcut": _linear(next(keys), inputs, width),
    "scale": jnp.ones(width),
    "shift": jnp.zeros(width),
  }
  return {
    "audio": adapter(audio),
    "text": adapter(text),
    "classifier": _linear(next(keys), width, classes),
    "log_scale": jnp.float32(-np.log(temperature)),
  }


def adapt(adapter: dict, x):
  """(B, D) -> (B, W)."""
  y = _apply(adapter["second"], jax.nn.gelu(_apply(adapter["first"], x), approximate=False))
  y = y + _apply(adapter["shortcut"], x)
  y = y - y.mean(-1, keepdims=True)
  y = y / jnp.sqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + EPSILON)
  return y * adapter["scale"][None] + adapter["shift"][None]


def _unit(x):
  return x / jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


def queries(params: dict, data: Data, rows, system: str):
  """(B,) pairs -> (B, W) what is looked for, not normalised."""
  audio, text = SYSTEMS[system]
  parts = []
  if audio:
    parts.append(adapt(params["audio"], data.audio[data.query[rows]]))
  if text:
    parts.append(adapt(params["text"], data.texts[data.text[rows]]))
  return sum(parts[1:], parts[0])


def answers(params: dict, data: Data, rows):
  """(B,) pairs -> (B, W), not normalised."""
  return adapt(params["audio"], data.audio[data.target[rows]])


def loss(params: dict, data: Data, rows, present, *, system: str, label_weight: float):
  """Mean over the pairs that are `present` (B,) 0 or 1 of InfoNCE in both directions, plus the
  classification's.

  Of two pairs with the same answer, neither is the other's negative.
  """
  query, answer = queries(params, data, rows, system), answers(params, data, rows)
  scale = jnp.minimum(jnp.exp(params["log_scale"]), MAX_SCALE)
  cosines = scale * jnp.dot(_unit(query), _unit(answer).T, precision="highest")
  same = (data.target[rows][:, None] == data.target[rows][None]) & ~jnp.eye(len(rows), dtype=bool)
  cosines = jnp.where(same | (present[None] == 0) | (present[:, None] == 0), -1e9, cosines)
  own = jnp.diagonal(cosines)
  contrastive = 0.5 * (jax.nn.logsumexp(cosines, -1) + jax.nn.logsumexp(cosines, 0)) - own
  labels, count = data.labels[data.target[rows]], jnp.sum(present)
  total = jnp.sum(jnp.where(present > 0, contrastive, 0)) / count
  for latent in (query, answer):
    entropy = optax.sigmoid_binary_cross_entropy(_apply(params["classifier"], latent), labels).mean(
      -1
    )
    total = total + 0.5 * label_weight * jnp.sum(entropy * present) / count
  return total


def _batches(rows, batch: int):
  """(M,) -> (steps, batch) rows and which of them are present."""
  steps = -(-len(rows) // batch)
  padded = jnp.pad(rows, (0, steps * batch - len(rows)))
  return padded.reshape(steps, batch), (jnp.arange(steps * batch) < len(rows)).astype(
    jnp.float32
  ).reshape(steps, batch)


OPTIONS = ("system", "label_weight", "batch_size", "learning_rate")


@functools.partial(jax.jit, static_argnames=OPTIONS, donate_argnums=0)
def _epoch(
  state, number, data: Data, train, valid, seeds, *, system, label_weight, batch_size, learning_rate
):
  """One pass over the training pairs with every seed, then the validation loss. Returns the state
  and that (S,)."""
  optimizer = optax.adam(learning_rate)
  objective = functools.partial(loss, system=system, label_weight=label_weight)

  def one_seed(state, seed):
    params, moments, best, best_loss, best_epoch = state

    def step(carry, batch):
      params, moments = carry
      updates, moments = optimizer.update(jax.grad(objective)(params, data, *batch), moments)
      return (optax.apply_updates(params, updates), moments), None

    order = jax.random.permutation(
      jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), number), train
    )
    (params, moments), _ = jax.lax.scan(
      step, (params, moments), _batches(order, min(batch_size, len(train)))
    )
    rows, present = _batches(valid, min(batch_size, len(valid)))
    losses = jax.lax.map(lambda batch: objective(params, data, *batch), (rows, present))
    found = jnp.sum(losses * present.sum(-1)) / len(valid)
    better = found < best_loss
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, best)
    state = (
      params,
      moments,
      best,
      jnp.where(better, found, best_loss),
      jnp.where(better, number + 1, best_epoch),
    )
    return state, found

  return jax.vmap(one_seed)(state, seeds)


def fit(
  data: Data,
  train,
  valid,
  *,
  system: str,
  seeds: list[int],
  epochs: int,
  batch_size: int,
  learning_rate: float,
  label_weight: float,
  hidden: int,
  width: int,
  temperature: float,
  on_epoch=lambda losses: None,
) -> Fitted:
  """Trains the adapters once for every seed, all at once; of each the epoch with the smallest
  validation loss is kept.

  Args:
    train, valid: (M,) and (V,) pairs.
    system: a key of SYSTEMS.
    on_epoch: called with the validation losses (S,) of every epoch.

  Raises:
    FloatingPointError: the loss of a seed is NaN or infinite.
  """
  sizes = {
    "audio": data.audio.shape[1],
    "text": data.texts.shape[1],
    "classes": data.labels.shape[1],
  }
  make = lambda seed: init(
    jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), INIT_STREAM),
    **sizes,
    hidden=hidden,
    width=width,
    temperature=temperature,
  )
  keys = jnp.asarray(seeds, jnp.uint32)
  params = jax.jit(jax.vmap(make))(keys)
  moments = jax.vmap(optax.adam(learning_rate).init)(params)
  S = len(seeds)
  state = (
    params,
    moments,
    jax.tree.map(jnp.copy, params),
    jnp.full(S, jnp.inf, jnp.float32),
    jnp.zeros(S, jnp.int32),
  )
  train, valid, curve = jnp.asarray(train), jnp.asarray(valid), []
  for number in range(epochs):
    state, found = _epoch(
      state,
      jnp.int32(number),
      data,
      train,
      valid,
      keys,
      system=system,
      batch_size=batch_size,
      label_weight=label_weight,
      learning_rate=learning_rate,
    )
    curve.append(np.asarray(found))
    if not np.isfinite(curve[-1]).all():
      raise FloatingPointError(
        f"the validation loss is {curve[-1].tolist()} after epoch {number + 1} ({system}); "
        "lower --config.train.learning_rate"
      )
    on_epoch(curve[-1])
  return Fitted(state[2], np.asarray(state[3]), np.asarray(state[4]), np.stack(curve, -1))


@functools.partial(jax.jit, static_argnames="system")
def _similarity(params, data, rows, gallery, system):
  return jnp.dot(
    _unit(queries(params, data, rows, system)),
    _unit(answers(params, data, gallery)).T,
    precision="highest",
  )


def similarity(fitted: Fitted, data: Data, rows, gallery, *, seed: int, system: str) -> np.ndarray:
  """(M,) and (G,) pairs -> (M, G) cosines of the former's queries with the latter's answers.

  By the adapters of one seed (its position, not its value).
  """
  params = jax.tree.map(lambda x: x[seed], fitted.params)
  return np.asarray(_similarity(params, data, jnp.asarray(rows), jnp.asarray(gallery), system))
