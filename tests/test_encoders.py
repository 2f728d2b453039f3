"""The transformer's sizes and what masking promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.models.blocks import pool_blocks
from atst_jax.models.layers import DropPath, MLPHead, patchify
from atst_jax.models.ssast import place
from atst_jax.models.transformer import Transformer

TINY = Transformer(width=16, depth=2, heads=2, drop_path=0.0, patch_frames=4, max_frames=101)


def _count(module, *args, **kwargs):
  shapes = jax.eval_shape(lambda key: module.init(key, *args, **kwargs), jax.random.key(0))
  return sum(x.size for x in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("width, heads, count", [(384, 6, 21_476_352), (768, 12, 85_420_032)])
def test_exact_parameter_counts(width, heads, count):
  """The released encoders', which hold a mask_embed of one width that ATST never uses and that is
  not built here."""
  encoder = Transformer(
    width=width, depth=12, heads=heads, drop_path=0.1, patch_frames=4, max_frames=1001
  )
  assert _count(encoder, jnp.zeros((1, 601, 64))) == count - width


def test_exact_head_counts():
  head = MLPHead(4096, 256, use_bias=False)
  assert _count(head, jnp.zeros((2, 384)), train=True) == 2_629_632  # small projector
  assert _count(head, jnp.zeros((2, 768)), train=True) == 4_202_496  # base projector
  assert _count(head, jnp.zeros((2, 256)), train=True) == 2_105_344  # predictor


def test_initialisation():
  """Normal of 0.02 for linear layers, CLS and positions, zero biases; heads uniform by fan-in."""
  encoder = Transformer(width=128, depth=2, heads=2, drop_path=0.0, patch_frames=4, max_frames=1001)
  params = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 100, 64)))["params"]
  for x in (
    params["patch_embed"]["kernel"],
    params["block_00"]["qkv"]["kernel"],
    params["block_01"]["fc2"]["kernel"],
    params["pos_embed"],
  ):
    assert abs(float(x.std()) - 0.02) < 1e-3
  assert not params["block_00"]["fc1"]["bias"].any() and "bias" not in params["block_00"]["qkv"]
  head = MLPHead(512, 64, use_bias=True).init(jax.random.key(0), jnp.zeros((2, 128)), train=True)[
    "params"
  ]
  for name, fan_in in (("hidden", 128), ("out", 512)):
    for x in (head[name]["kernel"], head[name]["bias"]):
      assert np.abs(x).max() <= fan_in**-0.5 and np.abs(x).max() > 0.9 * fan_in**-0.5


def test_patches_are_mel_major():
  """Flat index mel · 4 + t. Seen red with the axes of a patch exchanged."""
  mel = np.arange(9)[None, :, None] + 100 * np.arange(3)[None, None]
  np.testing.assert_array_equal(
    patchify(mel, 4)[0, 1], [4, 5, 6, 7, 104, 105, 106, 107, 204, 205, 206, 207]
  )


def test_padding_does_not_change_the_embedding():
  rng = np.random.default_rng(0)
  mel = rng.normal(size=(2, 40, 64)).astype(np.float32)
  length = np.array([40, 13])
  variables, apply = jax.jit(TINY.init)(jax.random.key(0), mel), jax.jit(TINY.apply)
  padded = np.where(np.arange(40)[None, :, None] < length[:, None, None], mel, 7.0)
  y, out = apply(variables, padded, length)
  pooled = pool_blocks(out["blocks"], jnp.asarray(length), patch_frames=4, num_blocks=2)
  for clip, n in enumerate(length):
    alone, parts = apply(variables, mel[clip : clip + 1, : n // 4 * 4])
    np.testing.assert_allclose(y[clip], alone[0], atol=1e-5)
    expected = pool_blocks(parts["blocks"], jnp.array([n]), patch_frames=4, num_blocks=2)[0]
    np.testing.assert_allclose(pooled[clip], expected, atol=1e-5)


def test_too_long_a_clip_is_refused():
  with pytest.raises(ValueError, match="max_frames is 101; cut"):
    TINY.init(jax.random.key(0), jnp.zeros((1, 102, 64)))


def test_drop_path_drops_whole_clips_and_keeps_the_mean():
  scale = DropPath(0.25).apply({}, 4000, train=True, rngs={"drop_path": jax.random.key(0)})
  assert set(np.unique(scale)) == {0.0, np.float32(1 / 0.75)}
  assert scale.shape == (4000,) and abs(float(scale.mean()) - 1) < 0.05
  assert (DropPath(0.25).apply({}, 4000, train=False) == 1).all()


def test_positions_of_a_free_length():
  """As an exported program has them: also beyond the table."""
  table, (t,) = jnp.arange(8.0).reshape(4, 2), jax.export.symbolic_shape("t")
  put = lambda count, x: place(table, count, x.shape[1])
  shapes = (jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((2, t), jnp.float32))
  program = jax.export.export(jax.jit(put))(*shapes)
  for size in (3, 4, 9):
    count = jnp.array([size, 2])
    expected = put(count, jnp.zeros((2, size)))
    np.testing.assert_allclose(program.call(count, jnp.zeros((2, size))), expected, rtol=1e-6)
