"""Both papers on one page: what one update of the student and its teacher computes.

student      y = encoder(view), z = projector(y), p = predictor(z)      of both views
teacher      z' = projector'(encoder'(view))                            of both views
L_byol       = mean over both directions of 2 - 2·cos(p_i, z'_j)        BYOL; ATST 2.1
w            = log(γ·e^{s(v)} + (1 - γ)·e^v)                            difference-aware, Eq. 2
p_difference = predictor_difference(projector(encoder(w) - γ·s(y)))     for the same z', Eq. 3
L            = (1 - λ)·L_byol + λ·L_difference
teacher      <- m·teacher + (1 - m)·student
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from atst_jax.method.accumulation import RANDOM, in_parts
from atst_jax.method.ema import Ema, EmaState
from atst_jax.method.groups import shift_in_group
from atst_jax.method.losses import cross_loss, output_rank, output_std
from atst_jax.method.mixtures import Mixtures, make_mixtures
from atst_jax.method.subtraction import Subtraction
from atst_jax.method.views import make_views
from atst_jax.models.encoders import make_encoder
from atst_jax.models.layers import MLPHead, pool_frames


class TrainState(NamedTuple):
  """All that evolves, arrays only, float32.

  `step` counts finished steps: it is the position in the data and in the random draws. Schedules
  follow the count of finished updates, which teacher and optimizer hold. It is smaller where steps
  were skipped (`guard`). `teacher` is () where the objective has none.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  teacher: Any  # EmaState
  guard: Any = ()

  @property
  def updates(self) -> jax.Array:
    """Finished updates. The teacher counts them; without one they are the steps not skipped."""
    if isinstance(self.teacher, EmaState):
      return self.teacher.count
    return self.step - self.guard.skipped if self.guard else self.step


class Network(nn.Module):
  """Encoder, projector and the student's predictors. B clips, K views, D width, P outputs.

  joint_views: encode and normalise all views in one pass, so that BatchNorm's statistics span both
    (ATST's released code); otherwise one pass for each view (BYOL-A).
  accumulation: into how many parts a batch is split (`accumulation.in_parts`). Heads and losses see
    the whole batch. The update is that of the whole batch, except for the draws of stochastic depth
    and dropout, and for BatchNorm inside an encoder, which sees a part.
  """

  encoder: nn.Module
  projector: nn.Module
  predictor: nn.Module
  predictor_difference: nn.Module | None
  joint_views: bool
  subtraction: Subtraction
  accumulation: int = 1

  def _each(self, f, *arrays):
    """Applies f to (B·K, ...) at once, or to (B, ...) for each view; f returns an array or a tree
    of them."""
    B, K = arrays[0].shape[:2]
    if self.joint_views:
      out = f(*(x if x is None else x.reshape(B * K, *x.shape[2:]) for x in arrays))
      return jax.tree.map(lambda x: x.reshape(B, K, *x.shape[1:]), out)
    outs = [f(*(x if x is None else x[:, k] for x in arrays)) for k in range(K)]
    return jax.tree.map(lambda *x: jnp.stack(x, 1), *outs)

  def encode(self, views, length, *, track=True):
    """(B, K, T, F) and valid frames (B, K) or None -> y (B, K, D), or (B, K, N, D) if frames are
    subtracted."""

    def encode(encoder, mel, frames):
      y, before = encoder(mel, frames, train=True, track=track)
      return y if self.subtraction.level == "clip" else before["frames"]

    parts = 1 if self.is_initializing() else self.accumulation
    if self.joint_views and self.encoder.has_batch_norm:  # which sees all views of a part's clips
      clips = lambda encoder, *arrays: self._each(functools.partial(encode, encoder), *arrays)
      return in_parts(clips, self.encoder, parts, views, length)
    accumulated = functools.partial(in_parts, encode, self.encoder, parts)
    return self._each(accumulated, views, length)

  def pool(self, y):
    """What `encode` returns -> (B, K, D)."""
    return y if self.subtraction.level == "clip" else self._each(pool_frames, y)

  def project(self, y):
    """(B, K, D) -> z (B, K, P)."""
    return self._each(functools.partial(self.projector, train=True), y)

  def _project_both(self, y, difference):
    both = jnp.stack([y, difference], 1)
    return self.projector(both.reshape(-1, both.shape[-1]), train=True).reshape(*both.shape[:2], -1)

  def predict(self, z):
    """(B, K, P) -> (B, K, P), the student's predictions of the teacher's outputs."""
    return self._each(functools.partial(self.predictor, train=True), z)

  def predict_difference(self, z):
    """(B, K, P) -> (B, K, P), from projected differences (Eq. 3)."""
    assert self.predictor_difference is not None  # there is one where the loss has its term
    return self._each(functools.partial(self.predictor_difference, train=True), z)

  def teach(self, views, length):
    """The teacher's targets z' (B, K, P), and its encodings."""
    y = self.encode(views, length)
    return self.project(self.pool(y)), y

  def __call__(self, views, length, mixed, group, taught):
    """The student's p (B, K, P) and, with `Mixtures`, p_difference (B, K or 1, P) (else None);
    `taught` are the teacher's encodings."""
    y = self.encode(views, length)
    if mixed is None:
      return self.predict(self.project(self.pool(y))), None
    options, K = self.subtraction, mixed.views.shape[1]
    subtrahend = shift_in_group(y if options.subtrahend == "student" else taught, group)[:, :K]
    if options.stop_gradient:
      subtrahend = jax.lax.stop_gradient(subtrahend)
    gamma = mixed.gamma[:, :K].reshape(*subtrahend.shape[:2], *[1] * (subtrahend.ndim - 2))
    encoded = self.encode(mixed.views, mixed.length, track=options.track_mixtures)
    difference = encoded - gamma * subtrahend
    if options.rescale:
      difference = difference / (1 - gamma)
    y, difference = self.pool(y), self.pool(difference)
    if not options.joint_projector:
      return self.predict(self.project(y)), self.predict_difference(self.project(difference))
    both = self._each(self._project_both, y, difference)
    return self.predict(both[..., 0, :]), self.predict_difference(both[..., 1, :])


def make_network(
  *,
  encoder,
  heads,
  joint_views,
  dtype,
  subtraction,
  accumulation=1,
  attention="xla",
  kernels="xla",
  remat=False,
):
  """The network of a config's `encoder` and `heads`; without a predictor of differences where λ is
  0."""
  head = functools.partial(MLPHead, dtype=dtype, **heads)
  encoder = make_encoder(encoder, dtype=dtype, attention=attention, kernels=kernels, remat=remat)
  difference = head() if subtraction.weight else None
  return Network(encoder, head(), head(), difference, joint_views, subtraction, accumulation)


def init_state(key, *, network, tx, teacher: Ema, frames, n_mels, group):
  """A fresh TrainState; the teacher starts as a copy of the student's encoder and projector."""
  views = jnp.zeros((group, 2, frames, n_mels), jnp.float32)
  mixed = None
  if network.predictor_difference is not None:
    mixed = Mixtures(views, None, jnp.zeros((group, 2), jnp.float32))
  rngs = dict.fromkeys(("params", *RANDOM), key)
  y = None
  if network.subtraction.subtrahend == "teacher":
    encode = functools.partial(network.init_with_output, method=Network.encode)
    y = jnp.zeros(jax.eval_shape(encode, rngs, views, None)[0].shape)
  variables = network.init(rngs, views, None, mixed, group, y)
  params, batch_stats = variables["params"], variables["batch_stats"]
  taught = lambda tree: {k: tree[k] for k in ("encoder", "projector") if k in tree}
  return TrainState(
    jnp.zeros((), jnp.int32),
    params,
    batch_stats,
    tx.init(params),
    teacher.init(taught(params), taught(batch_stats)),
  )


def make_update(*, network: Network, tx, teacher: Ema, schedules, group, before_step=False):
  """Returns update(state, key, views, length, mixed) -> (state, metrics).

  One step on given views (B, 2, T, F), their valid frames (B, 2) or None and, where λ is not 0,
  their `Mixtures`.

  Args:
    tx: optax transformation of the student.
    schedules: functions of the finished updates that are reported among the metrics.
    group: clips among which views were mixed.
    before_step: whether the teacher averages parameters from before the step (BYOL-A's
      released code with current Lightning).
  """

  weight = network.subtraction.weight

  def update(state: TrainState, key, views, length=None, mixed: Mixtures | None = None):
    teacher_key, student_key = (
      {name: jax.random.fold_in(key, 2 * i + k) for i, name in enumerate(RANDOM)} for k in (0, 1)
    )
    apply = functools.partial(network.apply, mutable=["batch_stats"])

    variables = {"params": state.teacher.params, "batch_stats": state.teacher.batch_stats}
    (z, taught), new_teacher = apply(
      variables, views, length, method=Network.teach, rngs=teacher_key
    )

    def loss_fn(params):
      variables = {"params": params, "batch_stats": state.batch_stats}
      (p, p_difference), new = apply(
        variables, views, length, mixed, group, taught, rngs=student_key
      )
      losses = {"loss_byol": cross_loss(p, z)}
      loss = losses["loss_byol"]
      if weight:
        losses["loss_difference"] = cross_loss(p_difference, z)
        loss = (1 - weight) * loss + weight * losses["loss_difference"]
      return loss, (losses, p, new["batch_stats"])

    loss_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (losses, p, batch_stats)), grads = loss_and_grad(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    teacher_state = state.teacher._replace(batch_stats=new_teacher["batch_stats"])
    followed = state.params if before_step else params
    teacher_state = teacher.update({k: followed[k] for k in teacher_state.params}, teacher_state)
    metrics = {"loss": loss, **losses, "grad_norm": optax.tree.norm(grads)}
    metrics |= {"std_student": output_std(p), "std_teacher": output_std(z)}
    metrics |= {"rank_student": output_rank(p), "rank_teacher": output_rank(z)}
    metrics |= {name: schedule(state.teacher.count) for name, schedule in schedules.items()}
    step = state.step + 1
    return TrainState(step, params, batch_stats, opt_state, teacher_state, state.guard), metrics

  return update


def make_train_step(*, seed, views, mixing, ragged, **parts):
  """Returns train_step(state, batch) -> (state, metrics), a pure function: all its randomness is
  fold_in(seed, step).

  Args:
    views: keyword arguments of `views.make_views`.
    mixing: keyword arguments of `mixtures.make_mixtures`.
    ragged: whether any view may be shorter than views["crop_frames"].
    parts: the other keyword arguments of `make_update`.
  """
  update = make_update(group=mixing["group"], **parts)
  weight = mixing["options"].weight

  def train_step(state: TrainState, batch):
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), state.step)
    view_key, mix_key, update_key = jax.random.split(key, 3)
    pair, length, drawn = make_views(
      view_key, batch["mel"], batch["length"], ragged=ragged, apart=bool(weight), **views
    )
    mixed = None
    if weight:
      mixed = make_mixtures(mix_key, pair, length, drawn["post_std"], **mixing)
    return update(state, update_key, pair, length, mixed)

  return train_step
