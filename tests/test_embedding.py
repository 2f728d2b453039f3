"""Audio to vectors: sounds of any length, rate and number; exports of every format; a quick
start."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest

from atst_jax.artifacts import export
from atst_jax.artifacts import folder as exported
from atst_jax.artifacts.embedding import get_scene_embeddings, get_timestamp_embeddings
from atst_jax.audio import waveforms
from atst_jax.audio.frontend import FRONTENDS, log_mel, log_mel_blocks, mel_filters
from atst_jax.embed import load_model
from atst_jax.util.errors import UserError
from tests.evaluation import noise, write_encoder
from tests.tiny import ROOT

WIDE_HOP = dataclasses.replace(
  FRONTENDS["difference"], n_fft=256, win_length=256, hop_length=250, n_mels=16
)


@pytest.mark.parametrize("frontend", [FRONTENDS["atst"], FRONTENDS["difference"], WIDE_HOP])
def test_mel_of_pieces_is_that_of_the_whole(frontend):
  """To the bit, whatever the pieces: a group of frames, one sample more or less, shorter than a
  window."""
  filters, group = mel_filters(frontend), frontend.hop_length * 128
  for number in (
    frontend.min_samples,
    700,
    group + frontend.n_fft,
    2 * group,
    2 * group + 1,
    70_001,
  ):
    audio, whole = noise(number / 16000), log_mel(noise(number / 16000), frontend)
    for size in (4001, 1 << 18) if number > 1000 else (97,):
      pieces = (audio[i : i + size] for i in range(0, number, size))
      np.testing.assert_array_equal(
        np.concatenate(list(log_mel_blocks(pieces, frontend, filters))), whole
      )
  with pytest.raises(ValueError, match="need at least"):
    list(log_mel_blocks([noise(0.005)], frontend, filters))


@pytest.mark.parametrize("kind", ["transformer", "cnn"])
def test_a_long_sound_is_embedded_like_a_short_one(kind, encoder, tmp_path, monkeypatch):
  """Beyond HELD_FRAMES the mel is computed again, in blocks: the same vectors, to the bit."""
  model = load_model(
    encoder if kind == "transformer" else write_encoder(tmp_path / "cnn", kind="cnn")
  )
  audio, tails = (
    noise(3.07) * np.linspace(1, 0, 49120, dtype=np.float32) ** 8,
    ("weighted", "released" if kind == "transformer" else "drop"),
  )
  results = []
  for held in (10_000, 100):
    monkeypatch.setattr(waveforms, "HELD_FRAMES", held)
    mel = model.mel(audio, 16000)
    assert isinstance(mel, np.ndarray) == (held == 10_000) and len(mel) == 308
    results.append(
      [
        *(model.embed([mel], tail=tail) for tail in tails),
        model.embed([mel], max_frames=55),
        model.embed_frames(mel),
        model.log_mel(audio, 16000),
      ]
    )
  for held, computed in zip(*results, strict=True):
    np.testing.assert_array_equal(held, computed)


def test_memory_does_not_grow_with_the_length(encoder, monkeypatch):
  """A minute more costs nothing (its mel would take 1.5 MB); the waveform itself is the caller's,
  and each device has a batch."""
  model = load_model(encoder, devices=jax.devices()[:1])
  monkeypatch.setattr(waveforms, "HELD_FRAMES", 1000)
  peaks = []
  for minutes in (0.5, 1, 2):  # the first one compiles
    audio = np.zeros(round(16000 * 60 * minutes), np.float32)
    tracemalloc.start()
    get_scene_embeddings([audio], model, 16000)
    peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
    tracemalloc.stop()
  assert abs(peaks[2] - peaks[1]) < 0.5, peaks


def test_resampling_in_pieces_is_resampling(model, monkeypatch):
  import soxr

  audio = np.random.default_rng(0).normal(0, 0.1, 44100).astype(np.float32)
  monkeypatch.setattr(waveforms, "PIECE_SAMPLES", 5000)
  resampled = np.concatenate(list(waveforms.pieces(audio, 44100, 16000)))
  np.testing.assert_allclose(resampled, soxr.resample(audio, 44100, 16000), atol=1e-6)


@pytest.mark.parametrize(
  "audio, rate, message",
  [
    ([np.zeros(9000, np.int16)], 16000, "int16: expected floats"),
    ([np.zeros(9000)], 16, "sample_rate=16: state"),
    (np.zeros(9000), 16000, r"pass \[audio\]"),
    ([np.zeros(9000)], None, "sample_rate=None"),
    ([np.zeros(100)], 16000, "100 samples at 16000 Hz; at least 513"),
  ],
)
def test_mistakes_are_refused(model, audio, rate, message):
  with pytest.raises(UserError, match=message):
    get_scene_embeddings(audio, model, rate)
  with pytest.raises(TypeError, match="sample_rate"):
    get_scene_embeddings([np.zeros(9000)], model)


def test_a_batch_may_be_ragged(model):
  sounds = [noise(0.5), noise(1.0, 1), noise(0.3, 2)]
  vectors, times = get_timestamp_embeddings(sounds, model, 16000)
  assert vectors.shape == (3, 25, 8) and times.shape == (3, 25)
  for sound, rows, centres in zip(sounds, vectors, times, strict=True):
    (alone,), (own,) = get_timestamp_embeddings([sound], model, 16000)
    np.testing.assert_array_equal(rows[: len(alone)], alone)
    np.testing.assert_array_equal(centres[: len(own)], own)
    assert np.isnan(centres[len(own) :]).all() and not rows[len(alone) :].any()
  together = get_scene_embeddings(sounds, model, 16000)
  assert together.shape == (3, 16) and get_scene_embeddings([], model, 16000).shape == (0, 16)


def test_exports_of_every_format_load(encoder, model, tmp_path):
  """Orbax alone is format 2; format 1 had one kind of normalisation and did not name it; newer ones
  are refused."""
  config, variables, _ = exported.read(encoder)
  folder = tmp_path / "old"
  export.write(
    str(folder),
    variables,
    encoder=config["encoder"],
    frontend=model.frontend,
    tail=config["tail"],
    chunk_frames=config["chunk_frames"],
    normalization=config["normalization"],
    provenance={},
    artifacts=["params"],
  )
  assert sorted(os.listdir(folder)) == ["config.json", "mel_filters.npy", "params"]
  expected, stored = (
    get_scene_embeddings([noise(1)], model, 16000),
    json.loads((folder / "config.json").read_text()),
  )
  nameless = {key: x for key, x in stored["normalization"].items() if key != "kind"}
  for old in (
    {"format": 5},
    {"format": 4},
    {"format": 3},
    {"format": 2},
    {"format": 1, "normalization": nameless},
  ):
    (folder / "config.json").write_text(json.dumps({**stored, **old}))
    np.testing.assert_array_equal(
      get_scene_embeddings([noise(1)], load_model(str(folder)), 16000), expected
    )
  (folder / "config.json").write_text(json.dumps({**stored, "format": exported.FORMAT + 1}))
  with pytest.raises(
    UserError, match=rf"format {exported.FORMAT + 1}, this code reads 1 to {exported.FORMAT}; inst"
  ):
    load_model(str(folder))


def test_it_starts_quickly_and_without_tensorflow(encoder):
  """From the process's start to a loaded model: processor time, which a busy machine does not
  stretch. 1.7 s here."""
  script = (
    "import sys; from atst_jax.embed import load_model; load_model(sys.argv[1])\n"
    "heavy = {'tensorflow', 'torch', 'orbax', 'librosa', 'sklearn', 'matplotlib'}\n"
    "heavy &= set(sys.modules)\n"
    "sys.exit(f'loaded {heavy}' if heavy else 0)"
  )
  spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
  before = spent()
  done = subprocess.run(
    [sys.executable, "-c", script, encoder], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert spent() - before < 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_is_float32_on_accelerators(encoder, dtype):
  """By JAX's default, products of float32 are TF32's on GPUs and bfloat16's on TPUs."""
  model = load_model(encoder, dtype=dtype)
  mel, ones = np.zeros((1, 16, 64), np.float32), np.ones(1, np.int32)
  text = jax.jit(model.outputs).lower(model.variables, mel, 16 * ones, ones * 1.0).as_text()
  products = [line for line in text.split("\n") if "dot_general" in line]
  assert len(products) > 5
  low = [line for line in products if "HIGHEST" not in line]
  assert bool(low) == (dtype == "bfloat16")
