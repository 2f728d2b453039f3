"""Scenes: recordings mixed over a background, each at a stated loudness.

The rules are those of scaper 1.6.5, with which the published pairs were made. A background repeats
until the scene is full. Every recording is brought to the scene's reference loudness plus its own
signal-to-noise ratio; its loudness is that of the part that is heard, before the fades. Events fade
in and out over 10 ms. All are summed, and the sum is not clipped.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from atst_jax.audio.decode import Quality, Reject
from atst_jax.util.errors import UserError

from ..sources.files import Source
from .loudness import amplified, faded, gain_to
from .recordings import load

FADE_SECONDS = 0.01
# Silence around the published events was cut: the envelope is |x| smoothed by a Hann window of 512
# samples at 44.1 kHz; the event begins and ends where it first and last exceeds a tenth of its
# peak.
TRIM_SHARE, TRIM_SECONDS = 0.1, 512 / 44100


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
  """A recording in a scene. Times are seconds.

  `loops`: the recording repeats (a background). Otherwise it is an event, whose silent ends are
  cut, and may end before its duration.
  """

  path: str
  source: str  # the recording's name in the manifest
  label: str
  background: bool
  loops: bool
  source_time: float  # where in the recording
  time: float  # where in the scene
  duration: float
  snr_db: float  # above the scene's loudness


@dataclasses.dataclass(frozen=True, slots=True)
class Scene(Source):
  """A clip that is mixed, not read; `path` is that of its first recording."""

  name: str = ""  # the class of the background
  seconds: float = 10.0
  rate: int = 16000  # Hz at which it is mixed
  lufs: float = -34.0  # the reference loudness
  parts: tuple[Part, ...] = ()

  @property
  def recordings(self) -> tuple[str, ...]:
    """Paths of all files that it is made of."""
    return tuple(part.path for part in self.parts)

  @property
  def events(self) -> tuple[Part, ...]:
    """The parts in the foreground."""
    return tuple(part for part in self.parts if not part.background)


def trimmed(waveform: np.ndarray, rate: int) -> np.ndarray:
  """(N,) -> (M,): without the quiet start and end. Silence is not changed."""
  size = max(3, round(TRIM_SECONDS * rate))
  envelope = np.convolve(np.abs(waveform), np.hanning(size).astype(waveform.dtype), mode="same")
  loud = np.flatnonzero(envelope > TRIM_SHARE * envelope.max())
  return waveform[loud[0] : loud[-1] + 1] if len(loud) else waveform


@functools.lru_cache(maxsize=64)
def _recording(path: str, rate: int, loops: bool, most: int | None) -> np.ndarray:
  """Of a background, which may be long, its first `most` samples are kept."""
  waveform = load(path, rate)
  return waveform[:most].copy() if loops else trimmed(waveform, rate)


def heard(part: Part, rate: int) -> np.ndarray:
  """(N,) the part of its recording that is heard, as it was recorded. Raises Reject if it is silent
  or too short."""
  start, size = round(part.source_time * rate), round(part.duration * rate)
  # drawn backgrounds begin before their duration: one length for all of a set
  most = max(2 * size, start + size) if part.loops else None
  waveform = _recording(part.path, rate, part.loops, most)
  places = np.arange(start, start + size)
  out = waveform[places % len(waveform) if part.loops else places[places < len(waveform)]]
  if not len(out):
    raise Reject(
      "too_short",
      f"{part.source}: {len(waveform) / rate:.2f} s, to be heard from {part.source_time:.2f} s",
    )
  return out


def synthesise(scene: Scene) -> tuple[np.ndarray, list[list[float]]]:
  """Mixes a scene.

  Returns:
    (N,) float32 at `scene.rate`, and for every part [gain in dB, seconds heard].

  Raises:
    Reject: a recording cannot be used, or is silent where it would be heard.
  """
  mixture, notes = np.zeros(round(scene.seconds * scene.rate), np.float32), []
  for part in scene.parts:
    sound, start = heard(part, scene.rate), round(part.time * scene.rate)
    sound = sound[: len(mixture) - start]
    try:
      gain = gain_to(sound, scene.rate, scene.lufs + part.snr_db)
    except UserError:
      raise
    except ValueError as error:
      raise Reject("silent", f"{part.source} from {part.source_time:.2f} s") from error
    sound = amplified(sound, gain)
    mixture[start : start + len(sound)] += (
      sound if part.background else faded(sound, scene.rate, FADE_SECONDS)
    )
    notes.append([round(gain, 4), round(len(sound) / scene.rate, 4)])
  return mixture, notes


def read_scene(
  scene: Scene,
  *,
  sample_rate: int,
  min_samples: int = 1,
  max_seconds: float = math.inf,
  quality: Quality,
) -> Iterator[tuple[None, np.ndarray]]:
  """Yields (None, (N,) waveform) of a scene, as `decode.read_pieces` of a file; `quality.notes` are
  its gains."""
  waveform, quality.notes = synthesise(scene)
  quality.sample_rate = scene.rate
  quality.update(waveform[:, None])
  if scene.rate != sample_rate:
    import soxr

    waveform = soxr.resample(waveform, scene.rate, sample_rate)
  if len(waveform) < min_samples:
    raise Reject("too_short", f"{len(waveform)} samples at {sample_rate} Hz, {min_samples} needed")
  yield None, waveform
