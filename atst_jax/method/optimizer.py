"""Schedules, the weight-decay mask and the optimizer of pre-training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

STAIR = 50  # steps, of SSAST's warm-up


def cosine_schedule(start, end, *, total_steps, warmup_steps=0):
  """Linear from 0 to `start` over the warm-up, then half a cosine to `end` (released code,
  utils/common.py).

  The warm-up includes both ends: step 0 has 0, step warmup_steps - 1 has `start`, and so has step
  warmup_steps.
  """
  decay_steps = max(total_steps - warmup_steps, 1)

  def schedule(step):
    rising = start * step / max(warmup_steps - 1, 1)
    phase = jnp.pi * jnp.clip((step - warmup_steps) / decay_steps, 0, 1)
    return jnp.where(step < warmup_steps, rising, end + 0.5 * (start - end) * (1 + jnp.cos(phase)))

  return schedule


def stairs_schedule(peak, *, warmup_steps):
  """A linear warm-up whose rate changes at every 50th step only, beginning at 0; then constant
  (SSAST's released code). Without a warm-up constant from the first step on."""
  rising = lambda step: step // STAIR * STAIR / warmup_steps if warmup_steps else 1.0
  return lambda step: peak * jnp.minimum(rising(step), 1.0)


def decay_mask(params):
  """True for every parameter that weight decay covers: more than one axis and not a bias (released
  code).

  So kernels of encoder and heads, CLS and positions; not biases, LayerNorm or BatchNorm.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x.ndim > 1 and path[-1].key != "bias", params
  )


class TransformersAdamState(NamedTuple):
  """`mu` and `nu` are the averages of the gradient and of its square."""

  count: jax.Array  # type: ignore[assignment]  # optax's name; tuples have a method of it
  mu: Any
  nu: Any


def transformers_adamw(learning_rate, *, b1, b2, eps, weight_decay, mask):
  """AdamW as the transformers library (before 4.50) computes it, which trained the released
  weights.

  It differs from optax's in two places: eps is added to the square root before the bias correction,
  and the decay is of the parameters after the step. learning_rate and weight_decay are functions of
  the step; mask of the parameters.
  """

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    return TransformersAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

  def update(grads, state, params):
    rate, decay = learning_rate(state.count), weight_decay(state.count)
    count = state.count + 1
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
    size = rate * jnp.sqrt(1 - b2**count) / (1 - b1**count)

    def change(m, v, p, decays):
      step = -size * m / (jnp.sqrt(v) + eps)
      return step - rate * decay * (p + step) if decays else step

    return jax.tree.map(change, mu, nu, params, mask(params)), TransformersAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


def adam_l2(learning_rate, *, b1, b2, eps, weight_decay, mask):
  """Adam with the decay in the gradient, of every parameter: PyTorch's Adam, which SSAST uses.
  Arguments as of `transformers_adamw`; `mask` plays no part."""
  del mask
  adam = optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)
  return optax.chain(optax.add_decayed_weights(weight_decay), adam)


FORMS = {"optax": optax.adamw, "transformers": transformers_adamw, "adam_l2": adam_l2}
SCHEDULES = ("cosine", "constant", "stairs")


def make_optimizer(
  *,
  total_steps,
  batch_size,
  form,
  schedule,
  base_lr,
  reference_batch,
  end_lr,
  warmup_steps,
  weight_decay_start,
  weight_decay_end,
  b1,
  b2,
  eps,
):
  """AdamW with per-step schedules: an optax transformation, and the schedules by the name they are
  logged under.

  Args:
    total_steps: updates of the whole run.
    batch_size: global batch; the peak learning rate is base_lr · batch_size / reference_batch
      (ATST's released code: 3.0e-3 for small and 1.2e-3 for base at 1536, where the paper prints
      5e-4 and 2e-4), or base_lr if that is 0.
    form: of `FORMS`. With a weight decay of 0 all are Adam.
    schedule: "cosine" to end_lr, "constant", or "stairs" (`stairs_schedule`).
    base_lr, end_lr: `end_lr` is not scaled.
    warmup_steps: linear warm-up.
    weight_decay_start, weight_decay_end: half a cosine over the run, no warm-up (0.04 to 0.4).
    b1, b2, eps: Adam's; ATST's released code's eps is 1e-6.
  """
  peak = base_lr * batch_size / reference_batch if reference_batch else base_lr
  end = peak if schedule == "constant" else end_lr
  learning_rate = cosine_schedule(peak, end, total_steps=total_steps, warmup_steps=warmup_steps)
  if schedule == "stairs":
    learning_rate = stairs_schedule(peak, warmup_steps=warmup_steps)
  weight_decay = cosine_schedule(weight_decay_start, weight_decay_end, total_steps=total_steps)
  tx = FORMS[form](learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask)
  return tx, {"learning_rate": learning_rate, "weight_decay": weight_decay}
