"""The unit of work: one shard, from its audio files to a TFRecord file and a sidecar with all that
is known of it."""

import collections
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator

import numpy as np

from atst_jax.audio.decode import Quality, Reject, read_pieces
from atst_jax.audio.frontend import FrontEnd, log_mel
from atst_jax.data.dataset import Clip, write_json, write_shard
from atst_jax.data.schema import LEVEL_STEP
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError

from ..sources.files import Source
from .mel_statistics import MelStatistics, is_current


@dataclasses.dataclass(frozen=True)
class ShardTask:
  """A shard to be written: its file name, and its files in their order."""

  file: str
  split: str
  sources: tuple[Source, ...]

  @property
  def digest(self) -> str:
    """Says which files a finished shard was made of."""
    return hashlib.sha256(
      "\0".join((self.file, *(source.id for source in self.sources))).encode()
    ).hexdigest()


def read_file(source: Source, **options) -> Iterator[tuple[int | None, np.ndarray]]:
  """The pieces of a source that is an audio file (`decode.read_pieces`)."""
  return read_pieces(source.path, **options)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What all shards have in common. `filters` are the front-end's mel filters: workers need no
  librosa. `read` gives the pieces of a source, with the arguments and errors of
  `decode.read_pieces`."""

  output: str
  work: str
  frontend: FrontEnd
  filters: np.ndarray
  label_names: tuple[str, ...]
  max_seconds: float
  reject_silent: bool = False
  # ids of files at which a decoder crashed; they are not opened again
  crashers: frozenset[str] = frozenset()
  read: Callable[..., Iterator[tuple[int | None, np.ndarray]]] = read_file


@dataclasses.dataclass
class Tally:
  """What the clips of a shard add up to."""

  num_files: int = 0
  num_clips: int = 0
  num_frames: int = 0
  min_frames: int = 2**62
  max_frames: int = 0
  class_counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  sample_rates: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  rejects: list[dict] = dataclasses.field(default_factory=list)
  # histograms of clips, by the lower edge of a bin
  seconds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  levels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  statistics: MelStatistics = dataclasses.field(default_factory=MelStatistics)
  notes: dict[str, list] = dataclasses.field(default_factory=dict)  # of the reader, by id

  def add_clip(self, mel: np.ndarray, source: Source, seconds: float) -> None:
    """Counts a written clip: (T, F) mel in dB, and its length in seconds."""
    self.num_clips += 1
    self.num_frames += len(mel)
    self.min_frames = min(self.min_frames, len(mel))
    self.max_frames = max(self.max_frames, len(mel))
    for label in source.labels:
      self.class_counts[label] += 1
    self.seconds[str(int(seconds))] += 1
    self.levels[str(math.floor(mel.mean(dtype=np.float64) / LEVEL_STEP) * LEVEL_STEP)] += 1
    self.statistics.add(mel)

  def add_file(self, source: Source, quality: Quality, cut: bool) -> None:
    """Counts a file that was read to its end; `cut`: into several clips."""
    self.num_files += 1
    if quality.notes:
      self.notes[source.id] = quality.notes
    self.sample_rates[str(quality.sample_rate)] += 1
    for name, value in (
      ("silent", quality.silent),
      ("clipped", quality.clipped),
      ("dc", quality.dc),
      ("split_files", cut),
    ):
      self.counts[name] += value


def _clips(source: Source, settings: Settings, tally: Tally) -> Iterator[bytes]:
  """Yields the encoded clips of one file; a file that cannot be used goes to the tally's rejects
  instead."""
  labels = tuple(settings.label_names.index(name) for name in source.labels)
  frontend, quality, pieces, cut = settings.frontend, Quality(), 0, False
  try:
    if source.id in settings.crashers:
      raise Reject("undecodable", "the decoder crashes")
    for number, waveform in settings.read(
      source,
      sample_rate=frontend.sample_rate,
      min_samples=frontend.min_samples,
      max_seconds=settings.max_seconds,
      quality=quality,
    ):
      # known of the whole file before its first piece
      if settings.reject_silent and quality.silent:
        raise Reject("silent", f"peak {quality.peak:.1g} of full scale")
      cut = number is not None
      mel = log_mel(waveform, frontend, settings.filters).astype(np.float16)
      tally.add_clip(mel, source, len(waveform) / frontend.sample_rate)
      pieces += 1
      id = f"{source.id}#{number:04d}" if cut else source.id
      yield Clip(
        id, mel, labels, source.multi_label, source.fold, source.split, source.group
      ).encode()
    tally.add_file(source, quality, cut)
  except StoreError:
    raise
  except Exception as error:
    if pieces:  # validated before its first piece
      raise UserError(
        f"{source.path} changed while it was read; run the same command again"
      ) from error
    # what was missing before is not in any shard
    if isinstance(error, Reject) and error.reason == "missing":
      raise UserError(
        f"{source.path} was there when the job began and is gone; bring it back and run the same "
        "command again"
      ) from error
    reject = (
      error
      if isinstance(error, Reject)
      else Reject("undecodable", f"{type(error).__name__}: {error}")
    )
    tally.rejects.append({"id": source.id, "reason": reject.reason, "detail": reject.detail})


def _payloads(
  task: ShardTask, settings: Settings, tally: Tally, on_file: Callable[[int, int], None]
) -> Iterator[bytes]:
  on_file(0, 0)
  for i, source in enumerate(task.sources):
    yield from _clips(source, settings, tally)
    on_file(i + 1, tally.num_clips)


def write_task(task: ShardTask, settings: Settings, on_file: Callable[[int, int], None]) -> None:
  """Writes a shard and then its sidecar. A shard none of whose files can be used has a sidecar
  only.

  Args:
    on_file: called with the numbers of files and of clips done so far, first with zeros; what it
      raises stops the shard.

  Raises:
    OSError: the output cannot be written. Files that cannot be read are rejects, never errors.
  """
  tally = Tally()
  path = os.path.join(settings.output, task.file)
  shard = write_shard(path, _payloads(task, settings, tally, on_file))
  if not shard.num_clips:
    storage.remove(path)
  content = {**vars(tally), "statistics": tally.statistics.to_json()}
  if not tally.notes:
    del content["notes"]
  write_json(
    sidecar_path(task, settings.work),
    {
      "digest": task.digest,
      "file": task.file,
      "split": task.split,
      "num_bytes": shard.num_bytes,
      "sha256": shard.sha256,
      **content,
    },
  )


def sidecar_path(task: ShardTask, work: str) -> str:
  """The JSON in the work folder that says a shard is finished."""
  return os.path.join(work, task.file.removesuffix(".tfrecord") + ".json")


def read_sidecars(tasks: list[ShardTask], output: str, work: str) -> list[dict]:
  """The sidecars of shards that were finished just now, in order. Raises UserError if one is not
  there any more."""
  found = [read_sidecar(task, output, work) for task in tasks]
  sidecars = [sidecar for sidecar in found if sidecar is not None]
  if len(sidecars) < len(tasks):
    raise UserError(
      f"shards in {output} were removed or changed meanwhile; run the same command again"
    )
  return sidecars


def read_sidecar(task: ShardTask, output: str, work: str) -> dict | None:
  """The sidecar of a finished shard; None if the shard is not finished, of other files, or not of
  its size."""
  try:
    sidecar = json.loads(storage.read_text(sidecar_path(task, work)))
    if sidecar["digest"] != task.digest or not is_current(sidecar["statistics"]):
      return None
    path = os.path.join(output, task.file)
    size = storage.size(path) if sidecar["num_clips"] else 0
    return sidecar if size == sidecar["num_bytes"] else None
  except StoreError:
    raise
  except (OSError, ValueError, KeyError, TypeError):
    return None
