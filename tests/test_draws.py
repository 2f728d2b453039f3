"""Every range that is drawn from, against the distribution that the config names; and which of a
network's passes share a draw.

A run with a changed range still trains, so no loss tells. Each test was seen red with the
mutations that its docstring lists.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from atst_jax.method import augment
from atst_jax.method import train_step as method
from atst_jax.method import views as V
from atst_jax.method.ema import ema
from atst_jax.method.mixtures import make_mixtures, mixing_options
from atst_jax.method.optimizer import FORMS, make_optimizer
from atst_jax.method.subtraction import Subtraction
from atst_jax.models.layers import DropPath
from atst_jax.models.transformer import Transformer
from atst_jax.util import config as configs
from tests import test_views
from tests.tiny import ROOT

CLIPS = 2048
RARE = 1e-4  # a right draw is refused once in so many keys; keys are fixed
VIEWS = test_views.VIEWS | {
  "group": 8,
  "freq_scale": (0.5, 0.75),
  "time_scale": (0.9, 1.4),
  "fader_gain": 0.7,
}


def check_uniform(x, low, high):
  """Kolmogorov and Smirnov's test of many draws against U(low, high)."""
  assert stats.kstest(np.ravel(x), "uniform", (low, high - low)).pvalue > RARE


def check_integers(x, low, high):
  """A chi-square test of many draws against every whole number of [low, high] alike."""
  counts = np.bincount(np.ravel(x) - low, minlength=high - low + 1)
  assert np.min(x) >= low and np.max(x) <= high
  assert stats.chisquare(counts).pvalue > RARE


@functools.cache
def _drawn():
  mel = np.random.default_rng(0).normal(-30, 20, (CLIPS, 60, 4)).astype(np.float16)
  make = lambda gain: jax.jit(
    functools.partial(V.make_views, ragged=False, **{**VIEWS, "fader_gain": gain})
  )
  key, length = jax.random.key(1), np.full(CLIPS, 60)
  plain, _, drawn = make(0.0)(key, mel, length)
  faded, _, _ = make(VIEWS["fader_gain"])(key, mel, length)
  return np.asarray(plain), np.asarray(faded), jax.tree.map(np.asarray, drawn)


def test_mixups_share_is_uniform_from_zero_to_the_ratio():
  """Seen red with a share from (r / 2, r), and with the range halved."""
  plain, _, drawn = _drawn()
  for k in (0, 1):
    check_uniform(drawn["weight"][:, k], 0, VIEWS["mixup_ratio"])
  # and that share is what is mixed: the view is the crop of the mixture
  for clip in (0, 17):
    partner = clip // 8 * 8 + (clip + drawn["shift"][clip // 8, 1]) % 8
    weight = drawn["weight"][clip, 1].astype(np.float64)
    x = drawn["segment"].astype(np.float64)
    mixed = np.log((1 - weight) * np.exp(x[clip, 1]) + weight * np.exp(x[partner, 1]) + 2**-23)
    box = tuple(drawn["box"][clip, 1])
    expected = augment.resize_crop(jnp.asarray(mixed, jnp.float32), box, 40, canvas_time=1.5)
    np.testing.assert_allclose(plain[clip, 1], expected, atol=1e-5)


def test_starts_of_a_crop_are_alike():
  _, _, drawn = _drawn()
  for k in (0, 1):
    check_integers(drawn["start"][:, k], 0, 20)


def test_a_boxs_height_and_width_have_their_own_scales():
  """Sizes through `make_views` and on 64 bins. Seen red with the scales swapped in `draw_box` and
  in the call of it."""
  draw = functools.partial(augment.draw_box, freq_scale=(0.5, 0.75), time_scale=(0.9, 1.4))
  keys = jax.random.split(jax.random.key(0), CLIPS)
  box = jax.vmap(lambda key: jnp.stack(draw(key, 400, 64, canvas_time=1.5)))(keys)
  top, left, height, width = np.asarray(box).T
  check_integers(height, 32, 47)
  check_uniform(width + np.random.default_rng(0).uniform(size=CLIPS), 360, 560)
  check_uniform((top + np.random.default_rng(1).uniform(size=CLIPS)) / (65 - height), 0, 1)
  check_uniform((left + np.random.default_rng(2).uniform(size=CLIPS)) / (601 - width), 0, 1)
  *_, height, width = np.moveaxis(_drawn()[2]["box"], -1, 0)
  assert set(np.unique(height)) == {2}  # of 4 bins
  for k in (0, 1):
    check_integers(width[:, k], 36, 55)


def test_both_ends_of_the_fader_are_uniform_in_the_gain():
  """Seen red with the gain halved."""
  plain, faded, _ = _drawn()
  line = (faded - plain)[..., 0]
  for k in (0, 1):
    check_uniform(line[:, k, 0], -0.7, 0.7)
    check_uniform(line[:, k, -1], -0.7, 0.7)


def test_gamma_is_uniform_between_the_configs_bounds():
  """Seen red with the range halved, around its middle or from its start."""
  config = configs.load(str(ROOT / "configs" / "difference.py"))
  config.views.normalization.mean, config.views.normalization.std = -6.0, 4.0
  options = mixing_options(config.views, Subtraction(**config.difference), 256) | {"group": 8}
  views = jnp.zeros((CLIPS, 2, 1, 1)).at[::2].set(1.0)
  mixed, _, gamma = make_mixtures(jax.random.key(0), views, None, jnp.ones(()), **options)
  for k in (0, 1):
    check_uniform(gamma[:, k], 0.4, 0.6)
  # and it is what is mixed: of 1 and 0 in turn
  share = np.expm1(np.asarray(mixed, np.float64)[..., 0, 0]) / np.expm1(1)
  share[::2] = 1 - share[::2]
  np.testing.assert_allclose(share, gamma, atol=1e-5)


@pytest.mark.parametrize("form", ("optax", "transformers"))  # "adam_l2" decays by the gradient
def test_weight_decay_runs_from_its_start_to_its_end(form):
  """What is logged and what parameters without a gradient lose. Seen red with start and end
  exchanged."""
  tx, schedules = make_optimizer(
    total_steps=100,
    batch_size=256,
    form=form,
    schedule="constant",
    base_lr=0.5,
    reference_batch=256,
    end_lr=0.0,
    warmup_steps=0,
    weight_decay_start=0.04,
    weight_decay_end=0.4,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
  )
  expected = {0: 0.04, 50: 0.22, 99: 0.4 - 0.36 * np.sin(np.pi / 200) ** 2}
  for step, decay in expected.items():
    np.testing.assert_allclose(schedules["weight_decay"](step), decay, rtol=1e-5)
  params, update = {"kernel": jnp.ones((1, 1))}, jax.jit(tx.update)
  zeros, state, lost = jax.tree.map(jnp.zeros_like, params), tx.init(params), {}
  for step in range(100):
    updates, state = update(zeros, state, params)
    lost[step] = float(-updates["kernel"][0, 0]) / 0.5
  for step, decay in expected.items():
    np.testing.assert_allclose(lost[step], decay, rtol=1e-4)


DEEP = Transformer(width=16, depth=4, heads=2, drop_path=0.3, patch_frames=4, max_frames=16)


@pytest.fixture(scope="module")
def deep():
  mel = np.random.default_rng(0).normal(size=(2, 16, 4)).astype(np.float32)
  shapes = jax.eval_shape(DEEP.init, jax.random.key(0), mel)
  rng = np.random.default_rng(1)  # no bias is 0
  fill = lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32)
  return jax.tree.map(fill, shapes), mel


def _run_deep(variables, mel, dropped=None):
  """(CLS, the rate of every draw by (block, branch)) with one branch dropped for all clips, or
  none; a branch is the how-many-th of its block."""
  rates = {}

  def draw(call, arguments, options, context):
    module = context.module
    if not isinstance(module, DropPath):
      return call(*arguments, **options)
    block = module.path[-2]
    where = (int(block.removeprefix("block_")), sum(known == block for known in seen))
    seen.append(block)
    rates[where] = module.rate
    return jnp.full(arguments[0], 0.0 if where == dropped else 1.0)

  seen: list = []
  with nn.intercept_methods(draw):
    y, _ = DEEP.apply(variables, mel, train=True, rngs={"drop_path": jax.random.key(0)})
  return y, rates


def test_stochastic_depth_rises_from_none_in_the_first_block_to_its_rate_in_the_last(deep):
  """Both branches of block i of n have rate · i / (n - 1). Seen red with i / n, and without the
  draw of the MLP's branch."""
  _, rates = _run_deep(*deep)
  expected = {(i, branch): 0.1 * i for i in range(4) for branch in (0, 1)}
  assert rates == pytest.approx(expected)


@pytest.mark.parametrize("branch, layer", [(0, "proj"), (1, "fc2")])
def test_what_a_draw_drops_is_one_whole_branch(deep, branch, layer):
  """As if its last layer, the bias too, were 0: the first draw is of attention's, the second of
  the MLP's. Seen red with a branch's bias added outside of the draw, and with the MLP's draw not
  used."""
  variables, mel = deep
  y, _ = _run_deep(variables, mel, (2, branch))
  params = variables["params"]
  block = params["block_02"]
  block = {**block, layer: jax.tree.map(jnp.zeros_like, block[layer])}
  expected, _ = _run_deep({"params": {**params, "block_02": block}}, mel)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  assert np.abs(y - _run_deep(variables, mel)[0]).max() > 1e-2


def test_no_two_passes_share_a_draw_of_stochastic_depth():
  """Teacher and student, attention and MLP, and the mixtures' pass. Seen red with one key for
  both networks, and with the student's key for all branches."""
  network = method.make_network(
    encoder={
      "kind": "transformer",
      "width": 8,
      "depth": 2,
      "heads": 2,
      "drop_path": 0.5,
      "patch_frames": 4,
      "max_frames": 8,
    },
    heads={"hidden": 8, "out": 4, "use_bias": False},
    joint_views=True,
    dtype=jnp.float32,
    subtraction=Subtraction(weight=0.5),
  )
  tx, teacher = FORMS["optax"](1e-3), ema(lambda _: jnp.float32(0.9))
  parts = {"network": network, "tx": tx, "teacher": teacher}
  init = functools.partial(method.init_state, frames=8, n_mels=2, group=2, **parts)
  state = jax.jit(init)(jax.random.key(0))
  update = jax.jit(method.make_update(schedules={}, group=2, **parts))
  masks = []

  def record(call, arguments, options, context):
    out = call(*arguments, **options)
    if isinstance(context.module, DropPath) and context.module.rate:
      jax.debug.callback(lambda mask: masks.append(np.asarray(mask)), out)
    return out

  views = jnp.zeros((32, 2, 8, 2))
  mixed = method.Mixtures(views, None, jnp.full((32, 2), 0.5))
  with nn.intercept_methods(record):
    update(state, jax.random.key(1), views, None, mixed)
  jax.effects_barrier()
  # teacher, student and the student's mixtures, two branches each, of 32 clips' two views
  assert len(masks) == 6 and {mask.shape for mask in masks} == {(64,)}
  assert len({mask.tobytes() for mask in masks}) == 6
