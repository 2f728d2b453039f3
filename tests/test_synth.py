"""The demo's sounds: reproducible, in ten classes that the average spectrum does not give away."""

import filecmp
import os

import numpy as np
import pytest
import soundfile

from atst_jax.audio.frontend import get_frontend, log_mel
from data_pipeline import synth


def test_files(tmp_path):
  for name in ("a", "b"):
    assert synth.main([f"--output={tmp_path / name}", "--seed=3", "--clips_per_class=2"]) == 0
  files = sorted(
    os.path.relpath(p, tmp_path / "a") for p in map(str, (tmp_path / "a").rglob("*.wav"))
  )
  assert files == sorted(f"{label}/{i:04d}.wav" for label in synth.CLASSES for i in range(2))
  assert not filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", files, shallow=False)[1]
  for file in files:
    info = soundfile.info(str(tmp_path / "a" / file))
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    assert 2.0 <= info.duration <= 4.0
  assert len({(tmp_path / "a" / file).read_bytes() for file in files}) == len(files)


def test_the_seed_and_the_number_of_clips(tmp_path):
  synth.write_classes(str(tmp_path / "a"), seed=0, clips_per_class=1)
  synth.write_classes(str(tmp_path / "b"), seed=1, clips_per_class=1)
  synth.write_classes(str(tmp_path / "c"), seed=0, clips_per_class=2)
  clip = {name: (tmp_path / name / "fade" / "0000.wav").read_bytes() for name in "abc"}
  assert clip["a"] != clip["b"] and clip["a"] == clip["c"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--output=."], "not an empty folder"),
    (["--outptu=x"], "did you mean '--output'"),
    ([], "required: --output"),
    (["--output=x", "--seed=a"], "invalid int value: 'a'"),
    (["--output=x", "--clips_per_class=0"], "at least 1"),
  ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
  (tmp_path / "file").touch()
  monkeypatch.chdir(tmp_path)
  assert synth.main(arguments) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", synth.CLASSES)
def test_classes_share_their_centre_and_range(name):
  for seed in range(5):
    pitch, amplitude = synth.CLASSES[name](np.random.default_rng(seed), 32000)
    assert pitch.shape == amplitude.shape == (32000,) and amplitude.min() >= 0
    assert abs(pitch.max() + pitch.min()) < 0.1 and np.ptp(pitch) <= 14


def test_reversed_classes_share_their_spectra():
  def levels(name, reverse):
    pitch, amplitude = synth.CLASSES[name](np.random.default_rng(0), 32000)
    return (pitch[::-1], amplitude[::-1]) if reverse else (pitch, amplitude)

  for one, other in (("rising_glide", "falling_glide"), ("swell", "fade")):
    for a, b in zip(levels(one, False), levels(other, True), strict=True):
      assert np.array_equal(a, b) and (a[0] != a[-1] or np.ptp(a) == 0)


def test_the_average_spectrum_does_not_tell_the_class():
  linear_model = pytest.importorskip("sklearn.linear_model")
  from sklearn.model_selection import StratifiedKFold, cross_val_score
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  frontend, features, labels = get_frontend("atst"), [], []
  for number, name in enumerate(synth.CLASSES):
    for i in range(10):
      clip = synth.synthesise(np.random.default_rng([0, number, i]), name)
      mel = log_mel(clip / np.float32(32768), frontend)
      features.append(np.concatenate([mel.mean(0), mel.std(0)]))
      labels.append(number)
  model = make_pipeline(StandardScaler(), linear_model.LogisticRegression(C=0.1, max_iter=1000))
  scores = cross_val_score(
    model, np.array(features), labels, cv=StratifiedKFold(5, shuffle=True, random_state=0)
  )
  assert scores.mean() < 0.5
