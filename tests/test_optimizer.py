"""AdamW in both forms, its schedules, and what weight decay covers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from atst_jax.method.optimizer import (
  adam_l2,
  cosine_schedule,
  decay_mask,
  make_optimizer,
  stairs_schedule,
  transformers_adamw,
)
from atst_jax.pretraining import recipe
from tests.tiny import tiny_config


def test_schedules_at_their_corners():
  """Small: lr at 0, 1299, 1300 and the last of 39,100 steps; the teacher's decay ends 1.6e-11 below
  1."""
  lr = cosine_schedule(5e-4 * 1536 / 256, 1e-6, total_steps=39_100, warmup_steps=1300)
  np.testing.assert_allclose(
    [lr(0), lr(1299), lr(1300), lr(39_099)], [0, 3e-3, 3e-3, 1e-6], rtol=1e-4
  )
  assert all(lr(s) < lr(s + 100) for s in range(0, 1200, 100)) and lr(20_000) > lr(30_000)
  decay = cosine_schedule(0.99, 1.0, total_steps=39_100)
  assert decay(0) == np.float32(0.99) and 0 <= 1 - float(decay(39_099)) < 1e-7
  weight_decay = cosine_schedule(0.04, 0.4, total_steps=100)
  np.testing.assert_allclose([weight_decay(0), weight_decay(50)], [0.04, 0.22], rtol=1e-6)


def test_decay_mask_covers_kernels_cls_and_positions():
  init, _ = recipe.build(recipe.resolve(tiny_config(), None), ragged=False)
  mask = decay_mask(jax.eval_shape(init, jax.random.key(0)).params)
  assert mask["encoder"]["cls_token"]
  assert mask["encoder"]["pos_embed"]
  assert mask["projector"]["hidden"]["kernel"]
  assert mask["encoder"]["block_00"]["qkv"]["kernel"]
  assert not mask["encoder"]["block_00"]["fc1"]["bias"]
  assert not mask["encoder"]["norm"]["scale"] and not mask["predictor"]["norm"]["scale"]


def test_transformers_adamw_by_hand():
  """Three steps in float64: eps before the bias correction, decay of the parameters after the
  step."""
  rng = np.random.default_rng(0)
  params = {
    "kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
    "bias": jnp.asarray(rng.normal(size=2), jnp.float32),
  }
  lr, wd = (lambda t: 1e-2 * (t + 1)), (lambda t: 0.1 * (t + 1))
  tx = transformers_adamw(lr, b1=0.9, b2=0.999, eps=1e-3, weight_decay=wd, mask=decay_mask)
  state = tx.init(params)
  p, m, v = ({k: np.asarray(x, np.float64) * f for k, x in params.items()} for f in (1, 0, 0))
  for t in range(3):
    grads = {k: rng.normal(size=x.shape) * 1e-3 for k, x in params.items()}
    updates, state = tx.update(
      jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads), state, params
    )
    params = optax.apply_updates(params, updates)
    for k, g in grads.items():
      m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g * g
      size = lr(t) * np.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
      p[k] = p[k] - size * m[k] / (np.sqrt(v[k]) + 1e-3)
      p[k] -= lr(t) * wd(t) * p[k] * (k == "kernel")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), params, p)


def test_adam_l2_by_hand():
  """PyTorch's Adam: the decay in the gradient, of biases, too."""
  rng = np.random.default_rng(0)
  params = {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "bias": jnp.ones(2)}
  tx = adam_l2(
    lambda t: 1e-2, b1=0.95, b2=0.999, eps=1e-8, weight_decay=lambda t: 0.1, mask=decay_mask
  )
  state = tx.init(params)
  p, m, v = ({k: np.asarray(x, np.float64) * f for k, x in params.items()} for f in (1, 0, 0))
  for t in range(1, 4):
    grads = {k: rng.normal(size=x.shape).astype(np.float32) for k, x in params.items()}
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    for k, g in grads.items():
      g = g + 0.1 * p[k]
      m[k], v[k] = 0.95 * m[k] + 0.05 * g, 0.999 * v[k] + 0.001 * g * g
      p[k] = p[k] - 1e-2 * m[k] / (1 - 0.95**t) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), params, p)


def test_the_stairs_of_a_warm_up():
  """SSAST's: at every 50th step of the first 1,000, from 0."""
  rate = stairs_schedule(1e-4, warmup_steps=1000)
  found = [float(rate(step)) for step in (0, 49, 50, 99, 500, 999, 1000, 5000)]
  np.testing.assert_allclose(found, [0, 0, 5e-6, 5e-6, 5e-5, 9.5e-5, 1e-4, 1e-4], rtol=1e-5)


def test_stairs_without_a_warm_up_are_constant():
  rate = stairs_schedule(1e-4, warmup_steps=0)
  assert [float(rate(step)) for step in (0, 49, 50)] == [float(np.float32(1e-4))] * 3


def test_constant_rate_and_unscaled_batch():
  common = {
    "total_steps": 100,
    "form": "optax",
    "base_lr": 1e-3,
    "end_lr": 1e-6,
    "warmup_steps": 0,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "weight_decay_start": 0.0,
    "weight_decay_end": 0.0,
  }
  _, schedules = make_optimizer(batch_size=512, schedule="constant", reference_batch=0, **common)
  np.testing.assert_allclose([schedules["learning_rate"](t) for t in (0, 50, 100)], 1e-3, rtol=1e-6)
  _, schedules = make_optimizer(batch_size=512, schedule="constant", reference_batch=256, **common)
  np.testing.assert_allclose(schedules["learning_rate"](70), 2e-3, rtol=1e-6)
