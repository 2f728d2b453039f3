"""Prepared datasets on disk: what is written comes back, and what does not belong together is
refused."""

import dataclasses
import json
import os

import pytest

from atst_jax.audio.frontend import FRONTENDS
from atst_jax.data.dataset import MANIFEST, SCHEMA_VERSION, Dataset, write_json, write_shard
from atst_jax.data.tfrecord import RecordError, read_records
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from data_pipeline.shards import verify
from tests.tiny_clips import FRONTEND, make_clip, same_clip, write_tiny_dataset


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
  assert shard.sha256 == storage.sha256(path)
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
  with pytest.raises(
    UserError, match=rf"{MANIFEST} does not exist.*python -m data_pipeline\.prepare"
  ):
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


@pytest.mark.parametrize("key", ["min_frames", "max_frames"])
def test_fault_15_a_split_without_its_lengths(dataset, key):
  edit_manifest(dataset, lambda manifest: manifest["splits"]["train"].pop(key))
  with pytest.raises(UserError, match=rf"not a dataset\.json.*the split 'train' has no {key}"):
    Dataset.load(dataset)


def test_fault_15_other_schema_version(dataset):
  edit_manifest(dataset, lambda manifest: manifest.update(schema=SCHEMA_VERSION + 1))
  message = (
    rf"{MANIFEST}: schema version {SCHEMA_VERSION + 1}, this code reads {SCHEMA_VERSION}; "
    "prepare .* again"
  )
  with pytest.raises(UserError, match=message):
    Dataset.load(dataset)


@pytest.mark.parametrize(("key", "value"), [("f_max", 8000.0), ("hash", "0" * 16)])
def test_edited_frontend(dataset, key, value):
  edit_manifest(dataset, lambda manifest: manifest["frontend"].update({key: value}))
  with pytest.raises(
    UserError, match=rf"{MANIFEST}: front-end 'tiny': stored hash .*; prepare .* again"
  ):
    Dataset.load(dataset)


def test_frontend_with_another_key(dataset):
  edit_manifest(dataset, lambda manifest: manifest["frontend"].update(preemphasis=0.97))
  with pytest.raises(
    UserError, match=rf"{MANIFEST}: front-end .*'preemphasis'.*; prepare .* again"
  ):
    Dataset.load(dataset)


def test_fault_12_missing_shard(dataset):
  os.unlink(os.path.join(dataset, "train-1.tfrecord"))
  message = (
    r"1 of 2 shards are missing, the first is .*train-1\.tfrecord; "
    "run the same `prepare` command again"
  )
  with pytest.raises(UserError, match=message):
    Dataset.load(dataset)


@pytest.mark.parametrize("change", [-1, 1])
def test_shard_of_another_size(dataset, change):
  path = os.path.join(dataset, "train-0.tfrecord")
  size = os.path.getsize(path)
  os.truncate(path, size + change)
  message = (
    rf"train-0\.tfrecord: {size + change} bytes, {size} expected for its 3 clips; delete it and run"
  )
  with pytest.raises(UserError, match=message):
    Dataset.load(dataset)


@pytest.mark.parametrize(
  "name",
  [
    "../train-0.tfrecord",
    "/train-0.tfrecord",
    "..",
    ".",
    "",
    "a\\..\\b.tfrecord",
    "a/b.tfrecord",
    "a\0.tfrecord",
    "train-0.txt",
    3,
    None,
    ["train-0.tfrecord"],
  ],
)
def test_fault_43_a_shard_outside_of_the_folder(dataset, name):
  edit_manifest(
    dataset, lambda manifest: manifest["splits"]["train"]["shards"][0].update(file=name)
  )
  for load in (Dataset.load, verify.verify):
    with pytest.raises(UserError, match=r"not a dataset\.json of this schema"):
      load(dataset)


def test_fault_43_a_split_whose_files_would_lie_outside_of_the_folder(dataset, tmp_path):
  """`merge` names its shards after the splits."""
  edit_manifest(
    dataset, lambda manifest: manifest["splits"].update({"../evil": manifest["splits"]["train"]})
  )
  with pytest.raises(UserError, match=r"split '\.\./evil' is not a word"):
    Dataset.load(dataset)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("num_clips", 0),
    ("num_clips", 2**40),
    ("num_clips", True),
    ("num_clips", -3),
    ("num_clips", 1.5),
    ("num_bytes", float("nan")),
    ("num_bytes", "9"),
    ("sha256", "x"),
  ],
)
def test_fault_12_numbers_that_no_shard_can_have(dataset, key, value):
  """An empty shard among them; and nothing is allocated by what the file claims."""
  edit_manifest(
    dataset, lambda manifest: manifest["splits"]["train"]["shards"][0].update({key: value})
  )
  with pytest.raises(UserError, match=r"train-0\.tfrecord' has "):
    Dataset.load(dataset)


def test_fault_12_an_empty_shard(dataset):
  os.truncate(os.path.join(dataset, "train-1.tfrecord"), 0)
  with pytest.raises(
    UserError, match=r"train-1\.tfrecord: 0 bytes, \d+ expected for its 2 clips; delete it and run"
  ):
    Dataset.load(dataset)


def test_labels_that_no_class_has(dataset):
  """A negative one would name a class from the end."""
  edit_manifest(dataset, lambda manifest: manifest.update(label_names=["a"]))
  with pytest.raises(RecordError, match=r"train-0\.tfrecord: record 1: labels \(1,\) of 1 classes"):
    list(Dataset.load(dataset).clips("train"))


@pytest.mark.parametrize(
  "change",
  [
    {"name": "\ud800"},
    {"label_names": ["a", "\udfff"]},
    {"rejects": [{"id": "\ud800", "reason": "", "detail": ""}]},
  ],
)
def test_halves_of_characters(dataset, change):
  """JSON can escape them, but what is made of the set could not be written."""
  path = os.path.join(dataset, MANIFEST)
  with open(path, encoding="utf-8") as file:
    manifest = json.load(file)
  with open(path, "w", encoding="ascii") as file:
    json.dump({**manifest, **change}, file)
  with pytest.raises(UserError, match=r"not a dataset\.json of this schema"):
    Dataset.load(dataset)


@pytest.mark.parametrize("value", [2**70, float("inf"), float("nan"), "1", True, None, -2e6])
def test_fault_24_statistics_that_cannot_be(dataset, value):
  """Found by fuzzing: a whole number beyond 64 bits is no number to numpy."""
  edit_manifest(
    dataset, lambda manifest: manifest.update(statistics={"mean": -30.0, "log_std": value})
  )
  with pytest.raises(
    UserError, match=r"not a dataset\.json of this schema .*the statistics say log_std"
  ):
    Dataset.load(dataset)


def test_fault_24_statistics_that_are_no_table(dataset):
  """Found by fuzzing."""
  edit_manifest(dataset, lambda manifest: manifest.update(statistics=[[]]))
  with pytest.raises(UserError, match=r"not a dataset\.json of this schema .*statistics is a list"):
    Dataset.load(dataset)


def test_a_manifest_nested_without_end(dataset):
  with open(os.path.join(dataset, MANIFEST), "w", encoding="utf-8") as file:
    file.write("[" * 100_000)
  with pytest.raises(UserError, match="nested too deeply"):
    Dataset.load(dataset)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("n_fft", 2**40),
    ("win_length", 2048),
    ("hop_length", 0),
    ("n_mels", -4),
    ("window", "(print(1))"),
    ("f_max", 9e9),
    ("sample_rate", "16000"),
    ("mel_scale", "bark"),
  ],
)
def test_a_front_end_that_cannot_be(dataset, key, value):
  wrong = dataclasses.replace(FRONTEND, **{key: value})
  edit_manifest(dataset, lambda manifest: manifest.update(frontend=wrong.to_json()))
  with pytest.raises(UserError, match="its parameters are no log-mel spectrogram's"):
    Dataset.load(dataset)


def test_unknown_split(dataset):
  with pytest.raises(UserError, match="no split 'test'; there are train"):
    Dataset.load(dataset).shards("test")


def test_fault_24_missing_statistics(dataset):
  with pytest.raises(UserError, match="no statistics; run `python -m data_pipeline"):
    _ = Dataset.load(dataset).statistics


def test_an_encoder_of_an_older_front_end_of_that_name_says_so(dataset):
  """Preparing the data again would not help."""
  other = dataclasses.replace(FRONTEND, name="cola")
  with pytest.raises(UserError, match="its 'cola' is another version's: train it anew"):
    Dataset.load(dataset).check_frontend(dataclasses.replace(other, hop_length=161), "mine")
  with pytest.raises(UserError, match="prepare the data with --frontend=cola"):
    Dataset.load(dataset).check_frontend(FRONTENDS["cola"], "mine")
