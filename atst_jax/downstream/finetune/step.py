"""One update of fine-tuning: augmentation of clips and labels, loss, clipped gradient, SGD with
momentum.

Source: ATST 3.2, and for details the released code's fine-tuning at the time of the paper: Mixup
with λ ~ Beta(0.5, 0.5) on the normalised log-mel itself, binary cross entropy on mixed labels, a
norm of the gradient of at most 3, one rate for encoder and head.

Letters: B clips, T frames, F mel bins, C classes, G clips of a group.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from atst_jax.downstream.finetune.classifier import Classifier
from atst_jax.method.augment import draw_box, place, resize_crop
from atst_jax.method.groups import SILENT, valid_frames
from atst_jax.method.normalization import normalize
from atst_jax.method.train_step import RANDOM
from atst_jax.method.views import FLOOR_DB, partner_shifts, take_partners


class Best(NamedTuple):
  """The parameters of the best validation score so far. `score` is -1 and `epoch` 0 before the
  first validation."""

  score: jax.Array
  epoch: jax.Array
  params: Any
  batch_stats: Any


class FinetuneState(NamedTuple):
  """The state of training, float32 arrays only. `step` counts finished updates."""

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  best: Best


def normalized(mel, length, *, padding, **normalization):
  """(B, T, F) dB of any float type, (B,) -> normalised float32, and the valid frames.

  A clip is clamped relative to its own maximum. `padding`: "mask" is 0 behind the clip, as in the
  released code; "silence" fills up with silence, which counts as sound.
  """
  mel, valid = mel.astype(jnp.float32), valid_frames(length, mel.shape[1])[..., None]
  peak = jnp.max(jnp.where(valid, mel, SILENT), (1, 2), keepdims=True)
  if padding == "silence":
    return normalize(jnp.where(valid, mel, FLOOR_DB), peak=peak, **normalization), jnp.full_like(
      length, mel.shape[1]
    )
  return jnp.where(valid, normalize(mel, peak=peak, **normalization), 0), length


def mix_labelled(key, x, length, targets, *, alpha, probability, group):
  """Mixup of clips and labels: λ·x + (1 - λ)·partner, λ ~ Beta(alpha, alpha), the same of the
  targets.

  The released code draws partners from a bank of 5,000 earlier clips. Here, as in pre-training
  (`views.partner_shifts`), the partner is another clip of the same group of the batch, by a random
  shift. That is an independent clip too, but needs no state, so that a continued run equals the
  uninterrupted one, and no communication between devices. A partner of another length is mixed in a
  random window (`augment.place`). Outside of it the clip is unchanged, while labels are always
  mixed (released code).

  Args:
    x: (B, T, F), 0 behind `length` (B,).
    targets: (B, C).
    probability: that a clip is mixed.
    group: G, divides B and the batch of a device.

  Returns:
    x and targets, mixed.
  """
  B = x.shape[0]
  shift_key, clip_key = jax.random.split(key)
  shifts = partner_shifts(shift_key, B // group, group, apart=False)[:, 0]
  take = lambda y: take_partners(y, shifts, group)

  def mix(i, x, partner, length, partner_length):
    place_key, weight_key, draw_key = jax.random.split(jax.random.fold_in(clip_key, i), 3)
    weight = jax.random.beta(weight_key, alpha, alpha)
    weight = jnp.where(jax.random.uniform(draw_key) < probability, weight, 1)
    partner, both = place(place_key, partner, partner_length, length)
    return jnp.where(both[:, None], weight * x + (1 - weight) * partner, x), weight

  x, weight = jax.vmap(mix)(jnp.arange(B), x, take(x), length, take(length))
  weight = weight[:, None]
  return x, weight * targets + (1 - weight) * take(targets)


def random_resize_crop(key, x, length, *, freq_scale, time_scale, canvas_time, resize):
  """(B, T, F), (B,) -> (B, T, F): pre-training's random resize crop of each whole clip, to its own
  length."""

  def crop(i, x, length):
    box = draw_box(
      jax.random.fold_in(key, i),
      length,
      x.shape[1],
      freq_scale=freq_scale,
      time_scale=time_scale,
      canvas_time=canvas_time,
    )
    return resize_crop(x, box, length, canvas_time=canvas_time, resize=resize)

  return jax.vmap(crop)(jnp.arange(x.shape[0]), x, length)


def mean_loss(logits, targets, *, binary):
  """Mean over clips of the cross entropy, or over clips and classes of the binary one. (B, C)
  each."""
  if binary:
    return optax.losses.sigmoid_binary_cross_entropy(logits, targets).mean()
  return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()


def layer_scales(params, *, depth, decay):
  """A factor of the rate for every parameter: `decay` for each layer between it and the head (later
  official code).

  Block k of `depth`, from 0, has decay^(depth - k). Layers before the blocks have the factor of
  block 0, the final norm that of the last block, the head 1.
  """

  def scale(path, _):
    part, *rest = (key.key for key in path)
    if part != "encoder":
      return 1.0
    if rest[0] == "norm":
      return decay
    return decay ** (
      depth - int(rest[0].removeprefix("block_")) if rest[0].startswith("block_") else depth
    )

  return jax.tree_util.tree_map_with_path(scale, params)


def init_state(key, encoder, *, network: Classifier, tx, frames, n_mels) -> FinetuneState:
  """A fresh head on the exported encoder's variables."""
  variables = network.init(key, jnp.zeros((1, frames, n_mels)), jnp.full(1, frames), train=False)
  join = lambda kind: {**variables[kind], **({"encoder": encoder[kind]} if kind in encoder else {})}
  params, batch_stats = join("params"), join("batch_stats")
  copy = lambda tree: jax.tree.map(jnp.array, tree)
  best = Best(jnp.full((), -1.0), jnp.zeros((), jnp.int32), copy(params), copy(batch_stats))
  return FinetuneState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), best)


def make_optimizer(*, momentum, clip_norm):
  """SGD's direction, before the rate."""
  return optax.chain(optax.clip_by_global_norm(clip_norm), optax.trace(momentum))


def make_train_step(
  *, network: Classifier, tx, scales, normalization, mixup, crop, padding, binary, resize
):
  """Returns train_step(state, batch, rate, seed) -> (state, metrics), a pure function: all its
  randomness is fold_in(seed, step).

  Args:
    scales: factors of the rate, like the parameters.
    normalization: keyword arguments of `normalize` without the peak.
    mixup: keyword arguments of `mix_labelled`; with a probability of 0 nothing is mixed.
    crop: keyword arguments of `random_resize_crop`, or None.
    padding: of `normalized`.
    binary: binary cross entropy in place of cross entropy.
    resize: of `augment.resize_crop`.
  """

  def train_step(state: FinetuneState, batch, rate, seed):
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), state.step)
    mix_key, crop_key, *random_keys = jax.random.split(key, 2 + len(RANDOM))
    x, length = normalized(batch["mel"], batch["length"], padding=padding, **normalization)
    targets = batch["target"].astype(jnp.float32)
    if mixup["probability"]:
      x, targets = mix_labelled(mix_key, x, length, targets, **mixup)
    if crop is not None:
      x = random_resize_crop(crop_key, x, length, resize=resize, **crop)

    def loss_fn(params):
      variables = {"params": params, "batch_stats": state.batch_stats}
      rngs = dict(zip(RANDOM, random_keys, strict=True))
      logits, new = network.apply(
        variables, x, length, train=True, mutable=["batch_stats"], rngs=rngs
      )
      return mean_loss(logits, targets, binary=binary), new["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    direction, opt_state = tx.update(grads, state.opt_state)
    params = jax.tree.map(lambda p, d, s: p - rate * s * d, state.params, direction, scales)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    return FinetuneState(state.step + 1, params, batch_stats, opt_state, state.best), metrics

  return train_step


def make_predict(*, network: Classifier, normalization, padding):
  """Returns predict(params, batch_stats, batch) -> (B, C) logits of whole clips, without
  augmentation."""

  def predict(params, batch_stats, batch):
    x, length = normalized(batch["mel"], batch["length"], padding=padding, **normalization)
    return network.apply({"params": params, "batch_stats": batch_stats}, x, length, train=False)

  return predict


def keep_best(state: FinetuneState, score, epoch) -> FinetuneState:
  """The state with a copy of its parameters as the best ones."""
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  return state._replace(
    best=Best(
      jnp.asarray(score, jnp.float32),
      jnp.asarray(epoch, jnp.int32),
      copy(state.params),
      copy(state.batch_stats),
    )
  )
