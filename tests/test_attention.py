"""Attention of CLS: the weights of the forward pass itself, computed only where they are asked
for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax import attention
from atst_jax.artifacts.model import load_model
from atst_jax.figures.attention import attention_figure, cls_attention
from atst_jax.models.encoders import make_encoder
from atst_jax.util.errors import UserError
from tests.evaluation import ENCODER, make_clips, write_clips, write_encoder
from tests.pages import pixels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """Random parameters, but with keys and queries so large that attention is far from even."""
  found = load_model(write_encoder(tmp_path_factory.mktemp("encoder") / "encoder"))
  params = found.variables["params"]
  for block in ("block_00", "block_01"):
    params[block]["qkv"]["kernel"] = 60 * np.asarray(params[block]["qkv"]["kernel"])
  return found


def first_block(model, mel):
  """(H, 1 + N) of CLS in the first block, by numpy, for a mel that is one chunk at most."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), model.variables["params"])
  x = np.asarray(
    model.normalized(mel[None], np.array([mel.max()]), np.array([len(mel)])), np.float64
  )[0]
  N = len(x) // 4
  patches = np.stack([x[4 * i : 4 * i + 4].T.ravel() for i in range(N)])  # mel-major
  tokens = patches @ params["patch_embed"]["kernel"] + params["patch_embed"]["bias"]
  tokens = np.concatenate([params["cls_token"][0], tokens]) + params["pos_embed"][0, : N + 1]
  norm = params["block_00"]["norm1"]
  tokens = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
  tokens = tokens * norm["scale"] + norm["bias"]
  q, k, _ = np.split(tokens @ params["block_00"]["qkv"]["kernel"], 3, -1)
  H, d = ENCODER["heads"], ENCODER["width"] // ENCODER["heads"]
  out = []
  for h in range(H):
    scores = q[0, h * d : (h + 1) * d] @ k[:, h * d : (h + 1) * d].T / np.sqrt(d)
    out.append(np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum())
  return np.stack(out)


def test_weights_are_those_of_the_forward_pass(model):
  # 6 whole patches in a chunk that is padded to 8
  mel = make_clips(1)[0].mel[:27].astype(np.float32)
  found = cls_attention(model, mel)
  expected = first_block(model, mel)
  assert expected.max() > 0.4 and found.patches.shape == (2, 2, 6)
  np.testing.assert_allclose(found.patches[0], expected[:, 1:], atol=1e-5)
  np.testing.assert_allclose(found.cls[0, :, 0], expected[:, 0], atol=1e-5)
  # padding gets nothing
  np.testing.assert_allclose(found.patches.sum(-1) + found.cls[..., 0], 1, atol=1e-5)


def test_a_long_clip_has_a_cls_in_every_chunk(model):
  mel = np.random.default_rng(0).normal(-40, 10, (75, 64)).astype(np.float32)
  found = cls_attention(model, mel)
  assert (
    found.starts == [0, 8, 16] and found.tokens == [9, 9, 3] and found.patches.shape == (2, 2, 18)
  )
  for chunk, (a, b) in enumerate(((0, 8), (8, 16), (16, 18))):
    np.testing.assert_allclose(
      found.patches[..., a:b].sum(-1) + found.cls[..., chunk], 1, atol=1e-5
    )


def test_training_computes_nothing_of_it():
  """One softmax for each block in a train step's program; with intermediates asked for, two."""
  encoder = make_encoder(ENCODER)
  mel = jnp.zeros((2, 32, 64))
  variables = jax.eval_shape(encoder.init, jax.random.key(0), mel)
  assert set(variables) == {"params"}
  program = lambda **options: str(
    jax.make_jaxpr(functools.partial(encoder.apply, **options))(variables, mel)
  ).count(" exp ")
  assert program(train=True, mutable=["batch_stats"]) == program() == ENCODER["depth"]
  assert program(mutable=["intermediates"]) == 2 * ENCODER["depth"]


def test_the_picture_and_its_command(tmp_path, model, capsys):
  attention_figure(
    model, make_clips(1)[0].mel.astype(np.float32), str(tmp_path / "a.png"), title="a $x^{$.wav"
  )
  pixels(tmp_path / "a.png")
  encoder = write_encoder(tmp_path / "encoder")
  data = write_clips(tmp_path / "data", make_clips(3))
  flags = [f"--encoder={encoder}", f"--output={tmp_path}/b.png", f"--data={data}"]
  assert attention.main([*flags, "--clip=1.wav"]) == 0
  pixels(tmp_path / "b.png")
  assert attention.main([*flags, "--clip=none"]) == 2
  assert "no clip of" in capsys.readouterr().err
  assert attention.main(flags) == 2
  assert "give --input, or --data with --clip" in capsys.readouterr().err
  cnn = load_model(write_encoder(tmp_path / "cnn", kind="cnn"))
  with pytest.raises(UserError, match="a convolutional encoder has no attention"):
    cls_attention(cnn, np.zeros((32, 64), np.float32))
