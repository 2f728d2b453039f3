"""Sounds shorter than what an encoder was trained on: in the silence that it saw around them."""

import json
import pathlib
import types

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from atst_jax.artifacts import convert, export
from atst_jax.artifacts import folder as exported
from atst_jax.artifacts.collection.listening import Listener
from atst_jax.artifacts.collection.sounds import Rows, settings_hash, sounds_of
from atst_jax.artifacts.model import load_model
from atst_jax.artifacts.programs import onnx_graph, waveform_graph
from atst_jax.convert import main as convert_command
from atst_jax.downstream import evar, hear, xares
from atst_jax.downstream.suites import torch_arrays
from atst_jax.objectives.windows import take_windows
from atst_jax.pretraining import recipe
from atst_jax.util.errors import UserError
from tests.evaluation import model_of, write_encoder, write_model
from tests.tiny import tiny_config


@pytest.mark.parametrize("file", ["cola.py:small", "conformer.py:small"])
def test_a_short_clip_is_seen_as_in_training(file):
  """Also one that is shorter than the encoder's strides; vectors over time are not filled."""
  model = model_of(file)
  rng = np.random.default_rng(0)
  clips = [rng.normal(-40, 10, (n, 64)).astype(np.float32) for n in (1, model.fill_frames)]
  windows = []
  for clip in clips:
    mel, length = jnp.asarray(clip[None]), jnp.array([len(clip)])
    found = take_windows(mel, length, jnp.zeros((1, 1), int), model.fill_frames)
    windows.append(np.asarray(found[0, 0]))
  assert len(windows[0]) == model.fill_frames and np.isin(-100, windows[0])
  np.testing.assert_array_equal(model.embed(clips), model.embed(windows))
  with pytest.raises(UserError, match="a clip of 1 frames; vectors over time need at least"):
    model.embed_frames(clips[0])


@pytest.mark.parametrize("file", ["trill.py:small", "conformer.py:small"])
def test_the_last_chunk_of_a_longer_clip_too(file):
  """With the weight of its sound; the peak is that of the whole clip."""
  model = model_of(file)
  size = model.fill_frames
  mel = np.random.default_rng(0).normal(-40, 10, (2 * size + 9, 64)).astype(np.float32)
  mel[[0, size, 2 * size]] = 10  # all parts have the same peak
  first, second, last = model.embed([mel[:size], mel[size : 2 * size], mel[2 * size :]])
  rest = 9 if model.hop <= 9 else 0
  expected = (size * first + size * second + rest * last) / (2 * size + rest)
  np.testing.assert_allclose(model.embed([mel])[0], expected, atol=1e-5)
  assert rest or file == "trill.py:small"


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
  """The export of an encoder that is filled up."""
  model = model_of("cola.py:small_transformer")
  return write_model(tmp_path_factory.mktemp("fill") / "filled", model)


SHORT = [np.full((8, 64), -30, np.float32)]


def test_every_export_keeps_it(transformer, tmp_path):
  """Card, searches and graphs know it."""
  model = load_model(transformer)
  plain = load_model(write_model(tmp_path / "plain", model, fill_frames=None))
  expected = model.embed(SHORT)
  assert np.abs(expected - plain.embed(SHORT)).max() > 1e-3
  assert settings_hash(model) != settings_hash(plain)
  assert "fill_frames" in onnx_graph.TOLD
  card = pathlib.Path(transformer, "README.md").read_text()
  assert "filled with silence (-100 dB)" in card and "exported program" in card
  export.export_again(transformer, str(tmp_path / "again"))
  np.testing.assert_array_equal(load_model(str(tmp_path / "again")).embed(SHORT), expected)


@pytest.mark.parametrize("layout", ["dino", "lightning"])
def test_pytorch_files_keep_it(transformer, layout, tmp_path):
  pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[torch]")
  file, back = str(tmp_path / "encoder.pth"), str(tmp_path / "back")
  convert.to_torch(transformer, file, layout)
  convert.from_torch(file, back)
  expected = load_model(transformer).embed(SHORT)
  np.testing.assert_allclose(load_model(back).embed(SHORT), expected, atol=1e-6)
  with pytest.raises(UserError, match=r"shorter than the 32 that .* state longer --chunk_seconds"):
    convert.from_torch(file, str(tmp_path / "cut"), seconds=0.15)


def test_vectors_over_time_are_of_sounds_that_are_long_enough(tmp_path):
  """A file that is too short for them is told, and ends no job."""
  model, path = model_of("trill.py:small"), str(tmp_path / "short.wav")
  soundfile.write(path, np.zeros(1600), 16000)
  listener = Listener(16000, "mean")
  (whole,), (over_time,) = (
    sounds_of(model, listener, path, Rows(kind)) for kind in ("files", "frames")
  )
  assert len(whole.mel) == 11
  assert over_time.mel == "a clip of 11 frames; vectors over time need at least 32"


def test_suites_fill_sounds_up(monkeypatch, tmp_path):
  """HEAR's, X-ARES' and EVAR's vectors over time of a short sound."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[torch]")
  path, sound = write_model(tmp_path / "trill", model_of("trill.py:small")), torch.zeros(1, 1600)
  monkeypatch.setenv(torch_arrays.VARIABLE, path)
  vectors, _ = hear.get_timestamp_embeddings(sound, hear.load_model(path))
  width = vectors.shape[-1]
  assert vectors.shape == (1, 1, width) and xares.ATSTJAXEncoder()(sound).shape == (1, 1, width)
  assert hear.get_scene_embeddings(sound, hear.load_model(path)).shape == (1, width)
  frames = types.SimpleNamespace(encoder=load_model(path))
  encode = evar.adapter(object).encode_frames
  assert encode(frames, sound).shape == (1, width, 1)


@pytest.mark.parametrize("file", ["trill.py:small", "ssast.py:small", "conformer.py"])
def test_every_objective_of_windows_fills(file):
  config = recipe.resolve(tiny_config(file), None).to_dict()
  assert export.settings(config)["fill_frames"] == config["views"]["crop_frames"]


def test_byol_masks_what_is_missing(tmp_path):
  """So do exports from before there was a rule. A length that no chunk has is refused."""
  model = model_of("base.py")
  assert model.fill_frames is None and model.shortest == model.hop
  config = {**model.config, "head": None}
  assert exported.upgrade({**config, "format": 5}, "old")["fill_frames"] is None
  with pytest.raises(UserError, match="an EfficientNet of that time was padded otherwise"):
    exported.upgrade({**config, "format": 5, "encoder": {"kind": "efficientnet"}}, "old")
  path = write_encoder(tmp_path / "encoder")
  written = json.loads((tmp_path / "encoder/config.json").read_text())
  (tmp_path / "encoder/config.json").write_text(json.dumps({**written, "fill_frames": 10_000}))
  with pytest.raises(UserError, match="fill_frames 10000 do not fit the encoder"):
    exported.read(path)


def test_a_waveforms_graph_is_refused(tmp_path):
  pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[onnx]")
  with pytest.raises(UserError, match=r"sounds shorter than 32 frames are filled .* leave it out"):
    waveform_graph.build(model_of("conformer.py:small"))


def test_flags_of_the_other_way_are_refused(transformer, tmp_path, capsys):
  to = f"--to={tmp_path / 'x.pth'}"
  assert convert_command([f"--from={transformer}", to, "--heads=2"]) == 2
  assert "--heads is for reading a PyTorch file; leave it out" in capsys.readouterr().err
  (tmp_path / "a.pth").write_bytes(b"")
  assert convert_command([f"--from={tmp_path / 'a.pth'}", to, "--layout=dino"]) == 2
  assert "--layout is for writing a PyTorch file" in capsys.readouterr().err
