"""Recordings as the sounds that are classified: whole files, annotated segments, or windows."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from atst_jax.artifacts.classifiers.head import Head
from atst_jax.artifacts.classifiers.scoring import clip_of
from atst_jax.artifacts.folders import prefetch
from atst_jax.artifacts.model import Model
from atst_jax.audio.decode import read_blocks
from atst_jax.audio.segments import read_segments
from atst_jax.audio.sliding import check_windows, sliding
from atst_jax.util.errors import StoreError, UserError


class Part(NamedTuple):
  """What is asked about of a recording: `start` and `end` in seconds, 0 and infinity for all."""

  id: str
  start: float
  end: float

  @property
  def whole(self) -> bool:
    """Whether it is the whole recording."""
    return self.start == 0 and self.end == math.inf


class Recording(NamedTuple):
  """A file, and the parts of it that are asked about."""

  path: str
  parts: tuple[Part, ...]


class Windows(NamedTuple):
  """Seconds of windows, and between their beginnings."""

  seconds: float
  hop: float


class Sound(NamedTuple):
  """What is classified as one."""

  recording: int  # its number in the list
  part: Part
  clip: np.ndarray  # (T, F), as the head hears it
  frames: int  # of the whole sound


class Unusable(NamedTuple):
  """A part that cannot be used, or the end of one that cannot be read on."""

  recording: int
  id: str
  reason: str


def least_samples(model: Model) -> int:
  """Fewest samples of a sound that the encoder sees something of."""
  frontend = model.frontend
  return max(frontend.min_samples, (model.hop - 1) * frontend.hop_length)


def check_length(model: Model, head: Head, seconds: float, hop: float) -> None:
  """Raises UserError for windows shorter than a patch, or longer than the classifier hears."""
  check_windows(seconds, hop, shortest=least_samples(model) / model.sample_rate)
  frames = model.frontend.num_frames(round(seconds * model.sample_rate))
  if frames > head.max_frames:
    most = (head.max_frames - 1) * model.frontend.hop_length / model.sample_rate
    raise UserError(
      f"--window={seconds:g}: this classifier hears {most:g} s of a sound; choose a window of at "
      "most that"
    )


def sounds(
  model: Model, head: Head, recordings: list[Recording], windows: Windows | None, workers: int
) -> Iterator[Sound | Unusable]:
  """Yields the sounds of recordings in their order, in memory for a few of them. Whole files are
  decoded by threads, which also compute every log-mel. Raises StoreError."""
  tasks = (
    task
    for number, recording in enumerate(recordings)
    for task in _tasks(model, number, recording, windows)
  )
  yield from prefetch(lambda task: task(model, head), tasks, workers)


Task = Callable[[Model, Head], Sound | Unusable]


def _tasks(
  model: Model, number: int, recording: Recording, windows: Windows | None
) -> Iterator[Task]:
  """Yields functions, each of which makes a sound. What they need is read here, one after the
  other; whole files they read themselves."""
  path, parts = recording.path, [part for part in recording.parts if not part.whole]
  for part in recording.parts:
    if part.whole and windows is None:
      yield functools.partial(_sound, number, part, functools.partial(_blocks, path))
    elif part.whole and windows is not None:
      yield from _windows_of_file(model, number, path, part, windows)
  if not parts:
    return
  for piece in read_segments(
    path,
    [(part.start, part.end) for part in parts],
    sample_rate=model.sample_rate,
    min_samples=model.frontend.min_samples,
    max_seconds=math.inf,
  ):
    part = parts[piece.index]
    if piece.waveform is None:
      yield functools.partial(_unusable, number, part.id, str(piece.reject))
    elif windows is None:
      yield functools.partial(_sound, number, part, functools.partial(_held, piece.waveform))
    else:
      yield from _windows(model, number, part, [piece.waveform], windows)


def _windows_of_file(model, number, path, part: Part, windows: Windows) -> Iterator[Task]:
  """The windows of a recording. Of one that is damaged in the middle, those before."""
  try:
    yield from _windows(model, number, part, read_blocks(path, model.sample_rate), windows)
  except StoreError:
    raise
  except UserError as error:
    yield functools.partial(_unusable, number, part.id, str(error))


def _windows(
  model, number, part: Part, blocks: Iterable[np.ndarray], windows: Windows
) -> Iterator[Task]:
  for window in sliding(
    blocks,
    sample_rate=model.sample_rate,
    seconds=windows.seconds,
    hop=windows.hop,
    min_samples=least_samples(model),
  ):
    placed = part._replace(start=part.start + window.start, end=part.start + window.end)
    yield functools.partial(_sound, number, placed, functools.partial(_held, window.samples))


def _blocks(path: str, model: Model) -> Iterator[np.ndarray]:
  return read_blocks(path, model.sample_rate)


def _held(samples: np.ndarray, model: Model) -> Iterator[np.ndarray]:
  return iter([samples])


def _unusable(number: int, id: str, reason: str, model: Model, head: Head) -> Unusable:
  return Unusable(number, id, reason)


def _sound(
  number: int, part: Part, blocks: Callable[[Model], Iterator[np.ndarray]], model: Model, head: Head
) -> Sound | Unusable:
  """Computes a sound's log-mel, and says where it ends. `blocks` gives its samples at every
  call."""
  try:
    mel = model.mel_of(functools.partial(blocks, model), whole=True)
    model.check(mel)
    clip = clip_of(head, mel)
  except StoreError:
    raise
  except UserError as error:
    return Unusable(number, part.id, str(error))
  if part.end == math.inf:
    seconds = (len(mel) - 1) * model.frontend.hop_length / model.sample_rate
    part = part._replace(end=part.start + seconds)
  return Sound(number, part, clip, len(mel))
