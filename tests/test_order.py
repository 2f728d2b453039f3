"""The order of clips is even, whatever the number of shards, and a position in it is arithmetic."""

import itertools

import numpy as np
import pytest

from atst_jax.data.order import Visit, epoch_order, shard_order, visits


def _times(counts, streams, position):
  """How often each clip has come when every stream has given so many clips."""
  begins, times = np.cumsum(counts) - counts, np.zeros(counts.sum(), int)
  for stream in range(streams):
    left = position
    for visit in visits(7, stream, streams, counts, 0):
      if left < visit.end - visit.begin:
        (windows, _) = visit.windows(7, 16)
        used = np.concatenate([window.begin + window.order for window in windows])[:left]
        times[begins[visit.shard] + used] += 1
        break
      times[begins[visit.shard] + visit.begin : begins[visit.shard] + visit.end] += 1
      left -= visit.end - visit.begin
  return times


@pytest.mark.parametrize("shards", [1, 16, 63, 64, 65, 78, 127, 509, 5000])
def test_every_clip_comes_equally_often(shards):
  """Once apart at most, at any time, of shards of very different sizes. Version 1 of the order gave
  some clips of 78 equal shards in 64 streams 0.6 and others 1.2 visits in an epoch."""
  counts = np.random.default_rng(shards).integers(10, 101, shards)
  streams = min(shards, 64)
  for epochs in (0.3, 1, 2.7) if shards == 5000 else (0.3, 1, 2, 7.9, 25):
    position = round(epochs * counts.sum() / streams)
    times = _times(counts, streams, position)
    assert times.sum() == position * streams
    assert times.max() - times.min() <= 1, epochs


def test_each_epoch_has_an_order_of_its_own_and_holds_every_clip_once():
  counts, streams = [5, 1, 9, 7, 4, 6, 3, 8, 2], 5
  epochs = {}
  for stream in range(streams):
    for visit in itertools.takewhile(lambda v: v.epoch < 9, visits(1, stream, streams, counts, 0)):
      clips = [(visit.shard, i) for i in range(visit.begin, visit.end)]
      epochs.setdefault(visit.epoch, []).extend(clips)
  every = [(shard, i) for shard, count in enumerate(counts) for i in range(count)]
  assert all(sorted(epochs[e]) == every for e in range(9))
  assert len({tuple(clips) for clips in epochs.values()}) == 9


def test_a_visit_to_the_middle_is_arithmetic():
  counts = [7, 1, 5, 4]
  for stream in range(3):
    whole = itertools.islice(visits(0, stream, 3, counts, 0), 60)
    clips = [(*visit[:4], i) for visit in whole for i in range(visit.end - visit.begin)]
    for position in range(60):
      assert next(visits(0, stream, 3, counts, position)) == clips[position]


def test_a_late_start_costs_no_more_than_an_early_one():
  """The middle of the 200th epoch of 5,000 shards: one permutation, one shard of each stream."""
  shard_order.cache_clear()
  counts = np.random.default_rng(0).integers(100, 500, 5000)
  for stream in range(64):
    next(visits(1, stream, 64, counts, 200 * counts.sum() // 64 + 7))
  assert shard_order.cache_info().misses == 1


def test_the_records_of_a_visit_are_shuffled_inside_windows():
  visit = Visit(epoch=2, shard=5, begin=3, end=20, skip=0)
  windows, used = visit.windows(3, 4)
  edges = [window.begin for window in windows] + [20]
  assert used == 0 and edges[0] == 3 and all(b - a == 4 for a, b in itertools.pairwise(edges[1:-1]))
  for window, end in zip(windows, edges[1:], strict=True):
    assert sorted(window.order) == list(range(end - window.begin))
    assert window.where.min() >= 0 and window.where.max() < 1
  for skip in range(1, 17):  # the same windows, from the one that is not used up
    rest, used = visit._replace(skip=skip).windows(3, 4)
    whole = windows[len(windows) - len(rest) :]
    assert rest[0].begin + used == 3 + skip and used < len(rest[0].order)
    for window, same in zip(rest, whole, strict=True):
      np.testing.assert_array_equal(window.order, same.order)


def test_a_clip_meets_others_in_other_epochs():
  """The first window of a visit has a drawn size: of 64 records in fixed windows of 8 each would
  meet the same 7 for ever."""
  met = set()
  for epoch in range(40):
    for window in Visit(epoch, 0, 0, 64, 0).windows(0, 8)[0]:
      records = set((window.begin + window.order).tolist())
      met |= records if 30 in records else set()
  assert met == set(range(23, 38))


def test_an_epoch_of_a_division_holds_each_clip_once():
  index = np.array([3, 5, 8, 13, 21])
  orders = [epoch_order(index, 0, epoch).tolist() for epoch in range(6)]
  assert (
    all(sorted(order) == index.tolist() for order in orders) and len(set(map(tuple, orders))) > 3
  )
