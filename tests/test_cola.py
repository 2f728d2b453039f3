"""COLA and TRILL: the released code's numbers, a slow oracle, windows, noise, and every device's
negatives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from atst_jax.audio.frontend import FRONTENDS, log_mel, mel_filters
from atst_jax.method.views import FLOOR_DB
from atst_jax.models.layers import Encoder
from atst_jax.objectives import cola, trill
from atst_jax.objectives.noise import add_white_noise, filter_sizes
from atst_jax.objectives.registry import get_objective
from atst_jax.objectives.similarity import Embedder
from atst_jax.objectives.windows import draw_starts, take_windows
from atst_jax.pretraining import recipe
from atst_jax.runtime.mesh import make_mesh, put_batch
from tests.drawn import first_loss
from tests.tiny import tiny_config


class Given(Encoder):
  """Its vector is the first frame."""

  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False):
    """(B, T, F) -> (B, F), {}."""
    return mel[:, 0], {}


@pytest.mark.parametrize("similarity", cola.SIMILARITIES)
def test_similarities_loss_and_gradients_are_the_released_codes(golden, similarity):
  arrays = golden("cola")
  name, bilinear = {"bilinear": "bilinear", "cosine": "dot"}[similarity], similarity == "bilinear"
  network = cola.Network(Given(), arrays["weight"].shape[0], jnp.float32, 1, bilinear)
  params = {"head": {"kernel": arrays["dense_kernel"], "bias": arrays["dense_bias"]}}
  if bilinear:
    params["norm"] = {"scale": arrays["norm_gamma"], "bias": arrays["norm_beta"]}
    params["weight"] = arrays["weight"]

  def loss(params, features):
    z = network.apply({"params": params}, features[:, None])
    similarities = network.apply(
      {"params": params}, z[:6], z[6:], 0.2, method=cola.Network.similarities
    )
    return cola.contrastive_loss(similarities)[0], similarities

  compute = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  (value, similarities), (grads, by_features) = compute(params, arrays["features"])
  close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
  close(similarities, arrays[f"{name}/similarities"])
  close(value, arrays[f"{name}/loss"])
  close(cola.contrastive_loss(similarities)[1], arrays[f"{name}/accuracy"])
  close(by_features, arrays[f"{name}/grad_features"])
  close(grads["head"]["kernel"], arrays[f"{name}/grad_dense_kernel"])
  if bilinear:
    close(grads["weight"], arrays[f"{name}/grad_weight"])


def _slow_semi_hard(pairs, margin):
  """As TensorFlow Addons has it, in float64; and how many anchors have no farther negative."""
  z = np.float64(pairs)
  z = (z / np.linalg.norm(z, axis=-1, keepdims=True)).reshape(-1, z.shape[-1])
  losses, without = [], 0
  for a in range(len(z)):
    p = a + 1 if a % 2 == 0 else a - 1
    distance = lambda i, a=a: ((z[a] - z[i]) ** 2).sum()
    negatives = [distance(n) for n in range(len(z)) if n // 2 != a // 2]
    farther = [d for d in negatives if d > distance(p)]
    losses.append(max(0, margin + distance(p) - (min(farther) if farther else max(negatives))))
    without += not farther
  return np.mean(losses), np.mean(np.array(losses) > 0), without


class Centred(Encoder):
  """What a batch normalisation would see: the first frame less its mean over the batch."""

  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False):
    """(B, T, F) -> (B, F), {}."""
    return mel[:, 0] - mel[:, 0].mean(0, keepdims=True), {}


def test_both_windows_of_a_clip_lie_in_one_part():
  """Seen red with rows in the order of clips and windows, which parts of an even number tear
  apart."""
  windows = np.zeros((4, 2, 3, 5), np.float32)
  windows[:, 1] = 1
  network = Embedder(Centred(), 0, jnp.float32, accumulation=2)
  found = network.apply({}, windows)
  np.testing.assert_allclose(found, np.broadcast_to([[[-0.5], [0.5]]], (4, 2, 5)))


@pytest.mark.parametrize("spread, alone", [(1.0, 0), (10.0, 1)])
def test_triplets_are_semi_hard(spread, alone):
  """Seen red with the nearest of all negatives, with the farthest of them, and with no fallback."""
  rng = np.random.default_rng(0)
  clips = rng.normal(size=(6, 1, 5))
  pairs = (clips + spread * rng.normal(size=(6, 2, 5))).astype(np.float32)
  found = jax.jit(trill.semi_hard_loss)(pairs, 0.1)
  loss, violated, without = _slow_semi_hard(pairs, 0.1)
  np.testing.assert_allclose(found, (loss, violated), rtol=1e-4)
  assert loss > 0 and without == alone


def test_windows_lie_inside_the_clip_and_short_ones_in_silence():
  """The second of TRILL's windows is near the first; both ends of its range are drawn."""
  keys = jax.random.split(jax.random.key(0), 2000)
  pair = jax.jit(jax.vmap(lambda key: trill.draw_pair(key, jnp.int32(50), frames=10, distance=7)))
  first, second = np.asarray(pair(keys)).T
  assert set(first) == set(range(41)) == set(second)
  assert set(second - first) == set(range(-7, 8))
  length = jnp.array([30, 5])
  starts = draw_starts(jax.random.split(jax.random.key(1), (2, 3)), length, 8)
  assert (starts[1] == 0).all() and (starts[0] <= 22).all()
  mel = jnp.arange(2 * 30 * 2, dtype=jnp.float32).reshape(2, 30, 2)
  windows = np.asarray(take_windows(mel, length, starts, 8))
  np.testing.assert_array_equal(windows[0, 1], mel[0, starts[0, 1] : starts[0, 1] + 8])
  np.testing.assert_array_equal(windows[1, 2, 1:6], mel[1, :5])
  assert (windows[1, :, [0, 6, 7]] == FLOOR_DB).all()


RECORDED = dataclasses.replace(FRONTENDS["cola"], level="recorded")


def _noisy(clean, frontend):
  """(T, F) dB -> the same with noise."""
  key, mel = jax.random.split(jax.random.key(0), 1), jnp.asarray(clean[None])
  length = jnp.array([len(clean)])
  return add_white_noise(key, mel, mel, length, level=0.003, frontend=frontend)[0]


def _mean_db(mel, frontend):
  """(F,): the mean power or magnitude of every bin."""
  unit = 20 if frontend.spectrum == "magnitude" else 10
  return unit * np.log10((10 ** (np.float64(mel) / unit)).mean(0))


@pytest.mark.parametrize("frontend", [*map(FRONTENDS.get, ("atst", "cola", "byola")), RECORDED])
def test_noise_is_as_strong_as_that_of_a_waveform(frontend):
  """The mean of every mel bin, within 0.5 dB."""
  rng = np.random.default_rng(0)
  height, total = filter_sizes(frontend)
  wide = total / height > 4  # bins of the spectrum
  np.testing.assert_allclose(mel_filters(frontend).sum(0)[wide], total[wide], rtol=0.15)
  resonance = [1, -1.8 * np.cos(0.1 * np.pi), 0.81]  # at 800 Hz
  wave = scipy.signal.lfilter([1], resonance, rng.normal(size=32000) * np.linspace(0.2, 1, 32000))
  wave /= np.linalg.norm(wave) / (1 if frontend.level == "unit" else 100)
  noise = 0.003 * np.linalg.norm(wave) * rng.normal(size=wave.shape)
  as_given = dataclasses.replace(frontend, level="recorded")
  expected, clean = (log_mel(np.float32(x), as_given) for x in (wave + noise, wave))
  found, expected, clean = (
    _mean_db(x, frontend) for x in (_noisy(clean, frontend), expected, clean)
  )
  assert (found - clean).max() > 6 and np.abs(found - expected)[wide].mean() < 0.5


def test_noise_of_a_tone_is_as_strong_at_unit_level():
  """The filters over magnitudes do not tell a tone's energy. There it is known."""
  frontend, rng = FRONTENDS["cola"], np.random.default_rng(0)
  wave = np.sin(2 * np.pi * 6000 / 16000 * np.arange(32000))
  wave /= np.linalg.norm(wave)
  noise = 0.003 * rng.normal(size=wave.shape)
  expected, clean = (log_mel(np.float32(x), RECORDED) for x in (wave + noise, wave))
  found, estimated, expected = (
    _mean_db(x, frontend)[20:45]  # below the tone's filters
    for x in (_noisy(clean, frontend), _noisy(clean, RECORDED), expected)
  )
  assert np.abs(found - expected).mean() < 0.5
  assert (estimated - expected).mean() < -3


# An update that is nearly linear in the gradient, whose rounding shows otherwise.
LINEAR = {"optimizer__eps": "1", "optimizer__base_lr": "1", "warmup_steps": "0"}


def _tiny(file):
  """(resolved config, batch)."""
  config = tiny_config(f"{file}.py:small_transformer", encoder__depth="1", **LINEAR)
  config = recipe.resolve(config, None)
  return config, next(recipe.batches(config, None, start_step=0, rows=(0, 16)))


def _step(devices, before=None):
  """(state before, state after, metrics) of one step of COLA on so many devices."""
  config, batch = _tiny("cola")
  mesh = make_mesh(data=-1, fsdp=1, devices=jax.devices()[:devices])
  program = recipe.compile_for(config, mesh, ragged=False)
  if before is None:
    before = jax.tree.map(np.array, program.init(jax.random.key(0)))
  state = jax.device_put(before, jax.tree.map(lambda x: x.sharding, program.state))
  after, metrics = recipe.compile_step(program)(state, put_batch(mesh, batch))
  return before, jax.device_get(after), jax.device_get(metrics)


def test_eight_devices_take_colas_step_of_one():
  """Loss, gradient and the parameters after a step. There is no teacher."""
  before, one, alone = _step(1)
  _, after, metrics = _step(8, before)
  assert before.teacher == () == after.teacher and int(after.updates) == 1
  assert metrics.keys() == alone.keys() and "std_teacher" not in metrics
  for name in ("loss", "grad_norm", "std_student", "rank_student"):
    np.testing.assert_allclose(metrics[name], alone[name], rtol=2e-4)
  moved = jax.tree.map(np.subtract, after.params, before.params)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(moved))
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(moved["head"])) and largest > 1e-3
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-3 * largest)
  jax.tree.map(close, after.params, one.params)
  assert 1 < metrics["rank_student"] < get_objective(_tiny("cola")[0]).outputs


def test_eight_devices_have_trills_negatives_of_one():
  config, batch = _tiny("trill")
  eight, one = (first_loss(config, devices, batch) for devices in (8, 1))
  assert one.value > 0 and one.metrics["violated"] > 0
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-4), eight, one)
