"""Vectors of converted encoders against numbers that PyTorch wrote into tests/golden: everywhere,
and the PyTorch encoders themselves where it is installed.

Weights and sounds are NumPy's. The crop of the waveform, the chunks and the scale are written once
more here; the front-end has its own tests (test_golden).
"""

import functools
import os
import pathlib

import numpy as np
import pytest

from atst_jax.artifacts.convert import heads_of, read_atst, read_byola
from atst_jax.artifacts.embedding import get_scene_embeddings
from atst_jax.artifacts.model import Model
from atst_jax.audio.frontend import FRONTENDS, log_mel
from atst_jax.models.encoders import make_encoder
from atst_jax.util.errors import UserError

GOLDEN = pathlib.Path(__file__).parent / "golden" / "converted.npz"
RATE = 16000
SECONDS = {"atst": (1.0, 9.0, 12.1, 13.75, 20.0), "v2": (1.0, 3.3), "v1": (1.0, 3.3)}
CONSTANTS = {"v2": (-9.66, 4.722), "v1": (-5.49, 5.04)}
FILTERS = {"atst": "audiossl", "v2": "byola", "v1": "byola_htk"}
ENCODERS = {
  "atst": {
    "kind": "transformer",
    "width": 64,
    "depth": 2,
    "heads": 2,
    "drop_path": 0.1,
    "patch_frames": 4,
    "max_frames": 1001,
  },
  "v2": {"kind": "cnn", "version": "AudioNTT2022", "width": 1056, "hidden": 24, "dropout": 0.3},
  "v1": {"kind": "cnn", "version": "AudioNTT2020", "width": 48, "hidden": 48, "dropout": 0.3},
}


def sounds_of(kind):
  """Noise that swells, another one for each length, so that it matters which part is heard."""
  out = []
  for number, seconds in enumerate(SECONDS[kind]):
    samples = round(seconds * RATE)
    rng = np.random.default_rng([9, number])
    level = 10 ** (-2 + 1.5 * np.sin(np.linspace(0, 3 + number, samples)))
    out.append((0.1 * level * rng.standard_normal(samples)).astype(np.float32))
  return out


@functools.cache
def tensors_of(kind):
  """The tensors of a released file of this size, by their names."""
  import jax

  encoder = make_encoder(ENCODERS[kind])
  mel = jax.ShapeDtypeStruct((1, 64, 64), np.float32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), mel)
  out = {}
  for number, (name, path) in enumerate(sorted(encoder.torch_names().items())):
    shape = functools.reduce(lambda node, key: node[key], path, shapes).shape
    shape = shape[::-1] if len(shape) in (2, 4) else shape
    x = np.random.default_rng([8, number]).standard_normal(shape)
    if name.endswith("running_var"):
      x = 1 + 0.5 * np.abs(x)
    elif len(shape) in (2, 4):
      x = x * (2 / np.prod(shape[1:])) ** 0.5
    elif len(shape) == 1:
      x = 0.1 * x + name.endswith("weight")
    out[name] = x.astype(np.float32)
  return out


@functools.cache
def product(kind):
  """{"vectors": (clips, D)} of the converted encoder."""
  if kind == "atst":
    parts = read_atst(tensors_of(kind), {}, 2, None)
  else:
    parts = read_byola(tensors_of(kind), *CONSTANTS[kind], FILTERS[kind])
  assert parts["encoder"] == ENCODERS[kind] and parts["frontend"] == FRONTENDS[FILTERS[kind]]
  variables, frontend = parts.pop("variables"), parts.pop("frontend").to_json()
  model = Model({"max_seconds": None, **parts, "frontend": frontend}, variables, None)
  return get_scene_embeddings(sounds_of(kind), model, RATE, num_blocks=None)


@pytest.mark.parametrize("kind", SECONDS)
def test_converted_encoders_give_pytorchs_vectors(kind):
  """Short and long sounds. Seen red with the crop of the spectrogram in place of the waveform's,
  without a crop, with Slaney filters for v1 and with twice the heads."""
  _check(product(kind), np.load(GOLDEN)[kind])


def test_heads_of_a_file():
  """Those of a released size, or what the file or the user says. Seen red with width / 64."""
  assert [heads_of(width, 12, None) for width in (384, 768)] == [6, 12]
  assert heads_of(384, 12, 3) == 3 and heads_of(64, 2, 4) == 4
  for size in ((384, 11, None), (64, 12, None), (768, 12, 5)):
    with pytest.raises(UserError, match="--heads"):
      heads_of(*size)


def _check(ours, theirs):
  for a, b in zip(ours, theirs, strict=True):
    assert np.linalg.norm(a - b) < 2e-5 * np.linalg.norm(b)


def _torch_atst(net, x):
  """The released evaluation of normalised (T, F): chunks of 601 frames, those of more than 300
  valid ones count alike; a mean is over the patches to the end of the clip."""
  import torch

  found = []
  for start in range(0, len(x), 601):
    chunk = x[start : start + 601]
    if start == 0 or len(chunk) > 300:
      tokens = net.tokens(torch.from_numpy(chunk[None]))[:, 0]
      patches = (len(x) - start) // 4 + 1e-6
      found.append(torch.cat([tokens[:, 0].ravel(), (tokens[:, 1:].sum(1) / patches).ravel()]))
  return torch.stack(found).mean(0)


@functools.cache
def _pytorch(kind):
  import torch

  from tests import torch_method

  encoder = ENCODERS[kind]
  if kind == "atst":
    net = torch_method.Transformer(64, 2, 2, positions=250)
  else:
    net = torch_method.AudioNTT(2 if kind == "v2" else 3, encoder["width"], encoder["hidden"])
  state = {name: torch.from_numpy(x.copy()) for name, x in tensors_of(kind).items()}
  missing, _ = net.load_state_dict(state, strict=False)
  assert all(name.endswith("num_batches_tracked") for name in missing)
  out = []
  for sound in sounds_of(kind):
    if kind == "atst":
      start = max(len(sound) - 12 * RATE, 0) // 2
      mel = log_mel(sound[start : start + 12 * RATE], FRONTENDS["audiossl"]).astype(np.float64)
      x = 2 * (np.maximum(mel, mel.max() - 80) + 79.6482) / (50.6842 + 79.6482) - 1
    else:
      mel = log_mel(sound, FRONTENDS[FILTERS[kind]]).astype(np.float64)
      mean, std = CONSTANTS[kind]
      x = (np.log(10 ** (mel / 10) + 2.0**-23) - mean) / std
    with torch.no_grad():
      x = x.astype(np.float32)
      y = _torch_atst(net, x) if kind == "atst" else net.eval()(torch.from_numpy(x[None]))[0]
      out.append(y.numpy())
  return np.stack(out)


@pytest.mark.parametrize("kind", SECONDS)
def test_the_golden_vectors_are_pytorchs(kind):
  """UPDATE_GOLDEN=1 writes them anew."""
  pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[torch]")
  if os.environ.get("UPDATE_GOLDEN"):
    np.savez_compressed(GOLDEN, **{name: _pytorch(name) for name in SECONDS})
  _check(_pytorch(kind), np.load(GOLDEN)[kind])
