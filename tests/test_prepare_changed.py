"""Recordings that change after they were prepared: what is made of them is made again, or the job
says that it cannot be."""

import json
import os

import numpy as np
import pytest
import soundfile

from atst_jax.data.dataset import Dataset
from data_pipeline import bgknown, pairs
from data_pipeline.mixing import scenes
from data_pipeline.shards import job, workers
from tests.preparing import run
from tests.scene_sounds import rows, write_scene_sounds

RATE = 16000
HOUR = 3600


pytestmark = pytest.mark.usefixtures("inline")


def noise(seed, seconds=0.3, level=0.3):
  return np.random.default_rng(seed).uniform(-level, level, int(seconds * RATE)).astype(np.float32)


def write(path, samples, subtype="PCM_16"):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, samples, RATE, subtype=subtype)


def age(*folders):
  """Makes all files below some folders an hour older."""
  for folder in folders:
    for path in folder.rglob("*"):
      if path.is_file():
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - HOUR))


def test_a_file_that_was_set_aside_is_looked_at_again(tmp_path):
  """A damaged one in a shard without any other: mended, it is a clip."""
  audio, output = tmp_path / "audio", tmp_path / "out"
  for i in range(4):
    write(audio / f"{i}.wav", noise(i))
  write(audio / "bad.wav", np.full(5000, np.nan), "FLOAT")
  flags = [f"--input={audio}", f"--output={output}", "--frontend=atst"]
  rejects = lambda: [reject["id"] for reject in Dataset.load(str(output)).manifest["rejects"]]
  assert run(*flags) == 0 and rejects() == ["bad.wav"]
  aside = output / ".work" / job.REJECTS
  age(audio, output)
  before = aside.read_bytes(), aside.stat().st_mtime
  assert run(*flags) == 0 and (aside.read_bytes(), aside.stat().st_mtime) == before
  os.utime(audio / "1.wav")  # of another file
  assert run(*flags) == 0 and (aside.read_bytes(), aside.stat().st_mtime) == before
  write(audio / "bad.wav", noise(9, 5000 / RATE), "FLOAT")
  assert run(*flags) == 0 and rejects() == [] and not aside.exists()
  assert {clip.id for clip in Dataset.load(str(output)).clips("train")} == {
    *(f"{i}.wav" for i in range(4)),
    "bad.wav",
  }


@pytest.mark.parametrize("changed", ["a.wav", "b.wav"])
def test_a_duplicate_that_changed_is_none(tmp_path, changed):
  """Whether it is the one that was left out, or the one that was kept."""
  audio, output = tmp_path / "audio", tmp_path / "out"
  for name, seed in (("a", 1), ("b", 1), ("c", 2)):
    write(audio / f"{name}.wav", noise(seed))
  flags = [f"--input={audio}", f"--output={output}", "--frontend=atst", "--reject_duplicates"]
  rejects = lambda: [reject["id"] for reject in Dataset.load(str(output)).manifest["rejects"]]
  assert run(*flags) == 0 and rejects() == ["b.wav"]
  age(audio, output)
  write(audio / changed, noise(3))
  assert run(*flags) == 0 and rejects() == []
  assert Dataset.load(str(output)).num_clips("train") == 3


def test_a_file_at_which_a_decoder_crashed_is_opened_again(tmp_path):
  audio, output = tmp_path / "audio", tmp_path / "out"
  for i in range(3):
    write(audio / f"{i}.wav", noise(i))
  flags = [f"--input={audio}", f"--output={output}", "--frontend=atst"]
  assert run(*flags) == 0
  crashers = output / ".work" / workers.CRASHERS
  crashers.write_text(json.dumps(["1.wav"]))
  age(audio, output)
  os.utime(audio / "0.wav")
  assert run(*flags) == 0 and crashers.exists()
  os.utime(audio / "1.wav")
  assert run(*flags) == 0 and not crashers.exists()


def test_pairs_are_mixed_again_with_a_changed_event(tmp_path):
  """No clip's first recording is an event: those behind it count too."""
  sounds, output = write_scene_sounds(tmp_path / "sounds"), tmp_path / "out"
  flags = [
    f"--foreground={sounds / 'events'}",
    "--foreground_layout=esc10",
    f"--background={sounds / 'weather'}",
    f"--output={output}",
    *("--frontend=atst", "--seconds=1", "--num_shards=2", "--workers=1"),
    *(f"--{split}_pairs=2" for split in ("train", "valid", "test")),
  ]
  assert pairs.main(flags) == 0
  age(sounds, output)
  before = rows(output / "mixtures.csv")
  event = next(row for row in before if row["role"] == "event")
  path = sounds / "events" / event["source"]
  samples, _ = soundfile.read(path)
  soundfile.write(path, samples / 10, RATE)
  scenes._recording.cache_clear()  # as in a new process
  assert pairs.main(flags) == 0
  gains = [
    float(now["gain_db"]) - float(row["gain_db"])
    for row, now in zip(before, rows(output / "mixtures.csv"), strict=True)
    if row["source"] == event["source"]
  ]
  assert gains and gains == pytest.approx([20] * len(gains), abs=0.5)


@pytest.mark.parametrize("kind", ["foreground", "background"])
def test_mixtures_of_changed_recordings_are_refused(tmp_path, capsys, kind):
  """Their gains are measured once, before the first shard."""
  for i in range(6):
    write(tmp_path / "foreground" / "dog" / f"{i}.wav", noise(i, 0.6))
    write(tmp_path / "background" / "rain" / f"{i}.wav", noise(10 + i, 1.5, 0.05))
  flags = [f"--{side}={tmp_path / side}" for side in ("foreground", "background")]
  flags += [f"--output={tmp_path / 'out'}", "--frontend=atst", "--seconds=0.6", "--workers=1"]
  assert bgknown.main(flags) == 0
  age(*(tmp_path / folder for folder in ("foreground", "background", "out")))
  assert bgknown.main(flags) == 0
  (path,) = (tmp_path / kind).rglob("3.wav")
  os.utime(path)
  capsys.readouterr()
  assert bgknown.main(flags) == 2
  error = capsys.readouterr().err
  assert f"changed since they were measured, as {path}; delete --output=" in error
