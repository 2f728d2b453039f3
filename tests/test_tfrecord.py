"""The codec, the framing and the prepared datasets on disk: what is written comes back, and no damage passes."""

import dataclasses
import json
import os
import re
import struct

import numpy as np
import pytest

from atst_jax.errors import UserError
from atst_jax.frontend import FRONTENDS
from atst_jax.records import MANIFEST, SCHEMA_VERSION, Clip, Dataset, sha256_file, write_json, write_shard
from atst_jax.tfrecord import RecordError, decode_example, encode_example, frame_record, read_records

FRONTEND = dataclasses.replace(FRONTENDS["atst"], name="tiny", n_mels=4)
INT64 = np.iinfo(np.int64)


def make_clip(number: int, frames: int = 3) -> Clip:
  mel = np.random.default_rng(number).normal(-40.0, 20.0, (frames, FRONTEND.n_mels)).astype(np.float16)
  return Clip(id=f"clip-{number}", mel=mel, labels=(number % 2,))


def same_clip(a: Clip, b: Clip) -> bool:
  fields = [f.name for f in dataclasses.fields(Clip) if f.name != "mel"]
  same_mel = a.mel.dtype == b.mel.dtype and a.mel.shape == b.mel.shape and a.mel.tobytes() == b.mel.tobytes()
  return same_mel and all(getattr(a, f) == getattr(b, f) for f in fields)


@pytest.fixture
def dataset(tmp_path) -> str:
  """A prepared dataset of two shards with 3 and 2 clips."""
  shards = []
  for index, numbers in enumerate([(0, 1, 2), (3, 4)]):
    shard = write_shard(str(tmp_path / f"train-{index}.tfrecord"), (make_clip(n).encode() for n in numbers))
    shards.append({**dataclasses.asdict(shard), "file": os.path.basename(shard.path)})
  splits = {"train": {"shards": [{k: v for k, v in shard.items() if k != "path"} for shard in shards]}}
  manifest = {"schema": SCHEMA_VERSION, "frontend": FRONTEND.to_json(), "splits": splits, "label_names": ["a", "b"]}
  write_json(str(tmp_path / MANIFEST), manifest)
  return str(tmp_path)


def edit_manifest(root: str, edit) -> None:
  path = os.path.join(root, MANIFEST)
  with open(path, encoding="utf-8") as file:
    manifest = json.load(file)
  edit(manifest)
  write_json(path, manifest)


# Codec


def test_example_round_trip():
  rng = np.random.default_rng(0)
  for _ in range(200):
    features = {}
    for index in range(rng.integers(0, 6)):
      if rng.random() < 0.5:
        features[f"bytes-{index}"] = rng.bytes(int(rng.integers(0, 300)))
      else:
        ints = rng.integers(INT64.min, INT64.max, rng.integers(0, 40), endpoint=True)
        features[f"ints-{index}"] = [int(i) >> int(rng.integers(64)) for i in ints]  # every length of varint
    assert decode_example(encode_example(features)) == features


@pytest.mark.parametrize("value", [0, 1, -1, 127, 128, -128, 2**31, -(2**31) - 1, int(INT64.max), int(INT64.min)])
def test_integers_come_back_with_their_sign(value):
  assert decode_example(encode_example({"one": value, "two": [value, 5, value]})) == {
    "one": [value],
    "two": [value, 5, value],
  }


def test_example_is_the_message_of_tensorflow():
  """Byte for byte what tf.train.Example writes with its map entries sorted, and what it parses."""
  import tensorflow as tf

  features = {"mel": b"\x00\xff" * 70, "id": "ğ/音.wav", "labels": [3, -1, 300], "num_frames": 35}
  message = tf.train.Example()
  message.features.feature["mel"].bytes_list.value.append(features["mel"])
  message.features.feature["id"].bytes_list.value.append(features["id"].encode())
  message.features.feature["labels"].int64_list.value.extend(features["labels"])
  message.features.feature["num_frames"].int64_list.value.append(features["num_frames"])
  assert encode_example(features) == message.SerializeToString(deterministic=True)


def test_framing_is_that_of_tensorflow(tmp_path):
  import tensorflow as tf

  payloads = [b"", b"a", bytes(range(256)) * 5]
  path = str(tmp_path / "theirs.tfrecord")
  with tf.io.TFRecordWriter(path) as writer:
    for payload in payloads:
      writer.write(payload)
  with open(path, "rb") as file:
    assert file.read() == b"".join(map(frame_record, payloads))
  assert list(read_records(path)) == payloads


def test_unpacked_integers_are_read():
  """Other writers of protobuf may leave an Int64List unpacked: tag 0x08 before each value."""
  int64_list = b"\x08\x05\x08" + b"\xff" * 9 + b"\x01"
  feature = b"\x1a" + bytes([len(int64_list)]) + int64_list
  entry = b"\x0a\x01x\x12" + bytes([len(feature)]) + feature
  features = b"\x0a" + bytes([len(entry)]) + entry
  assert decode_example(b"\x0a" + bytes([len(features)]) + features) == {"x": [5, -1]}


def test_equal_features_give_equal_bytes():
  assert encode_example({"b": 1, "a": b"x"}) == encode_example({"a": b"x", "b": 1})


@pytest.mark.parametrize("name", ["kısa-ğüşiöç.wav", "音/声 2.flac", "e\u0301", "🔊", "a" * 1000, ""])
def test_clip_round_trip_of_ids(name):
  clip = dataclasses.replace(make_clip(1), id=name)
  assert same_clip(Clip.decode(clip.encode(), FRONTEND.n_mels, "here"), clip)


def test_clip_round_trip():
  rng = np.random.default_rng(1)
  for number in range(100):
    multi_label = bool(rng.random() < 0.5)
    labels = tuple(int(i) for i in rng.integers(0, 600, rng.integers(0, 5 if multi_label else 2)))
    clip = dataclasses.replace(
      make_clip(number, frames=int(rng.integers(1, 200))),
      labels=labels, multi_label=multi_label, fold=int(rng.integers(-1, 10)), split=str(rng.choice(["train", "valid"])),
    )  # fmt: skip
    assert same_clip(Clip.decode(clip.encode(), FRONTEND.n_mels, "here"), clip)


@pytest.mark.parametrize(
  ("features", "complaint"),
  [
    ({"num_frames": 1, "id": "a"}, "'mel' is missing"),
    ({"mel": b"12345678", "id": "a"}, "'num_frames' is missing"),
    ({"mel": b"12345678", "num_frames": 1}, "'id' is missing"),
    ({"mel": b"1234567", "num_frames": 1, "id": "a"}, "not 1 frames of 4 float16"),
    ({"mel": b"12345678", "num_frames": 2, "id": "a"}, "not 2 frames of 4 float16"),
    ({"mel": b"12345678", "num_frames": [1, 1], "id": "a"}, ""),
    ({"mel": b"12345678", "num_frames": b"1", "id": "a"}, ""),
    ({"mel": [1, 2, 3, 4, 5, 6, 7, 8], "num_frames": 1, "id": "a"}, ""),
    ({"mel": b"12345678", "num_frames": 1, "id": 7}, ""),
    ({"mel": b"12345678", "num_frames": 1, "id": b"\xff"}, ""),
    ({"mel": b"12345678", "num_frames": 1, "id": "a", "label": b"dog"}, ""),
    ({"mel": b"12345678", "num_frames": 1, "id": "a", "fold": []}, ""),
    ({"mel": b"12345678", "num_frames": 1, "id": "a", "split": 3}, ""),
  ],
)
def test_foreign_record_is_refused(features, complaint):
  with pytest.raises(RecordError, match=f"^here: .*{complaint}"):
    Clip.decode(encode_example(features), FRONTEND.n_mels, "here")


def test_float_feature_is_refused():
  float_list = b"\x0a\x04" + struct.pack("<f", 1.0)
  feature = b"\x12" + bytes([len(float_list)]) + float_list
  entry = b"\x0a\x01x\x12" + bytes([len(feature)]) + feature
  features = b"\x0a" + bytes([len(entry)]) + entry
  with pytest.raises(RecordError, match=r"^here: .*'x' holds floats"):
    Clip.decode(b"\x0a" + bytes([len(features)]) + features, FRONTEND.n_mels, "here")


def test_garbage_is_a_record_error():
  """Whatever bytes carry a valid checksum: a clip or a RecordError, nothing else."""
  rng = np.random.default_rng(2)
  whole = make_clip(0).encode()
  for _ in range(2000):
    damaged = bytearray(whole)
    for position in rng.integers(0, len(whole), rng.integers(1, 4)):
      damaged[position] = rng.integers(256)
    size = len(whole) if rng.random() < 0.8 else rng.integers(len(whole))
    try:
      Clip.decode(bytes(damaged[:size]), FRONTEND.n_mels, "here")
    except RecordError as error:
      assert str(error).startswith("here: ")


# Damaged shards


def test_every_flipped_byte_is_found(dataset):
  path = os.path.join(dataset, "train-0.tfrecord")
  with open(path, "rb") as file:
    whole = file.read()
  ends = np.cumsum([len(frame_record(make_clip(n).encode())) for n in (0, 1, 2)])
  assert ends[-1] == len(whole)
  rng = np.random.default_rng(3)
  for position in range(len(whole)):
    damaged = bytearray(whole)
    damaged[position] ^= int(rng.integers(1, 256))
    with open(path, "wb") as file:
      file.write(damaged)
    record = np.searchsorted(ends, position, side="right")
    with pytest.raises(RecordError, match=rf"^{re.escape(path)}: record {record}: "):
      list(read_records(path))


def test_every_truncation_is_found(dataset):
  loaded = Dataset.load(dataset)
  path = os.path.join(dataset, "train-0.tfrecord")
  with open(path, "rb") as file:
    whole = file.read()
  starts = [0, *np.cumsum([len(frame_record(make_clip(n).encode())) for n in (0, 1)])]
  for size in reversed(range(len(whole))):
    os.truncate(path, size)
    record = np.searchsorted(starts, size, side="right") - 1
    if size in starts:  # a shorter file, as far as framing can tell
      assert len(list(read_records(path))) == record
      with pytest.raises(RecordError, match=rf"^{re.escape(path)}: {record} clips, 3 expected"):
        list(loaded.clips("train"))
    else:
      for read in (lambda: read_records(path), lambda: loaded.clips("train")):
        with pytest.raises(RecordError, match=rf"^{re.escape(path)}: record {record}: "):
          list(read())


def test_record_too_many_is_found(dataset):
  loaded = Dataset.load(dataset)
  with open(os.path.join(dataset, "train-1.tfrecord"), "ab") as file:
    file.write(frame_record(make_clip(9).encode()))
  with pytest.raises(RecordError, match=r"train-1\.tfrecord: 3 clips, 2 expected"):
    list(loaded.clips("train"))


def test_gzip_is_refused(dataset):
  import gzip

  path = os.path.join(dataset, "train-0.tfrecord")
  with open(path, "rb") as file:
    whole = file.read()
  with gzip.open(path, "wb") as file:
    file.write(whole)
  with pytest.raises(RecordError, match=rf"^{re.escape(path)}: .*gzip"):
    list(read_records(path))


# Datasets


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


def test_unknown_split(dataset):
  with pytest.raises(UserError, match="no split 'test'; there are train"):
    Dataset.load(dataset).shards("test")


def test_missing_statistics(dataset):
  with pytest.raises(UserError, match=r"no statistics; run `python -m data_pipeline\.prepare stats"):
    _ = Dataset.load(dataset).statistics
