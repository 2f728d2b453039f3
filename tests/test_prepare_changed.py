"""Recordings that change after they were prepared: what is made of them is made again, or the job
says that it cannot be."""

import csv
import json
import os
import time

import numpy as np
import pytest
import soundfile

from atst_jax.data.dataset import Dataset
from data_pipeline import bgknown, pairs
from data_pipeline.shards import job, workers
from tests.preparing import run
from tests.scene_sounds import write_scene_sounds

RATE = 16000
HOUR = 3600


pytestmark = pytest.mark.usefixtures("inline")


def noise(seed, seconds=0.3, level=0.3):
  return np.random.default_rng(seed).uniform(-level, level, int(seconds * RATE)).astype(np.float32)


def write(path, samples):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, samples, RATE, subtype="FLOAT")


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
  write(audio / "bad.wav", np.full(5000, np.nan))
  flags = [f"--input={audio}", f"--output={output}", "--frontend=atst"]
  rejects = lambda: [reject["id"] for reject in Dataset.load(str(output)).manifest["rejects"]]
  assert run(*flags) == 0 and rejects() == ["bad.wav"]
  aside = output / ".work" / job.REJECTS
  age(audio, output)
  before = aside.read_bytes(), aside.stat().st_mtime
  assert run(*flags) == 0 and (aside.read_bytes(), aside.stat().st_mtime) == before
  os.utime(audio / "1.wav")  # of another file
  assert run(*flags) == 0 and (aside.read_bytes(), aside.stat().st_mtime) == before
  write(audio / "bad.wav", noise(9)[:5000].astype(np.float32) if False else noise(9, 5000 / RATE))
  assert run(*flags) == 0 and rejects() == [] and not aside.exists()
  assert {clip.id for clip in Dataset.load(str(output)).clips("train")} == {
    *(f"{i}.wav" for i in range(4)),
    "bad.wav",
  }
