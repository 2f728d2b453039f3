"""Batches of log-mel clips from shards: read, shuffled, padded and batched; nothing is computed.

The global batch of step s is a pure function of (seed, s), whatever the number of processes and
devices. S logical streams cut it into S blocks of B/S rows; stream i owns shards i, i + S, …,
visits them in an order drawn for each epoch, shuffles inside windows of each shard, and repeats on
its own. A position is therefore arithmetic on the shards' counts: resuming reads nothing twice, and
nothing of the iterator is saved.

A clip is read from its file into its row of the batch without a copy between, and its checksum is
computed there. One thread reads about as many clips as tf.data on two cores (`python -m
atst_jax.benchmark input --tensorflow`).
"""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from atst_jax.data.dataset import Dataset
from atst_jax.data.plain_reader import Damage, ShardReader
from atst_jax.util import storage
from atst_jax.util.errors import UserError

AHEAD = 2  # batches made while the device works
# that wait for a store; on a local disk one is the fastest: more of them wait for each other
STORE_THREADS = 16


def _draw(n, seed, stream, epoch, tag):
  """(n,) uint64, the raw output of a Philox counter: the same with every version of numpy."""
  return np.random.Philox(key=[seed, 0], counter=[0, stream, epoch, tag]).random_raw(n)


def shard_order(seed, stream, epoch, shards):
  """The order in which a stream visits its shards in an epoch: a permutation of range(shards)."""
  return np.argsort(_draw(shards, seed, stream, epoch, 0), kind="stable")


def window_order(seed, stream, epoch, shard, window, size):
  """The order of the records inside a window: a permutation of range(size), and a number in [0, 1)
  for each."""
  bits = _draw(2 * size, seed, stream, epoch, 1 + (int(shard) << 32) + int(window))
  return np.argsort(bits[:size], kind="stable"), (bits[size:] >> 40).astype(np.float32) / 2**24


@dataclasses.dataclass(frozen=True)
class Visit:
  """One pass over a shard: `skip` records of its shuffled order are already used."""

  epoch: int
  shard: int
  skip: int


def visits(seed, stream, counts, position) -> Iterator[Visit]:
  """All visits of a stream from `position` clips on, forever; `counts` are the clips of its
  shards."""
  epoch, left = divmod(position, sum(counts))
  while True:
    for shard in shard_order(seed, stream, epoch, len(counts)):
      if left < counts[shard]:
        yield Visit(epoch, int(shard), left)
      left = max(left - counts[shard], 0)
    epoch += 1


def check_streams(*, batch_size, streams, shards, processes):
  """Raises UserError with the numbers unless S divides B, the processes divide S, and every stream
  has a shard."""
  if batch_size % streams:
    raise UserError(
      f"batch_size {batch_size} is not divisible by data.streams {streams}; use a multiple of {streams}"
    )
  if streams % processes:
    raise UserError(
      f"data.streams {streams} is not divisible by the {processes} processes; use a multiple of {processes}"
    )
  if shards < streams:
    raise UserError(
      f"{shards} shards cannot feed data.streams={streams}: set data.streams to at most {shards}, or "
      f"prepare the data again with --num_shards={streams}"
    )


def record_batches(
  dataset: Dataset,
  *,
  split,
  clip_frames,
  streams,
  shuffle_window,
  batch_size,
  seed,
  start_step=0,
  rows=None,
  max_damaged=0.0,
  threads=0,
  with_ids=False,
) -> Iterator[dict]:
  """Batches from shards, from step `start_step` on, without end.

  Args:
    dataset: the prepared dataset.
    split: its split.
    clip_frames: T; shorter clips are padded with zeros, of longer ones a random window is read.
    streams: S, logical streams.
    shuffle_window: records shuffled together.
    batch_size: B of the global batch.
    seed: of the order.
    rows: (start, stop) of the global batch that this process supplies; whole streams. All by
      default.
    max_damaged: share of the clips that may be damaged, of those this process reads; they are
      replaced by others of their shard. At 0 the first one is an error.
    threads: that read; 0 chooses. Changes nothing in what is read.
    with_ids: also return the clips' ids.

  Yields:
    {"mel": (rows, T, F) float16 dB, "length": (rows,) int32 valid frames[, "id": (rows,) bytes]}.

  Raises:
    UserError: the numbers do not fit (`check_streams`); when they are reached: a damaged record,
      naming file and record, or a store that does not answer.
  """
  shards = dataset.shards(split)
  block = batch_size // streams
  start, stop = rows or (0, batch_size)
  check_streams(
    batch_size=batch_size,
    streams=streams,
    shards=len(shards),
    processes=batch_size // (stop - start),
  )
  mine = range(start // block, stop // block)
  n_mels = dataset.frontend.n_mels
  damage = Damage(max_damaged, sum(shard.num_clips for i in mine for shard in shards[i::streams]))
  readers = [
    _stream(
      shards[i::streams],
      n_mels,
      damage,
      seed=seed,
      stream=i,
      window=shuffle_window,
      position=start_step * block,
    )
    for i in mine
  ]

  def batch(pool) -> dict:
    mel = np.empty((stop - start, clip_frames, n_mels), np.float16)
    length = np.empty(stop - start, np.int32)
    ids: list[bytes] = [b""] * (stop - start)

    def fill(thread):
      for i in range(thread, len(readers), threads):
        for row in range(i * block, (i + 1) * block):
          reader, number, where = next(readers[i])
          length[row], taken = reader.read(number, where, mel[row])
          if with_ids:
            ids[row] = reader.clip(taken).id.encode()

    list(pool.map(fill, range(threads)))
    return {"mel": mel, "length": length, **({"id": np.array(ids, object)} if with_ids else {})}

  def batches():
    with contextlib.ExitStack() as stack:
      for stream in readers:
        stack.enter_context(contextlib.closing(stream))
      pool = stack.enter_context(ThreadPoolExecutor(threads))
      maker = stack.enter_context(ThreadPoolExecutor(1))
      stack.callback(maker.shutdown, cancel_futures=True)
      ahead = collections.deque(maker.submit(batch, pool) for _ in range(AHEAD))
      while True:
        yield ahead.popleft().result()
        ahead.append(maker.submit(batch, pool))

  threads = min(len(readers), threads or (STORE_THREADS if storage.is_remote(dataset.root) else 1))
  return batches()


def _stream(shards, n_mels, damage, *, seed, stream, window, position):
  """Yields (open shard, record, where a window begins) from `position` clips on."""
  indices = {}
  for visit in visits(seed, stream, [shard.num_clips for shard in shards], position):
    opened = ShardReader(shards[visit.shard], n_mels, damage, indices.get(visit.shard))
    with contextlib.closing(opened) as reader:
      indices[visit.shard] = reader.index
      count = shards[visit.shard].num_clips
      skip = visit.skip % window
      for first in range(visit.skip - skip, count, window):
        order, where = window_order(
          seed, stream, visit.epoch, visit.shard, first // window, min(window, count - first)
        )
        for i in range(skip, len(order)):
          yield reader, first + int(order[i]), where[i]
        skip = 0


def synthetic_batches(
  *, clip_frames, n_mels, batch_size, seed, start_step=0, rows=None, with_ids=False
) -> Iterator[dict]:
  """Batches of noise in dB, a function of (seed, step, row), which are its id: for where there is
  no data."""
  start, stop = rows or (0, batch_size)
  step = start_step
  while True:
    mel = [
      np.random.Generator(np.random.Philox(key=[seed, row], counter=[0, 0, 0, step]))
      .normal(-30, 15, (clip_frames, n_mels))
      .astype(np.float16)
      for row in range(start, stop)
    ]
    ids = np.array([f"{seed}/{step}/{row}".encode() for row in range(start, stop)], object)
    yield {
      "mel": np.stack(mel),
      "length": np.full(stop - start, clip_frames, np.int32),
      **({"id": ids} if with_ids else {}),
    }
    step += 1
