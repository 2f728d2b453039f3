"""The train step: what it computes at its limits, and that it is a pure function of state and
batch."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atst_jax.method.ema import ema
from atst_jax.method.losses import cosine_loss, cross_loss, output_std
from atst_jax.method.optimizer import cosine_schedule
from atst_jax.models.layers import BatchNorm
from atst_jax.objectives import byol
from atst_jax.pretraining import recipe
from tests.tiny import tiny_config


@functools.cache
def _built(**overrides):
  config = recipe.resolve(tiny_config(**overrides), None)
  init, step = recipe.build(config, ragged=False)
  return config, jax.jit(init), jax.jit(step)


@functools.cache
def _run(steps, **overrides):
  config, init, step = _built(**overrides)
  state = init(jax.random.key(0))
  source = recipe.batches(config, None, start_step=0, rows=None)
  history, metrics = [state], {}
  for _ in range(steps):
    state, metrics = step(state, next(source))
    history.append(state)
  return history, metrics, step


def test_everything_is_float32_and_compiled_once():
  history, metrics, step = _run(3)
  assert step._cache_size() == 1
  floats = [x for x in jax.tree.leaves(history[-1]) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert {x.dtype for x in floats} == {jnp.dtype("float32")}
  assert int(history[-1].step) == 3 and int(history[-1].teacher.count) == 3
  total = 0.8 * metrics["loss_byol"] + 0.2 * metrics["loss_difference"]
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)


def test_teacher_starts_as_the_student_in_buffers_of_its_own():
  history, *_ = _run(0)
  state = history[0]
  for part in ("encoder", "projector"):
    jax.tree.map(np.testing.assert_array_equal, state.params[part], state.teacher.params[part])
  assert set(state.teacher.params) == {"encoder", "projector"}
  assert state.params["encoder"]["cls_token"] is not state.teacher.params["encoder"]["cls_token"]


def test_teacher_follows_by_its_decay():
  """At decay 1 it never moves, at 0 it is the student, and the step uses the schedule's value of
  its count."""
  student, teacher = {"w": jnp.full(3, 2.0)}, {"w": jnp.full(3, 1.0)}
  for decay, expected in ((1.0, 1.0), (0.0, 2.0), (0.9995, 1.0005)):
    average = ema(lambda count, decay=decay: jnp.float32(decay))
    state = average.update(student, average.init(teacher, {}))
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-6)
  history, *_ = _run(3)
  before, after = history[1], history[2]
  decay = cosine_schedule(0.9, 1.0, total_steps=6)(1)
  expected = jax.tree.map(
    lambda t, s: decay * t + (1 - decay) * s,
    before.teacher.params["encoder"],
    after.params["encoder"],
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6),
    after.teacher.params["encoder"],
    expected,
  )
  assert (
    np.abs(after.params["encoder"]["cls_token"] - before.params["encoder"]["cls_token"]).max()
    > 1e-4
  )


def test_without_the_subtraction_nothing_of_it_exists():
  config, init, step = _built(difference__weight="0")
  _, with_init, with_step = _built()
  batch = next(recipe.batches(config, None, start_step=0, rows=None))
  states = [jax.eval_shape(f, jax.random.key(0)) for f in (init, with_init)]
  assert "predictor_difference" not in states[0].params
  assert "predictor_difference" in states[1].params
  flops = [
    f.lower(s, batch).cost_analysis()["flops"]
    for f, s in zip((step, with_step), states, strict=True)
  ]
  assert flops[0] < 0.7 * flops[1]
  _, metrics = jax.eval_shape(step, states[0], batch)
  assert "loss_difference" not in metrics


def test_views_change_with_the_step():
  """The learning rate of step 0 is 0 and the teacher is the student: another loss on the same batch
  is other views."""
  config, init, step = _built()
  batch = next(recipe.batches(config, None, start_step=0, rows=None))
  state, first = step(init(jax.random.key(0)), batch)
  _, second = step(state, batch)
  assert abs(float(first["loss"]) - float(second["loss"])) > 1e-4


def test_losses():
  rng = np.random.default_rng(0)
  p, z = rng.normal(size=(2, 5, 2, 7))
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  expected = np.mean([((unit(p[:, i]) - unit(z[:, 1 - i])) ** 2).sum(-1).mean() for i in (0, 1)])
  np.testing.assert_allclose(cross_loss(p, z), expected, rtol=1e-5)
  assert abs(float(cosine_loss(p, p))) < 1e-6 and abs(float(cosine_loss(p, -p)) - 4) < 1e-6
  sphere = rng.normal(size=(4000, 64))
  assert abs(float(output_std(sphere)) - 1 / 8) < 2e-3
  assert float(output_std(np.ones((9, 64)))) < 2e-3


def test_batch_norm_is_torch_batch_norm():
  """Batch statistics, then momentum 0.1 of the unbiased variance."""
  x = np.random.default_rng(0).normal(100, 0.1, (6, 5)).astype(np.float32)
  module = BatchNorm()
  variables = module.init(jax.random.key(0), x, train=True)
  y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
  x = x.astype(np.float64)
  np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), atol=1e-3)
  np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * x.mean(0), rtol=1e-5)
  np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-5)


def _without_gradient(loss, has_aux):
  """In the place of `jax.value_and_grad`: the parameters stand for their gradient."""
  return lambda params: (loss(params), params)


@functools.cache
def _byola(gradient=False, **overrides):
  """One step of BYOL-A with the subtraction, under other options: (state before, state after,
  metrics)."""
  small = {
    "encoder__width": "1040",
    "encoder__hidden": "8",
    "difference__weight": "0.5",
    "batch_size": "8",
    "views__normalization__mean": "-6",
    "views__normalization__std": "7",
    "warmup_steps": "0",
    "encoder__dropout": "0",
  }
  config = recipe.resolve(tiny_config(file="byola.py", **{**small, **overrides}), None)
  sgd = optax.sgd(1e-2)  # Adam's operations are most of a step that is not compiled as a whole
  with mock.patch.object(recipe, "make_optimizer", lambda **_: (sgd, {})):
    init, step = recipe.build(config, ragged=False)
  # the options add no parameters
  before = _byola()[0] if overrides or gradient else jax.jit(init)(jax.random.key(0))
  batch = next(recipe.batches(config, None, start_step=0, rows=None))
  if gradient:
    after, metrics = jax.jit(step)(before, batch)
  else:  # not compiled as a whole: its operations are compiled once for all options
    with mock.patch.object(jax, "value_and_grad", _without_gradient):
      after, metrics = step(before, batch)
  return before, after, {k: float(v) for k, v in metrics.items()}


OPTIONS = {
  "symmetric": "false",
  "subtrahend": "teacher",
  "stop_gradient": "true",
  "rescale": "true",
  "level": "frame",
  "joint_projector": "true",
  "track_mixtures": "false",
  "mix_domain": "energy",
  "mix_stage": "pre_norm",
  "renormalize": "batch",
  "match_level": "true",
  "neighbour": "batch",
  "gamma_per": "batch",
  "gamma_shared": "true",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_choice_of_the_subtraction_acts(option):
  """It changes the subtraction's loss or what the step leaves behind, and not BYOL's loss."""
  gradient = option in ("stop_gradient", "subtrahend")
  _, plain, metrics = _byola(gradient)
  _, changed, other = _byola(gradient, **{f"difference__{option}": OPTIONS[option]})
  # One BatchNorm over encodings and differences changes both losses.
  assert (abs(other["loss_byol"] - metrics["loss_byol"]) < 1e-5) == (option != "joint_projector")
  loss = abs(other["loss_difference"] - metrics["loss_difference"])
  gap = lambda a, b: max(
    jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b))
  )
  # at first the teacher is the student: only gradients differ
  if gradient:
    assert loss < 1e-5
    assert abs(other["grad_norm"] - metrics["grad_norm"]) > 1e-3 * metrics["grad_norm"]
  elif option == "track_mixtures":
    assert loss < 1e-5 and gap(plain.batch_stats["encoder"], changed.batch_stats["encoder"]) > 1e-4
    assert gap(plain.batch_stats["projector"], changed.batch_stats["projector"]) < 1e-6
  elif option == "rescale":  # the projector's BatchNorm removes a common factor, so little is left
    assert loss > 1e-6
  else:
    assert loss > 1e-4, loss


def test_byola_keeps_its_own_statistics():
  """Running statistics follow the passes of each network; the teacher's parameters follow by
  0.99."""
  before, after, metrics = _byola(teacher__decay_start="0.99")
  assert np.isfinite(metrics["loss"]) and metrics["ema_decay"] == np.float32(0.99)
  mean = lambda state: state.batch_stats["encoder"]["norm_0"]["mean"]
  assert np.abs(mean(after) - mean(before)).max() > 1e-4
  # the mixtures are the student's alone
  assert np.abs(mean(after) - mean(after.teacher)).max() > 1e-5
  expected = jax.tree.map(
    lambda t, s: 0.99 * t + 0.01 * s, before.teacher.params["encoder"], after.params["encoder"]
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6),
    after.teacher.params["encoder"],
    expected,
  )


def test_the_teacher_may_follow_the_parameters_before_the_step():
  """BYOL-A's released code with current Lightning: m·teacher + (1 - m)·student of before."""
  small = {"difference__weight": "0", "encoder__depth": "1"}
  history, *_ = _run(3, teacher__before_step="true", **small)
  before, after = history[2], history[3]
  decay = cosine_schedule(0.9, 1.0, total_steps=6)(2)
  average = lambda t, s: decay * t + (1 - decay) * s
  for part in ("encoder", "projector"):
    expected = jax.tree.map(average, before.teacher.params[part], before.params[part])
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-6), after.teacher.params[part], expected
    )
  moved = after.params["encoder"]["cls_token"] - before.params["encoder"]["cls_token"]
  assert np.abs(moved).max() > 1e-4


def test_the_released_recipe_uses_the_decay_of_the_step_after():
  """lead_steps = 1: the average after step t takes m[t + 1], and that is what is logged."""
  schedule = cosine_schedule(0.9, 1.0, total_steps=6)
  for lead in (0, 1):
    config = recipe.resolve(tiny_config(teacher__lead_steps=str(lead)), None)
    with (
      mock.patch.object(byol, "ema", wraps=byol.ema) as average,
      mock.patch.object(byol.method, "make_train_step", wraps=byol.method.make_train_step) as m,
    ):
      recipe.build(config, ragged=False)
    used, logged = average.call_args.args[0], m.call_args.kwargs["schedules"]["ema_decay"]
    for t in (0, 3):
      np.testing.assert_allclose([used(t), logged(t)], schedule(t + lead), rtol=1e-6)
  np.testing.assert_allclose(_run(3)[1]["ema_decay"], schedule(2), rtol=1e-6)
