"""Damaged records while training: named, and left out if the config allows for some."""

import itertools
import threading
from collections.abc import Iterable, Iterator

from atst_jax.errors import UserError
from atst_jax.logs import log
from atst_jax.records import Clip, Dataset, RecordError, Shard
from atst_jax.tfrecord import scan_records


class Damage:
  """Counts the damaged clips of a run, each once, and says when there are too many. Used from several threads."""

  def __init__(self, allowed: int):
    self.allowed, self._lost, self._lock = allowed, {}, threading.Lock()

  def __len__(self) -> int:
    return sum(self._lost.values())

  def add(self, path: str, lost: int, problems: list[str]) -> None:
    """Notes what a pass over a shard found. Raises UserError beyond `allowed` clips."""
    with self._lock:
      known = self._lost.get(path, 0)
      if lost <= known:
        return
      self._lost[path] = lost
      log.warning("%s; %d of its clips are replaced by others of that shard, %d clips of this run so far (allowed: %d)",
                  "; ".join(problems), lost, len(self), self.allowed)  # fmt: skip
      if len(self) > self.allowed:
        raise UserError(f"{problems[0]}: {len(self)} damaged clips, data.max_damaged allows {self.allowed}; run "
                        "`python -m data_pipeline.prepare repair`, or raise it")  # fmt: skip


def sound_records(dataset: Dataset, shard: Shard, damage: Damage) -> Iterator[bytes]:
  """As many payloads as the shard has clips: the sound ones, and in place of the others its first ones again at its
  end, so that the order of the data stays arithmetic on counts.

  Raises UserError if no record is sound, or too many are not.
  """
  problems = []

  def sound():
    for number, payload, problem in scan_records(shard.path):
      try:
        if problem:
          raise problem
        Clip.decode(payload, dataset.frontend.n_mels, f"{shard.path}: record {number}")
        yield payload
      except RecordError as error:
        problems.append(str(error))

  count = 0
  for payload in itertools.islice(sound(), shard.num_clips):
    count += 1
    yield payload
  if count == shard.num_clips:
    return
  damage.add(shard.path, shard.num_clips - count, problems or [f"{shard.path}: ends after {count} clips"])
  if not count:
    raise UserError(f"{shard.path}: no sound record; run `python -m data_pipeline.prepare repair`")
  again = itertools.chain.from_iterable(sound() for _ in itertools.count())
  yield from itertools.islice(again, shard.num_clips - count)


def find_damage(dataset: Dataset, shards: Iterable[Shard]) -> RecordError | None:
  """The first damage of these shards, naming file and record."""
  for shard in shards:
    try:
      for _ in dataset.shard_clips(shard):
        pass
    except RecordError as error:
      return error
  return None
