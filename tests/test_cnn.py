"""BYOL-A's encoders: sizes, padding, and BatchNorm's and dropout's two ways. Values: test_golden,
test_convert."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.models import audiontt
from atst_jax.models.encoders import make_encoder
from atst_jax.models.layers import MLPHead
from tests.drawn import drawn_encoder

SMALL = {"kind": "cnn", "version": "AudioNTT2022", "width": 1040, "hidden": 16, "dropout": 0.3}


def _count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  "version, width, hidden, expected",
  [
    ("AudioNTT2020", 512, 512, 600_192),
    ("AudioNTT2020", 2048, 2048, 5_321_856),
    ("AudioNTT2022", 2048, 2048, 4_235_200),
    ("AudioNTT2022", 3072, 2048, 6_333_376),
  ],
)
def test_parameter_counts(version, width, hidden, expected):
  encoder = make_encoder({**SMALL, "version": version, "width": width, "hidden": hidden})
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 96, 64)))
  assert _count(shapes["params"]) == expected
  y, before = jax.eval_shape(encoder.apply, shapes, jnp.zeros((2, 101, 64)))
  assert y.shape == (2, width)
  assert before["frames"].shape == (2, 101 // (8 if version == "AudioNTT2020" else 4), width)


@pytest.mark.parametrize("width, expected", [(512, 3_158_272), (3072, 13_644_032)])
def test_head_counts(width, expected):
  for in_features, count in ((width, expected), (256, 2_109_696)):
    head = functools.partial(MLPHead(4096, 256, True).init, train=False)
    assert (
      _count(jax.eval_shape(head, jax.random.key(0), jnp.zeros((1, in_features)))["params"])
      == count
    )


@functools.cache
def _small(version):
  encoder = make_encoder({**SMALL, "version": version})
  return encoder, drawn_encoder(encoder, 64)


@pytest.mark.parametrize("version", ["AudioNTT2022", "AudioNTT2020"])
@pytest.mark.parametrize("frames", [8, 45])
def test_padding_does_not_change_a_clip(version, frames):
  """Seen red without the zeros behind a clip's end after each block."""
  encoder, variables = _small(version)
  x = np.random.default_rng(1).normal(size=(1, frames, 64)).astype(np.float32)
  apply = jax.jit(encoder.apply)
  y, before = apply(variables, x)
  padded = np.pad(x, ((0, 0), (0, 70 - frames), (0, 0)))
  padded_y, padded_before = apply(variables, padded, jnp.array([frames]))
  np.testing.assert_allclose(padded_y, y, atol=1e-5)
  N = before["frames"].shape[1]
  np.testing.assert_allclose(padded_before["frames"][:, :N], before["frames"], atol=1e-5)


def test_initialisation_is_that_of_pytorch():
  """Uniform in ±1/sqrt(fan_in), kernels and biases alike."""
  encoder = make_encoder({**SMALL, "hidden": 512, "width": 2048})
  params = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 32, 64)))["params"]
  for name, fan_in in (("conv_0", 9), ("conv_1", 9 * 64), ("fc1", 1024), ("fc2", 512)):
    for kind in ("kernel", "bias"):
      x = np.abs(params[name][kind]).ravel() * np.sqrt(fan_in)
      assert x.max() <= 1 and x.max() > 0.9 and abs(x.mean() - 0.5) < 0.12, (name, kind)


def test_the_first_of_equal_maxima_takes_the_gradient():
  """Of a window's bins and frames in PyTorch's order: the frames of a bin before the next bin. Seen
  red with a gradient that is shared, and with one that goes to the last."""
  values = np.array(list(itertools.product((0.0, 1.0, 2.0), repeat=4)), np.float32)
  x = np.zeros((1, 2, 2 * len(values), 1), np.float32)  # (B, T, F, C), windows side by side
  expected = np.zeros_like(x)
  for window, (a, b, c, d) in enumerate(values):  # (bin, frame): 00, 01, 10, 11
    x[0, :, 2 * window, 0], x[0, :, 2 * window + 1, 0] = (a, b), (c, d)
    bin, frame = divmod(int(np.argmax((a, b, c, d))), 2)
    expected[0, frame, 2 * window + bin, 0] = 1
  y, pull = jax.vjp(audiontt._halved, x)
  np.testing.assert_array_equal(y[0, 0, :, 0], values.max(1))
  np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], expected)
  for place in ((0, 0, 0, 0), (0, 1, 1, 0)):  # and what is no number stays none
    assert np.isnan(audiontt._halved(jnp.asarray(x).at[place].set(jnp.nan))[0, 0, 0, 0])


def test_dropout_and_running_statistics():
  encoder, variables = _small("AudioNTT2022")
  x = np.random.default_rng(2).normal(2, 1, size=(4, 32, 64)).astype(np.float32)
  run = lambda seed, **kw: encoder.apply(
    variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(seed)}, **kw
  )
  (a, _), new = run(0)
  (b, _), kept = run(1, track=False)
  assert np.abs(a - b).max() > 1e-3  # other units dropped
  np.testing.assert_array_equal(a[:, :1024], b[:, :1024])  # none of the convolutional features
  jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])
  assert (
    np.abs(new["batch_stats"]["norm_0"]["mean"] - variables["batch_stats"]["norm_0"]["mean"]).max()
    > 1e-4
  )
