"""Hostile sound files and exports: an error that names the file, or what was in it."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from atst_jax.artifacts import folder
from atst_jax.artifacts.model import Model
from atst_jax.audio import decode
from atst_jax.util.errors import UserError
from tests.evaluation import write_encoder
from tests.hostile import bounded, damaged_trees, edits, fuzz, mutate

RATE = 16000


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
  """Bytes of small files of every format."""
  folder, found = tmp_path_factory.mktemp("sounds"), {}
  samples = np.random.default_rng(0).uniform(-0.4, 0.4, (3000, 2))
  for name, subtype in (
    ("a.wav", "PCM_16"),
    ("b.wav", "FLOAT"),
    ("c.wav", "PCM_24"),
    ("d.wav", "MS_ADPCM"),
    ("a.flac", None),
    ("a.ogg", "VORBIS"),
    ("b.ogg", "OPUS"),
    ("a.mp3", None),
    ("a.aiff", None),
  ):
    soundfile.write(folder / name, samples, 48000 if subtype == "OPUS" else 44100, subtype=subtype)
    found[name] = (folder / name).read_bytes()
  return found


@fuzz(70, share=2)
@given(st.data())
def test_audio(sounds, tmp_path_factory, data):
  name = data.draw(st.sampled_from(sorted(sounds)))
  path = tmp_path_factory.getbasetemp() / f"fuzzed{os.path.splitext(name)[1]}"
  path.write_bytes(mutate(sounds[name], data.draw(edits)))
  with bounded(f"audio {name.split('.')[1]}", decode.Reject):
    for _, piece in decode.read_pieces(
      str(path), sample_rate=RATE, min_samples=513, max_seconds=0.05
    ):
      assert piece.dtype == np.float32 and np.isfinite(piece).all() and 0 < len(piece) <= 800
  with bounded(f"audio {name.split('.')[1]}", UserError):
    assert np.isfinite(decode.load_audio(str(path), RATE)).all()


# Exports


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
  root = tmp_path_factory.mktemp("encoders")
  return {kind: write_encoder(root / kind, kind=kind) for kind in ("transformer", "cnn")}


# When an array cannot be read, Orbax leaves those it reads beside it to a loop that it has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@fuzz(14, share=0.3)
@given(st.data())
def test_exports(encoders, tmp_path_factory, data):
  whole = encoders[data.draw(st.sampled_from(sorted(encoders)))]
  copy_ = tmp_path_factory.getbasetemp() / "export"
  shutil.rmtree(copy_, ignore_errors=True)
  shutil.copytree(whole, copy_)
  names = sorted(str(p.relative_to(copy_)) for p in copy_.rglob("*") if p.is_file())
  if data.draw(st.booleans()):
    tree = data.draw(damaged_trees(json.loads((copy_ / "config.json").read_text())))
    (copy_ / "config.json").write_bytes(json.dumps(tree).encode("utf-8", "surrogatepass"))
  else:
    name = data.draw(st.sampled_from(names))
    if data.draw(st.integers(0, 5)) == 0:
      (copy_ / name).unlink()
    else:
      (copy_ / name).write_bytes(mutate((copy_ / name).read_bytes(), data.draw(edits)))
  with bounded("exports", UserError):
    model = Model(*folder.read(str(copy_)))
    mel = model.log_mel(np.random.default_rng(0).normal(0, 0.1, 6000), RATE)
    assert mel.shape[1] == model.frontend.n_mels and np.isfinite(mel).all()
