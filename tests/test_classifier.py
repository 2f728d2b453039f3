"""Classifiers: the head of an export, its thresholds, and what it says of sounds in memory."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from atst_jax.artifacts import export
from atst_jax.artifacts.classifiers import thresholds
from atst_jax.artifacts.classifiers.scoring import clip_of, head_of, score
from atst_jax.artifacts.model import load_model
from atst_jax.audio.decode import load_audio
from atst_jax.data.dataset import Dataset
from atst_jax.predict import labels_of, predict, predict_windows, thresholds_of
from atst_jax.util.errors import UserError
from tests.classifiers import HEAD, LABELS, write_place
from tests.preparing import run as prepare
from tests.preparing import write_inline


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return write_place(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def model(place):
  return load_model(str(place / "classifier"))


@pytest.mark.parametrize("precision", [None, 0.7])
def test_thresholds_are_the_best_of_all(precision):
  """Against every threshold there is, with ties."""
  rng = np.random.default_rng(3)
  scores, targets = rng.integers(0, 8, (40, 4)) / 8, rng.integers(0, 2, (40, 4))
  targets[:, 3] = 0
  scores[:, 2], targets[:5, 2] = np.arange(40), 0  # the likeliest are right half of the time
  found = thresholds.choose(scores, targets, precision)
  assert found.without_clips == [3] and found.values[3] == 0.5
  for label in range(3):
    hits = targets[:, label].astype(bool)

    def measure(threshold, hits=hits, label=label):
      taken = scores[:, label] >= threshold
      share = (taken & hits).sum() / max(taken.sum(), 1)
      return 2 * (taken & hits).sum() / (taken.sum() + hits.sum()), share, taken.sum()

    every = [measure(value) for value in np.unique(scores[:, label])]
    f1, share, taken = measure(found.values[label])
    if label in found.taking_all:
      best = every[0][0] if precision is None else every[0][1]  # of the lowest, which takes all
      assert found.values[label] == 0.5 and best == max(one[precision is not None] for one in every)
    elif precision is None:
      assert f1 == max(one[0] for one in every) and found.rule == "best F1"
    elif label in found.short:
      assert share == max(one[1] for one in every) < precision
    else:
      assert share >= precision and taken == max(one[2] for one in every if one[1] >= precision)


@pytest.mark.parametrize("precision", [None, 0.7])
def test_no_threshold_takes_clips_that_nothing_tells_apart(precision, monkeypatch):
  """An exact probe scores the first label's clip 0, as most: with that threshold every sound would
  have it. All clips have the second label, and the third is found."""
  said = []
  monkeypatch.setattr(thresholds.log, "warning", lambda text, *values: said.append(text % values))
  scores = np.array(
    [[0.0, 0.3, 0.8], [0.0, 0.2, 0.1], [0.2, 0.4, 0.0], [0.1, 0.9, 0.0]], np.float32
  )
  targets = np.array([[1, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
  head = dataclasses.replace(HEAD, activation="clip")
  found = thresholds.with_thresholds(head, scores, targets, precision)
  assert found.thresholds == pytest.approx((0.5, 0.2, 0.45))
  assert found.about["thresholds"]["taking_all"] == ["ant"]
  assert found.about["thresholds"]["short_of_precision"] == []
  (sentence,) = said
  assert "1 of 3 labels" in sentence and "theirs is 0.5, the first are ant" in sentence


def test_a_head_travels_with_its_export(place, model, tmp_path):
  """The card, Orbax, another export, the encoder's hash; a head that was changed is found out."""
  assert labels_of(model) == LABELS and thresholds_of(model).tolist() == pytest.approx(
    HEAD.thresholds
  )
  assert head_of(model) == HEAD
  assert model.config["params_hash"] == load_model(str(place / "encoder")).config["params_hash"]
  export.export_again(
    str(place / "classifier"), str(tmp_path / "again"), artifacts=("params", "card")
  )
  again = load_model(str(tmp_path / "again"))
  np.testing.assert_array_equal(
    again.variables["head"]["kernel"], model.variables["head"]["kernel"]
  )
  card = (tmp_path / "again" / "README.md").read_text()
  assert "audio-classification" in card and "`bee, wild`" in card and "3 labels, several" in card
  config = json.loads((tmp_path / "again" / "config.json").read_text())
  for key, value in (
    ("labels", ["a", "a", "b"]),
    ("thresholds", [0.1]),
    ("activation", "eval"),
    ("blocks", 3),
    ("max_frames", 10**9),
    ("fill_frames", 5000),
    ("params_hash", "0"),
  ):
    changed = {**config, "head": {**config["head"], key: value}}
    (tmp_path / "again" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=f"head.{key}|params_hash"):
      load_model(str(tmp_path / "again"))
  del config["head"]["params_hash"]
  (tmp_path / "again" / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="params_hash"):
    load_model(str(tmp_path / "again"))


def test_a_file_is_heard_as_its_clip_in_prepared_shards(place, model, tmp_path, monkeypatch):
  """To the bit; so scores are those of the evaluation."""
  write_inline(monkeypatch)
  output = tmp_path / "data"
  assert prepare(f"--input={place / 'sounds'}", f"--output={output}", "--frontend=atst") == 0
  clips = {
    clip.id: clip.mel.astype(np.float32) for clip in Dataset.load(str(output)).clips("train")
  }
  assert len(clips) == 3
  for id, mel in clips.items():
    audio = load_audio(str(place / "sounds" / id), 16000)
    heard = clip_of(HEAD, model.mel(audio, 16000, whole=True))
    np.testing.assert_array_equal(heard, clip_of(HEAD, mel))


def test_predict_is_the_head_of_the_central_part(model):
  audio = np.random.default_rng(4).normal(0, 0.1, 40_000).astype(np.float32)
  mel = model.mel(audio, 16000, whole=True)
  assert len(mel) == 251 > HEAD.max_frames
  mel = mel[75:176].astype(np.float16).astype(np.float32)
  weights = model.variables["head"]
  expected = model.embed([mel], num_blocks=2) @ weights["kernel"] + weights["bias"]
  found = predict([audio], model, sample_rate=16000)
  np.testing.assert_allclose(found, 1 / (1 + np.exp(-expected)), atol=1e-6)
  assert found.shape == (1, 3) and found.dtype == np.float32
  times, windows = predict_windows(audio, model, 16000, window=1, hop=0.5)
  assert times.tolist() == [[0, 1], [0.5, 1.5], [1, 2], [1.5, 2.5]]
  for (start, end), window in zip(times, windows, strict=True):
    part = audio[round(16000 * start) : round(16000 * end)]
    np.testing.assert_allclose(window, predict([part], model, 16000)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["traced", "onnx", pytest.param("jax", marks=pytest.mark.slow)])
def test_programs_hold_the_head(place, model, tmp_path, kind):
  """Of a sound of one chunk they say what `predict` does; the file says what the labels are."""
  for name in ("onnx", "onnxruntime") if kind == "onnx" else ():
    pytest.importorskip(name, reason=f"{name} is not installed: pip install -e .[onnx]")
  if kind == "traced":
    program = functools.partial(jax.jit(model.outputs), model.variables)
  else:
    artifacts = ("safetensors", kind)
    export.export_again(str(place / "classifier"), str(tmp_path / "again"), artifacts=artifacts)
    program = export.PROGRAMS[kind].load(str(tmp_path / "again" / f"encoder.{kind}"))
  audio = np.random.default_rng(5).normal(0, 0.1, 4000).astype(np.float32)
  mel = clip_of(HEAD, model.mel(audio, 16000))
  padded = np.pad(mel, ((0, 3), (0, 0)))[None]
  found = program(padded, np.array([len(mel)], np.int32), mel.max()[None])
  expected = predict([audio], model, 16000)
  np.testing.assert_allclose(found["probabilities"], expected, atol=1e-4)
  np.testing.assert_allclose(found["logits"], score(model, [mel]), atol=1e-3)
  scene = model.embed([mel], num_blocks=1)
  np.testing.assert_allclose(found["scene"], scene, rtol=1e-3, atol=1e-4)


def test_shorter_sounds_are_filled_and_longer_ones_cut_at_their_start():
  head = dataclasses.replace(HEAD, crop="start", fill_frames=101, fill_db=-90.0)
  mel = np.random.default_rng(0).normal(-30, 5, (150, 64)).astype(np.float32)
  np.testing.assert_allclose(clip_of(head, mel), mel[:101], atol=0.02)
  short = clip_of(head, mel[:7])
  assert short.shape == (101, 64) and (short[7:] == -90).all()


def test_python_refuses_too(place, model):
  encoder = load_model(str(place / "encoder"))
  audio = np.zeros(8000, np.float32)
  for function in (lambda: predict([audio], encoder, 16000), lambda: score(encoder, [])):
    with pytest.raises(UserError, match="without a classifier"):
      function()
  with pytest.raises(UserError, match="pass \\[audio\\]"):
    predict(audio, model, 16000)
  with pytest.raises(UserError, match="one sound"):
    predict_windows(audio[None], model, 16000, window=0.5, hop=0.5)


@pytest.mark.parametrize("function", [predict, functools.partial(predict_windows, window=1, hop=1)])
def test_floats_of_another_scale_are_refused(model, function):
  sound = np.random.default_rng(0).normal(0, 3000, 9000)
  with pytest.raises(UserError, match=r"samples up to 1\d{4}.*: expected floats of full scale 1"):
    function(sound if isinstance(function, functools.partial) else [sound], model, 16000)
