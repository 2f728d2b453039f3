"""What preparation survives: bad files, damaged and foreign folders, mistyped commands; and what `verify` finds."""

import errno
import json
import os
import pathlib

import numpy as np
import pytest
import soundfile

from atst_jax.frontend import get_frontend
from atst_jax.records import Dataset
from atst_jax.storage import StoreError
from atst_jax.tfrecord import frame_record, read_records
from data_pipeline import audio as decoder
from data_pipeline import prepare, shards, workers
from data_pipeline.shards import write_task

RATE = 16000


def contents(folder) -> dict[str, bytes]:
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()}


def run(*arguments) -> int:
  return prepare.main([*map(str, arguments)])


@pytest.fixture(autouse=True)
def inline(monkeypatch):
  """Writes the shards in this process."""

  def write_tasks(tasks, settings, *, workers):
    for task in tasks:
      write_task(task, settings, lambda files, clips: None)

  monkeypatch.setattr(prepare, "write_tasks", write_tasks)


@pytest.fixture
def small(tmp_path):
  """(audio folder, prepared folder) of 20 short clips."""
  rng = np.random.default_rng(0)
  (tmp_path / "audio").mkdir()
  for i in range(20):
    soundfile.write(tmp_path / "audio" / f"{i}.wav", rng.uniform(-0.5, 0.5, 2000), RATE)
  assert run(f"--input={tmp_path / 'audio'}", f"--output={tmp_path / 'out'}", "--frontend=atst", "--num_shards=5") == 0
  return tmp_path / "audio", tmp_path / "out"


def test_a_rerun_rebuilds_what_is_gone(small):
  audio, output = small
  before = contents(output)
  shard = output / "train-00002-of-00005.tfrecord"
  inode = (output / "train-00001-of-00005.tfrecord").stat().st_ino
  for damage in (shard.unlink, lambda: os.truncate(shard, 100), (output / "dataset.json").unlink,
                 (output / ".work" / "train-00002-of-00005.json").unlink):  # fmt: skip
    damage()
    (output / "train-00002-of-00005.tfrecord.tmp-123").write_text("left by a killed job")
    assert contents(output) != before
    assert run(f"--input={audio}", f"--output={output}", "--frontend=atst", "--num_shards=5") == 0
    assert contents(output) == before
  assert (output / "train-00001-of-00005.tfrecord").stat().st_ino == inode


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def _cut_on_a_boundary(path):
  path.write_bytes(b"".join(map(frame_record, list(read_records(str(path)))[:-1])))


def _swap_records(path):
  path.write_bytes(b"".join(map(frame_record, list(read_records(str(path)))[::-1])))


def _repeat_a_record(path):
  first, *rest = read_records(str(path))
  path.write_bytes(b"".join(map(frame_record, [first, *rest[1:], first])))


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (_flip, "record"), (_cut_on_a_boundary, "3 clips, 4 expected"), (pathlib.Path.unlink, "missing, 4 clips expected"),
    (_swap_records, "sha256 differs"), (_repeat_a_record, "occurs twice"),
    (lambda path: os.truncate(path, path.stat().st_size - 9), "ends inside the record"),
    (lambda path: path.write_bytes(b""), "0 clips, 4 expected"),
    (lambda path: path.write_bytes(frame_record(b"no example")), "record 0"),
  ],
)  # fmt: skip
def test_verify_names_the_bad_shard(small, capsys, damage, message):
  output = small[1]
  assert prepare.main(["verify", str(output)]) == 0
  assert "20 clips" in capsys.readouterr().out
  damage(output / "train-00003-of-00005.tfrecord")
  assert prepare.main(["verify", str(output)]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2 and "train-00003-of-00005.tfrecord" in lines[0] and message in lines[0]


def test_verify_finds_strays_and_needs_a_dataset(small, tmp_path, capsys):
  (small[1] / "train-00005-of-00005.tfrecord").write_bytes(b"")
  assert prepare.main(["verify", str(small[1])]) == 2
  assert "train-00005-of-00005.tfrecord: not listed" in capsys.readouterr().err
  for text, message in ((None, "not a prepared dataset"), ("{", "not a dataset.json"), ("{}", "not a dataset.json"),
                        ('{"schema": 99}', "schema version 99")):  # fmt: skip
    if text is not None:
      (tmp_path / "dataset.json").write_text(text)
    assert prepare.main(["verify", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_every_kind_of_bad_file_is_a_reject_and_nothing_more(small, tmp_path, capsys):
  audio = small[0]
  samples = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 2))
  (audio / "zero.wav").touch()
  (audio / "text.flac").write_text("text")
  (audio / "dead.ogg").symlink_to("nowhere")
  soundfile.write(audio / "nan.wav", np.where(samples > 0.49, np.nan, samples), RATE, subtype="FLOAT")
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
    "zero.wav": "empty", "text.flac": "undecodable", "dead.ogg": "missing", "nan.wav": "non_finite",
    "huge.wav": "non_finite", "short.mp3": "too_short"}  # fmt: skip
  counts = dataset.manifest["counts"]
  assert len(clips) == 24 and (counts["silent"], counts["clipped"], counts["dc"]) == (1, 2, 1)
  assert all(np.isfinite(mel).all() for mel in clips.values())
  assert (clips["silent.flac"] == -100).all() and len(clips["silent.flac"]) == 101
  assert (
    "6 of 30 files rejected: 1 empty, 1 missing, 2 non_finite, 1 too_short, 1 undecodable" in capsys.readouterr().out
  )


def test_a_file_that_crashes_the_decoder_is_a_reject(small, tmp_path, monkeypatch, capsys):
  """Its process dies of it; the job goes on without it, and the other clips are where they are without the crash."""
  (tmp_path / "site").mkdir()
  (tmp_path / "site" / "sitecustomize.py").write_text(
    "import os, soundfile\n"
    "read = soundfile.SoundFile.read\n"
    "crash = lambda self: os.abort() if 'crash.wav' in str(self.name) else None\n"
    "soundfile.SoundFile.read = lambda self, *args, **kwargs: crash(self) or read(self, *args, **kwargs)\n"
  )
  (small[0] / "crash.wav").write_bytes((small[0] / "7.wav").read_bytes())
  flags = [f"--input={small[0]}", "--frontend=atst", "--num_shards=5", "--workers=2"]
  monkeypatch.setattr(prepare, "write_tasks", workers.write_tasks)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
  assert prepare.main([*flags, f"--output={tmp_path / 'all'}"]) == 0
  dataset = Dataset.load(str(tmp_path / "all"))
  assert dataset.manifest["rejects"] == [{"id": "crash.wav", "reason": "undecodable", "detail": "the decoder crashes"}]
  monkeypatch.delenv("PYTHONPATH")
  assert prepare.main([*flags, f"--output={tmp_path / 'sound'}"]) == 0
  ids = lambda root: [[clip.id for clip in Dataset.load(str(root)).shard_clips(shard)] for shard in
                      Dataset.load(str(root)).shards("train")]  # fmt: skip
  without = [[id for id in shard if id != "crash.wav"] for shard in ids(tmp_path / "sound")]
  assert ids(tmp_path / "all") == without


def test_a_file_that_vanishes_meanwhile_stops_the_job(small, tmp_path, monkeypatch, capsys):
  """A disk that is gone for a moment must not cost clips for ever."""
  output, held = tmp_path / "all", (small[0] / "7.wav").read_bytes()
  flags = [f"--input={small[0]}", f"--output={output}", "--frontend=atst"]
  inline = prepare.write_tasks

  def unplugged(tasks, settings, *, workers):
    (small[0] / "7.wav").unlink()
    inline(tasks, settings, workers=workers)

  with monkeypatch.context() as patch:
    patch.setattr(prepare, "write_tasks", unplugged)
    assert prepare.main(flags) == 2
  assert "7.wav was there when the job began and is gone" in capsys.readouterr().err
  (small[0] / "7.wav").write_bytes(held)
  assert prepare.main(flags) == 0 and Dataset.load(str(output)).manifest["rejects"] == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE])
def test_what_the_machine_lacks_is_no_fault_of_a_file(small, monkeypatch, number):
  def fail(path):
    raise OSError(number, os.strerror(number), path)

  monkeypatch.setattr(decoder, "_handle", fail)
  with pytest.raises(StoreError, match=rf"7\.wav: {os.strerror(number)}; run the same command again"):
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
    {"id": "bad.wav", "reason": "undecodable", "detail": "MemoryError: no room"}]  # fmt: skip


def test_another_plan_is_refused(small, tmp_path, capsys):
  audio, output = small
  base = [f"--input={audio}", f"--output={output}", "--frontend=atst", "--num_shards=5"]
  before = contents(output)

  def refused(change, message):
    assert run(*base, *change) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and "choose another --output" in error

  changes = [(["--seed=1"], "seed 0, now it is 1"), (["--num_shards=4"], "num_shards 5, now it is 4"),
             (["--frontend=byola"], "frontend 'atst "), (["--max_seconds=2"], "max_seconds 60.0"),
             (["--name=x"], "name 'audio', now it is 'x'")]  # fmt: skip
  for change in changes:
    refused(*change)
  for path in (output / ".work").iterdir():
    path.unlink()
  refused(*changes[0])  # from dataset.json alone
  (output / ".work" / "plan.json").write_text("{")
  assert run(*base) == 0 and contents(output) == before
  soundfile.write(audio / "new.wav", np.zeros(2000), RATE)
  refused([], "other input files")
  (audio / "new.wav").unlink()
  (output / "dataset.json").unlink()
  (output / ".work" / "plan.json").unlink()
  refused([], "nothing says what of")


def test_one_job_at_a_time(small):
  audio, output = small
  fcntl = pytest.importorskip("fcntl")
  with open(output / ".work" / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert run(f"--input={audio}", f"--output={output}", "--frontend=atst", "--num_shards=5") == 2


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--inptu=x"], "unknown flag --inptu; did you mean '--input'"), ([], "required: --output, --frontend"),
    (["--input=absent"], "--input=absent does not exist"), (["--input=empty"], "holds no audio"),
    (["--frontend=atts"], "unknown front-end 'atts'; choose one of atst"), (["--workers=0"], "--workers=0 is not"),
    (["--layout=esc51"], "unknown --layout=esc51; choose one of folder, manifest, audioset, crema_d, esc10, esc50,"),
    (["--runner=DirectRuner"], "unknown --runner=DirectRuner; choose one of DirectRunner"),
    (["--beam_options=--x=1"], "--beam_options=--x=1 needs --runner"),
    (["--seed=x"], "invalid int value: 'x'"), (["--max_seconds=0.5"], "--max_seconds=0.5 is not between 1"),
    (["--max_seconds=nan"], "--max_seconds=nan is not"), (["--output=list.csv"], "--output=list.csv is a file"),
    (["--output=/proc/x"], "cannot write to --output=/proc/x"), (["--input=list.csv"], "set --root"),
    (["--input=bad"], "none of the 1 files can be used; the first is 'a.wav': undecodable"),
    (["verify"], "required: dataset"), (["verify", "empty"], "not a prepared dataset"), (["stats", "empty"], "prepare"),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(small, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(small[0].parent)
  os.mkdir("empty")
  os.mkdir("bad")
  pathlib.Path("bad/a.wav").write_text("text")
  pathlib.Path("list.csv").write_text("path\nabsent.wav\n")
  valid = [] if arguments[:1] in ([], ["verify"], ["stats"]) else [
    "--input=audio", "--output=new", "--frontend=atst", "--workers=1"]  # fmt: skip
  capsys.readouterr()
  assert prepare.main([*valid, *arguments]) == 2
  error = capsys.readouterr().err.removeprefix("1 of 1 shards to write, 1 workers\n")
  assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_split_without_statistics(tmp_path, capsys):
  (tmp_path / "list.csv").write_text("path,split\na.wav,test\n")
  soundfile.write(tmp_path / "a.wav", np.ones(2000) / 3, RATE)
  output = tmp_path / "out"
  assert run(f"--input={tmp_path / 'list.csv'}", f"--output={output}", "--frontend=atst") == 0
  assert f"stats --split=NAME {output}" in capsys.readouterr().out
  assert json.loads((output / "dataset.json").read_text())["statistics"] == {}
  assert prepare.main(["stats", "--split=tset", str(output)]) == 2
  assert "did you mean 'test'?" in capsys.readouterr().err
  assert prepare.main(["stats", "--split=test", str(output)]) == 0
  dataset = Dataset.load(str(output))
  assert dataset.statistics["split"] == "test" and dataset.frontend == get_frontend("atst")


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
    ("7.wav", "duplicate", "of 0 copy.wav"), ("quiet.wav", "silent", "peak 5e-05 of full scale"),
    ("sub/copy.wav", "duplicate", "of 0 copy.wav")]  # fmt: skip
  assert dataset.num_clips("train") == 20
  assert run(*flags) == 2  # of another plan


def test_duplicates_are_looked_for_once(small, tmp_path, monkeypatch):
  """A rerun of the same job takes what the first start found, and reads no file for it."""
  audio = small[0]
  (audio / "copy.wav").write_bytes((audio / "7.wav").read_bytes())
  flags = [f"--input={audio}", f"--output={tmp_path / 'clean'}", "--frontend=atst", "--reject_duplicates"]
  assert run(*flags) == 0
  before = contents(tmp_path / "clean")
  monkeypatch.setattr(prepare, "find_duplicates", None)
  next((tmp_path / "clean").glob("*.tfrecord")).unlink()
  assert run(*flags) == 0 and contents(tmp_path / "clean") == before


def test_repair_writes_the_bad_shards_and_no_others(small, capsys):
  audio, output = small
  flags = ["repair", f"--input={audio}", f"--output={output}", "--frontend=atst", "--num_shards=5"]
  assert run(*flags) == 0 and "nothing to repair" in capsys.readouterr().out
  before = contents(output)
  inodes = {p.name: p.stat().st_ino for p in output.glob("*.tfrecord")}
  flipped = output / "train-00001-of-00005.tfrecord"
  data = bytearray(flipped.read_bytes())
  data[len(data) // 2] ^= 1
  flipped.write_bytes(data)  # of the same size: a rerun of prepare alone does not see it
  (output / "train-00004-of-00005.tfrecord").unlink()
  assert run("verify", str(output)) == 2
  assert "prepare repair" in capsys.readouterr().err
  damaged = contents(output)
  assert run(*flags, "--seed=3") == 2 and run(*flags, "--dry_run") == 0
  assert contents(output) == damaged  # nothing is removed before it can be replaced
  assert run(*flags) == 0
  assert contents(output) == before and run("verify", str(output)) == 0
  kept = {name for name, inode in inodes.items() if (output / name).stat().st_ino == inode}
  assert kept == {f"train-{i:05d}-of-00005.tfrecord" for i in (0, 2, 3)}


def test_a_shard_that_is_a_copy_of_another_does_not_condemn_it(small):
  """Only the copy is written again."""
  audio, output = small
  before = contents(output)
  good, copy = (output / f"train-0000{i}-of-00005.tfrecord" for i in (3, 1))
  inode = good.stat().st_ino
  copy.write_bytes(good.read_bytes())
  assert run("repair", f"--input={audio}", f"--output={output}", "--frontend=atst", "--num_shards=5") == 0
  assert contents(output) == before and good.stat().st_ino == inode


def test_of_duplicates_the_evaluation_clip_stays(tmp_path):
  (tmp_path / "audio").mkdir()
  sound = np.random.default_rng(0).uniform(-0.5, 0.5, 2000)
  for name in ("a", "b", "c"):
    soundfile.write(tmp_path / "audio" / f"{name}.wav", sound if name != "c" else -sound, RATE)
  (tmp_path / "audio" / "empty 1.wav").touch()
  (tmp_path / "audio" / "empty 2.wav").touch()
  rows = "path,split\na.wav,train\nb.wav,test\nc.wav,train\nempty 1.wav,train\nempty 2.wav,train\n"
  (tmp_path / "list.csv").write_text(rows)
  assert run(f"--input={tmp_path / 'list.csv'}", f"--root={tmp_path / 'audio'}", f"--output={tmp_path / 'out'}",
             "--frontend=atst", "--reject_duplicates") == 0  # fmt: skip
  rejects = {r["id"]: r["reason"] for r in Dataset.load(str(tmp_path / "out")).manifest["rejects"]}
  assert rejects == {"a.wav": "duplicate", "empty 1.wav": "empty", "empty 2.wav": "empty"}
