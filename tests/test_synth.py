"""The demo's sounds: reproducible words, divided by speaker, which the average spectrum does not
give away."""

import csv
import filecmp
import os

import numpy as np
import pytest
import soundfile

from atst_jax.audio.frontend import get_frontend, log_mel
from data_pipeline import synth


def test_files_and_manifest(tmp_path):
  for name in ("a", "b"):
    assert synth.main([f"--output={tmp_path / name}", "--seed=3", "--clips_per_class=6"]) == 0
  files = sorted(
    os.path.relpath(p, tmp_path / "a") for p in map(str, (tmp_path / "a").rglob("*.wav"))
  )
  assert files == sorted(f"{word}/s0{i}_00.wav" for word in synth.WORDS for i in range(6))
  everything = [*files, synth.MANIFEST]
  assert not filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", everything, shallow=False)[1]
  for file in files:
    info = soundfile.info(str(tmp_path / "a" / file))
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    assert 0.6 <= info.duration <= 1.9
  assert len({(tmp_path / "a" / file).read_bytes() for file in files}) == len(files)
  with open(tmp_path / "a" / synth.MANIFEST, encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert sorted(row["path"] for row in rows) == files
  for row in rows:
    word, name = row["path"].split("/")
    assert row["label"] == word and row["group"] == name[:3]
    assert int(row["fold"]) == int(name[1:3]) % 5  # s00 and s05 are in one fold


def test_every_speaker_says_every_word_and_is_in_one_fold(tmp_path):
  """As many takes as it takes: the first clips are those of a smaller set."""
  read = lambda name, path: (tmp_path / name / path).read_bytes()
  synth.write_classes(str(tmp_path / "a"), seed=0, clips_per_class=1)
  synth.write_classes(str(tmp_path / "b"), seed=1, clips_per_class=1)
  synth.write_classes(str(tmp_path / "c"), seed=0, clips_per_class=26)
  first = "i-a/s00_00.wav"
  assert read("a", first) != read("b", first) and read("a", first) == read("c", first)
  assert read("c", "i-a/s00_01.wav") != read("c", first)
  with open(tmp_path / "c" / synth.MANIFEST, encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  folds = {(row["group"], row["fold"]) for row in rows}
  assert len(folds) == 25 and len({group for group, _ in folds}) == 25
  assert {sum(fold == str(f) for _, fold in folds) for f in range(5)} == {5}


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


@pytest.mark.parametrize(("word", "first"), [("i-a", True), ("a-i", False)])
def test_formants_are_those_of_the_vowels(word, first):
  """/i/ has little between its first and second formant (270 and 2,290 Hz), where /a/ has both."""
  speaker = synth.Speaker(pitch=110, slope=0, tract=1, breath=0)
  for seed in range(3):
    sound = synth.speak(np.random.default_rng(seed), word, speaker)
    third = len(sound) // 3
    shares = []
    for part in (sound[:third], sound[-third:]):
      power, hz = np.abs(np.fft.rfft(part)) ** 2, np.fft.rfftfreq(third, 1 / synth.SAMPLE_RATE)
      shares.append(power[(hz > 600) & (hz < 1400)].sum() / power.sum())
    assert (shares[0] < 0.2 < shares[1]) if first else (shares[1] < 0.2 < shares[0])


def test_the_average_spectrum_does_not_tell_the_word():
  """Of speakers that were not heard, it names fewer than half; half of the words are the reverse of
  the others."""
  linear_model = pytest.importorskip("sklearn.linear_model")
  from sklearn.model_selection import GroupKFold, cross_val_score
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  frontend, features, labels, groups = get_frontend("atst"), [], [], []
  for number, word in enumerate(synth.WORDS):
    for index in range(10):
      speaker = synth.draw_speaker(np.random.default_rng([0, index]))
      clip = synth.synthesise(np.random.default_rng([0, index, number]), word, speaker)
      features.append(log_mel(clip / np.float32(32768), frontend).mean(0))
      labels.append(number)
      groups.append(index)
  model = make_pipeline(StandardScaler(), linear_model.RidgeClassifier(alpha=1.0))
  scores = cross_val_score(model, np.array(features), labels, groups=groups, cv=GroupKFold(5))
  assert 0.1 < scores.mean() < 0.5
