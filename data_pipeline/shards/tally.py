"""Counts of clips and files: of a shard, for its sidecar and the report, and of sets that are
joined."""

import collections
import dataclasses
import hashlib
import math
from collections.abc import Iterable

import numpy as np

from atst_jax.audio.decode import Quality, Reject
from atst_jax.data.dataset import Clip
from atst_jax.data.schema import LEVEL_STEP

from ..sources.files import Source
from .mel_statistics import MelStatistics

Places = set[tuple[str, int]]  # splits and folds


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

  def reject(self, source: Source, reject: Reject, kept: int = 0) -> None:
    """Adds a source that cannot be used; `kept`: clips of its other pieces, which are."""
    parts = [f"line {source.line}" if source.line else "", reject.detail]
    entry = {"id": source.id, "reason": reject.reason, "detail": ": ".join(filter(None, parts))}
    self.rejects.append({**entry, "kept": kept} if kept else entry)


class Census:
  """What the clips of several sets tell while they are joined: statistics, groups, and sounds that
  more than one set holds. It is shown every clip once.

  Attributes:
    statistics: of the training clips.
    folded: whether every clip has a fold.
  """

  def __init__(self, names: Iterable[str]):
    """`names`: of the sets, in their order."""
    self.statistics, self.folded = MelStatistics(), True
    self._places: dict[str, dict[str, Places]] = {}  # of each group, in each set
    self._sounds: dict[str, list[tuple[bytes, str]]] = {name: [] for name in names}

  def add(self, name: str, split: str, clip: Clip) -> None:
    """Counts a clip, with its new id, of the set `name`."""
    if split == "train":
      self.statistics.add(clip.mel)
    self.folded &= clip.fold >= 0
    if clip.group:
      sets = self._places.setdefault(clip.group, collections.defaultdict(set))
      sets[name].add((split, clip.fold))
    self._sounds[name].append((hashlib.sha256(clip.mel.tobytes()).digest(), clip.id))

  def groups(self, parts: list[dict]) -> dict[str, dict]:
    """The entry `groups` of the joined set; `parts` are those of its sets."""
    if not parts:
      return {}
    parted = [sets for sets in self._places.values() if _parted(set().union(*sets.values()))]
    # a division that parts a group only now is nobody's
    as_published = all(any(map(_parted, sets.values())) for sets in parted)
    return {
      "groups": {
        "by": " or ".join(sorted({kind for part in parts for kind in part["by"].split(" or ")})),
        "number": len(self._places),
        "parted": len(parted),
        "divided_by_owner": as_published and all(part["divided_by_owner"] for part in parts),
      }
    }

  def repeated(self) -> list[dict]:
    """A remark about every clip whose spectrogram an earlier set holds too."""
    earlier: dict[bytes, str] = {}
    remarks = []
    for sounds in self._sounds.values():
      remarks += [
        {"id": id, "remark": "repeated", "detail": earlier[sound]}
        for sound, id in sounds
        if sound in earlier
      ]
      earlier = dict(sounds) | earlier
    return remarks


def _parted(places: Places) -> bool:
  """Whether a group lies in several splits or folds."""
  folds = {fold for _, fold in places if fold >= 0}
  return len({split for split, _ in places}) > 1 or len(folds) > 1
