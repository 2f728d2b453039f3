"""Counts of a shard's clips and files, for its sidecar and the report."""

import collections
import dataclasses
import math

import numpy as np

from atst_jax.audio.decode import Quality, Reject
from atst_jax.data.schema import LEVEL_STEP

from ..sources.files import Source
from .mel_statistics import MelStatistics


@dataclasses.dataclass
class Tally:
  """Counts of a shard's clips and files."""

  num_files: int = 0
  num_clips: int = 0
  num_frames: int = 0
  min_frames: int = 2**62
  max_frames: int = 0
  class_counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  sample_rates: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  rejects: list[dict] = dataclasses.field(default_factory=list)
  # ids of stretches without a segment that are too short for a clip: no loss, and no reject
  left_out: list[str] = dataclasses.field(default_factory=list)
  # faults of files that are used all the same
  remarks: list[dict] = dataclasses.field(default_factory=list)
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
    for kind, detail in quality.remarks().items():
      self.remarks.append({"id": source.id, "remark": kind, "detail": detail})
    self.sample_rates[str(quality.sample_rate)] += 1
    for name, value in (
      ("silent", quality.silent),
      ("clipped", quality.clipped),
      ("dc", quality.dc),
      ("split_files", cut),
    ):
      self.counts[name] += value

  def reject(self, source: Source, reject: Reject) -> None:
    """Adds a source that cannot be used."""
    parts = [f"line {source.line}" if source.line else "", reject.detail]
    detail = ": ".join(filter(None, parts))
    self.rejects.append({"id": source.id, "reason": reject.reason, "detail": detail})
