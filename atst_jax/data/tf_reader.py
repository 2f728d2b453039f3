"""The reader by tf.data: it streams TFRecord shards, and Python only plans.

Of every visit to a shard Python says where reading begins and how each window is shuffled
(`order`). tf.data reads and verifies the records, shuffles, takes the streams in turn, batches,
parses, crops and pads them. In memory are a window of each stream and about seven copies of each
clip of a batch, beside TensorFlow's own 0.6 GB.
"""

import contextlib
import functools
import os
from collections.abc import Generator

import numpy as np

from atst_jax.data.dataset import Dataset
from atst_jax.data.order import visits
from atst_jax.util import storage

STORE_BYTES = 1 << 20  # that a store is asked for at once


class Unreadable(Exception):
  """A batch that tf.data cannot make: a record in it is damaged, missing or no clip."""


@functools.cache
def import_tensorflow():
  """TensorFlow, which takes no memory of a GPU. What its libraries print while they load (2.21: ten
  lines about drivers and instruction sets, at any log level) is left out."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  with _silent():
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # the program has used TensorFlow's devices already
      tf.config.set_visible_devices([], "GPU")  # their memory is JAX's
    tf.constant(0)  # looks for devices
  return tf


@contextlib.contextmanager
def _silent():
  """Nothing is written to the process's standard error."""
  try:
    kept = os.dup(2)
  except OSError:  # it is closed
    yield
    return
  nothing = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nothing, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nothing)


def buffer_bytes(root: str) -> int:
  """For `TFRecordDataset`: from a disk, records are read where they are wanted, without a copy (1.3
  times as fast); a store would be asked for each record's head, so much is read at once."""
  return STORE_BYTES if storage.is_remote(root) else 0


def batches(
  dataset: Dataset,
  *,
  split,
  clip_frames,
  streams,
  mine,
  window,
  block,
  seed,
  threads,
  with_ids,
  start_step,
) -> Generator[dict, None, None]:
  """As `input_pipeline.record_batches`, of the streams `mine` with `block` clips each in a batch.
  Raises Unreadable."""
  tf = import_tensorflow()
  shards, n_mels = dataset.shards(split), dataset.frontend.n_mels
  cpus = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
  shape = tf.TensorSpec
  plan = functools.partial(
    _plan,
    [shard.path for shard in shards],
    [shard.num_clips for shard in shards],
    seed=seed,
    streams=streams,
    window=window,
    position=start_step * block,
  )
  records = functools.partial(_visit_records, tf, buffer=buffer_bytes(dataset.root))
  decode = functools.partial(
    _decode,
    tf,
    clip_frames=clip_frames,
    n_mels=n_mels,
    longest=dataset.max_frames(split),
    with_ids=with_ids,
  )

  def stream_records(stream):
    visited = tf.data.Dataset.from_generator(
      plan,
      output_signature={
        "path": shape((), tf.string),
        **dict.fromkeys(("first", "size", "lead", "used"), shape((), tf.int64)),
        "places": shape((None,), tf.int64),
        "where": shape((None,), tf.float32),
      },
      args=(stream,),
    )
    return visited.flat_map(records)

  # A clip is copied as it is read, shuffled, parsed and decoded; between these it is moved. A
  # thread more than there are cores reads, for where others wait for a window.
  shuffled = tf.data.Dataset.from_tensor_slices(np.array(mine, np.int64)).interleave(
    stream_records,
    cycle_length=len(mine),
    block_length=block,
    num_parallel_calls=min(cpus + 1, len(mine)),
    deterministic=True,
  )
  batched = shuffled.batch(len(mine) * block, drop_remainder=True).map(decode).prefetch(1)
  settings = tf.data.Options()
  settings.autotune.enabled = False
  settings.threading.private_threadpool_size = cpus
  iterator = batched.with_options(settings).as_numpy_iterator()
  try:
    while True:
      try:
        batch = next(iterator)
      except (tf.errors.OpError, StopIteration) as error:
        reason = " ".join((getattr(error, "message", None) or "the end").split())[:200]
        raise Unreadable(reason) from error
      mel = batch.pop("mel").view(np.float16).reshape(-1, clip_frames, n_mels)
      yield {"mel": mel, **batch}
  finally:
    del iterator  # and with it TensorFlow's threads and files


def _plan(paths, counts, stream, *, seed, streams, window, position):
  """What a stream reads, visit by visit: from which record on, in windows of how many records, how
  many of the first one are not there, the places inside the windows in their order, where clips are
  cropped, and how many are already used."""
  for visit in visits(seed, int(stream), streams, counts, position):
    windows, used = visit.windows(seed, window)
    size = max(len(part.order) for part in windows)
    lead = size - len(windows[0].order)
    places = [np.arange(lead), lead + windows[0].order, *(part.order for part in windows[1:])]
    where = [np.zeros(lead, np.float32), *(part.where for part in windows)]
    yield {
      "path": paths[visit.shard],
      "first": windows[0].begin,
      "size": size,
      "lead": lead,
      "used": lead + used,
      "places": np.concatenate(places),
      "where": np.concatenate(where),
    }


def _visit_records(tf, visit, *, buffer):
  """The records of a visit in their order, (record, where its clip is cropped).

  TensorFlow (2.21) takes a file that ends inside a record's head for a whole one, so what is
  missing becomes an empty record, which `_decode` refuses."""

  def shuffled(records, order):
    places, where = order
    return tf.gather(records, places), where

  missing = tf.data.Dataset.from_tensors("").repeat()
  records = tf.data.TFRecordDataset(visit["path"], buffer_size=buffer).skip(visit["first"])
  records = missing.take(visit["lead"]).concatenate(records).concatenate(missing)
  records = records.take(tf.shape(visit["places"], tf.int64)[0])
  order = tf.data.Dataset.from_tensor_slices((visit["places"], visit["where"]))
  windows = tf.data.Dataset.zip((records.batch(visit["size"]), order.batch(visit["size"])))
  return windows.map(shuffled).unbatch().skip(visit["used"])


def _decode(tf, records, where, *, clip_frames, n_mels, longest, with_ids):
  """Records (B,) -> "mel" (B, T F) uint16, cropped or padded with zeros, and "length" (B,)[, and
  "id"]."""
  features = {"mel": tf.io.FixedLenFeature((), tf.string, "")}
  if with_ids:
    features["id"] = tf.io.FixedLenFeature((), tf.string, "")
  clips = tf.io.parse_example(records, features)
  mel, row_bytes = clips.pop("mel"), 2 * n_mels
  size = tf.strings.length(mel)
  whole = (size > 0) & (size % row_bytes == 0) & (size <= longest * row_bytes)
  if "id" in clips:
    whole &= tf.strings.length(clips["id"]) > 0
  check = tf.debugging.Assert(tf.reduce_all(whole), ["not a clip of this schema"])
  with tf.control_dependencies([check]):
    frames = size // row_bytes
  length = tf.minimum(frames, clip_frames)
  if longest > clip_frames:  # a crop is a copy
    begin = tf.cast(where * tf.cast(frames - length + 1, tf.float32), tf.int32)
    mel = tf.strings.substr(mel, begin * row_bytes, length * row_bytes)
  # zeros behind the end of what is shorter
  bits = tf.io.decode_raw(mel, tf.uint16, fixed_length=clip_frames * row_bytes)
  return {"mel": bits, "length": length, **clips}
