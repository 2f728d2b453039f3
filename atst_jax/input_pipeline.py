"""Batches of log-mel clips from shards: tf.data reads, shuffles, pads and batches; it computes nothing.

The global batch of step s is a pure function of (seed, s), whatever the number of processes and devices. S logical
streams cut it into S blocks of B/S rows; stream i owns shards i, i + S, …, visits them in an order drawn for each
epoch, shuffles inside windows of each shard, and repeats on its own. A position is therefore arithmetic on the shards'
counts: resuming skips whole shards unread and at most one shard's records unparsed, and nothing of the iterator is
saved.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator

import numpy as np

from atst_jax import storage
from atst_jax.damage import Damage, find_damage, sound_records
from atst_jax.errors import UserError
from atst_jax.records import Dataset, Shard
from atst_jax.tfrecord import read_records


def _draw(n, seed, stream, epoch, tag):
  """(n,) uint64, the raw output of a Philox counter: the same with every version of numpy."""
  return np.random.Philox(key=[seed, 0], counter=[0, stream, epoch, tag]).random_raw(n)


def shard_order(seed, stream, epoch, shards):
  """The order in which a stream visits its shards in an epoch: a permutation of range(shards)."""
  return np.argsort(_draw(shards, seed, stream, epoch, 0), kind="stable")


def window_order(seed, stream, epoch, shard, window, size):
  """The order of the records inside a window: a permutation of range(size), and a number in [0, 1) for each."""
  bits = _draw(2 * size, seed, stream, epoch, 1 + (int(shard) << 32) + int(window))
  return np.argsort(bits[:size], kind="stable"), (bits[size:] >> 40).astype(np.float32) / 2**24


@dataclasses.dataclass(frozen=True)
class Visit:
  """One pass over a shard: `skip` records of its shuffled order are already used."""

  epoch: int
  shard: int
  skip: int


def visits(seed, stream, counts, position) -> Iterator[Visit]:
  """All visits of a stream from `position` clips on, forever; `counts` are the clips of its shards."""
  epoch, left = divmod(position, sum(counts))
  while True:
    for shard in shard_order(seed, stream, epoch, len(counts)):
      if left < counts[shard]:
        yield Visit(epoch, int(shard), left)
      left = max(left - counts[shard], 0)
    epoch += 1


def check_streams(*, batch_size, streams, shards, processes):
  """Raises UserError with the numbers unless S divides B, the processes divide S, and every stream has a shard."""
  if batch_size % streams:
    raise UserError(f"batch_size {batch_size} is not divisible by data.streams {streams}; use a multiple of {streams}")
  if streams % processes:
    raise UserError(
      f"data.streams {streams} is not divisible by the {processes} processes; use a multiple of {processes}"
    )
  if shards < streams:
    raise UserError(f"{shards} shards cannot feed data.streams={streams}: set data.streams to at most {shards}, or "
                    f"prepare the data again with --num_shards={streams}")  # fmt: skip


def record_batches(dataset: Dataset, *, split, clip_frames, streams, shuffle_window, batch_size, seed, start_step=0,
                   rows=None, max_damaged=0.0, with_ids=False) -> Iterator[dict]:  # fmt: skip
  """Batches from shards, from step `start_step` on, without end.

  Args:
    dataset: the prepared dataset.
    split: its split.
    clip_frames: T; shorter clips are padded with zeros, of longer ones a random window is read.
    streams: S, logical streams.
    shuffle_window: records shuffled together.
    batch_size: B of the global batch.
    seed: of the order.
    rows: (start, stop) of the global batch that this process supplies; whole streams. All by default.
    max_damaged: share of the clips that may be damaged, of those this process reads; they are replaced by others of
      their shard. At 0 the first one is an error.
    with_ids: also return the clips' ids.

  Yields:
    {"mel": (rows, T, F) float16 dB, "length": (rows,) int32 valid frames[, "id": (rows,) bytes]}.

  Raises:
    UserError: the numbers do not fit (`check_streams`); when they are reached: a damaged record, naming file and
      record, or a store that does not answer.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its words about missing CUDA are not about this process
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's
  shards = dataset.shards(split)
  block = batch_size // streams
  start, stop = rows or (0, batch_size)
  check_streams(batch_size=batch_size, streams=streams, shards=len(shards), processes=batch_size // (stop - start))
  owned: list[list[Shard]] = [shards[i::streams] for i in range(streams)]
  mine = range(start // block, stop // block)
  n_mels, frame_bytes = dataset.frontend.n_mels, 2 * dataset.frontend.n_mels

  def stream_visits(stream, step):
    stream = int(stream)
    counts = [shard.num_clips for shard in owned[stream]]
    for visit in visits(seed, stream, counts, int(step) * block):
      yield owned[stream][visit.shard].path, stream, visit.epoch, visit.shard, visit.skip

  def shuffle(stream, epoch, shard, window, records):
    order, where = tf.numpy_function(
      lambda i, e, s, w, n: window_order(seed, int(i), int(e), s, w, int(n)),
      (stream, epoch, shard, window, tf.size(records)), (tf.int64, tf.float32), stateful=False)  # fmt: skip
    return tf.gather(records, order), where

  by_path = {shard.path: shard for shard in shards}
  damage, failures = Damage(int(max_damaged * sum(shard.num_clips for i in mine for shard in owned[i]))), []

  def read_here(path):
    try:
      yield from sound_records(dataset, by_path[path.decode()], damage) if max_damaged else read_records(path.decode())
    except UserError as error:
      failures.append(error)  # TensorFlow makes an error of its own of it
      raise

  def records_of(path):
    if not max_damaged and not storage.is_remote(dataset.root):
      return tf.data.TFRecordDataset(path, buffer_size=1 << 20)
    # TensorFlow itself stops at damage, and reads no store but gs://.
    return tf.data.Dataset.from_generator(read_here, output_signature=tf.TensorSpec((), tf.string), args=(path,))

  def read(path, stream, epoch, shard, skip):
    first = skip // shuffle_window
    windows = records_of(path).skip(first * shuffle_window).batch(shuffle_window)
    windows = windows.enumerate(first).map(lambda window, records: shuffle(stream, epoch, shard, window, records))
    return windows.unbatch().skip(skip - first * shuffle_window)

  signature = (tf.TensorSpec((), tf.string), *[tf.TensorSpec((), tf.int64)] * 4)
  stream = lambda i: tf.data.Dataset.from_generator(
    stream_visits, output_signature=signature, args=(i, start_step)
  ).flat_map(read)

  def parse(records, where):
    spec = {"mel": tf.io.FixedLenFeature((), tf.string), "num_frames": tf.io.FixedLenFeature((), tf.int64)}
    if with_ids:
      spec["id"] = tf.io.FixedLenFeature((), tf.string)
    features = tf.io.parse_example(records, spec)
    frames = tf.cast(features["num_frames"], tf.int32)
    slack = tf.maximum(frames - clip_frames, 0)
    begin = tf.cast(where * tf.cast(slack + 1, tf.float32), tf.int32)
    length = tf.minimum(frames, clip_frames)
    window = tf.strings.substr(features["mel"], begin * frame_bytes, length * frame_bytes)
    bits = tf.io.decode_raw(window, tf.uint16, fixed_length=clip_frames * frame_bytes)  # has no kernel for float16
    mel = tf.reshape(tf.bitcast(bits, tf.float16), (-1, clip_frames, n_mels))
    batch = {"mel": mel, "length": length}
    return {**batch, "id": features["id"]} if with_ids else batch

  batches = tf.data.Dataset.range(mine.start, mine.stop).interleave(
    stream, cycle_length=len(mine), block_length=block, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
  )
  batches = batches.batch(stop - start, drop_remainder=True).map(parse, tf.data.AUTOTUNE, deterministic=True)

  def shards_ahead(step):
    ahead = [itertools.islice(stream_visits(i, step), 2 * len(owned[i])) for i in mine]
    for visit in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*ahead))):
      yield by_path[visit[0]]

  def named(iterator):
    step = start_step
    while True:
      try:
        batch = next(iterator)
      except tf.errors.OpError as error:
        if failures:
          raise failures[0] from error
        raise find_damage(dataset, dict.fromkeys(shards_ahead(step))) or error from error
      yield batch
      step += 1

  return named(batches.prefetch(2).as_numpy_iterator())


def synthetic_batches(*, clip_frames, n_mels, batch_size, seed, start_step=0, rows=None) -> Iterator[dict]:
  """Batches of noise in dB, a function of (seed, step, row): feeds the trainer where there is no TensorFlow."""
  start, stop = rows or (0, batch_size)
  step = start_step
  while True:
    mel = [np.random.Generator(np.random.Philox(key=[seed, row], counter=[0, 0, 0, step]))
           .normal(-30, 15, (clip_frames, n_mels)).astype(np.float16) for row in range(start, stop)]  # fmt: skip
    yield {"mel": np.stack(mel), "length": np.full(stop - start, clip_frames, np.int32)}
    step += 1
