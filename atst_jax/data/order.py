"""Which clip comes when: a pure function of the seed and the position, version 2.

All epochs form one endless sequence of shards: for each epoch a new permutation of all of them,
drawn from (seed, epoch). Of S logical streams, stream i takes the elements i, i + S, i + 2 S, … of
it, shuffles the clips of each shard inside windows, and gives B / S consecutive clips to every
batch. So every clip comes once in every epoch, whatever the number of shards, and a position is
arithmetic on the shards' counts. Resuming opens one shard of each stream, and nothing of an
iterator is saved.

Streams run at the same number of clips, not of shards. As far as shards differ in size, streams
drift apart: by about √e · d / (shards of a stream in an epoch) epochs after e epochs, where d is
the relative deviation of the counts. Prepared shards are equal to within one file.

In version 1 each stream kept shards of its own, which gave up to twice as many visits to some clips
as to others.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from atst_jax.util.errors import UserError

VERSION = 2


def _draw(n, seed, *counter):
  """(n,) uint64, the raw output of a Philox counter: the same with every version of numpy."""
  return np.random.Philox(key=[seed, 0], counter=[0, *counter]).random_raw(n)


@functools.lru_cache(512)  # all streams of a process ask for the same epochs
def shard_order(seed: int, epoch: int, shards: int) -> np.ndarray:
  """The order of all shards in an epoch: a permutation of range(shards)."""
  return np.argsort(_draw(shards, seed, 0, epoch, 0), kind="stable")


def window_order(seed, epoch, shard, window, size) -> tuple[np.ndarray, np.ndarray]:
  """The order of the records inside a window of a shard: a permutation of range(size), and a number
  in [0, 1) for each, float32."""
  bits = _draw(2 * size, seed, 0, epoch, 1 + (int(shard) << 32) + int(window))
  return np.argsort(bits[:size], kind="stable"), (bits[size:] >> 40).astype(np.float32) / 2**24


def epoch_order(index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
  """The clips of `index`, any clips of a set, in the order of an epoch: each exactly once."""
  return index[np.argsort(_draw(len(index), seed, 0, epoch, 0), kind="stable")]


class Visit(NamedTuple):
  """One pass over a shard: `skip` clips of its shuffled order are already used."""

  epoch: int
  shard: int
  skip: int

  def records(self, seed: int, count: int, window: int) -> tuple[int, np.ndarray, np.ndarray, int]:
    """What is left of the pass.

    Args:
      count: clips of the shard.
      window: records shuffled together.

    Returns:
      The record where reading begins, which starts a window; the places that follow, each inside
      its window, and their numbers in [0, 1); how many of these are already used.
    """
    first = self.skip - self.skip % window
    parts = [
      window_order(seed, self.epoch, self.shard, begin // window, min(window, count - begin))
      for begin in range(first, count, window)
    ]
    places, where = (np.concatenate(part) for part in zip(*parts, strict=True))
    return first, places, where, self.skip - first


def visits(
  seed: int, stream: int, streams: int, counts: Sequence[int], position: int
) -> Iterator[Visit]:
  """All visits of one of `streams` from its `position` clips on, forever.

  Args:
    counts: clips of each shard.
  """
  clips, n, left = np.asarray(counts), len(counts), position
  for epoch in itertools.count():
    mine = shard_order(seed, epoch, n)[(stream - epoch * n) % streams :: streams]
    sizes = clips[mine]
    if left >= (total := int(sizes.sum())):
      left -= total
      continue
    ends = np.cumsum(sizes)
    for i in range(int(np.searchsorted(ends, left, side="right")), len(mine)):
      yield Visit(epoch, int(mine[i]), int(max(left - (ends[i] - sizes[i]), 0)))
    left = 0


def check_streams(*, batch_size, streams, shards, processes) -> None:
  """Raises UserError with the numbers unless S divides B, the processes divide S, and every stream
  has a shard: with fewer shards a batch would hold a clip twice."""
  if batch_size % streams:
    raise UserError(
      f"batch_size {batch_size} is not divisible by data.streams {streams}; "
      f"use a multiple of {streams}"
    )
  if streams % processes:
    raise UserError(
      f"data.streams {streams} is not divisible by the {processes} processes; "
      f"use a multiple of {processes}"
    )
  if shards < streams:
    raise UserError(
      f"{shards} shards cannot feed data.streams={streams}: set data.streams to at most {shards}, "
      f"or prepare the data again with --num_shards={streams}"
    )
