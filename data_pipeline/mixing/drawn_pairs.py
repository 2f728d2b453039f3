"""Drawn pairs of scenes that differ by one event: the first and a sentence ask for the second.

As in the published pairs, both scenes have the same background recordings, from other times, at the
same loudness. Events that both have keep their class and level, but are other takes at other times
unless `same_takes`.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

from ..sources.files import Source
from .differences import KINDS, Change, changes, sentence
from .recordings import SPLITS, Recordings, rng_of
from .scenes import Part, Scene

DECIMALS = 4  # of drawn numbers, so that the manifest has them exactly
START_SHARE = 0.8  # events begin within this share of a scene,
LENGTH_SHARES = (0.3, 0.5)  # and last for one between these (published: 0-8 s and 3-5 s of 10 s)


class Pair(NamedTuple):
  """A query clip, the change that is asked for, and the clip that has it."""

  id: str
  scene: str
  query: Scene
  target: Scene
  changes: tuple[Change, ...]
  text: str


@dataclasses.dataclass(frozen=True)
class Ranges:
  """The ranges of drawn pairs; levels in dB."""

  seconds: float = 10.0
  rate: int = 16000  # Hz
  backgrounds: int = 2  # recordings mixed into a scene's background
  lufs: tuple[float, float] = (-36.0, -32.0)  # of a scene's reference
  snr: tuple[float, float] = (3.0, 12.0)  # of events
  level_change: tuple[float, float] = (6.0, 12.0)  # of the quieter event below the louder
  shared_events: int = 1  # events that both scenes have, at most
  same_takes: bool = False


def check_recordings(
  foreground: Recordings, background: Recordings, counts: dict[str, int]
) -> None:
  """Raises UserError if a split that is asked for lacks recordings, or a class is event and
  background."""
  if both := sorted(set(foreground.classes) & set(background.classes)):
    raise UserError(
      f"{both[0]!r} is a class of events and of backgrounds; choose with --events and --scenes"
    )
  for split, count in counts.items():
    for what, recordings in (("events", foreground), ("scenes", background)):
      lacking = [name for name in recordings.classes if not recordings.by_class[split].get(name)]
      if count and lacking:
        raise UserError(
          f"no recording of {lacking[0]!r} is left for the split {split}; leave it out of "
          f"--{what}, set --{split}_pairs=0, or bring more recordings"
        )


def draw_pairs(
  foreground: Recordings,
  background: Recordings,
  *,
  counts: dict[str, int],
  ranges: Ranges,
  seed: int,
) -> list[Pair]:
  """All pairs of all splits and scenes. Pair number i does not depend on the number of pairs.

  Args:
    counts: split -> pairs of every scene (class of the background).

  Raises:
    UserError: as `check_recordings`.
  """
  check_recordings(foreground, background, counts)
  _tell_of_few(background, counts, ranges.backgrounds)
  if len(foreground.classes) < 1 + ranges.shared_events:
    raise UserError(
      f"--shared_events={ranges.shared_events} needs {1 + ranges.shared_events} classes of events, "
      f"--foreground has {len(foreground.classes)}"
    )
  return [
    _draw(
      f"{name}_{split}_{i:05d}",
      name,
      split,
      foreground.by_class[split],
      background.by_class[split][name],
      ranges,
      seed,
    )
    for name in background.classes
    for split in SPLITS
    for i in range(counts[split])
  ]


def _tell_of_few(background: Recordings, counts: dict[str, int], wanted: int) -> None:
  """Warns of scenes that are mixed from fewer background recordings than `wanted`."""
  for split in (split for split, count in counts.items() if count):
    found = {name: len(background.by_class[split][name]) for name in background.classes}
    if few := [f"{name} ({count})" for name, count in found.items() if count < wanted]:
      log.warning(
        "--backgrounds=%d: the split %s has fewer recordings of %s, and its scenes are mixed from "
        "those",
        wanted,
        split,
        ", ".join(few),
      )


def pair_rng(seed: int, what: str, id: str) -> np.random.Generator:
  """The generator of one pair; it does not depend on the other pairs."""
  return rng_of(f"{seed}\0{what}\0{id}", "little")


def _draw(
  id: str,
  name: str,
  split: str,
  events: dict[str, list[Source]],
  backgrounds: list[Source],
  ranges: Ranges,
  seed: int,
) -> Pair:
  """A pair: `events` by class, and the `backgrounds` of the scene `name`."""
  rng = pair_rng(seed, "pair", id)
  number = min(ranges.backgrounds, len(backgrounds))
  behind = [backgrounds[i] for i in rng.choice(len(backgrounds), number, replace=False)]
  lufs = _uniform(rng, ranges.lufs)
  kind = KINDS[rng.integers(len(KINDS))]
  chosen = rng.permutation(sorted(events))[: 1 + rng.integers(ranges.shared_events + 1)].tolist()
  levels = [_uniform(rng, ranges.snr) for _ in chosen]
  quieter = round(levels[0] - _uniform(rng, ranges.level_change), DECIMALS)
  takes = [_take(rng, events[label], ranges) for label in chosen]

  def scene(suffix: str, level: float | None) -> Scene:
    """The changed event at `level` (None: absent), and the shared ones."""
    parts = [_background(rng, source, name, ranges) for source in behind]
    heard = []
    for i, label in enumerate(chosen):
      snr = levels[i] if i else level
      if snr is not None:
        take = takes[i] if ranges.same_takes else _take(rng, events[label], ranges)
        parts.append(dataclasses.replace(take, snr_db=snr))
        heard.append(label)
    return Scene(
      path=behind[0].path,
      id=f"{id}_{suffix}",
      labels=tuple(sorted(set(heard))),
      multi_label=True,
      split=split,
      name=name,
      seconds=ranges.seconds,
      rate=ranges.rate,
      lufs=lufs,
      parts=tuple(parts),
    )

  less = None if kind in ("add", "remove") else quieter
  first, second = (less, levels[0]) if kind in ("add", "louder") else (levels[0], less)
  query, target = scene("s1", first), scene("s2", second)
  found = changes(query, target)
  return Pair(id, name, query, target, tuple(found), sentence(found, rng))


def _uniform(rng: np.random.Generator, interval: tuple[float, float]) -> float:
  return round(float(rng.uniform(*interval)), DECIMALS)


def _background(rng: np.random.Generator, source: Source, name: str, ranges: Ranges) -> Part:
  return Part(
    path=source.path,
    source=source.id,
    label=name,
    background=True,
    loops=True,
    source_time=_uniform(rng, (0, ranges.seconds)),
    time=0.0,
    duration=ranges.seconds,
    snr_db=0.0,
  )


def _take(rng: np.random.Generator, sources: list[Source], ranges: Ranges) -> Part:
  source = sources[rng.integers(len(sources))]
  time = _uniform(rng, (0, START_SHARE * ranges.seconds))
  shortest, longest = (share * ranges.seconds for share in LENGTH_SHARES)
  duration = min(_uniform(rng, (shortest, longest)), round(ranges.seconds - time, DECIMALS))
  return Part(
    path=source.path,
    source=source.id,
    label=source.labels[0],
    background=False,
    loops=False,
    source_time=0.0,
    time=time,
    duration=duration,
    snr_db=0.0,
  )
