"""The guard of a step: values that are not finite, spikes, collapsed outputs, few axes."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.method import train_step as method
from atst_jax.method.losses import output_rank
from atst_jax.pretraining import recipe
from atst_jax.pretraining.guard import deviations, init_guard, judge
from atst_jax.pretraining.recovery import Recovery
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("one_device")

RULE = {"outputs": 16, "spike": 12.0, "collapse_std": 0.1, "collapse_rank": 1.1}
HEALTHY = {"std_teacher": 0.2, "rank_teacher": 5.0}


TOY = {"difference__weight": "0", "total_steps": "400", "warmup_steps": "5", "encoder__depth": "1"}


@functools.cache
def _program(**overrides):
  """(config, initial state, step) of a toy; two tests share the healthy one."""
  config = recipe.resolve(tiny_config(**TOY | overrides), None)
  init, step = recipe.build(config, ragged=False)
  return config, jax.jit(init)(jax.random.key(0)), jax.jit(step)


def _batches(config, number):
  source = recipe.batches(config, None, start_step=0, rows=None)
  return [next(source) for _ in range(number)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fault_25_a_step_that_is_not_finite_is_skipped(value):
  """Student, optimizer, teacher, statistics and the schedules' counts stay bit for bit; `step` goes
  on."""
  config, state, step = _program()
  batches = _batches(config, 4)
  batches[2] = {**batches[2], "mel": batches[2]["mel"].copy()}
  batches[2]["mel"][3] = value
  history, rates = [state], []
  for batch in batches:
    state, metrics = step(history[-1], batch)
    history.append(state)
    rates.append(float(metrics["learning_rate"]))
  before, after = history[2], history[3]
  bare = lambda state: state._replace(step=0, guard=0)
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, bare(a), bare(b))
  same(before, after)
  counts = lambda name: [int(getattr(s.guard, name)) for s in history]
  assert [int(s.step) for s in history] == [0, 1, 2, 3, 4]
  assert [int(s.teacher.count) for s in history] == [0, 1, 2, 2, 3]
  assert counts("skipped") == [0, 0, 0, 1, 1] and int(metrics["skipped"]) == 1
  assert counts("bad") == [0, 0, 0, 1, 0] and counts("seen") == [0, 1, 2, 2, 3]
  # the schedule waits, and what is reported is what is used
  assert rates[2] == rates[3] > rates[1] > rates[0]
  with pytest.raises(AssertionError):
    same(after, history[4])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(history[4]))
  assert not all(
    np.isfinite(float(step(before, batches[2])[1][name])) for name in ("loss", "grad_norm")
  )


@jax.jit
def _judge(guard, loss, finite=True, warm=True, **metrics):
  return judge(guard, {**HEALTHY, **metrics, "loss": loss}, jnp.asarray(finite), warm=warm, **RULE)


def _judged(losses, *, window=8, **options):
  """The counts of bad steps after each loss, and the deviations."""
  guard, bad, distances = init_guard(window), [], []
  for loss in losses:
    guard, distance = _judge(guard, jnp.float32(loss), np.isfinite(loss), **options)
    bad.append(int(guard.bad))
    distances.append(float(distance))
  return bad, np.array(distances), guard


def test_fault_26_the_rule_of_a_spike():
  """The median and the median distance of the last window of finite losses, against numpy."""
  rng = np.random.default_rng(0)
  calm = 1 + 0.05 * rng.normal(size=40)
  bad, distances, _ = _judged(calm)
  assert not any(bad) and not distances[:8].any()
  window = np.float32(calm[12:20])
  deviation = 1.4826 * np.median(np.abs(window - np.median(window)))
  np.testing.assert_allclose(distances[20], (calm[20] - np.median(window)) / deviation, rtol=1e-4)
  bad, *_ = _judged([*calm, 3, 3, 3, 1, 3])
  assert bad[40:] == [1, 2, 3, 0, 1]
  assert _judged([*calm, 3, np.nan, 3])[0][40:] == [1, 2, 3]  # both kinds are bad steps in a row
  assert not any(_judged([*calm, 3, 3], warm=False)[0])  # not during the warm-up
  assert _judged([*calm[:6], 3])[0][-1] == 0  # not before the window is full
  # a deviation is at least 2 % of the median
  assert not any(_judged([1.0] * 20 + [1.2] * 5)[0])
  # a new level is one after half a window
  assert _judged([1.0] * 20 + [1.3] * 20)[0][20:] == [1, 2, 3, 4] + [0] * 16
  guard = _judged([*calm, np.nan, np.inf])[2]
  assert np.isfinite(guard.losses).all() and int(guard.seen) == 40 and int(guard.skipped) == 2
  assert float(deviations(jnp.float32(2), jnp.ones(8))) == pytest.approx(1 / 0.02)


class Identity(nn.Module):
  """In the place of a predictor."""

  def __call__(self, x, train):
    return x


def _toy(monkeypatch, steps, collapsing):
  """The metrics of a tiny run on one device: without a predictor, its teacher the student itself,
  or a healthy one."""
  overrides, history = {}, []
  with monkeypatch.context() as patch:
    if collapsing:
      make = method.make_network
      patch.setattr(
        method, "make_network", lambda **options: make(**options).clone(predictor=Identity())
      )
      overrides = {
        "teacher__decay_start": "0",
        "teacher__decay_end": "0",
        "optimizer__base_lr": "0.1",
      }
    config, state, step = _program(**overrides)
  for batch in _batches(config, steps):
    state, metrics = step(state, batch)
    history.append(jax.device_get(metrics))
  return history


def test_fault_27_collapse_is_caught_and_health_is_not(tmp_path, monkeypatch, warnings):
  """A toy without predictor at decay 0 collapses: a warning, once, or the end if so configured. A
  healthy toy does neither: on the same noise, for twice as long."""
  history = _toy(monkeypatch, 60, True)
  healthy = _toy(monkeypatch, 120, False)
  assert not any(m["collapsed"] or m["bad"] for m in healthy)
  # a perfect loss, by saying nothing
  assert history[-1]["collapsed"] > 30 and history[-1]["loss"] < 0.01
  assert history[-1]["std_teacher"] < 0.1 * 8**-0.5 < healthy[-1]["std_teacher"]
  options = dict.fromkeys(("checkpoints", "abstract_state", "fresh", "read"))
  options |= {"outputs": 8, "patience": 3, "rollbacks": 1, "collapse_steps": 20, "narrow": 0.0}
  recovery = Recovery(str(tmp_path), collapse="warn", **options)
  needed = [recovery.needed(step, metrics) for step, metrics in enumerate(healthy, 1)]
  assert not warnings and not any(needed)
  needed = [recovery.needed(step, metrics) for step, metrics in enumerate(history, 1)]
  assert not any(needed) and len(warnings) == 1
  assert re.search(
    r"the teacher's outputs have been collapsed for 20 steps: std 0.0\d+ .*have 0.3536", warnings[0]
  )
  recovery = Recovery(str(tmp_path), collapse="stop", **options)
  with pytest.raises(FloatingPointError, match="collapsed for 20 steps"):
    for step, metrics in enumerate(history, 1):
      recovery.needed(step, metrics)
  flat = {"std_teacher": 0.2, "rank_teacher": 1.05}  # all on one line, and well spread there
  assert int(_judged([1.0] * 3, **flat)[2].collapsed) == 3
  assert not int(_judged([1.0] * 3)[2].collapsed)


def test_steps_that_an_earlier_process_skipped_are_not_told_again(tmp_path, warnings):
  options = dict.fromkeys(("checkpoints", "abstract_state", "fresh", "read"))
  options |= {"outputs": 8, "patience": 9, "rollbacks": 1, "collapse_steps": 20, "narrow": 0.0}
  recovery = Recovery(str(tmp_path), collapse="warn", skipped=3, **options)
  spike = {"skipped": 3, "bad": 1, "collapsed": 0, "loss": 3.9, "grad_norm": 1.0}
  recovery.needed(501, {**spike, "rank_teacher": 4.0})
  assert not warnings
  recovery.needed(502, {**spike, "skipped": 4, "bad": 2, "rank_teacher": 4.0})
  assert [text.partition(":")[0] for text in warnings] == ["step 502 was skipped"]


def test_few_axes_are_told_of_once_and_again_after_a_recovery(tmp_path, warnings):
  """3.5 of 256 for as many steps as a collapse takes; less than that gives no warning."""
  options = dict.fromkeys(("checkpoints", "abstract_state", "fresh", "read"))
  options |= {"outputs": 256, "patience": 3, "rollbacks": 1, "collapse": "stop"}
  recovery = Recovery(str(tmp_path), collapse_steps=5, narrow=1 / 64, **options)
  metrics = {"skipped": 0, "bad": 0, "collapsed": 0}
  ranks = [3.5] * 4 + [4.1] + [3.5] * 9 + [4.1] + [3.5] * 5
  for step, rank in enumerate(ranks, 1):
    assert not recovery.needed(step, {**metrics, "rank_teacher": rank})
  assert [text.split(":")[0] for text in warnings] == ["step 10", "step 20"]
  assert "participation ratio 3.5 of 256" in warnings[0]


def test_output_rank():
  """Equal along every axis of k dimensions: k; on a line: 1; the same everywhere: 0; below the
  entropy's rank."""
  from atst_jax.downstream.metrics import spectrum

  rng = np.random.default_rng(0)
  sphere = rng.normal(size=(20000, 12)).astype(np.float32)
  assert float(output_rank(sphere)) == pytest.approx(12, rel=0.01)
  plane = sphere * np.array([1, 1] + [0] * 10, np.float32)
  assert float(output_rank(plane)) == pytest.approx(2, rel=0.01)
  assert float(output_rank(np.sign(sphere[:, :1]) * np.ones((1, 12), np.float32))) == pytest.approx(
    1, rel=1e-3
  )
  assert float(output_rank(np.eye(1, 12, dtype=np.float32).repeat(9, 0))) == 0
  decaying = sphere * 0.7 ** np.arange(12, dtype=np.float32)
  unit = decaying / np.linalg.norm(decaying, axis=1, keepdims=True)
  assert 1 < float(output_rank(decaying)) < spectrum(unit).effective_rank < 12
