"""Both papers on one page: what one update of the student and its teacher computes.

y = encoder(view)          z = projector(y)          p = predictor(z)          both views, student
z' = projector'(encoder'(view))                                                both views, teacher
L_byol       = mean over both directions of 2 - 2·cos(p_i, z'_j)               BYOL; ATST 2.1
w            = log(γ·e^{s(v)} + (1 - γ)·e^v)                                   difference-aware paper, Eq. 2
p_difference = predictor_difference(projector(encoder(w) - γ·s(y)))            the same z', Eq. 3
L            = (1 - λ)·L_byol + λ·L_difference
teacher      <- m·teacher + (1 - m)·student
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from atst_jax.ema import Ema, EmaState
from atst_jax.encoders import ENCODERS
from atst_jax.heads import MLPHead
from atst_jax.losses import output_std, symmetric_loss
from atst_jax.views import make_views, mix_neighbours, normalization_scale, shift_in_group


class TrainState(NamedTuple):
  """All that evolves, arrays only, float32. `step` counts finished updates."""

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  teacher: EmaState


class Network(nn.Module):
  """Encoder, projector and the student's predictors. B clips, K views, D width, P outputs.

  `joint_views`: encode and normalise all views in one pass, so that BatchNorm's statistics span both (ATST's released
  code); otherwise one pass for each view.
  """

  encoder: nn.Module
  projector: nn.Module
  predictor: nn.Module
  predictor_difference: nn.Module | None
  joint_views: bool

  def _each(self, f, *arrays):
    """Applies f to (B·K, ...) at once, or to (B, ...) for each view."""
    B, K = arrays[0].shape[:2]
    if self.joint_views:
      out = f(*(x if x is None else x.reshape(B * K, *x.shape[2:]) for x in arrays))
      return out.reshape(B, K, *out.shape[1:])
    return jnp.stack([f(*(x if x is None else x[:, k] for x in arrays)) for k in range(K)], 1)

  def encode(self, views, length):
    """(B, K, T, F) and valid frames (B, K) or None -> y (B, K, D)."""
    return self._each(lambda mel, frames: self.encoder(mel, frames, train=True)[0], views, length)

  def project(self, y):
    """(B, K, D) -> z (B, K, P)."""
    return self._each(functools.partial(self.projector, train=True), y)

  def predict(self, z):
    return self._each(functools.partial(self.predictor, train=True), z)

  def predict_difference(self, z):
    return self._each(functools.partial(self.predictor_difference, train=True), z)

  def teach(self, views, length):
    """The teacher's targets z' (B, K, P)."""
    return self.project(self.encode(views, length))

  def __call__(self, views, length, mixtures, mixture_length, gamma, group):
    """The student's p and, with mixtures, p_difference (else None), both (B, K, P)."""
    y = self.encode(views, length)
    p = self.predict(self.project(y))
    if mixtures is None:
      return p, None
    difference = self.encode(mixtures, mixture_length) - gamma[..., None] * shift_in_group(y, group)
    return p, self.predict_difference(self.project(difference))


def make_network(*, encoder, heads, joint_views, difference_weight, dtype):
  """Builds the network from the config's `encoder` and `heads`; no difference predictor where λ is 0."""
  encoder = dict(encoder)
  head = functools.partial(MLPHead, dtype=dtype, **heads)
  return Network(ENCODERS[encoder.pop("kind")](dtype=dtype, **encoder), head(), head(),
                 head() if difference_weight else None, joint_views)  # fmt: skip


def init_state(key, *, network, tx, teacher: Ema, frames, n_mels, group):
  """A fresh TrainState; the teacher starts as a copy of the student's encoder and projector."""
  views = jnp.zeros((group, 2, frames, n_mels))
  mixtures, gamma = (views, jnp.zeros((group, 2))) if network.predictor_difference is not None else (None, None)
  variables = network.init({"params": key, "drop_path": key}, views, None, mixtures, None, gamma, group)
  params, batch_stats = variables["params"], variables["batch_stats"]
  taught = lambda tree: {k: tree[k] for k in ("encoder", "projector") if k in tree}
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params),
                    teacher.init(taught(params), taught(batch_stats)))  # fmt: skip


def make_update(*, network: Network, tx, teacher: Ema, schedules, difference_weight, group, mix_scale):
  """Returns update(state, key, views, length, gamma) -> (state, metrics): one step on given views.

  Args:
    tx: optax transformation of the student.
    schedules: functions of the step that are reported among the metrics.
    difference_weight: λ; at 0 nothing of the subtraction is computed.
    group: clips among which views are mixed.
    mix_scale: 1 or the energy domain's k (`views.mix_neighbours`).
  """

  def update(state: TrainState, key, views, length, gamma):
    student_key, teacher_key = jax.random.split(key)
    mixtures = mixture_length = None
    if difference_weight:
      mixtures, mixture_length = mix_neighbours(views, length, gamma, group=group, scale=mix_scale)
    apply = functools.partial(network.apply, mutable=["batch_stats"])

    z, taught = apply({"params": state.teacher.params, "batch_stats": state.teacher.batch_stats}, views, length,
                      method=Network.teach, rngs={"drop_path": teacher_key})  # fmt: skip
    z = jax.lax.stop_gradient(z)  # a constant already: the teacher's parameters are not differentiated

    def loss_fn(params):
      (p, p_difference), new = apply({"params": params, "batch_stats": state.batch_stats}, views, length, mixtures,
                                     mixture_length, gamma, group, rngs={"drop_path": student_key})  # fmt: skip
      losses = {"loss_byol": symmetric_loss(p, z)}
      loss = losses["loss_byol"]
      if difference_weight:
        losses["loss_difference"] = symmetric_loss(p_difference, z)
        loss = (1 - difference_weight) * loss + difference_weight * losses["loss_difference"]
      return loss, (losses, p, new["batch_stats"])

    (loss, (losses, p, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    teacher_state = state.teacher._replace(batch_stats=taught["batch_stats"])
    teacher_state = teacher.update({k: params[k] for k in ("encoder", "projector")}, teacher_state)
    metrics = {"loss": loss, **losses, "grad_norm": optax.tree.norm(grads), "std_student": output_std(p),
               "std_teacher": output_std(z)}  # fmt: skip
    metrics |= {name: schedule(state.step) for name, schedule in schedules.items()}
    return TrainState(state.step + 1, params, batch_stats, opt_state, teacher_state), metrics

  return update


def make_train_step(*, network, tx, teacher, schedules, seed, views, difference, ragged):
  """Returns train_step(state, batch) -> (state, metrics), a pure function: all its randomness is fold_in(seed, step).

  Args:
    views: keyword arguments of `views.make_views`.
    difference: weight λ, gamma_min, gamma_max, mix_domain ("normalized": Eq. 2 to the letter; "energy": mixes power).
    ragged: whether any clip may be shorter than the crop.
  """
  domains = {"normalized": 1.0, "energy": normalization_scale(views["low"], views["high"])}
  update = make_update(
    network=network,
    tx=tx,
    teacher=teacher,
    schedules=schedules,
    difference_weight=difference["weight"],
    group=views["group"],
    mix_scale=domains[difference["mix_domain"]],
  )

  def train_step(state: TrainState, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    view_key, gamma_key, update_key = jax.random.split(key, 3)
    pair, length, _ = make_views(view_key, batch["mel"], batch["length"], ragged=ragged, **views)
    gamma = jax.random.uniform(
      gamma_key, pair.shape[:2], minval=difference["gamma_min"], maxval=difference["gamma_max"]
    )
    return update(state, update_key, pair, length, gamma)

  return train_step
