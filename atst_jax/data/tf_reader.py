"""The reader by tf.data: it streams TFRecord shards, and Python only plans.

Of every visit to a shard Python says where reading begins and with which seed its records are
shuffled (`order`). tf.data reads and verifies the records, shuffles, takes the streams in turn,
batches, parses, crops and pads them. In memory are the shuffle's buffer of each stream and a few
copies of each clip of a batch, beside TensorFlow's own 0.6 GB.
"""

import contextlib
import ctypes
import functools
import os
from collections.abc import Generator

import numpy as np

from atst_jax.data.dataset import Dataset
from atst_jax.data.order import buffer_shuffle, visits
from atst_jax.util import storage

STORE_BYTES = 1 << 20  # that a store is asked for at once
# glibc's mallopt: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD, in bytes
KEPT = {-3: 1 << 25, -1: 2**31 - 1, -2: 1 << 26}


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


def shuffles_as_planned() -> bool:
  """Whether TensorFlow draws as `order.buffer_shuffle` does: 2.21 does, unless the program has set
  a global seed."""
  clips = import_tensorflow().data.Dataset.range(100)
  found = clips.shuffle(16, seed=5, reshuffle_each_iteration=False).as_numpy_iterator()
  return list(found) == buffer_shuffle(100, 16, 5).tolist()


def keep_memory() -> None:
  """The process keeps the memory of records that are gone. By its defaults glibc (2.36) may give it
  back to the system and ask for it again: then half of the time goes into empty pages."""
  with contextlib.suppress(AttributeError, OSError):  # another C library
    for option, value in KEPT.items():
      ctypes.CDLL(None).mallopt(option, value)


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
  keep_memory()
  shards, n_mels = dataset.shards(split), dataset.frontend.n_mels
  cpus = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
  shape = tf.TensorSpec
  plan = functools.partial(_plan, shards, seed=seed, streams=streams, position=start_step * block)
  records = functools.partial(_visit_records, tf, window=window, buffer=buffer_bytes(dataset.root))
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
        **dict.fromkeys(("first", "seed", "used"), shape((), tf.int64)),
        "where": shape((None,), tf.float32),
      },
      args=(stream,),
    )
    return visited.flat_map(records)

  # A clip is copied as it is read, parsed and decoded; between these it is moved. A thread more
  # than there are cores reads, for where others fill a buffer.
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


def _plan(shards, stream, *, seed, streams, position):
  """What a stream reads, visit by visit: from which record on, the seed of their shuffle, how many
  are already used, and where the clip of each record is cropped. Raises ValueError at a file of
  this host that has another size: the plain reader says why."""
  counts = [shard.num_clips for shard in shards]
  for visit in visits(seed, int(stream), streams, counts, position):
    shuffle_seed, where = visit.drawn(seed)
    path, first = shards[visit.shard].path, visit.begin
    if not storage.is_remote(path) and storage.size(path) != shards[visit.shard].num_bytes:
      raise ValueError(f"{path} has another size")
    yield {"path": path, "first": first, "seed": shuffle_seed, "used": visit.skip, "where": where}


def _visit_records(tf, visit, *, window, buffer):
  """The records of a visit in their order, (record, where its clip is cropped).

  TensorFlow (2.21) takes a file that ends inside a record's head for a whole one, so what is
  missing becomes an empty record, which `_decode` refuses."""
  missing = tf.data.Dataset.from_tensors("").repeat()
  records = tf.data.TFRecordDataset(visit["path"], buffer_size=buffer).skip(visit["first"])
  records = records.concatenate(missing).take(tf.size(visit["where"], tf.int64))
  where = tf.data.Dataset.from_tensor_slices(visit["where"])
  clips = tf.data.Dataset.zip((records, where))
  clips = clips.shuffle(window, seed=visit["seed"], reshuffle_each_iteration=False)
  return clips.skip(visit["used"])


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
