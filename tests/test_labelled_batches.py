"""Batches of labelled clips: any clips by their numbers, every epoch in an order of its own, on any
number of processes."""

import os
import pathlib
import shutil

import numpy as np
import pytest

from atst_jax.data.dataset import Dataset
from atst_jax.data.labelled_batches import (
  ClipReader,
  all_clips,
  epoch_order,
  steps_per_epoch,
  train_clips,
)
from atst_jax.data.tfrecord import RecordError
from atst_jax.downstream.features import clips
from atst_jax.util.errors import UserError
from tests.evaluation import make_clips, write_clips


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """60 clips in two splits, so that a number is a place in one of two shards."""
  made = make_clips(60)
  for i, clip in enumerate(made):
    object.__setattr__(clip, "split", "train" if i % 3 else "test")
  return Dataset.load(write_clips(tmp_path_factory.mktemp("batches") / "data", made))


def test_a_reader_gives_any_clips_with_their_targets_cropped_centrally(dataset):
  everything = list(clips(dataset))
  targets = np.arange(60, dtype=np.uint8)[:, None]
  wanted = [np.array([3, 59, 0, 20, 19]), np.array([21, 21]), np.array([40])]
  batches = list(ClipReader(dataset, 41).batches(wanted, targets))
  assert [len(batch["mel"]) for batch in batches] == [5, 2, 1]
  for numbers, batch in zip(wanted, batches, strict=True):
    np.testing.assert_array_equal(batch["target"][:, 0], numbers)
    for number, mel, length in zip(numbers, batch["mel"], batch["length"], strict=True):
      clip = everything[number].mel
      start = max(len(clip) - 41, 0) // 2
      np.testing.assert_array_equal(mel[:length], clip[start : start + 41])
      assert length == min(len(clip), 41) and not mel[length:].any()


def test_epochs_visit_every_clip_once_in_an_order_of_their_own():
  index = np.arange(100, 150)
  take = lambda n, **options: [
    next(stream) for stream in [train_clips(index, **options)] for _ in range(n)
  ]
  options = {"batch_size": 8, "seed": 3, "start_step": 0, "rows": (0, 8)}
  first = take(25, **options)
  epochs = np.concatenate(first).reshape(4, 50)  # 6.25 batches each
  for epoch, numbers in enumerate(epochs):
    np.testing.assert_array_equal(numbers, epoch_order(index, 3, epoch))
    assert sorted(numbers) == index.tolist()
  assert len(set(map(tuple, epochs))) == 4
  resumed = take(18, **{**options, "start_step": 7})
  np.testing.assert_array_equal(resumed, first[7:])
  halves = [take(3, **{**options, "rows": rows}) for rows in ((0, 4), (4, 8))]
  np.testing.assert_array_equal(np.concatenate(halves, 1), first[:3])
  assert not np.array_equal(take(1, **{**options, "seed": 4}), first[:1])
  with pytest.raises(UserError, match="7 clips to train on are less than one batch of 8"):
    steps_per_epoch(7, 8)


def test_evaluation_visits_every_clip_once():
  index = np.arange(10, 30)
  batches = list(all_clips(index, batch_size=8, rows=(0, 8)))
  assert [len(b) for b in batches] == [8, 8, 8]
  np.testing.assert_array_equal(np.concatenate(batches)[:20], index)
  parts = [list(all_clips(index, batch_size=8, rows=rows)) for rows in ((0, 4), (4, 8))]
  np.testing.assert_array_equal(np.concatenate(parts, 1), batches)


def test_a_damaged_clip_ends_the_reading(dataset, tmp_path):
  """No other clip takes its place: it would have another label."""
  copy = pathlib.Path(shutil.copytree(dataset.root, tmp_path / "copy"))
  file = copy / os.path.basename(dataset.shards("test")[0].path)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  with pytest.raises(RecordError, match=r"checksum|clip of this schema"):
    list(
      ClipReader(Dataset.load(str(copy)), 41).batches([np.arange(20)], np.zeros((60, 1), np.uint8))
    )
