"""The Conformer: its block beside torchaudio's, size, padding, hidden vectors, operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.models.conformer import Block
from atst_jax.models.encoders import check_encoder, make_encoder
from tests.drawn import drawn_encoder

LARGE = {
  **{"kind": "conformer", "width": 768, "depth": 12, "heads": 12, "feed_forward": 1024},
  **{"kernel": 31, "position_kernel": 129, "dropout": 0.1},
}
TINY = LARGE | {"width": 16, "depth": 2, "heads": 2, "feed_forward": 32, "kernel": 5}
TINY |= {"position_kernel": 7}


def _block(state, i):
  """Variables of a block from torchaudio's tensors."""
  x = {k.removeprefix(f"state/conformer_layers.{i}."): v for k, v in state.items()}
  norm = lambda name: {"scale": x[f"{name}.weight"], "bias": x[f"{name}.bias"]}
  linear = lambda weight, bias: {
    "linear": {"kernel": weight.reshape(len(weight), -1).T, "bias": bias}
  }
  dense = lambda name: linear(x[f"{name}.weight"], x[f"{name}.bias"])
  forward = lambda name: {
    "norm": norm(f"{name}.sequential.0"),
    "in": dense(f"{name}.sequential.1"),
    "out": dense(f"{name}.sequential.4"),
  }
  conv = "conv_module.sequential"
  params = {
    "first": forward("ffn1"),
    "second": forward("ffn2"),
    "attention": {
      "norm": norm("self_attn_layer_norm"),
      "qkv": linear(x["self_attn.in_proj_weight"], x["self_attn.in_proj_bias"]),
      "proj": dense("self_attn.out_proj"),
    },
    "convolution": {
      "norm": norm("conv_module.layer_norm"),
      "in": dense(f"{conv}.0"),
      "depthwise": {
        "kernel": x[f"{conv}.2.weight"].transpose(2, 1, 0)[:, None],
        "bias": x[f"{conv}.2.bias"],
      },
      "batch_norm": norm(f"{conv}.3"),
      "out": dense(f"{conv}.5"),
    },
    "norm": norm("final_layer_norm"),
  }
  statistics = {"mean": x[f"{conv}.3.running_mean"], "var": x[f"{conv}.3.running_var"]}
  return {"params": params, "batch_stats": {"convolution": {"batch_norm": statistics}}}


def test_block_is_torchaudios(golden):
  """Two of them, on valid frames. There convolutions see what stands behind a clip's end, so the
  block is told that all of it is valid. Seen red with a whole feed-forward."""
  arrays = golden("conformer")
  block, x = Block(heads=4, feed_forward=64, kernel=7, dropout=0.1, dtype=jnp.float32), None
  x, lengths = arrays["input"], arrays["lengths"]
  for i in range(2):
    x = block.apply(_block(arrays, i), x, lengths, None)
  for clip, length in enumerate(lengths):
    np.testing.assert_allclose(x[clip, :length], arrays["output"][clip, :length], atol=1e-5)


def test_large_has_88_million_parameters():
  check_encoder(LARGE, 64)
  module = make_encoder(LARGE)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 100, 64)))
  count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
  assert abs(count / 88e6 - 1) < 0.01
  y, before = jax.eval_shape(module.apply, shapes, jnp.zeros((2, 101, 64)))
  assert y.shape == (2, 768) and before["frames"].shape == before["features"].shape == (2, 50, 768)


@pytest.fixture(scope="module")
def tiny():
  module = make_encoder(TINY)
  return (module, drawn_encoder(module, 8), jax.jit(module.apply))


def test_padding_does_not_change_a_clip(tiny):
  """Seen red without the zeros that the convolution finds, and without those of the positions."""
  _, variables, apply = tiny
  mel = np.random.default_rng(0).normal(size=(2, 60, 8)).astype(np.float32)
  lengths = np.array([60, 27])
  y, before = apply(variables, mel, lengths)
  for clip, length in enumerate(lengths):
    alone, parts = apply(variables, mel[clip : clip + 1, :length])
    np.testing.assert_allclose(y[clip], alone[0], atol=1e-5)
    frames = before["frames"][clip, : length // 2]
    np.testing.assert_allclose(frames, parts["frames"][0], atol=1e-5)


def test_what_is_hidden_is_not_seen(tiny):
  """What stands in a hidden vector changes nothing but its feature, the target."""
  _, variables, apply = tiny
  mel = np.random.default_rng(1).normal(size=(1, 40, 8)).astype(np.float32)
  hidden = np.zeros((1, 20), bool)
  hidden[0, 5:9] = True
  other = mel.copy()
  other[0, 10:18] += 1
  y, before = apply(variables, mel, hidden=hidden)
  z, after = apply(variables, other, hidden=hidden)
  np.testing.assert_array_equal(before["frames"], after["frames"])
  moved = np.abs(before["features"] - after["features"]).max(-1)[0] > 0
  np.testing.assert_array_equal(moved, hidden[0])
  assert np.abs(y - apply(variables, mel)[0]).max() > 1e-3 and (y == z).all()


def test_flops_are_xlas():
  """Within a few per cent: XLA counts element-wise work, too, and no zeros at the borders."""
  module = make_encoder(LARGE | {"depth": 1})
  mel = jax.ShapeDtypeStruct((1, 1000, 64), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), mel)
  counted = jax.jit(module.apply).lower(shapes, mel).cost_analysis()["flops"]
  assert 0.93 < module.flops(frames=1000, n_mels=64) / counted < 1.03


@pytest.mark.parametrize("changes, reason", [({"heads": 3}, "divisible"), ({"kernel": 4}, "odd")])
def test_sizes_that_do_not_fit(changes, reason):
  with pytest.raises(ValueError, match=reason):
    check_encoder(TINY | changes, 64)
