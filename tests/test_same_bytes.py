"""What an earlier version wrote: its exports give the same vectors, its shards come out again.

`tests/golden/exports` and `tests/golden/shards` were written by commit 6aa7666, before the code
moved into packages.
"""

import dataclasses
import json
import wave

import numpy as np
import pytest

from atst_jax.artifacts import export, folder
from atst_jax.artifacts.folder import params_hash
from atst_jax.data.dataset import Clip, write_shard
from atst_jax.data.tfrecord import read_records
from atst_jax.embed import get_scene_embeddings, get_timestamp_embeddings, load_model
from tests.preparing import run, write_inline
from tests.tiny import ROOT

GOLDEN = ROOT / "tests" / "golden"
RATE = 16000
HASHES = {"transformer": "e0227f3790622135", "cnn": "e54afeed170921b9"}
# number of the file -> label, Hz of the tone, sample rate, seconds
TONES = (
  ("low", 300, 16000, 0.2),
  ("low", 330, 8000, 0.3),
  ("high", 3600, 44100, 0.1),
  ("high", 3900, 16000, 0.25),
  ("none", 0, 16000, 0.15),
)


def _sound(seconds, hz):
  time = np.arange(round(seconds * RATE)) / RATE
  tone = np.sin(2 * np.pi * hz * time) * np.cos(2 * np.pi * 3 * time)
  return (0.3 * tone).astype(np.float32)


@pytest.mark.parametrize("kind", HASHES)
def test_an_older_export_gives_the_same_vectors(kind):
  model = load_model(str(GOLDEN / "exports" / kind))
  assert params_hash(model.variables) == model.config["params_hash"] == HASHES[kind]
  sounds = [_sound(0.35, 440), _sound(1.1, 1500)]
  scene = get_scene_embeddings(sounds, model, RATE)
  frames, times = get_timestamp_embeddings(sounds, model, RATE)
  with np.load(GOLDEN / "exports" / "vectors.npz") as expected:
    np.testing.assert_allclose(scene, expected[f"{kind}_scene"], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(frames[..., :8], expected[f"{kind}_frames"], rtol=1e-6, atol=1e-4)
    np.testing.assert_array_equal(times, expected[f"{kind}_times"])


@pytest.mark.parametrize("kind, weights", [("transformer", "params"), ("cnn", "safetensors")])
def test_an_older_export_is_written_the_same_again(kind, weights, tmp_path):
  before = GOLDEN / "exports" / kind
  export.export_again(str(before), str(tmp_path / "again"), artifacts=[weights])
  names = ["mel_filters.npy", *(["model.safetensors"] if weights == "safetensors" else [])]
  for name in names:
    assert (tmp_path / "again" / name).read_bytes() == (before / name).read_bytes()
  read = lambda path: json.loads((path / "config.json").read_text())
  # the length rule is format 4's, the head format 5's
  today = {"format": folder.FORMAT, "max_seconds": None, "head": None, "fill_frames": None}
  today["channels"] = "mean"
  assert read(tmp_path / "again") == {**read(before), **today}


def _clips(path) -> list[Clip]:
  return [Clip.decode(record, 64, str(path)) for record in read_records(str(path))]


def test_shards_are_those_of_an_older_version(tmp_path, monkeypatch):
  """Byte for byte, but for a log-mel that another processor rounds to the next float16."""
  write_inline(monkeypatch)
  for number, (label, hz, rate, seconds) in enumerate(TONES):
    (tmp_path / "sounds" / label).mkdir(parents=True, exist_ok=True)
    tone = 9000 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)
    with wave.open(str(tmp_path / "sounds" / label / f"{number}.wav"), "wb") as file:
      file.setparams((1, 2, rate, 0, "NONE", ""))
      file.writeframes(np.round(tone).astype("<i2").tobytes())
  output = tmp_path / "shards"
  flags = ["--frontend=atst", "--num_shards=2", "--workers=1", "--name=old"]
  assert run(f"--input={tmp_path / 'sounds'}", f"--output={output}", *flags) == 0
  shards = sorted(path.name for path in output.glob("*.tfrecord"))
  assert shards == ["train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord"]
  for name in shards:
    clips = []
    for old, new in zip(_clips(GOLDEN / "shards" / name), _clips(output / name), strict=True):
      np.testing.assert_allclose(
        new.mel.astype(np.float32), old.mel.astype(np.float32), atol=0.0625
      )
      clips.append(dataclasses.replace(new, mel=old.mel).encode())
    write_shard(str(tmp_path / name), clips)
    assert (tmp_path / name).read_bytes() == (GOLDEN / "shards" / name).read_bytes()
