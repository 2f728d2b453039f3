"""Records that are damaged, cut short or no clips: named, or left out where some may be."""

import contextlib
import logging
import os
import struct

import pytest

from atst_jax.data import tf_reader
from atst_jax.data.dataset import Dataset, RecordError
from atst_jax.data.input_pipeline import record_batches
from atst_jax.data.tfrecord import encode_example, frame_record
from atst_jax.util.errors import UserError
from tests.batches import PIPELINE, READERS, take
from tests.tiny import write_dataset


def _flip(path, position):
  with open(path, "r+b") as file:
    file.seek(position)
    byte = file.read(1)
    file.seek(position)
    file.write(bytes([byte[0] ^ 4]))


def _foreign(path, position):
  """As many bytes of sound records that are no clips."""
  size = os.path.getsize(path)
  record = frame_record(encode_example({"id": "x", "mel": b"1"}))
  with open(path, "wb") as file:
    file.write(record)
    file.write(frame_record(bytes(size - len(record) - 16)))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (_flip, r"train-00002-of-00004.tfrecord: record 0: checksum of the data"),
    (_foreign, r"train-00002-of-00004.tfrecord: record 0: .* feature 'num_frames' is missing"),
  ],
)
def test_fault_14_a_damaged_record_is_named(tmp_path, damage, message, reader):
  root = write_dataset(tmp_path / "data", shards=4)
  damage(os.path.join(root, "train-00002-of-00004.tfrecord"), 5000)
  with pytest.raises(RecordError, match=message):
    take(Dataset.load(root), 8, reader=reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("left", [5, 40])
def test_a_shard_cut_short_is_noticed_by_its_count(tmp_path, reader, left):
  """TensorFlow 2.21 takes a file that ends in a record's head (12 bytes) for a whole one."""
  root = write_dataset(tmp_path / "data", shards=4)
  path = os.path.join(root, "train-00003-of-00004.tfrecord")
  dataset, start = Dataset.load(root), 0
  with open(path, "rb") as file:
    for _ in range(dataset.shards("train")[3].num_clips - 1):
      start += 16 + struct.unpack("<Q", file.read(8))[0]
      file.seek(start)
  os.truncate(path, start + left)
  with pytest.raises(RecordError, match=r"train-00003-of-00004.tfrecord: record 7: "):
    take(dataset, 30, reader=reader)


def test_a_visit_reads_no_record_behind_its_end(tmp_path):
  """What is damaged there is another stream's, or a later epoch's."""
  tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: .[tfds]")
  root = write_dataset(tmp_path / "data", shards=4)
  path = os.path.join(root, "train-00002-of-00004.tfrecord")
  with open(path, "rb") as file:
    second = 16 + struct.unpack("<Q", file.read(8))[0]
  _flip(path, second + 50)
  numbers = {key: tf.constant(n, tf.int64) for key, n in (("first", 0), ("seed", 5), ("used", 0))}
  visit = {"path": tf.constant(path), "where": tf.zeros(1), **numbers}
  read = lambda visit: list(tf_reader._visit_records(tf, visit, window=4, buffer=0))
  assert len(read(visit)) == 1
  with pytest.raises(tf.errors.DataLossError):
    read({**visit, "where": tf.zeros(2)})


def test_damage_that_comes_while_reading_is_named(tmp_path):
  root = write_dataset(tmp_path / "data", shards=4)
  batches = record_batches(Dataset.load(root), **PIPELINE)
  next(batches)
  path = os.path.join(root, "train-00001-of-00004.tfrecord")
  os.truncate(path, os.path.getsize(path) // 2)
  with pytest.raises(
    RecordError, match=r"train-00001-of-00004.tfrecord: record \d+: file ends inside the record"
  ):
    for _ in range(30):
      next(batches)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("clips", [9, 4])
def test_fault_14_shards_that_are_exchanged_while_they_are_read(tmp_path, reader, clips):
  """The set was prepared again in its place, with more clips or with fewer; some may be damaged."""
  sets = [
    write_dataset(tmp_path / name, clips_per_shard=(count,), seed=count, frames=(64, 64))
    for name, count in (("data", 6), ("new", clips))
  ]
  settings = {**PIPELINE, "reader": reader, "max_damaged": 0.1}
  with contextlib.closing(record_batches(Dataset.load(sets[0]), **settings)) as batches:
    next(batches)
    os.rename(sets[0], tmp_path / "old")
    os.rename(sets[1], sets[0])
    message = r"tfrecord: \d+ bytes, \d+ expected: it was exchanged"
    if clips < 6:  # as if they were cut
      message = f"damaged clips, data.max_damaged allows 2|{message}"
    with pytest.raises(UserError, match=message):
      for _ in range(30):
        next(batches)


@pytest.mark.parametrize("reader", READERS)
def test_fault_14_a_share_of_damaged_records_may_be_left_out(tmp_path, monkeypatch, reader):
  """Replaced by others of their shard: the counts, and so the order of all other streams, stay."""
  warnings = []
  monkeypatch.setattr(
    logging.getLogger("atst_jax"), "warning", lambda text, *args: warnings.append(text % args)
  )
  root = write_dataset(tmp_path / "data", shards=4)
  dataset = Dataset.load(root)
  sound = take(dataset, 30)
  path = os.path.join(root, "train-00002-of-00004.tfrecord")
  _flip(path, 5000)
  batches = take(dataset, 30, max_damaged=0.1, reader=reader)
  shown = {id for batch in batches for id in batch["id"].tolist()}
  lost = {id for batch in sound for id in batch["id"].tolist()} - shown
  assert lost == {b"2-0"}
  shown = [
    (was, now)
    for a, b in zip(sound, batches, strict=True)
    for was, now in zip(a["id"], b["id"], strict=True)
  ]
  ((was, now),) = {(was, now) for was, now in shown if was != now}
  assert was == b"2-0" and now.startswith(b"2-")
  # once, however often the record is met; tf.data leaves the rest to the plain reader
  assert len(warnings) == 1 + (reader == "tf.data")
  warning = next(text for text in warnings if "takes its place" in text)
  assert f"{path}: record 0: checksum" in warning and "1 of this run so far (allowed: 2)" in warning
  # each of several processes reads every clip in time, so that a share is one of all of them
  warnings.clear()
  take(dataset, 60, max_damaged=0.1, reader=reader, rows=(0, 2))
  assert any("1 of this run so far (allowed: 2)" in text for text in warnings)
  resumed = take(dataset, 4, start_step=26, max_damaged=0.1, reader=reader)
  assert [b["id"].tolist() for b in resumed] == [b["id"].tolist() for b in batches[26:]]
  with pytest.raises(UserError, match=r"record 0: .* 1 damaged clips, data.max_damaged allows 0;"):
    take(dataset, 8, max_damaged=1e-6)
  _flip(path, 2)  # the length of the first record: nothing of the shard is left
  with pytest.raises(UserError, match="no sound record"):
    take(dataset, 8, max_damaged=0.5)
