"""Batches of labelled clips of one division of a data set: any clips of any shards, in any order.

Pre-training reads whole splits in streams (`input_pipeline`). A division may be every clip of nine
folds of ten, and a labelled set fits a host: so a batch is a list of clips, read from their places.

The global batch of step s is a pure function of (seed, s), whatever the number of processes: all
epochs form one endless sequence, each a permutation drawn from (seed, epoch), from which whole
batches are cut. So every clip comes exactly once in each epoch, and only a batch in which an epoch
ends can hold a clip twice.
"""

import collections
import contextlib
import functools
import itertools
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from atst_jax.data.dataset import Dataset
from atst_jax.data.order import epoch_order
from atst_jax.data.plain_reader import AHEAD, STORE_THREADS
from atst_jax.data.shard_reader import Damage, Index, ShardReader, rows
from atst_jax.util import storage
from atst_jax.util.errors import UserError

VERSION = 2  # of the order; in 1 some clips were left out of every epoch


class ClipReader:
  """Reads clips by their number in the order of `features.clips`, cropped centrally or padded with
  zeros.

  Args:
    dataset: a prepared set.
    frames: T of a row.
  """

  def __init__(self, dataset: Dataset, frames: int):
    self._shards = [shard for split in dataset.splits for shard in dataset.shards(split)]
    self._first = np.cumsum([0] + [shard.num_clips for shard in self._shards])
    self._n_mels, self._frames = dataset.frontend.n_mels, frames
    self._indices: dict[int, Index] = {}
    # a clip in another's place would have another label
    self._damage = Damage(0.0, int(self._first[-1]))
    self._threads = STORE_THREADS if storage.is_remote(dataset.root) else 1

  def batches(
    self, clips: Iterable[np.ndarray], targets: np.ndarray
  ) -> Generator[dict, None, None]:
    """A batch for each array of clips, made ahead of its use: {"mel": (B, T, F) float16 dB,
    "length": (B,) int32, "target": (B, C) uint8, their rows of `targets`}.

    Raises RecordError or StoreError where a clip cannot be read.
    """
    with contextlib.ExitStack() as stack:
      pool = stack.enter_context(ThreadPoolExecutor(self._threads))
      maker = stack.enter_context(ThreadPoolExecutor(1))
      stack.callback(maker.shutdown, cancel_futures=True)
      clips = iter(clips)
      submit = lambda numbers: maker.submit(self._batch, pool, numbers, targets)
      ahead = collections.deque(map(submit, itertools.islice(clips, AHEAD)))
      while ahead:
        yield ahead.popleft().result()
        ahead.extend(map(submit, itertools.islice(clips, 1)))

  def _batch(self, pool, numbers, targets) -> dict:
    mel = np.empty((len(numbers), self._frames, self._n_mels), np.float16)
    length = np.empty(len(numbers), np.int32)
    out, places = rows(mel), collections.defaultdict(list)  # rows of each shard
    for row, shard in enumerate(np.searchsorted(self._first, numbers, side="right") - 1):
      places[int(shard)].append(row)

    def fill(shard):
      reader = ShardReader(
        self._shards[shard], self._n_mels, self._damage, self._indices.get(shard)
      )
      with contextlib.closing(reader):
        self._indices[shard] = reader.index
        for row in places[shard]:
          record = int(numbers[row] - self._first[shard])
          length[row], _ = reader.read(record, reader.centre(record, self._frames), out[row])

    list(pool.map(fill, places))
    return {"mel": mel, "length": length, "target": targets[numbers]}


def steps_per_epoch(clips: int, batch_size: int) -> int:
  """Whole batches, which schedules count as an epoch. Raises UserError if there is none."""
  if clips < batch_size:
    raise UserError(
      f"{clips} clips to train on are less than one batch of {batch_size}; lower "
      "--config.batch_size"
    )
  return clips // batch_size


def train_clips(index, *, batch_size, seed, start_step, rows) -> Iterator[np.ndarray]:
  """Clips of this process's rows [start, stop) of every batch from `start_step` on, without end."""
  start, stop = rows
  order = functools.lru_cache(2)(lambda epoch: epoch_order(index, seed, epoch))
  for first in itertools.count(start_step * batch_size + start, batch_size):
    epochs, places = np.divmod(np.arange(first, first + stop - start), len(index))
    yield np.concatenate([order(int(e))[places[epochs == e]] for e in np.unique(epochs)])


def all_clips(index, *, batch_size, rows) -> Iterator[np.ndarray]:
  """Clips of this process's rows of batches that hold each clip once; the last one is filled up
  with its last clip."""
  start, stop = rows
  for first in range(0, len(index), batch_size):
    batch = index[first : first + batch_size]
    yield np.pad(batch, (0, batch_size - len(batch)), mode="edge")[start:stop]
