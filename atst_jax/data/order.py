"""Which clip comes when: a pure function of the seed and the position, version 2.

In each epoch all shards come in a new order, drawn from (seed, epoch), and so do all clips. This
sequence is cut into S equal parts, one for each of S logical streams. A stream shuffles the records
of each shard, or of its part of it, inside windows, and gives B / S consecutive clips to every
batch. A position is arithmetic on the shards' counts. Resuming opens one shard of each stream, and
nothing of an iterator is saved.

After every batch no two clips have come more than once apart, for any number of shards of any
sizes. Of N clips, stream i has given ⌊(e N + i) / S⌋ when it begins epoch e. Over all streams these
add up to e N, so the parts of an epoch hold every clip once. For two streams they differ by one at
most, and a stream that is one clip ahead waits: when it begins epoch e + 1, all others have come to
the last clip of epoch e. Only the batch in which an epoch ends can hold a clip twice.

If stream i took the shards i, i + S, i + 2 S, … of one endless sequence instead, streams with small
shards would go through more epochs than others: of shards of 10 to 100 clips some had come 10 times
more often than others after 200 epochs. In version 1 each stream kept shards of its own, which gave
up to twice as many visits to some clips as to others.
"""

import bisect
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


@functools.lru_cache(8)  # all streams of a process ask for the same epochs
def shard_order(seed: int, epoch: int, shards: int) -> np.ndarray:
  """The order of all shards in an epoch: a permutation of range(shards)."""
  return np.argsort(_draw(shards, seed, 0, epoch, 0), kind="stable")


def window_order(seed, epoch, shard, begin, size) -> tuple[np.ndarray, np.ndarray]:
  """The order of the records inside the window of a shard that begins at a record: a permutation of
  range(size), and a number in [0, 1) for each, float32."""
  bits = _draw(2 * size, seed, 0, epoch, 1 + (int(shard) << 32) + int(begin))
  return np.argsort(bits[:size], kind="stable"), (bits[size:] >> 40).astype(np.float32) / 2**24


def epoch_order(index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
  """The clips of `index`, any clips of a set, in the order of an epoch: each exactly once."""
  return index[np.argsort(_draw(len(index), seed, 0, epoch, 0), kind="stable")]


class Window(NamedTuple):
  """Records of a shard that are shuffled together: those from `begin` on, in the order `begin +
  order`; `where` says for each place where its clip is cropped, in [0, 1)."""

  begin: int
  order: np.ndarray
  where: np.ndarray


class Visit(NamedTuple):
  """One pass over the records `begin` to `end` of a shard, of which `skip` are already used."""

  epoch: int
  shard: int
  begin: int
  end: int
  skip: int

  def windows(self, seed: int, size: int) -> tuple[list[Window], int]:
    """(the windows that are not used up, how many records of the first one are used).

    A window has `size` records. Only the last one is cut, and the first one has a drawn number of
    them, so that clips meet others in other epochs.
    """
    draw = int(_draw(1, seed, 1, self.epoch, 1 + (self.shard << 32) + self.begin)[0])
    edges = [self.begin, *range(self.begin + 1 + draw % size, self.end, size), self.end]
    at = bisect.bisect_right(edges, self.begin + self.skip) - 1
    windows = [
      Window(begin, *window_order(seed, self.epoch, self.shard, begin, end - begin))
      for begin, end in itertools.pairwise(edges[at:])
    ]
    return windows, self.begin + self.skip - edges[at]


def visits(
  seed: int, stream: int, streams: int, counts: Sequence[int], position: int
) -> Iterator[Visit]:
  """All visits of one of `streams` from its `position` clips on, forever.

  Args:
    counts: clips of each shard; at least as many together as there are streams.
  """
  clips = np.asarray(counts)
  total = int(clips.sum())

  def given(epoch, before):
    """Clips that the streams before one have given when epoch `epoch` begins."""
    whole, rest = divmod(epoch * total, streams)
    return whole * before + max(before - streams + rest, 0)

  begun = ((position + 1) * streams - 1 - stream) // total
  skip = position - (begun * total + stream) // streams
  for epoch in itertools.count(begun):
    start, stop = (given(epoch + 1, i) - given(epoch, i) for i in (stream, stream + 1))
    order = shard_order(seed, epoch, len(clips))
    ends = np.cumsum(clips[order])
    for i in range(int(np.searchsorted(ends, start + skip, side="right")), len(order)):
      shard, end = int(order[i]), int(ends[i])
      first = end - int(clips[shard])
      if first >= stop:
        break
      begin = max(start, first)
      used = max(start + skip - begin, 0)
      yield Visit(epoch, shard, begin - first, min(stop, end) - first, used)
    skip = 0


def check_streams(*, batch_size, streams, shards, processes) -> None:
  """Raises UserError with the numbers unless S divides B, the processes divide S, and every stream
  has a shard: with fewer shards a batch would hold clips of few places."""
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
    most = shards // processes * processes  # all processes have as many
    fewer = f"set data.streams to at most {most}, or " if most else ""
    raise UserError(
      f"{shards} shards cannot feed data.streams={streams}: {fewer}prepare the data again with "
      f"--num_shards={streams}"
    )
