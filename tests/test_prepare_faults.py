"""What preparation survives: bad files, damaged and foreign folders, mistyped commands; and what
`verify` finds."""

import contextlib
import json
import os
import pathlib

import numpy as np
import pytest
import soundfile

from atst_jax.audio.frontend import get_frontend
from atst_jax.data.dataset import Dataset
from atst_jax.data.tfrecord import frame_record, read_records
from atst_jax.util.lock import Lock
from data_pipeline import prepare
from data_pipeline.shards.summary import print_report
from tests.preparing import contents, run, small_set
from tests.tiny import ROOT

RATE = 16000


pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def small(tmp_path):
  return small_set(tmp_path)


def test_a_rerun_rebuilds_what_is_gone(small):
  audio, output = small
  before = contents(output)
  shard = output / "train-00002-of-00005.tfrecord"
  inode = (output / "train-00001-of-00005.tfrecord").stat().st_ino
  for damage in (
    shard.unlink,
    lambda: os.truncate(shard, 100),
    (output / "dataset.json").unlink,
    (output / ".work" / "train-00002-of-00005.json").unlink,
  ):
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
    (_flip, "record"),
    (_cut_on_a_boundary, "3 clips, 4 expected"),
    (pathlib.Path.unlink, "missing, 4 clips expected"),
    (_swap_records, "sha256 differs"),
    (_repeat_a_record, "occurs twice"),
    (lambda path: os.truncate(path, path.stat().st_size - 9), "ends inside the record"),
    (lambda path: path.write_bytes(b""), "0 clips, 4 expected"),
    (lambda path: path.write_bytes(frame_record(b"no example")), "record 0"),
  ],
)
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
  for text, message in (
    (None, "not a prepared dataset"),
    ("{", "not a dataset.json"),
    ("{}", "not a dataset.json"),
    ('{"schema": 99}', "schema version 99"),
  ):
    if text is not None:
      (tmp_path / "dataset.json").write_text(text)
    assert prepare.main(["verify", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_another_plan_is_refused(small, tmp_path, capsys):
  audio, output = small
  base = [f"--input={audio}", f"--output={output}", "--frontend=atst", "--num_shards=5"]
  before = contents(output)

  def refused(change, message):
    assert run(*base, *change) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and "choose another --output" in error

  changes = [
    (["--seed=1"], "seed 0, now it is 1"),
    (["--num_shards=4"], "num_shards 5, now it is 4"),
    (["--frontend=byola"], "frontend 'atst "),
    (["--max_seconds=2"], "max_seconds 60.0"),
    (["--name=x"], "name 'audio', now it is 'x'"),
  ]
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


def test_one_job_at_a_time(small, capsys):
  audio, output = small
  arguments = (f"--input={audio}", f"--output={output}", "--frontend=atst", "--num_shards=5")
  with contextlib.closing(Lock(str(output / ".work"))):
    assert run(*arguments) == 2
  assert f"is in use by process {os.getpid()} on" in capsys.readouterr().err
  assert run(*arguments) == 0


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--inptu=x"], "unknown flag --inptu; did you mean '--input'"),
    ([], "required: --output, --frontend"),
    (["--input=absent"], "--input=absent does not exist"),
    (["--input=empty"], "holds no audio"),
    (["--frontend=atts"], "unknown front-end 'atts'; choose one of atst"),
    (["--workers=0"], "--workers=0 is not"),
    (
      ["--layout=esc51"],
      "unknown --layout=esc51; choose one of folder, manifest, raven, audacity, audioset,",
    ),
    (["--runner=DirectRuner"], "unknown --runner=DirectRuner; choose one of DirectRunner"),
    (["--beam_options=--x=1"], "--beam_options=--x=1 needs --runner"),
    (["--seed=x"], "invalid int value: 'x'"),
    (["--max_seconds=0.5"], "--max_seconds=0.5 is not between 1"),
    (["--max_seconds=nan"], "--max_seconds=nan is not"),
    (["--output=list.csv"], "--output=list.csv is a file"),
    (["--output=/proc/x"], "cannot write to --output=/proc/x"),
    (["--input=list.csv"], "set --root"),
    (["--output=audio"], "--output=audio lies in --input=audio: shards would lie among its"),
    (["--output=audio/../audio/x/y"], "lies in --input=audio"),
    (["--input=bad"], "none of the 1 files can be used; the first is 'a.wav': undecodable"),
    (["verify"], "required: dataset"),
    (["verfy", "empty"], "nor one of verify, stats, merge, repair; did you mean 'verify'?"),
    (["audio", "--output=new"], "audio is neither a flag (a folder to prepare is --input=DIR) nor"),
    (["verify", "empty"], "not a prepared dataset"),
    (["stats", "empty"], "prepare"),
  ],
)
def test_mistakes_are_one_line(small, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(small[0].parent)
  os.mkdir("empty")
  os.mkdir("bad")
  pathlib.Path("bad/a.wav").write_text("text")
  pathlib.Path("list.csv").write_text("path\nabsent.wav\n")
  valid = (
    []
    if not arguments or not arguments[0].startswith("-")
    else ["--input=audio", "--output=new", "--frontend=atst", "--workers=1"]
  )
  capsys.readouterr()
  assert prepare.main([*valid, *arguments]) == 2
  error = capsys.readouterr().err.rpartition("1 of 1 shards to write, 1 workers\n")[2]
  assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_help_and_page_tell_how_long_a_clip_is(capsys):
  default = f"{prepare._parser().get_default('max_seconds'):g}"
  with pytest.raises(SystemExit):
    prepare.main(["--help"])
  assert f"(default {default}, 1800 at most)" in " ".join(capsys.readouterr().out.split())
  page = (ROOT / "data_pipeline" / "README.md").read_text(encoding="utf-8")
  assert f"`--max_seconds` ({default}; at most 1800)" in page


def test_a_reader_that_ends_is_no_fault_of_the_page(small, monkeypatch, capsys):
  """`| head -3`."""

  class Closed:
    def write(self, text):
      raise BrokenPipeError(32, "Broken pipe")

  _, output = small
  (output / "report.html").unlink()
  manifest = Dataset.load(str(output)).manifest
  with monkeypatch.context() as patch:
    patch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
      print_report(str(output), manifest)
  assert (output / "report.html").exists() and capsys.readouterr().err == ""


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
  assert (
    run("repair", f"--input={audio}", f"--output={output}", "--frontend=atst", "--num_shards=5")
    == 0
  )
  assert contents(output) == before and good.stat().st_ino == inode


def test_a_tilde_is_the_home_folder(small, tmp_path, monkeypatch):
  """Shells leave it in `--output=~/data`."""
  monkeypatch.setenv("HOME", str(tmp_path))
  assert run("--input=~/audio", "--output=~/new", "--frontend=atst", "--num_shards=5") == 0
  assert contents(tmp_path / "new") == contents(small[1])
