"""Mixtures of a foreground with a background of which other parts are known, and their sounds.

Source: BgKnown ESC-50 of the difference-aware paper (5.2, Figure 2). A background has 2c seconds or
more: (a) are the c seconds that are mixed, (b) overlap them by half, (c) follow them. The paper
leaves open: the three start at s, s + c / 2 and s + c, with s uniform over the recording. As in
Scaper, the background (a) is brought to a fixed loudness and the foreground to that plus the SNR,
both K-weighted and gated; (b) and (c) get the gain of (a).
"""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterator

import numpy as np

from atst_jax.audio.decode import Quality, Reject
from atst_jax.util import storage

from ..shards.workers import each
from ..sources.files import Source
from .loudness import amplified, loudness
from .recordings import load, rng_of, table_text

CONDITIONS = ("mix", "a", "b", "c")
STEP_MS = 10  # between the windows of a foreground that are compared
DRAWS = 20  # of a background, until one is not silent
PEAK = 0.999  # of full scale; a louder mixture is turned down, all four sounds alike
DECIMALS = 6  # of numbers in the table, from which the sounds are made


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A row of the table, from which its four sounds are made."""

  id: str
  split: str  # "train", "test"; or "valid", if the foreground set has it
  label: str  # of several, joined by ';'
  foreground: str  # ids
  background: str
  foreground_offset: int  # samples at the front-end's rate
  a: int
  b: int
  c: int
  snr_db: float
  foreground_lufs: float  # as recorded
  background_lufs: float
  foreground_gain_db: float
  background_gain_db: float
  seed: int


COLUMNS = tuple(field.name for field in dataclasses.fields(Mixture))


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The settings of all mixtures of a set."""

  sample_rate: int  # Hz
  seconds: float  # c
  snr_db: tuple[float, float]  # uniform between
  background_lufs: float
  seed: int

  @property
  def samples(self) -> int:
    """Length of every sound, in samples."""
    return round(self.seconds * self.sample_rate)


def loudest(waveform: np.ndarray, samples: int, step: int) -> int:
  """The start of the first window with the most energy; 0 if the waveform is not longer than a
  window."""
  if len(waveform) <= samples:
    return 0
  energy = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=np.float64))])
  starts = np.arange(0, len(waveform) - samples + 1, step)
  return int(starts[np.argmax(energy[starts + samples] - energy[starts])])


def cut(waveform: np.ndarray, start: int, samples: int) -> np.ndarray:
  """(samples,) from `start` on, silence where the waveform has ended."""
  part = waveform[start : start + samples]
  return np.pad(part, (0, samples - len(part)))


def draw(source: Source, id: str, pool: list[Source], recipe: Recipe) -> Mixture:
  """Draws background, offset and SNR of a mixture from the seed and its id, and measures the gains.

  Args:
    source: the foreground: the loudest c seconds of a longer one; a shorter one ends in silence.
    pool: the backgrounds of its side, 2c seconds or more.

  Raises:
    Reject: the foreground cannot be decoded or is silent, or no background could be used in DRAWS
      draws.
  """
  samples, rate = recipe.samples, recipe.sample_rate
  rng = rng_of(f"{recipe.seed}:{id}", "big")
  snr = round(rng.uniform(*recipe.snr_db), DECIMALS)
  foreground = load(source.path, rate)
  start = loudest(foreground, samples, rate * STEP_MS // 1000)
  foreground = cut(foreground, start, samples)
  level = loudness(foreground, rate)
  if level == -math.inf:
    raise Reject("silent", "no 0.4 s of the foreground reach -70 LUFS")
  reason = None
  for _ in range(DRAWS):
    picked, share = pool[rng.integers(len(pool))], rng.random()
    try:
      offset, background, found = _crop(picked, share, recipe)
    except Reject as error:
      reason = error
      continue
    gains = _gains(foreground, background, snr, level, found, recipe)
    return Mixture(
      id=id,
      split=source.split,
      label=";".join(source.labels),
      foreground=source.id,
      background=picked.id,
      foreground_offset=start,
      a=offset,
      b=offset + samples // 2,
      c=offset + samples,
      snr_db=snr,
      foreground_lufs=round(level, DECIMALS),
      background_lufs=round(found, DECIMALS),
      foreground_gain_db=gains[0],
      background_gain_db=gains[1],
      seed=recipe.seed,
    )
  raise Reject("background", f"none of {DRAWS} draws can be used, the last: {reason}")


def _crop(source: Source, share: float, recipe: Recipe) -> tuple[int, np.ndarray, float]:
  """(offset, (2 · samples,), LUFS of the half that is mixed) of a background; `share`, 0 to 1, of
  all offsets. Raises Reject if it cannot be read, is too short, or that half is silent."""
  background, needed = load(source.path, recipe.sample_rate), 2 * recipe.samples
  if len(background) < needed:
    raise Reject("too_short", f"{source.id!r} has {len(background)} samples, {needed} needed")
  offset = int(share * (len(background) - needed + 1))
  background = background[offset : offset + needed]
  lufs = loudness(background[: recipe.samples], recipe.sample_rate)
  if lufs == -math.inf:
    raise Reject("silent", f"{source.id!r} from sample {offset} on")
  return offset, background, lufs


def _gains(
  foreground: np.ndarray,
  background: np.ndarray,
  snr: float,
  level: float,
  found: float,
  recipe: Recipe,
) -> tuple[float, float]:
  """dB for the foreground and for the background, both less if a sound would leave full scale.
  `level`, `found`: their loudness as recorded."""
  gains = recipe.background_lufs + snr - level, recipe.background_lufs - found
  known = amplified(background, gains[1])
  mix = amplified(foreground, gains[0]) + known[: recipe.samples]
  excess = max(0.0, 20 * math.log10(max(np.abs(known).max(), np.abs(mix).max()) / PEAK))
  foreground_gain, background_gain = (round(gain - excess, DECIMALS) for gain in gains)
  return foreground_gain, background_gain


def sound(
  mixture: Mixture, condition: str, foreground: str, background: str, recipe: Recipe
) -> np.ndarray:
  """(c · rate,) float32 of one of CONDITIONS, from the row and the paths of its files. Raises
  Reject."""
  samples, rate = recipe.samples, recipe.sample_rate
  start = mixture.a if condition == "mix" else getattr(mixture, condition)
  known = load(background, rate)[start : start + samples]
  if len(known) < samples:
    raise Reject(
      "too_short", f"background {mixture.background!r}: {len(known)} of {samples} samples"
    )
  known = amplified(known, mixture.background_gain_db)
  if condition != "mix":
    return known
  event = cut(load(foreground, rate), mixture.foreground_offset, samples)
  return amplified(event, mixture.foreground_gain_db) + known


@dataclasses.dataclass(frozen=True)
class Reader:
  """Gives `prepare` the waveform of a mixture, by its id, in place of the source's file."""

  condition: str
  mixtures: dict[str, Mixture]
  backgrounds: dict[str, str]  # path of each id
  recipe: Recipe

  def __call__(
    self, source: Source, *, quality: Quality | None = None, **options
  ) -> Iterator[tuple[None, np.ndarray]]:
    """Yields (None, (N,) float32), the condition's sound. `options`, of other readers, are not
    used. Raises Reject."""
    mixture = self.mixtures[source.id]
    path = self.backgrounds[mixture.background]
    waveform = sound(mixture, self.condition, source.path, path, self.recipe)
    if quality is not None:
      quality.sample_rate = self.recipe.sample_rate
      quality.update(waveform[:, None])
    yield None, waveform


def to_table(mixtures: list[Mixture]) -> str:
  """A CSV file."""
  return table_text(COLUMNS, map(dataclasses.astuple, mixtures))


def from_table(text: str) -> list[Mixture]:
  """The mixtures of `to_table`. Raises ValueError, TypeError or KeyError for a table of another
  kind."""
  numbers = {
    field.name: field.type for field in dataclasses.fields(Mixture) if field.type in (int, float)
  }
  rows = csv.DictReader(io.StringIO(text, newline=""))
  return [
    Mixture(**row | {name: kind(row[name]) for name, kind in numbers.items()}) for row in rows
  ]


def _write(job: tuple[str, str, Mixture, str, str, Recipe]) -> None:
  import soundfile

  path, condition, mixture, foreground, background, recipe = job
  waveform = sound(mixture, condition, foreground, background, recipe)
  with storage.writing(path) as file:
    soundfile.write(file, waveform, recipe.sample_rate, format="WAV", subtype="PCM_16")


def write_audio(
  folder: str,
  mixtures: list[Mixture],
  foregrounds: dict[str, str],
  backgrounds: dict[str, str],
  recipe: Recipe,
  *,
  workers: int,
) -> None:
  """Writes FOLDER/CONDITION/NUMBER.wav, 16 bits; NUMBER is that of the mixture's row, from 0.

  Args:
    foregrounds, backgrounds: path of each id.
  """
  jobs = []
  for condition in CONDITIONS:
    storage.make_folder(os.path.join(folder, condition))
    for number, mixture in enumerate(mixtures):
      path = os.path.join(folder, condition, f"{number:06d}.wav")
      files = foregrounds[mixture.foreground], backgrounds[mixture.background]
      jobs.append((path, condition, mixture, *files, recipe))
  for _ in each(_write, jobs, workers=workers):
    pass
