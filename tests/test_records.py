"""Prepared datasets on disk: what is written comes back, and what does not belong together is refused."""

import json
import os

import pytest
from tiny_clips import FRONTEND, make_clip, same_clip, write_tiny_dataset

from atst_jax.errors import UserError
from atst_jax.records import MANIFEST, SCHEMA_VERSION, Dataset, sha256_file, write_json, write_shard
from atst_jax.tfrecord import read_records


@pytest.fixture
def dataset(tmp_path) -> str:
  return write_tiny_dataset(str(tmp_path))


def edit_manifest(root: str, edit) -> None:
  path = os.path.join(root, MANIFEST)
  with open(path, encoding="utf-8") as file:
    manifest = json.load(file)
  edit(manifest)
  write_json(path, manifest)


def test_dataset_round_trip(dataset):
  loaded = Dataset.load(dataset)
  assert (loaded.frontend, loaded.splits, loaded.label_names) == (FRONTEND, ["train"], ["a", "b"])
  assert loaded.num_clips("train") == 5
  clips = list(loaded.clips("train"))
  assert len(clips) == 5
  assert all(same_clip(clip, make_clip(number)) for number, clip in enumerate(clips))


def test_write_shard_describes_the_file(tmp_path):
  path = str(tmp_path / "a.tfrecord")
  shard = write_shard(path, [b"one", b"", b"three"])
  assert (shard.path, shard.num_clips, shard.num_bytes) == (path, 3, os.path.getsize(path))
  assert shard.sha256 == sha256_file(path)
  assert list(read_records(path)) == [b"one", b"", b"three"]
  assert os.listdir(tmp_path) == ["a.tfrecord"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_write_shard_leaves_nothing_behind(tmp_path, error):
  def payloads():
    yield b"one"
    raise error

  with pytest.raises(error):
    write_shard(str(tmp_path / "a.tfrecord"), payloads())
  assert os.listdir(tmp_path) == []


def test_write_shard_keeps_the_old_file_when_it_fails(tmp_path):
  path = str(tmp_path / "a.tfrecord")
  write_shard(path, [b"old"])
  with pytest.raises(ZeroDivisionError):
    write_shard(path, (bytes([1 // n]) for n in (1, 0)))
  assert list(read_records(path)) == [b"old"]
  assert os.listdir(tmp_path) == ["a.tfrecord"]


def test_folder_without_manifest(tmp_path):
  with pytest.raises(UserError, match=rf"{MANIFEST} does not exist.*python -m data_pipeline\.prepare"):
    Dataset.load(str(tmp_path))


def test_manifest_that_is_not_json(dataset):
  with open(os.path.join(dataset, MANIFEST), "w", encoding="utf-8") as file:
    file.write('{"schema": 1')
  with pytest.raises(UserError, match=rf"{MANIFEST}: not a dataset\.json"):
    Dataset.load(dataset)


@pytest.mark.parametrize("key", ["schema", "frontend", "splits"])
def test_manifest_without_a_key(dataset, key):
  edit_manifest(dataset, lambda manifest: manifest.pop(key))
  with pytest.raises(UserError, match=rf"{MANIFEST}: not a dataset\.json.*{key}"):
    Dataset.load(dataset)


def test_other_schema_version(dataset):
  edit_manifest(dataset, lambda manifest: manifest.update(schema=SCHEMA_VERSION + 1))
  message = rf"{MANIFEST}: schema version {SCHEMA_VERSION + 1}, this code reads {SCHEMA_VERSION}; prepare .* again"
  with pytest.raises(UserError, match=message):
    Dataset.load(dataset)


@pytest.mark.parametrize(("key", "value"), [("f_max", 8000.0), ("hash", "0" * 16)])
def test_edited_frontend(dataset, key, value):
  edit_manifest(dataset, lambda manifest: manifest["frontend"].update({key: value}))
  with pytest.raises(UserError, match=rf"{MANIFEST}: front-end 'tiny': stored hash .*; prepare .* again"):
    Dataset.load(dataset)


def test_frontend_with_another_key(dataset):
  edit_manifest(dataset, lambda manifest: manifest["frontend"].update(preemphasis=0.97))
  with pytest.raises(UserError, match=rf"{MANIFEST}: front-end .*'preemphasis'.*; prepare .* again"):
    Dataset.load(dataset)


def test_missing_shard(dataset):
  os.unlink(os.path.join(dataset, "train-1.tfrecord"))
  message = r"1 of 2 shards are missing, the first is .*train-1\.tfrecord; run the same `prepare` command again"
  with pytest.raises(UserError, match=message):
    Dataset.load(dataset)


@pytest.mark.parametrize("change", [-1, 1])
def test_shard_of_another_size(dataset, change):
  path = os.path.join(dataset, "train-0.tfrecord")
  size = os.path.getsize(path)
  os.truncate(path, size + change)
  message = rf"train-0\.tfrecord: {size + change} bytes, {size} expected for its 3 clips; delete it and run"
  with pytest.raises(UserError, match=message):
    Dataset.load(dataset)


def test_a_shard_outside_of_the_folder(dataset):
  def edit(manifest):
    manifest["splits"]["train"]["shards"][0]["file"] = "../train-0.tfrecord"

  edit_manifest(dataset, edit)
  with pytest.raises(UserError, match="lies outside its folder"):
    Dataset.load(dataset)


def test_unknown_split(dataset):
  with pytest.raises(UserError, match="no split 'test'; there are train"):
    Dataset.load(dataset).shards("test")


def test_missing_statistics(dataset):
  with pytest.raises(UserError, match=r"no statistics; run `python -m data_pipeline\.prepare stats"):
    _ = Dataset.load(dataset).statistics
