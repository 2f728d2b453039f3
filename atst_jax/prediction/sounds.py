"""Recordings as the sounds that are classified: whole files, annotated segments, or windows."""

import contextlib
import functools
import math
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np

from atst_jax.artifacts.classifiers.head import Head
from atst_jax.artifacts.classifiers.scoring import clip_of
from atst_jax.artifacts.collection.listening import Listener
from atst_jax.artifacts.model import Model
from atst_jax.audio.decode import duration
from atst_jax.audio.segments import beyond_end, read_segments
from atst_jax.audio.sliding import check_windows, sliding
from atst_jax.audio.sound_file import Reject
from atst_jax.audio.waveforms import Mel
from atst_jax.util.errors import StoreError, UserError
from atst_jax.util.prefetch import prefetch_each

HELD_SECONDS = 60.0  # of a segment that is held in memory as samples
AHEAD_FRAMES = 30_000  # of the sounds of a recording that wait for the classifier


class Part(NamedTuple):
  """What is asked about of a recording: `start` and `end` in seconds, 0 and infinity for all."""

  id: str
  start: float
  end: float


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


def check_length(model: Model, head: Head, seconds: float, hop: float) -> None:
  """Raises UserError for windows shorter than a patch, or longer than the classifier hears."""
  check_windows(seconds, hop, shortest=model.min_samples / model.sample_rate)
  frames = model.frontend.num_frames(round(seconds * model.sample_rate))
  if frames > head.max_frames:
    most = model.frontend.samples_of(head.max_frames) / model.sample_rate
    raise UserError(
      f"--window={seconds:g}: this classifier hears {most:g} s of a sound; choose a window of at "
      "most that"
    )


def sounds(
  model: Model,
  head: Head,
  listener: Listener,
  recordings: list[Recording],
  windows: Windows | None,
  workers: int,
) -> Generator[Sound | Unusable, None, None]:
  """Yields the sounds of recordings in their order. Threads decode them and compute their log-mels
  ahead, a few of each recording, whatever its length. Raises StoreError."""
  longest = head.max_frames
  if windows is not None:
    longest = model.frontend.num_frames(round(windows.seconds * model.sample_rate))
  found = prefetch_each(
    lambda one: _of_recording(model, head, listener, one[0], one[1], windows),
    enumerate(recordings),
    workers=workers,
    ahead=max(1, AHEAD_FRAMES // longest),
  )
  with contextlib.closing(found):
    for values in found:
      yield from values


def _of_recording(
  model: Model,
  head: Head,
  listener: Listener,
  number: int,
  recording: Recording,
  windows: Windows | None,
) -> Iterator[Sound | Unusable]:
  """Yields the sounds of a recording: of what is long, the whole file perhaps, each read on its
  own in blocks, then of the other segments as they end, all read at once."""
  path, segments = recording.path, []
  for part in recording.parts:
    if part.end - part.start <= HELD_SECONDS:
      segments.append(part)
    elif reject := _beyond_end(path, part):
      yield Unusable(number, part.id, str(reject))
    else:
      read = listener.reader(path, part.start, part.end)
      yield from _of_part(model, head, number, part, read, windows)
  if not segments:
    return
  for piece in read_segments(
    path,
    [(part.start, part.end) for part in segments],
    sample_rate=model.sample_rate,
    min_samples=model.frontend.min_samples,
    max_seconds=math.inf,
    channels=listener.channels,
  ):
    part, waveform = segments[piece.index], piece.waveform
    if waveform is None:
      yield Unusable(number, part.id, str(piece.reject))
    else:
      listener.note(path, piece.quality)
      yield from _of_part(model, head, number, part, functools.partial(_held, waveform), windows)


def _beyond_end(path: str, part: Part) -> Reject | None:
  """Why a part that ends behind its file cannot be used, or None; None too where the file does not
  open, which its reader says."""
  if part.end == math.inf:
    return None
  with contextlib.suppress(Reject):
    return beyond_end(part.end, duration(path))
  return None


def _held(samples: np.ndarray) -> Iterator[np.ndarray]:
  yield samples


def _of_part(
  model: Model,
  head: Head,
  number: int,
  part: Part,
  read: Callable[[], Iterator[np.ndarray]],
  windows: Windows | None,
) -> Iterator[Sound | Unusable]:
  """Yields a part, or its windows; of one that is damaged in the middle, those before.

  Args:
    number: of the recording.
    read: gives the part's samples from their start at every call.
  """
  reached = part.start
  try:
    if windows is None:
      mel, seconds = _heard(model, read)
      end = part.start + seconds if part.end == math.inf else part.end
      yield _sound(model, head, number, part._replace(end=end), mel)
      return
    for window in sliding(
      read(),
      sample_rate=model.sample_rate,
      seconds=windows.seconds,
      hop=windows.hop,
      min_samples=model.min_samples,
    ):
      placed = part._replace(start=part.start + window.start, end=part.start + window.end)
      mel = model.mel(window.samples, model.sample_rate, whole=True)
      yield _sound(model, head, number, placed, mel)
      reached = placed.end
  except StoreError:
    raise
  except UserError as error:
    reason = str(error) if reached == part.start else f"from {reached:g} s on: {error}"
    yield Unusable(number, part.id, reason)


def _heard(model: Model, read: Callable[[], Iterator[np.ndarray]]) -> tuple[Mel, float]:
  """The log-mel of a whole sound, and its seconds. Raises UserError for one that is too short."""
  samples = 0

  def counted():
    nonlocal samples
    samples = 0  # it may be read again
    for piece in read():
      samples += len(piece)
      yield piece

  mel = model.mel_of(counted, whole=True)
  return mel, samples / model.sample_rate


def _sound(model: Model, head: Head, number: int, part: Part, mel: Mel) -> Sound:
  """A sound of a log-mel. Raises UserError for one that is too short."""
  model.check(mel)
  return Sound(number, part, clip_of(head, mel), len(mel))
