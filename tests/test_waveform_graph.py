"""The ONNX graph from samples to vectors: every front-end, both kinds of encoder, any length and
batch; and the program of docs/exports.md that uses it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from atst_jax import export as export_command
from atst_jax.artifacts.embedding import get_scene_embeddings
from atst_jax.artifacts.model import Model, load_model
from atst_jax.artifacts.programs import waveform_graph
from atst_jax.artifacts.programs.graph import Graph, serialized, session
from atst_jax.audio.frontend import FRONTENDS, log_mel, mel_filters
from atst_jax.predict import predict
from atst_jax.util.errors import UserError
from tests.classifiers import write_classifier
from tests.documented import blocks
from tests.evaluation import write_encoder
from tests.tiny import ROOT

pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[onnx]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[onnx]")

RATE = 16000
CENTRED = [name for name, frontend in FRONTENDS.items() if frontend.is_centred]  # others: refused
LENGTHS = (1300, 2000, 8323, 20000)  # samples; below a chunk of 32 frames, one, and several


def _sounds(lengths=LENGTHS):
  """Noise that fades in, so that means of other parts are other vectors."""
  rng = np.random.default_rng(0)
  return [(rng.normal(0, 0.1, n) * np.linspace(0, 1, n) ** 3).astype(np.float32) for n in lengths]


def _batch(sounds):
  """The arguments of a graph. Padding must not matter."""
  batch = np.full((len(sounds), max(map(len, sounds)) + 77), np.nan, np.float32)
  for row, sound in zip(batch, sounds, strict=True):
    row[: len(sound)] = sound
  return batch, np.array([len(sound) for sound in sounds])


def _equal(found, expected):
  """Within 1e-4 of a vector's greatest number."""
  assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(1).min()


def _graph(model, path):
  path.write_bytes(waveform_graph.build(model))
  run = waveform_graph.load(str(path))
  return lambda waveform, samples: run(waveform, samples)["scene"]


@pytest.mark.parametrize("name", CENTRED)
def test_the_log_mel(tmp_path, monkeypatch, name):
  """In several blocks, down to the shortest clip that can be reflected, to 0.001 dB."""
  monkeypatch.setattr(waveform_graph, "BLOCK", 50)
  frontend = FRONTENDS[name]
  g = Graph()
  frames = g.op("Add", g.op("Div", "samples", g.ints(frontend.hop_length)), g.ints(1))
  mel = waveform_graph.log_mel(g, frontend, mel_filters(frontend), g.ints(0), "samples", frames)
  g.name(mel, "mel")
  inputs = [("waveform", np.float32, ["B", "N"]), ("samples", np.int64, ["B"])]
  path = tmp_path / "mel.onnx"
  path.write_bytes(serialized(g, inputs, [("mel", np.float32, ["B", "T", frontend.n_mels])], {}))
  sounds = [*_sounds((frontend.min_samples, 900, 20000)), np.zeros(3000, np.float32)]
  waveform, samples = _batch(sounds)
  found = session(str(path))(waveform=waveform, samples=samples)["mel"]
  for sound, rows in zip(sounds, found, strict=True):
    expected = log_mel(sound, frontend)
    np.testing.assert_allclose(rows[: len(expected)], expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["transformer", "cnn"])
def test_vectors_are_those_of_embed(tmp_path, kind):
  model = load_model(write_encoder(tmp_path / "encoder", kind=kind))
  sounds = _sounds()
  expected = get_scene_embeddings(sounds, model, RATE)
  run = _graph(model, tmp_path / "a.onnx")
  _equal(run(*_batch(sounds)), expected)
  _equal(np.concatenate([run(*_batch([sound])) for sound in sounds]), expected)
  short, whole = run(*_batch([sounds[0][: model.min_samples - 1], sounds[1]]))
  assert np.isnan(short).all()
  _equal(whole[None], expected[1:2])


def test_the_shortest_chunks(tmp_path):
  """Of an encoder that sees 4 frames on either side of 4: chunks of 12; others are refused."""
  encoder = load_model(write_encoder(tmp_path / "encoder", kind="cnn"))
  shortest, shorter = (
    Model({**encoder.config, "chunk_frames": frames}, encoder.variables, encoder.filters)
    for frames in (12, 11)
  )
  sounds = _sounds((12 * 160 - 1, 12 * 160, 8323))  # 12, 13 and 53 frames
  expected = get_scene_embeddings(sounds, shortest, RATE)
  _equal(_graph(shortest, tmp_path / "a.onnx")(*_batch(sounds)), expected)
  with pytest.raises(UserError, match=r"chunks of 11 frames .* --input=waveform needs 12"):
    waveform_graph.build(shorter)


@pytest.mark.parametrize(("tail", "max_seconds"), [("released", 1.0), ("drop", 1.0), ("keep", 1)])
def test_chunks_and_the_length_rule(tmp_path, tail, max_seconds):
  encoder = load_model(write_encoder(tmp_path / "encoder"))
  config = {**encoder.config, "tail": tail, "max_seconds": max_seconds}
  model = Model(config, encoder.variables, encoder.filters)
  sounds = _sounds((2000, 8323, 20000))
  expected = get_scene_embeddings(sounds, model, RATE)
  found = _graph(model, tmp_path / "a.onnx")(*_batch(sounds))
  _equal(found, expected)
  other = Model({**config, "tail": "weighted"}, encoder.variables, encoder.filters)
  assert np.abs(get_scene_embeddings(sounds, other, RATE) - expected).max() > 1e-2


@pytest.mark.parametrize(
  "changes",
  [{"max_frames": 50}, {"crop": "start", "fill_frames": 101, "fill_db": -90.0, "blocks": 1}],
)
def test_a_classifier_gives_probabilities(tmp_path, changes):
  write_classifier(tmp_path / "classifier", write_encoder(tmp_path / "encoder"), **changes)
  model = load_model(str(tmp_path / "classifier"))
  sounds = _sounds((2000, 8323, 20000))
  path = tmp_path / "a.onnx"
  path.write_bytes(waveform_graph.build(model))
  found = waveform_graph.load(str(path))(*_batch(sounds))
  expected = predict(sounds, model, RATE)
  assert np.ptp(expected) > 0.1
  np.testing.assert_allclose(found["probabilities"], expected, atol=1e-3)  # of mels in float16


def test_the_command_and_the_program_of_the_document(tmp_path, capsys):
  """A folder with weights and graph; a program that knows neither this project nor JAX."""
  encoder = write_encoder(tmp_path / "encoder")
  flags = [f"--encoder={encoder}", f"--output={tmp_path / 'out'}", "--input=waveform"]
  assert export_command.main(flags) == 2
  assert "--input=waveform is the ONNX graph's: add onnx to --artifacts" in capsys.readouterr().err
  assert export_command.main([*flags, "--artifacts=onnx,card", "--length=1"]) == 0
  folder = tmp_path / "out"
  assert sorted(os.listdir(folder)) == [
    *("README.md", "config.json", "mel_filters.npy", "model.safetensors", "waveform.onnx")
  ]
  card = (folder / "README.md").read_text()
  assert "`waveform.onnx`" in card and "encoder.onnx" not in card

  text = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
  (program,) = (code for language, code in blocks(text) if language == "py")
  seen = "\nprint(sorted({'atst_jax', 'jax'} & set(sys.modules)))\n"
  (tmp_path / "program.py").write_text(program + seen)
  sound = _sounds((30000,))[0]
  soundfile.write(tmp_path / "a.wav", np.stack([sound, 0.5 * sound], 1), RATE, subtype="FLOAT")
  command = [sys.executable, "program.py", "out/waveform.onnx", "a.wav", "a.npy"]
  run = lambda: subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
  done = run()
  assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
  expected = get_scene_embeddings([0.75 * sound], load_model(str(folder)), RATE)
  _equal(np.load(tmp_path / "a.npy")[None], expected)
  soundfile.write(tmp_path / "a.wav", sound, 8000)
  assert "8000 Hz; resample it to 16000 Hz" in run().stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", CENTRED)
@pytest.mark.parametrize("kind", ["transformer", "cnn"])
def test_every_front_end_with_either_kind(tmp_path, kind, name):
  model = load_model(write_encoder(tmp_path / "encoder", kind=kind, frontend=name))
  time = np.arange(40000) / RATE
  sounds = [
    *_sounds(),
    np.zeros(3000, np.float32),
    (0.5 * np.sin(2 * np.pi * 440 * time[:9000])).astype(np.float32),
    (0.9 * np.sign(np.sin(2 * np.pi * 100 * time))).astype(np.float32),
  ]
  expected = get_scene_embeddings(sounds, model, RATE)
  _equal(_graph(model, tmp_path / "a.onnx")(*_batch(sounds)), expected)
