"""Mixtures of the subtraction: whose γ it is, in which domain, at which level, and how γ is
drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.method.mixtures import (
  draw_gamma,
  make_mixtures,
  mix_neighbours,
  mixing_options,
  mixing_scale,
)
from atst_jax.method.normalization import nepers_per_unit, normalize, normalize_batch
from atst_jax.method.subtraction import Subtraction


def _views(clips=8, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(clips, 2, 12, 5)), jnp.float32)


@functools.cache
def _make(**changes):
  return jax.jit(functools.partial(make_mixtures, options=Subtraction(**changes), k=5.0, group=4))


def test_gamma_belongs_to_the_clip_and_weighs_the_neighbour():
  """Seen red with γ on the clip itself."""
  views, key = _views(), jax.random.key(3)
  mixtures, length, gamma = _make()(key, views, None, jnp.ones(()))
  assert length is None and mixtures.shape == views.shape and gamma.shape == (8, 2)
  v = np.asarray(views, np.float64)
  for clip in range(8):
    neighbour = clip // 4 * 4 + (clip + 1) % 4
    for k in (0, 1):
      g = float(gamma[clip, k])
      np.testing.assert_allclose(
        mixtures[clip, k],
        np.log(g * np.exp(v[neighbour, k]) + (1 - g) * np.exp(v[clip, k])),
        atol=1e-5,
      )


@pytest.mark.parametrize(
  "per, shared, distinct",
  [("clip", False, 16), ("clip", True, 8), ("batch", False, 2), ("batch", True, 1)],
)
def test_draws_of_gamma(per, shared, distinct):
  gamma = draw_gamma(jax.random.key(0), 8, low=0.4, high=0.6, per=per, shared=shared)
  assert gamma.shape == (8, 2) and gamma.min() >= 0.4 and gamma.max() <= 0.6
  assert len(np.unique(gamma)) == distinct
  if per == "batch":
    assert (np.asarray(gamma) == np.asarray(gamma)[:1]).all()


def test_energies_are_mixed_whatever_stands_between():
  """Through standardisation and post-normalisation: the mixture's power is the weighted sum of the
  parts' powers."""
  db = np.random.default_rng(0).normal(-30, 8, (4, 2, 12, 5))
  constants = {"kind": "standard", "mean": -7.0, "std": 4.5}
  x = normalize(jnp.asarray(db, jnp.float32), peak=0.0, **constants)
  views, post_std = normalize_batch(x, None)
  scale = mixing_scale(
    domain="energy", stage="post_norm", k=nepers_per_unit(**constants), post_std=post_std
  )
  gamma = jnp.full((4, 2), 0.3)
  mixed, _ = mix_neighbours(views, None, gamma, group=4, scale=scale)
  shift = np.asarray(x - views * post_std)[0, 0, 0, 0]
  nepers = (np.asarray(mixed, np.float64) * float(post_std) + shift) * 4.5 - 7.0
  power = 10 ** (db / 10) + 2.0**-23
  expected = 0.3 * np.roll(power, -1, 0) + 0.7 * power
  np.testing.assert_allclose(np.exp(nepers), expected, rtol=1e-3)


def test_energy_mixture_adds_powers():
  """In the energy domain w is the log-mel of γ·P(neighbour) + (1 - γ)·P(clip); seen red with γ on
  the clip."""
  low, high = -79.6482, 50.6842
  assert abs(nepers_per_unit(kind="min_max", top_db=80.0, low=low, high=high) - 15.005) < 1e-3
  power = np.random.default_rng(0).lognormal(0, 3, (4, 2, 10, 64))
  to_unit = lambda p: 2 * (10 * np.log10(p) - low) / (high - low) - 1
  gamma = np.array([[0.4, 0.5], [0.45, 0.6], [0.5, 0.55], [0.6, 0.42]])
  scale = nepers_per_unit(kind="min_max", top_db=80.0, low=low, high=high)
  w, _ = mix_neighbours(jnp.asarray(to_unit(power)), None, jnp.asarray(gamma), group=2, scale=scale)
  neighbour = power[[1, 0, 3, 2]]
  g = gamma[..., None, None]
  np.testing.assert_allclose(w, to_unit(g * neighbour + (1 - g) * power), atol=1e-4)


def test_padding_is_silence_in_a_mixture():
  views = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 10, 3)), jnp.float32)
  gamma = jnp.full((2, 1), 0.4)
  length = jnp.array([[4], [8]])
  w, mixed_length = mix_neighbours(views, length, gamma, group=2, scale=1.0)
  np.testing.assert_array_equal(mixed_length, [[8], [8]])
  np.testing.assert_allclose(w[0, 0, 4:8], views[1, 0, 4:8] + np.log(0.4), atol=1e-5)
  np.testing.assert_allclose(w[1, 0, 4:8], views[1, 0, 4:8] + np.log(0.6), atol=1e-5)
  assert not np.asarray(w[:, :, 8:]).any()


def test_mixing_before_the_post_normalisation():
  """Eq. 2 on what stood there before, put through the same post-normalisation."""
  x = 3 * _views() + 2
  views, post_std = normalize_batch(x, None)
  mixtures, _, gamma = _make(mix_stage="pre_norm")(jax.random.key(0), views, None, post_std)
  g = np.asarray(gamma, np.float64)[..., None, None]
  before = np.asarray(x, np.float64)
  neighbour = np.roll(before.reshape(2, 4, 2, 12, 5), -1, 1).reshape(before.shape)
  mixed = np.log(g * np.exp(neighbour) + (1 - g) * np.exp(before))
  np.testing.assert_allclose(mixtures, (mixed - before.mean()) / before.std(ddof=1), atol=1e-4)


@pytest.mark.parametrize("ragged", [False, True])
def test_matched_levels(ragged):
  """A neighbour 40 dB louder counts as much as one of the same level; padding does not count."""
  views = _views()
  loud = views + jnp.where(jnp.arange(8)[:, None, None, None] % 2, 8.0, 0.0)  # every other clip
  length = jnp.full((8, 2), 7) if ragged else None
  if ragged:
    views, loud = views.at[:, :, 7:].set(0), loud.at[:, :, 7:].set(50.0)
  gamma = jnp.full((8, 2), 0.5)
  mix = functools.partial(mix_neighbours, group=4, scale=1.0, match_level=True)
  expected, _ = mix(views, length, gamma)
  mixed, _ = mix(loud, length, gamma)
  np.testing.assert_allclose(mixed[::2, :, :7], expected[::2, :, :7], atol=1e-4)
  different, _ = mix_neighbours(loud, length, gamma, group=4, scale=1.0)
  assert np.abs(different[::2, :, :7] - expected[::2, :, :7]).min() > 1


def test_renormalized_mixtures():
  mixtures, _, _ = _make(renormalize="batch")(jax.random.key(0), _views(), None, jnp.ones(()))
  assert abs(float(mixtures.mean())) < 1e-5 and abs(float(jnp.std(mixtures, ddof=1)) - 1) < 1e-5
  plain, _, _ = _make()(jax.random.key(0), _views(), None, jnp.ones(()))
  assert float(plain.mean()) > 0.1  # a mixture of independent standard normals lies above 0


def test_one_direction_mixes_one_view():
  one, _, gamma = _make(symmetric=False)(jax.random.key(0), _views(), None, jnp.ones(()))
  both, _, _ = _make()(jax.random.key(0), _views(), None, jnp.ones(()))
  assert one.shape == (8, 1, 12, 5) and gamma.shape == (8, 2)
  np.testing.assert_array_equal(one, both[:, :1])


def test_options_from_a_config():
  views = {
    "normalization": {"kind": "min_max", "top_db": 80.0, "low": -79.6482, "high": 50.6842},
    "group": 6,
  }
  options = mixing_options(views, Subtraction(), 24)
  assert options["group"] == 6 and abs(options["k"] - 15.005) < 1e-3
  options = mixing_options(views, Subtraction(mix_k=2.0, neighbour="batch"), 24)
  assert options["group"] == 24 and options["k"] == 2.0
