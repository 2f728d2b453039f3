"""The order of clips is even, whatever the number of shards, and a position in it is arithmetic."""

import itertools

import numpy as np
import pytest

from atst_jax.data.order import epoch_order, visits


def _counts(shards):
  """As `prepare` deals files: equal to within one."""
  return np.array([20 + i % 2 for i in range(shards)])


def _seen(shards, streams, epochs):
  """How often each shard has been read to its end, and begun, after so many nominal epochs."""
  counts = _counts(shards)
  left = int(epochs * counts.sum()) // streams
  ended, begun = np.zeros(shards, int), np.zeros(shards, int)
  for stream in range(streams):
    position = 0
    for visit in visits(7, stream, streams, counts, 0):
      position += counts[visit.shard]
      begun[visit.shard] += position - counts[visit.shard] < left
      if position > left:
        break
      ended[visit.shard] += 1
  return ended, begun


@pytest.mark.parametrize("shards", [1, 16, 63, 64, 65, 78, 127, 509, 5000])
def test_every_clip_comes_equally_often(shards):
  """One visit apart at most, and one more where an epoch has begun. In version 1 of the order, 78
  shards in 64 streams gave some clips 0.6 and others 1.2 visits in an epoch."""
  for epochs in (1, 3, 10) if shards == 5000 else (1, 3, 10, 40):
    ended, begun = _seen(shards, min(shards, 64), epochs)
    assert begun.max() - ended.min() <= 2 + 1, epochs
    assert ended.max() - ended.min() <= 2 and begun.max() - begun.min() <= 2, epochs
    assert epochs - 2 <= ended.min() and ended.max() <= epochs + 1, epochs


def test_each_epoch_of_the_sequence_holds_every_shard_once():
  counts, streams = _counts(13), 5
  found = [list(itertools.islice(visits(1, i, streams, counts, 0), 26)) for i in range(streams)]
  epochs = {}
  for visit in itertools.chain(*found):
    epochs.setdefault(visit.epoch, []).append(visit.shard)
  assert all(sorted(epochs[e]) == list(range(13)) for e in range(9))
  assert len({tuple(epochs[e]) for e in range(9)}) == 9  # each in another order


def test_a_visit_to_the_middle_is_arithmetic():
  counts = [7, 1, 5, 4]
  for stream in range(3):
    whole = itertools.islice(visits(0, stream, 3, counts, 0), 30)
    clips = [(v.epoch, v.shard, i) for v in whole for i in range(counts[v.shard])]
    for position in range(60):
      there = next(visits(0, stream, 3, counts, position))
      assert (there.epoch, there.shard, there.skip) == clips[position]


def test_the_records_of_a_visit_are_a_permutation_inside_windows():
  (visit,) = itertools.islice(visits(3, 0, 1, [10], 6), 1)
  first, places, where, used = visit.records(3, 10, 4)
  assert (first, used) == (4, 2) and sorted(places[:4]) == [0, 1, 2, 3]
  assert sorted(places[4:]) == [0, 1] and where.min() >= 0 and where.max() < 1


def test_an_epoch_of_a_division_holds_each_clip_once():
  index = np.array([3, 5, 8, 13, 21])
  orders = [epoch_order(index, 0, epoch).tolist() for epoch in range(6)]
  assert (
    all(sorted(order) == index.tolist() for order in orders) and len(set(map(tuple, orders))) > 3
  )
