"""Adapters on frozen embeddings that map a sound and a sentence to the sound that answers.

Source: Takeuchi et al. (Interspeech 2022), as in the difference-aware paper (5.3, Fig. 3): frozen
audio and text encoders, adapters with GELU, contrastive learning and the classification of events,
cosine similarity, Adam. The rest, which neither tells, is the simplest choice. An adapter is
Linear, GELU, Linear beside a linear shortcut, then layer normalisation; queries and answers share
one for sounds. A query is the sum of its adapted sound and text. The loss is the symmetric InfoNCE
over the batch with a learned temperature. The events of the answer are classified from query and
answer.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

INIT_STREAM = 2**32 - 1  # folded into a seed for the parameters; epochs count from 0
MAX_SCALE = 100.0  # of the cosines: the temperature is at least 0.01, as in CLIP
EPSILON = 1e-6  # of the layer normalisation
NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# The parts of a query.
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

  network: "Adapters"
  params: dict  # each with a leading S, of the best epoch
  valid_loss: np.ndarray  # (S,) of it
  epoch: np.ndarray  # (S,) its number, from 1
  curve: np.ndarray  # (S, epochs) of the validation loss


class Adapter(nn.Module):
  """(B, D) -> (B, width)."""

  hidden: int
  width: int

  @nn.compact
  def __call__(self, x):
    """Adapts frozen vectors."""
    dense = functools.partial(nn.Dense, precision="highest", kernel_init=NORMAL)
    y = nn.gelu(dense(self.hidden, name="first")(x), approximate=False)
    y = dense(self.width, name="second")(y) + dense(self.width, name="shortcut")(x)
    return nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False, name="norm")(y)


class Adapters(nn.Module):
  """The adapters of sound and sentence, the classifier of events and the temperature."""

  hidden: int
  width: int
  classes: int
  temperature: float  # to begin with

  def setup(self):
    """Names the parts."""
    self.audio = Adapter(self.hidden, self.width)
    self.text = Adapter(self.hidden, self.width)
    self.classifier = nn.Dense(self.classes, precision="highest", kernel_init=NORMAL)
    self.log_scale = self.param(
      "log_scale", nn.initializers.constant(-np.log(self.temperature)), ()
    )

  def queries(self, audio, text, *, system: str):
    """(B, D) sounds and (B, E) sentences -> (B, W) queries, not normalised."""
    has_audio, has_text = SYSTEMS[system]
    parts = [self.audio(audio)] if has_audio else []
    return sum(parts, self.text(text)) if has_text else parts[0]

  def answers(self, audio):
    """(B, D) -> (B, W), not normalised."""
    return self.audio(audio)

  def __call__(self, query, text, answer, *, system: str):
    """(B, D), (B, E), (B, D) -> queries and answers (B, W), their events' logits (B, C) and the
    cosines' scale."""
    latents = self.queries(query, text, system=system), self.answers(answer)
    return *latents, *map(self.classifier, latents), jnp.exp(self.log_scale)


def make(data: Data, *, hidden: int, width: int, temperature: float) -> Adapters:
  """The network for the classes of `data`."""
  return Adapters(hidden, width, data.labels.shape[1], temperature)


def init(network: Adapters, key, data: Data) -> dict:
  """Its parameters; those of every system."""
  one = data.audio[:1], data.texts[:1], data.audio[:1]
  return network.init(key, *one, system="audio + text")["params"]


def _unit(x):
  return x / jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


def loss(
  params: dict, data: Data, rows, present, *, network: Adapters, system: str, label_weight: float
):
  """Mean over the pairs that are `present` (B,) 0 or 1 of InfoNCE in both directions, plus the
  classification's.

  Of two pairs with the same answer, neither is the other's negative.
  """
  target = data.target[rows]
  inputs = data.audio[data.query[rows]], data.texts[data.text[rows]], data.audio[target]
  out: Any = network.apply({"params": params}, *inputs, system=system)
  query, answer, *events, scale = out
  cosines = jnp.dot(_unit(query), _unit(answer).T, precision="highest")
  cosines = jnp.minimum(scale, MAX_SCALE) * cosines
  same = (target[:, None] == target[None]) & ~jnp.eye(len(rows), dtype=bool)
  cosines = jnp.where(same | (present[None] == 0) | (present[:, None] == 0), -1e9, cosines)
  own = jnp.diagonal(cosines)
  contrastive = 0.5 * (jax.nn.logsumexp(cosines, -1) + jax.nn.logsumexp(cosines, 0)) - own
  labels, count = data.labels[target], jnp.sum(present)
  total = jnp.sum(jnp.where(present > 0, contrastive, 0)) / count
  for logits in events:
    entropy = optax.losses.sigmoid_binary_cross_entropy(logits, labels).mean(-1)
    total = total + 0.5 * label_weight * jnp.sum(entropy * present) / count
  return total


def _batches(rows, batch: int):
  """(M,) -> (steps, batch) rows and which of them are present."""
  steps = -(-len(rows) // batch)
  padded = jnp.pad(rows, (0, steps * batch - len(rows)))
  return padded.reshape(steps, batch), (jnp.arange(steps * batch) < len(rows)).astype(
    jnp.float32
  ).reshape(steps, batch)


OPTIONS = ("network", "system", "label_weight", "batch_size", "learning_rate")


@functools.partial(jax.jit, static_argnames=OPTIONS, donate_argnums=0)
def _epoch(
  state,
  number,
  data: Data,
  train,
  valid,
  seeds,
  *,
  network: Adapters,
  system,
  label_weight,
  batch_size,
  learning_rate,
):
  """One pass over the training pairs with every seed, then the validation loss. Returns the state
  and that (S,)."""
  optimizer = optax.adam(learning_rate)
  objective = functools.partial(loss, network=network, system=system, label_weight=label_weight)

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
  """Trains the adapters for all seeds at once. Each keeps its epoch with the smallest validation
  loss.

  Args:
    train, valid: (M,) and (V,) pairs.
    system: a key of SYSTEMS.
    on_epoch: called with the validation losses (S,) of every epoch.

  Raises:
    FloatingPointError: the loss of a seed is NaN or infinite.
  """
  network = make(data, hidden=hidden, width=width, temperature=temperature)

  def start(seed):
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), INIT_STREAM)
    return init(network, key, data)

  keys = jnp.asarray(seeds, jnp.uint32)
  params = jax.jit(jax.vmap(start))(keys)
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
      network=network,
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
  return Fitted(network, state[2], np.asarray(state[3]), np.asarray(state[4]), np.stack(curve, -1))


@functools.partial(jax.jit, static_argnames=("network", "system"))
def _similarity(params, data, rows, gallery, *, network, system):
  call = functools.partial(network.apply, {"params": params})
  query, text = data.audio[data.query[rows]], data.texts[data.text[rows]]
  asked = call(query, text, system=system, method="queries")
  found = call(data.audio[gallery], method="answers")
  return jnp.dot(_unit(asked), _unit(found).T, precision="highest")


def similarity(fitted: Fitted, data: Data, rows, gallery, *, seed: int, system: str) -> np.ndarray:
  """(M,) pairs and (G,) clips -> (M, G) cosines of the pairs' queries and the clips as answers, by
  the adapters of one seed (its position, not its value)."""
  params = jax.tree.map(lambda x: x[seed], fitted.params)
  network, places = fitted.network, (jnp.asarray(rows), jnp.asarray(gallery))
  return np.asarray(_similarity(params, data, *places, network=network, system=system))
