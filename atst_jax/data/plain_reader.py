"""The reader that needs no TensorFlow: random access to the spectrograms of shards, straight into a
batch.

A clip is read from its file into its row of the batch without a copy between, and its checksum is
computed there.
"""

import collections
import contextlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from atst_jax.data.dataset import Dataset
from atst_jax.data.order import visits
from atst_jax.data.shard_reader import Damage, Index, ShardReader, rows
from atst_jax.util import storage

INDEXED = 200_000  # clips whose places are kept in memory, at about 200 bytes each
AHEAD = 2  # batches made while the device works
# that wait for a store; on a local disk one is the fastest: more of them wait for each other
STORE_THREADS = 16


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
  max_damaged,
) -> Generator[dict, None, None]:
  """As `input_pipeline.record_batches`, of the streams `mine` with `block` clips each in a
  batch."""
  shards, n_mels = dataset.shards(split), dataset.frontend.n_mels
  damage = Damage(max_damaged, sum(shard.num_clips for shard in shards))
  position = start_step * block
  indices: dict[int, Index] = {}
  readers = [
    _stream(
      shards,
      n_mels,
      damage,
      indices,
      seed=seed,
      stream=i,
      streams=streams,
      window=window,
      position=position,
    )
    for i in mine
  ]
  size = len(mine) * block
  threads = min(len(readers), threads or (STORE_THREADS if storage.is_remote(dataset.root) else 1))

  def batch(pool) -> dict:
    mel = np.empty((size, clip_frames, n_mels), np.float16)
    out, length = rows(mel), np.empty(size, np.int32)
    ids: list[bytes] = [b""] * size

    def fill(thread):
      for i in range(thread, len(readers), threads):
        for row in range(i * block, (i + 1) * block):
          reader, number, where = next(readers[i])
          length[row], taken = reader.read(number, where, out[row])
          if with_ids:
            ids[row] = reader.clip(taken).id.encode()

    list(pool.map(fill, range(threads)))
    return {"mel": mel, "length": length, **({"id": np.array(ids, object)} if with_ids else {})}

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


def _stream(shards, n_mels, damage, indices, *, seed, stream, streams, window, position):
  """Yields (open shard, record, where its clip is cropped) from `position` clips on. `indices` are
  shared by all streams, each of which comes to every shard in time."""
  counts = [shard.num_clips for shard in shards]
  small = sum(counts) <= INDEXED  # of a larger set the heads are read anew at each visit
  for visit in visits(seed, stream, streams, counts, position):
    opened = ShardReader(shards[visit.shard], n_mels, damage, indices.get(visit.shard))
    with contextlib.closing(opened) as reader:
      if small:
        indices[visit.shard] = reader.index
      order, where = visit.order(seed, window)
      for number in order[visit.skip :].tolist():
        yield reader, visit.begin + number, where[number]
