"""Schedules, the weight-decay mask and the optimizer of pre-training."""

import jax
import jax.numpy as jnp
import optax


def cosine_schedule(start, end, *, total_steps, warmup_steps=0):
  """Linear from 0 to `start` over the warm-up, then half a cosine to `end` (released code, utils/common.py).

  The warm-up includes both ends: step 0 has 0, step warmup_steps - 1 has `start`, and so has step warmup_steps.
  """
  decay_steps = max(total_steps - warmup_steps, 1)

  def schedule(step):
    rising = start * step / max(warmup_steps - 1, 1)
    phase = jnp.pi * jnp.clip((step - warmup_steps) / decay_steps, 0, 1)
    return jnp.where(step < warmup_steps, rising, end + 0.5 * (start - end) * (1 + jnp.cos(phase)))

  return schedule


def decay_mask(params):
  """True for every parameter that weight decay covers: more than one axis and not a bias (released code).

  So kernels of encoder and heads, CLS and positions; not biases, LayerNorm or BatchNorm.
  """
  return jax.tree_util.tree_map_with_path(lambda path, x: x.ndim > 1 and path[-1].key != "bias", params)


def make_optimizer(*, total_steps, batch_size, base_lr, end_lr, warmup_steps, weight_decay_start, weight_decay_end,
                   b1, b2, eps):  # fmt: skip
  """AdamW with per-step schedules: an optax transformation, and the schedules by the name they are logged under.

  Args:
    total_steps: updates of the whole run.
    batch_size: global batch; the peak learning rate is base_lr · batch_size / 256 (released code: 3.0e-3 for small and
      1.2e-3 for base at 1536, where the paper prints 5e-4 and 2e-4).
    base_lr, end_lr: `end_lr` is not scaled.
    warmup_steps: linear warm-up.
    weight_decay_start, weight_decay_end: half a cosine over the run, no warm-up (0.04 to 0.4).
    b1, b2, eps: Adam's; the released code's eps is 1e-6.
  """
  learning_rate = cosine_schedule(
    base_lr * batch_size / 256, end_lr, total_steps=total_steps, warmup_steps=warmup_steps
  )
  weight_decay = cosine_schedule(weight_decay_start, weight_decay_end, total_steps=total_steps)
  tx = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask)
  return tx, {"learning_rate": learning_rate, "weight_decay": weight_decay}
