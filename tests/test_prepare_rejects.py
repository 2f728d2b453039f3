"""Files that cannot or shall not be used: rejects with reasons; and faults that are not a
file's."""

import errno
import os
import time

import numpy as np
import pytest
import soundfile

from atst_jax.audio import decode as decoder
from atst_jax.audio import sound_file
from atst_jax.data.dataset import Dataset
from atst_jax.util.errors import StoreError
from data_pipeline import prepare
from data_pipeline.shards import job, workers
from data_pipeline.shards import shard as shards
from tests.preparing import contents, run, small_set

RATE = 16000


pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def small(tmp_path):
  return small_set(tmp_path)


def test_fault_16_18_every_kind_of_bad_file_is_a_reject_and_nothing_more(small, tmp_path, capsys):
  audio = small[0]
  samples = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 2))
  (audio / "zero.wav").touch()
  (audio / "text.flac").write_text("text")
  (audio / "dead.ogg").symlink_to("nowhere")
  soundfile.write(
    audio / "nan.wav", np.where(samples > 0.49, np.nan, samples), RATE, subtype="FLOAT"
  )
  soundfile.write(audio / "huge.wav", samples * 1e25, RATE, subtype="FLOAT")
  soundfile.write(audio / "short.mp3", samples[:300], 48000)
  soundfile.write(audio / "loud.wav", (samples - samples.mean()) * 1e6, RATE, subtype="FLOAT")
  soundfile.write(audio / "silent.flac", np.zeros((44100, 2)), 44100)
  soundfile.write(audio / "clipped.wav", np.clip(samples * 5, -1, 1), RATE)
  soundfile.write(audio / "offset.wav", samples * 0.1 + 0.3, 8000)
  assert run(f"--input={audio}", f"--output={tmp_path / 'all'}", "--frontend=atst") == 0
  dataset = Dataset.load(str(tmp_path / "all"))
  clips = {clip.id: clip.mel for clip in dataset.clips("train")}
  assert {r["id"]: r["reason"] for r in dataset.manifest["rejects"]} == {
    "zero.wav": "empty",
    "text.flac": "undecodable",
    "dead.ogg": "missing",
    "nan.wav": "non_finite",
    "huge.wav": "non_finite",
    "short.mp3": "too_short",
  }
  counts = dataset.manifest["counts"]
  assert len(clips) == 24 and (counts["silent"], counts["clipped"], counts["dc"]) == (1, 2, 1)
  assert all(np.isfinite(mel).all() for mel in clips.values())
  assert (clips["silent.flac"] == -100).all() and len(clips["silent.flac"]) == 101
  assert (
    "6 of 30 files rejected: 1 empty, 1 missing, 2 non_finite, 1 too_short, 1 undecodable"
    in capsys.readouterr().out
  )


def test_fault_21_a_file_that_crashes_the_decoder_is_a_reject(small, tmp_path, monkeypatch, capsys):
  """Its process dies of it; the job goes on without it, and the other clips are where they are
  without the crash."""
  (tmp_path / "site").mkdir()
  (tmp_path / "site" / "sitecustomize.py").write_text(
    "import os, soundfile\n"
    "read = soundfile.SoundFile.read\n"
    "crash = lambda self: os.abort() if 'crash.wav' in str(self.name) else None\n"
    "crashing = lambda self, *args, **more: crash(self) or read(self, *args, **more)\n"
    "soundfile.SoundFile.read = crashing\n"
  )
  (small[0] / "crash.wav").write_bytes((small[0] / "7.wav").read_bytes())
  flags = [f"--input={small[0]}", "--frontend=atst", "--num_shards=5", "--workers=2"]
  with monkeypatch.context() as patch:
    patch.setattr(job, "write_tasks", workers.write_tasks)
    patch.setenv("PYTHONPATH", str(tmp_path / "site"))
    assert prepare.main([*flags, f"--output={tmp_path / 'all'}"]) == 0
  dataset = Dataset.load(str(tmp_path / "all"))
  assert dataset.manifest["rejects"] == [
    {"id": "crash.wav", "reason": "undecodable", "detail": "the decoder crashes"}
  ]
  assert prepare.main([*flags, f"--output={tmp_path / 'sound'}"]) == 0
  ids = lambda root: [
    [clip.id for clip in Dataset.load(str(root)).shard_clips(shard)]
    for shard in Dataset.load(str(root)).shards("train")
  ]
  without = [[id for id in shard if id != "crash.wav"] for shard in ids(tmp_path / "sound")]
  assert ids(tmp_path / "all") == without


def test_a_file_that_vanishes_meanwhile_stops_the_job(small, tmp_path, monkeypatch, capsys):
  """A disk that is gone for a moment must not cost clips for ever."""
  output, held = tmp_path / "all", (small[0] / "7.wav").read_bytes()
  flags = [f"--input={small[0]}", f"--output={output}", "--frontend=atst"]
  inline = job.write_tasks

  def unplugged(tasks, settings, *, workers):
    (small[0] / "7.wav").unlink()
    inline(tasks, settings, workers=workers)

  with monkeypatch.context() as patch:
    patch.setattr(job, "write_tasks", unplugged)
    assert prepare.main(flags) == 2
  assert "7.wav was there when the job began and is gone" in capsys.readouterr().err
  (small[0] / "7.wav").write_bytes(held)
  assert prepare.main(flags) == 0 and Dataset.load(str(output)).manifest["rejects"] == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE])
def test_what_the_machine_lacks_is_no_fault_of_a_file(small, monkeypatch, number):
  def fail(path):
    raise OSError(number, os.strerror(number), path)

  monkeypatch.setattr(sound_file, "_handle", fail)
  with pytest.raises(
    StoreError, match=rf"7\.wav: {os.strerror(number)}; run the same command again"
  ):
    decoder.duration(str(small[0] / "7.wav"))
  with pytest.raises(StoreError):
    list(decoder.read_pieces(str(small[0] / "7.wav"), sample_rate=RATE))


def test_any_error_of_a_decoder_is_a_reject(small, tmp_path, monkeypatch):
  def failing(waveform, frontend, filters):
    if len(waveform) == 1500:
      raise MemoryError("no room")
    return np.zeros((3, frontend.n_mels), np.float32)

  soundfile.write(small[0] / "bad.wav", np.ones(1500) / 2, RATE)
  monkeypatch.setattr(shards, "log_mel", failing)
  assert run(f"--input={small[0]}", f"--output={tmp_path / 'all'}", "--frontend=atst") == 0
  assert Dataset.load(str(tmp_path / "all")).manifest["rejects"] == [
    {"id": "bad.wav", "reason": "undecodable", "detail": "MemoryError: no room"}
  ]


def test_silent_files_and_duplicates_are_left_out_if_asked(small, tmp_path):
  """By content, keeping the lowest id; a plan of its own."""
  audio = small[0]
  (audio / "sub").mkdir()
  (audio / "sub" / "copy.wav").write_bytes((audio / "7.wav").read_bytes())
  (audio / "0 copy.wav").write_bytes((audio / "7.wav").read_bytes())
  soundfile.write(audio / "quiet.wav", np.full(16000, 5e-5), RATE, subtype="FLOAT")
  flags = [f"--input={audio}", f"--output={tmp_path / 'clean'}", "--frontend=atst"]
  assert run(*flags, "--reject_silent", "--reject_duplicates") == 0
  dataset = Dataset.load(str(tmp_path / "clean"))
  assert [(r["id"], r["reason"], r["detail"]) for r in dataset.manifest["rejects"]] == [
    ("7.wav", "duplicate", "of 0 copy.wav"),
    ("quiet.wav", "silent", "peak 5e-05 of full scale"),
    ("sub/copy.wav", "duplicate", "of 0 copy.wav"),
  ]
  assert dataset.num_clips("train") == 20
  assert run(*flags) == 2  # of another plan


def test_duplicates_are_looked_for_once(small, tmp_path, monkeypatch):
  """A rerun of the same job takes what the first start found, and reads no file for it."""
  audio = small[0]
  (audio / "copy.wav").write_bytes((audio / "7.wav").read_bytes())
  flags = [
    f"--input={audio}",
    f"--output={tmp_path / 'clean'}",
    "--frontend=atst",
    "--reject_duplicates",
  ]
  assert run(*flags) == 0
  before = contents(tmp_path / "clean")
  monkeypatch.setattr(job, "find_duplicates", None)
  next((tmp_path / "clean").glob("*.tfrecord")).unlink()
  assert run(*flags) == 0 and contents(tmp_path / "clean") == before


def test_a_recording_newer_than_its_shard_is_read_again(small, capsys):
  """An edited file keeps its name and, as plain PCM, its size."""
  audio, output = small
  flags = [f"--input={audio}", f"--output={output}", "--frontend=atst", "--num_shards=5"]
  hashes = lambda: [shard.sha256 for shard in Dataset.load(str(output)).shards("train")]
  before = hashes()
  assert run(*flags) == 0 and hashes() == before  # what was copied is older
  os.utime(audio / "7.wav", (4e9, 4e9))  # the clock of a recorder
  assert run(*flags) == 0 and "older than their" not in capsys.readouterr().err
  soundfile.write(audio / "7.wav", np.zeros(2000), RATE)
  later = time.time() - 1
  os.utime(audio / "7.wav", (later, later))
  for sidecar in (output / ".work").iterdir():
    os.utime(sidecar, (later - 60, later - 60))
  for path in audio.glob("*.wav"):
    os.utime(path, (later, later) if path.name == "7.wav" else (later - 90, later - 90))
  assert run(*flags) == 0
  assert "1 shards are older than their recordings" in capsys.readouterr().err
  assert sum(one != other for one, other in zip(before, hashes(), strict=True)) == 1


def test_what_waits_for_pyav_is_not_set_aside_for_good(small, tmp_path, monkeypatch):
  """Files that nothing here can read, in a shard without any other: PyAV, installed later, reads
  them."""
  audio, output = small[0], tmp_path / "all"
  (audio / "a.m4a").write_bytes(b"sound")
  flags = [f"--input={audio}", f"--output={output}", "--frontend=atst", "--num_shards=21"]
  for module in (sound_file, shards):
    monkeypatch.setattr(module, "has_pyav", lambda: False)
  assert run(*flags) == 0
  (reject,) = Dataset.load(str(output)).manifest["rejects"]
  assert reject["id"] == "a.m4a" and "needs PyAV" in reject["detail"]
  monkeypatch.setattr(shards, "has_pyav", lambda: True)
  read = shards.read_pieces
  as_7 = lambda path, **options: read(path.replace("a.m4a", "7.wav"), **options)
  monkeypatch.setattr(shards, "read_pieces", as_7)
  assert run(*flags) == 0 and Dataset.load(str(output)).num_clips("train") == 21


def test_of_duplicates_the_evaluation_clip_stays(tmp_path):
  (tmp_path / "audio").mkdir()
  sound = np.random.default_rng(0).uniform(-0.5, 0.5, 2000)
  for name in ("a", "b", "c"):
    soundfile.write(tmp_path / "audio" / f"{name}.wav", sound if name != "c" else -sound, RATE)
  (tmp_path / "audio" / "empty 1.wav").touch()
  (tmp_path / "audio" / "empty 2.wav").touch()
  rows = "path,split\na.wav,train\nb.wav,test\nc.wav,train\nempty 1.wav,train\nempty 2.wav,train\n"
  (tmp_path / "list.csv").write_text(rows)
  assert (
    run(
      f"--input={tmp_path / 'list.csv'}",
      f"--root={tmp_path / 'audio'}",
      f"--output={tmp_path / 'out'}",
      "--frontend=atst",
      "--reject_duplicates",
    )
    == 0
  )
  rejects = {r["id"]: r["reason"] for r in Dataset.load(str(tmp_path / "out")).manifest["rejects"]}
  assert rejects == {"a.wav": "duplicate", "empty 1.wav": "empty", "empty 2.wav": "empty"}
