"""Preparation: shards that depend on the input and the seed only, and a dataset.json that describes
them exactly."""

import collections
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from atst_jax.audio.decode import load_audio
from atst_jax.audio.frontend import get_frontend, log_mel
from atst_jax.data.dataset import Dataset
from data_pipeline import prepare
from data_pipeline.shards.beam import load_task, store_task
from data_pipeline.shards.mel_statistics import MelStatistics, merge_statistics
from data_pipeline.shards.shard import ShardTask
from data_pipeline.sources.files import Source
from tests.preparing import contents

RATE = 16000
KEYS = {
  "schema",
  "name",
  "frontend",
  "label_names",
  "multi_label",
  "fold_names",
  "folds",
  "splits",
  "statistics",
  "rejects",
  "counts",
  "preparation",
}


def noise(path, seconds=0.3, seed=0, rate=RATE):
  os.makedirs(os.path.dirname(path), exist_ok=True)
  samples = np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate))
  soundfile.write(path, samples, rate)


def run(*arguments) -> int:
  return prepare.main([*map(str, arguments), "--frontend=atst"])


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
  """40 files of 4 classes, three of them unusable, one of 7 seconds."""
  root = tmp_path_factory.mktemp("audio")
  for i in range(36):
    noise(str(root / f"class {i % 4}" / f"{i}.wav"), 0.2 + 0.01 * i, i)
  noise(str(root / "class 0" / "long.flac"), 7.0, 100)
  (root / "class 1" / "text.wav").write_text("no sound" * 99)
  (root / "class 2" / "zero.wav").touch()
  noise(str(root / "short.wav"), 0.01)
  return root


@pytest.fixture(scope="module")
def prepared(audio, tmp_path_factory):
  """(folder, its contents) as two workers wrote it."""
  output = tmp_path_factory.mktemp("prepared") / "out"
  assert run(f"--input={audio}", f"--output={output}", "--workers=2", "--max_seconds=3") == 0
  return output, contents(output)


def test_fault_22_bytes_do_not_depend_on_the_workers(audio, prepared, tmp_path):
  """Two processes, then one."""
  assert run(f"--input={audio}", f"--output={tmp_path}", "--workers=1", "--max_seconds=3") == 0
  assert contents(tmp_path) == prepared[1]


def test_dataset_json(audio, prepared):
  dataset = Dataset.load(str(prepared[0]))
  manifest, train = dataset.manifest, dataset.manifest["splits"]["train"]
  clips = {clip.id: clip for clip in dataset.clips("train")}
  assert set(manifest) == KEYS
  assert manifest["label_names"] == [f"class {i}" for i in range(4)]
  assert [(r["id"], r["reason"]) for r in manifest["rejects"]] == [
    ("class 1/text.wav", "undecodable"),
    ("class 2/zero.wav", "empty"),
    ("short.wav", "too_short"),
  ]
  pieces = [f"class 0/long.flac#{i:04d}" for i in range(3)]
  assert set(clips) == {*(f"class {i % 4}/{i}.wav" for i in range(36)), *pieces}
  assert [len(clips[id].mel) for id in pieces] == [301, 301, 101]
  assert len(train["shards"]) == 16
  assert train["num_clips"] == len(clips) == 39
  assert train["num_files"] == 37
  assert train["num_frames"] == sum(len(clip.mel) for clip in clips.values())
  assert train["max_frames"] == 301
  assert train["class_counts"] == collections.Counter(id.split("/")[0] for id in clips)
  assert manifest["counts"]["split_files"] == 1
  assert manifest["counts"]["sample_rates"] == {"16000": 37}
  assert manifest["counts"]["coverage"]["class 1"] == {"listed": 10, "missing": 0, "rejected": 1}
  assert manifest["fold_names"] == manifest["folds"] == [] and manifest["preparation"]["seed"] == 0
  for id, clip in clips.items():
    assert dataset.label_names[clip.labels[0]] == id.split("/")[0] and clip.fold == -1
  wanted = log_mel(load_audio(str(audio / "class 1/13.wav"), RATE), get_frontend("atst")).astype(
    np.float16
  )
  # matrix products differ by threads
  np.testing.assert_allclose(clips["class 1/13.wav"].mel, wanted, atol=0.07)


def test_files_are_dealt_in_hash_order(prepared):
  dataset = Dataset.load(str(prepared[0]))
  shards = dataset.shards("train")
  held = collections.defaultdict(list)
  for shard in shards:
    for clip in dataset.shard_clips(shard):
      held[shard.path].append(clip.id.split("#")[0])
  ids = {
    *(id for ids in held.values() for id in ids),
    "class 1/text.wav",
    "class 2/zero.wav",
    "short.wav",
  }
  ordered = sorted(ids, key=lambda id: hashlib.sha256(f"0:{id}".encode()).hexdigest())
  bad = {"class 1/text.wav", "class 2/zero.wav", "short.wav"}
  for i, shard in enumerate(shards):
    assert list(dict.fromkeys(held[shard.path])) == [id for id in ordered[i::16] if id not in bad]


def test_statistics_are_those_of_the_stored_values(prepared, audio, tmp_path, inline, capsys):
  dataset = Dataset.load(str(prepared[0]))
  values = np.concatenate([clip.mel.ravel() for clip in dataset.clips("train")]).astype(np.float64)
  statistics = dataset.statistics
  assert statistics["num_values"] == len(values) and statistics["split"] == "train"
  assert (statistics["min"], statistics["max"]) == (values.min(), values.max())
  np.testing.assert_allclose(
    [statistics["mean"], statistics["std"]], [values.mean(), values.std()], rtol=1e-12
  )
  logs = np.log(10.0 ** (values / 10) + 2.0**-23)  # BYOL-A's
  np.testing.assert_allclose(
    [statistics["log_mean"], statistics["log_std"]], [logs.mean(), logs.std()], rtol=1e-7
  )
  found = []
  for change in (["--num_shards=3", "--seed=9"], ["--num_shards=30"]):
    output = tmp_path / str(len(found))
    assert run(f"--input={audio}", f"--output={output}", "--max_seconds=3", *change) == 0
    found.append(Dataset.load(str(output)).statistics)
  assert found[0] == found[1]  # to the last bit
  manifest = json.loads((output / "dataset.json").read_text())
  (output / "dataset.json").write_text(json.dumps({**manifest, "statistics": {}}))
  assert prepare.main(["stats", str(output)]) == 0
  assert (
    json.loads(capsys.readouterr().out.splitlines()[-1])
    == Dataset.load(str(output)).statistics
    == found[1]
  )


def test_statistics_merge_exactly():
  rng = np.random.default_rng(0)
  mels = [
    (rng.normal(-30, 25, (n, 8)) * 10.0 ** rng.integers(-6, 1, (n, 8))).astype(np.float16)
    for n in (3, 70, 200)
  ]
  parts = []
  for mel in mels:
    part = MelStatistics()
    part.add(mel)
    parts.append(json.loads(json.dumps(part.to_json())))
  whole = MelStatistics()
  for mel in mels[::-1]:
    whole.add(mel)
  assert merge_statistics(parts, "train") == merge_statistics([whole.to_json()], "train")
  values = np.concatenate([mel.ravel() for mel in mels]).astype(np.float64)
  np.testing.assert_allclose(merge_statistics(parts, "train")["std"], values.std(), rtol=1e-13)
  assert merge_statistics([MelStatistics().to_json()], "train") == {}


def test_shards_by_size_and_fewer_files_than_shards(tmp_path, inline):
  for i in range(20):
    noise(str(tmp_path / "in" / f"{i}.wav"), 2.0, i)  # 201 frames, 26 kB each
  assert run(f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'a'}", "--shard_mb=0.027") == 0
  # 19 would be full: 64, but for the number of files
  assert len(Dataset.load(str(tmp_path / "a")).shards("train")) == 20
  for i in range(7, 20):
    os.unlink(tmp_path / "in" / f"{i}.wav")
  assert run(f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'b'}") == 0
  assert [shard.num_clips for shard in Dataset.load(str(tmp_path / "b")).shards("train")] == [1] * 7


@pytest.mark.parametrize("counts", [[1] * 12 + [2] * 4, [1] * 12])
def test_no_shard_is_empty_and_there_are_sixteen(tmp_path, inline, counts):
  for i in range(sum(counts)):
    noise(str(tmp_path / "in" / f"{i}.wav"), 0.1, i)
  for i in range(20):
    (tmp_path / "in" / f"bad{i}.wav").write_text("x" * (i + 1))
  output = tmp_path / "out"
  assert run(f"--input={tmp_path / 'in'}", f"--output={output}") == 0
  dataset = Dataset.load(str(output))
  assert sorted(shard.num_clips for shard in dataset.shards("train")) == counts
  assert len(dataset.manifest["rejects"]) == 20
  before = contents(output)
  assert run(f"--input={tmp_path / 'in'}", f"--output={output}") == 0 and contents(output) == before
  assert prepare.main(["verify", str(output)]) == 0  # nothing of the first deal is left


def test_fault_23_manifest_with_missing_files(tmp_path, inline, capsys):
  rows = ["path,label,split,fold"]
  for i in range(24):
    rows.append(f"{i}.wav,{'ab'[i % 2]};c{i},{'test' if i % 3 == 0 else 'train'},{i % 5}")
    if i < 18:
      noise(str(tmp_path / f"{i}.wav"), 0.1, i)
  (tmp_path / "list.csv").write_text("\n".join(rows))
  assert run(f"--input={tmp_path / 'list.csv'}", f"--output={tmp_path / 'out'}") == 0
  dataset = Dataset.load(str(tmp_path / "out"))
  manifest = dataset.manifest
  assert (
    manifest["multi_label"] and manifest["folds"] == [0, 1, 2, 3, 4] and manifest["name"] == "list"
  )
  assert {split: dataset.num_clips(split) for split in dataset.splits} == {"test": 6, "train": 12}
  assert [(r["id"], r["reason"]) for r in manifest["rejects"]] == [
    (f"{i}.wav", "missing") for i in range(18, 24)
  ]
  assert manifest["counts"]["coverage"]["a"] == {"listed": 12, "missing": 3, "rejected": 0}
  assert all(len(clip.labels) == 2 and clip.fold >= 0 for clip in dataset.clips("train"))
  assert manifest["statistics"]["num_values"] == manifest["splits"]["train"]["num_frames"] * 64
  printed = capsys.readouterr().out
  assert "6 of 24 files rejected: 6 missing" in printed and "a 3 of 12" in printed


def test_dry_run_writes_nothing(audio, tmp_path, capsys):
  assert run(f"--input={audio}", f"--output={tmp_path / 'out'}", "--dry_run") == 0
  assert "40 files (folder), 0 of them missing, 4 classes" in capsys.readouterr().out
  assert not (tmp_path / "out").exists()


def test_workers_need_neither_jax_nor_tensorflow(audio, tmp_path):
  code = (
    "import sys, numpy as np, data_pipeline.shards.workers\n"
    "from atst_jax.audio.frontend import FRONTENDS\n"
    "from data_pipeline.sources.files import Source\n"
    "from data_pipeline.shards.shard import Settings, ShardTask, write_task\n"
    "path, output = sys.argv[1:]\n"
    "filters = np.ones((513, 64), np.float32)\n"
    "settings = Settings(output, output, FRONTENDS['atst'], filters, (), 60.0)\n"
    "write_task(ShardTask('a.tfrecord', 'train', (Source(path, 'a'),)), settings, print)\n"
    "heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'librosa', 'numba'}\n"
    "sys.exit(str(heavy & set(sys.modules)))\n"
  )
  command = [sys.executable, "-c", code, str(audio / "class 0/long.flac"), str(tmp_path)]
  done = subprocess.run(
    command, cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True, check=False
  )
  assert (done.stdout, done.stderr) == ("0 0\n1 1\n", "set()\n")  # before and after the file


def test_a_task_of_beam_keeps_names_that_are_not_utf8(tmp_path):
  source = Source(os.fsdecode(b"/in/caf\xe9.wav"), "caf\\xe9.wav", ("dog",), fold=1)
  task = ShardTask("train-00000-of-00001.tfrecord", "train", (source,))
  assert load_task(store_task(task, str(tmp_path))) == task
