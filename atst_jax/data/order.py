"""Which clip comes when: a pure function of the seed and the position, version 3.

In each epoch all shards come in a new order, drawn from (seed, epoch), and so do all clips. This
sequence is cut into S equal parts, one for each of S logical streams. A stream shuffles the records
of each shard, or of its part of it, through a buffer, and gives B / S consecutive clips to every
batch. A position is arithmetic on the shards' counts. Resuming opens one shard of each stream, and
nothing of an iterator is saved.

The shuffle is that of `tf.data.Dataset.shuffle`, draw for draw: it moves records and copies none. A
permutation of our own is a copy in tf.data, a sixth of its speed. `tf_reader` looks whether
TensorFlow still draws so.

After every batch no two clips have come more than once apart, for any number of shards of any
sizes. Of N clips, stream i has given ⌊(e N + i) / S⌋ when it begins epoch e. Over all streams these
add up to e N, so the parts of an epoch hold every clip once. For two streams they differ by one at
most, and a stream that is one clip ahead waits: when it begins epoch e + 1, all others have come to
the last clip of epoch e. Only the batch in which an epoch ends can hold a clip twice.

If stream i took the shards i, i + S, i + 2 S, … of one endless sequence instead, streams with small
shards would go through more epochs than others: of shards of 10 to 100 clips some had come 10 times
more often than others after 200 epochs. In version 1 each stream kept shards of its own, which gave
up to twice as many visits to some clips as to others. Version 2 shuffled inside windows.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from atst_jax.util.errors import UserError

VERSION = 3

# TensorFlow's: the seed of a graph that has none, and Philox's constants
GRAPH_SEED = 87654321
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def _draw(n, seed, *counter):
  """(n,) uint64, the raw output of a Philox counter: the same with every version of numpy."""
  return np.random.Philox(key=[seed, 0], counter=[0, *counter]).random_raw(n)


@functools.lru_cache(8)  # all streams of a process ask for the same epochs
def shard_order(seed: int, epoch: int, shards: int) -> np.ndarray:
  """The order of all shards in an epoch: a permutation of range(shards)."""
  return np.argsort(_draw(shards, seed, 0, epoch, 0), kind="stable")


def _philox32(n: int, key: int, counter: int) -> np.ndarray:
  """(n,) random numbers of 32 bits, as TensorFlow draws them from two seeds (Philox 4x32, 10
  rounds; Salmon et al. 2011)."""
  low, half = np.uint64(2**32 - 1), np.uint64(32)
  words = lambda x: [np.uint64(x & 0xFFFFFFFF), np.uint64(x >> 32)]
  x = np.zeros((4, -(-n // 4)), np.uint64)
  x[0], x[2:] = np.arange(x.shape[1]), np.array(words(counter))[:, None]
  keys = words(key)
  for _ in range(ROUNDS):
    a, b = (x[2 * i] * np.uint64(multiplier) for i, multiplier in enumerate(MULTIPLIERS))
    x = np.stack([b >> half ^ x[1] ^ keys[0], b & low, a >> half ^ x[3] ^ keys[1], a & low])
    keys = [(k + np.uint64(w)) & low for k, w in zip(keys, WEYL, strict=True)]
  return x.T.ravel()[:n]


def buffer_shuffle(count: int, size: int, seed: int) -> np.ndarray:
  """The order in which `tf.data.Dataset.range(count).shuffle(size, seed)` gives its elements: each
  one is drawn from a buffer, into whose free place the next one goes.

  Args:
    seed: from 0 to 2^31 - 2.
  """
  draws = _philox32(count, GRAPH_SEED, seed).tolist()
  held, out = list(range(min(size, count))), np.empty(count, np.int64)
  for i, draw in enumerate(draws):
    place, first = (i + draw % min(size, count - i)) % size, i % size
    out[i], held[place] = held[place], held[first]
    held[first] = i + size
  return out


def epoch_order(index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
  """The clips of `index`, any clips of a set, in the order of an epoch: each exactly once."""
  return index[np.argsort(_draw(len(index), seed, 0, epoch, 0), kind="stable")]


class Visit(NamedTuple):
  """One pass over the records `begin` to `end` of a shard, of which `skip` are already used."""

  epoch: int
  shard: int
  begin: int
  end: int
  skip: int

  def drawn(self, seed: int) -> tuple[int, np.ndarray]:
    """The seed of the shuffle; and (end - begin,) float32 in [0, 1), where each record's clip is
    cropped."""
    number = 1 + self.end - self.begin
    bits = _draw(number, seed, 0, self.epoch, 1 + (self.shard << 32) + self.begin)
    return int(bits[0]) % (2**31 - 1), (bits[1:] >> 40).astype(np.float32) / 2**24

  def order(self, seed: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(end - begin,) the records of the visit in their order, used ones too, less `begin`; and
    where each record's clip is cropped, as of `drawn`.

    Args:
      window: records in the buffer of the shuffle.
    """
    shuffle_seed, where = self.drawn(seed)
    return buffer_shuffle(len(where), window, shuffle_seed), where


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
      f"use a multiple of {streams}, or lower data.streams"
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
