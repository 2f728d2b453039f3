"""Sounds shorter than what an encoder was trained on: in the silence that it saw around them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.artifacts import export, folder
from atst_jax.artifacts.model import Model
from atst_jax.artifacts.programs import waveform_graph
from atst_jax.audio.frontend import get_frontend
from atst_jax.models.encoders import fresh_variables, make_encoder
from atst_jax.objectives.windows import take_windows
from atst_jax.pretraining import recipe
from atst_jax.util.errors import UserError
from tests.evaluation import write_encoder
from tests.tiny import tiny_config


def model_of(file) -> Model:
  """Of a run's export, with random parameters."""
  config = recipe.resolve(tiny_config(file), None).to_dict()
  settings = export.settings(config)
  frontend = get_frontend(config["data"]["frontend"])
  encoder = make_encoder(config["encoder"])
  variables = fresh_variables(encoder, settings["chunk_frames"], frontend.n_mels, 0)
  return Model({**settings, "frontend": frontend.to_json()}, variables, None)


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


@pytest.mark.parametrize("file", ["trill.py:small", "ssast.py:small", "conformer.py"])
def test_every_objective_of_windows_fills(file):
  config = recipe.resolve(tiny_config(file), None).to_dict()
  assert export.settings(config)["fill_frames"] == config["views"]["crop_frames"]


def test_byol_masks_what_is_missing(tmp_path):
  """So do exports from before there was a rule. A length that no chunk has is refused."""
  model = model_of("base.py")
  assert model.fill_frames is None and model.shortest == model.hop
  config = {**model.config, "head": None}
  assert folder.upgrade({**config, "format": 5}, "old")["fill_frames"] is None
  path = write_encoder(tmp_path / "encoder")
  written = json.loads((tmp_path / "encoder/config.json").read_text())
  (tmp_path / "encoder/config.json").write_text(json.dumps({**written, "fill_frames": 10_000}))
  with pytest.raises(UserError, match="fill_frames 10000 do not fit the encoder"):
    folder.read(path)


def test_a_waveforms_graph_is_refused(tmp_path):
  pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[onnx]")
  with pytest.raises(UserError, match=r"sounds shorter than 32 frames are filled .* leave it out"):
    waveform_graph.build(model_of("conformer.py:small"))
