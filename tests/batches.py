"""Batches of a small data set by either reader, for the tests of the order and of damage."""

import contextlib
import importlib.util
import itertools

import pytest

from atst_jax.data.input_pipeline import record_batches

PIPELINE = {
  "split": "train",
  "clip_frames": 64,
  "streams": 4,
  "shuffle_window": 3,
  "batch_size": 8,
  "seed": 5,
  "with_ids": True,
  "reader": "plain",
}


READERS = [
  "plain",
  pytest.param(
    "tf.data",
    marks=pytest.mark.skipif(
      not importlib.util.find_spec("tensorflow"), reason="TensorFlow is not installed: .[tfds]"
    ),
  ),
]


def take(dataset, steps, **changes):
  with contextlib.closing(record_batches(dataset, **{**PIPELINE, **changes})) as batches:
    return list(itertools.islice(batches, steps))


def same(batches, expected):
  """Byte for byte, and of the same types."""
  for batch, other in zip(batches, expected, strict=True):
    assert batch["id"].tolist() == other["id"].tolist()
    for key in ("mel", "length"):
      assert batch[key].dtype == other[key].dtype and batch[key].shape == other[key].shape
      assert batch[key].tobytes() == other[key].tobytes()
