"""The codec, the framing and the prepared datasets on disk: what is written comes back, and no
damage passes."""

import dataclasses
import os
import re
import struct

import numpy as np
import pytest

from atst_jax.data.dataset import Clip, Dataset
from atst_jax.data.tfrecord import (
  RecordError,
  decode_example,
  encode_example,
  frame_record,
  read_records,
)
from tests.tiny_clips import FRONTEND, make_clip, same_clip, write_tiny_dataset

INT64 = np.iinfo(np.int64)


@pytest.fixture
def dataset(tmp_path) -> str:
  return write_tiny_dataset(str(tmp_path))


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
        # every length of varint
        features[f"ints-{index}"] = [int(i) >> int(rng.integers(64)) for i in ints]
    assert decode_example(encode_example(features)) == features


@pytest.mark.parametrize(
  "value", [0, 1, -1, 127, 128, -128, 2**31, -(2**31) - 1, int(INT64.max), int(INT64.min)]
)
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


@pytest.mark.parametrize(
  "name", ["kısa-ğüşiöç.wav", "音/声 2.flac", "e\u0301", "🔊", "a" * 1000, ""]
)
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
      labels=labels,
      multi_label=multi_label,
      fold=int(rng.integers(-1, 10)),
      split=str(rng.choice(["train", "valid"])),
      group=str(rng.choice(["", "speaker 7"])),
    )
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
def test_fault_15_foreign_record_is_refused(features, complaint):
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


def test_fault_14_every_flipped_byte_is_found(dataset):
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


def test_fault_13_14_every_truncation_is_found(dataset):
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


def test_fault_15_gzip_is_refused(dataset):
  import gzip

  path = os.path.join(dataset, "train-0.tfrecord")
  with open(path, "rb") as file:
    whole = file.read()
  with gzip.open(path, "wb") as file:
    file.write(whole)
  with pytest.raises(RecordError, match=rf"^{re.escape(path)}: .*gzip"):
    list(read_records(path))
