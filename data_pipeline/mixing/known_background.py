"""A foreground sound in a background of which other parts are known: what one mixture is made of,
and its sounds.

Source: BgKnown ESC-50 of the difference-aware paper (5.2, Figure 2). From a recording of 2c seconds
or more, (a) the c seconds that are mixed, (b) c that overlap them by half, (c) the c after them.
Where the paper is silent: the three start at s, s + c / 2 and s + c, with s uniform over the
recording; as Scaper does it, the background (a) is brought to a fixed loudness and the foreground
to that plus the SNR, both K-weighted and gated; (b) and (c) get the gain of (a).
"""

import csv
import dataclasses
import hashlib
import io
import math
from collections.abc import Iterator

import numpy as np

from atst_jax.audio.decode import Quality, Reject, read_pieces

from ..sources.files import Source
from .loudness import amplified, loudness

CONDITIONS = ("mix", "a", "b", "c")
STEP_MS = 10  # between the windows of a foreground that are compared
DRAWS = 20  # of a background, until one is not silent
PEAK = 0.999  # of full scale; what would be louder is turned down, all four sounds alike
DECIMALS = 6  # of what the table holds: nothing else enters the sounds


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A row of the table: all that its four sounds are made of."""

  id: str
  split: str  # "train", "test"; or "valid", where the foreground set has it
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
  """What all mixtures of a set have in common."""

  sample_rate: int  # Hz
  seconds: float  # c
  snr_db: tuple[float, float]  # uniform between
  background_lufs: float
  seed: int

  @property
  def samples(self) -> int:
    """Length of every sound, in samples."""
    return round(self.seconds * self.sample_rate)


def load(path: str, sample_rate: int) -> np.ndarray:
  """(N,) float32 of a whole file. Raises Reject."""
  ((_, waveform),) = read_pieces(path, sample_rate=sample_rate, max_seconds=math.inf)
  return waveform


def loudest(waveform: np.ndarray, samples: int, step: int) -> int:
  """The start of the window of the most energy, the first of equals; 0 where the waveform is no
  longer than that."""
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
    source: the foreground; of a longer one the loudest window of c seconds is taken, a shorter one
      ends in silence.
    pool: the backgrounds of its side, 2c seconds or more.

  Raises:
    Reject: the foreground cannot be decoded or is silent, or no background could be used in DRAWS
      draws.
  """
  samples, rate = recipe.samples, recipe.sample_rate
  rng = np.random.default_rng(
    int.from_bytes(hashlib.sha256(f"{recipe.seed}:{id}".encode()).digest()[:16], "big")
  )
  snr = round(rng.uniform(*recipe.snr_db), DECIMALS)
  foreground = load(source.path, rate)
  start = loudest(foreground, samples, rate * STEP_MS // 1000)
  level = loudness(cut(foreground, start, samples), rate)
  if level == -math.inf:
    raise Reject("silent", "no 0.4 s of the foreground reach -70 LUFS")
  reason = None
  for _ in range(DRAWS):
    picked, share = pool[rng.integers(len(pool))], rng.random()
    try:
      background = load(picked.path, rate)
    except Reject as error:
      reason = error
      continue
    offset = int(share * (len(background) - 2 * samples + 1))
    if len(background) < 2 * samples:
      reason = Reject(
        "too_short", f"{picked.id!r} has {len(background)} samples, {2 * samples} needed"
      )
      continue
    found = loudness(background[offset : offset + samples], rate)
    if found > -math.inf:
      gains = _gains(foreground, background, start, offset, snr, level, found, recipe)
      return Mixture(
        id,
        source.split,
        ";".join(source.labels),
        source.id,
        picked.id,
        start,
        offset,
        offset + samples // 2,
        offset + samples,
        snr,
        round(level, DECIMALS),
        round(found, DECIMALS),
        *gains,
        recipe.seed,
      )
    reason = Reject("silent", f"{picked.id!r} from sample {offset} on")
  raise Reject("background", f"none of {DRAWS} draws can be used, the last: {reason}")


def _gains(foreground, background, start, offset, snr, level, found, recipe) -> tuple[float, float]:
  """dB for the foreground and for the background; where a sound would leave full scale, both are
  less."""
  samples = recipe.samples
  gains = recipe.background_lufs + snr - level, recipe.background_lufs - found
  known = amplified(background[offset : offset + 2 * samples], gains[1])
  mix = amplified(cut(foreground, start, samples), gains[0]) + known[:samples]
  excess = max(0.0, 20 * math.log10(max(np.abs(known).max(), np.abs(mix).max()) / PEAK))
  return tuple(round(gain - excess, DECIMALS) for gain in gains)


def sound(
  mixture: Mixture, condition: str, foreground: str, background: str, recipe: Recipe
) -> np.ndarray:
  """(c · rate,) float32 of one of CONDITIONS, from the row alone; the paths are those of its files.
  Raises Reject."""
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
  return (
    amplified(
      cut(load(foreground, rate), mixture.foreground_offset, samples), mixture.foreground_gain_db
    )
    + known
  )


@dataclasses.dataclass(frozen=True)
class Reader:
  """The waveforms of a condition for `prepare`: of a source with a mixture's id, in place of its
  file's."""

  condition: str
  mixtures: dict[str, Mixture]
  backgrounds: dict[str, str]  # path of each id
  recipe: Recipe

  def __call__(
    self, source: Source, *, quality: Quality | None = None, **options
  ) -> Iterator[tuple[None, np.ndarray]]:
    """Yields (None, (N,) float32), the condition's sound. `options` are other readers'. Raises
    Reject."""
    mixture = self.mixtures[source.id]
    path = self.backgrounds[mixture.background]
    waveform = sound(mixture, self.condition, source.path, path, self.recipe)
    if quality is not None:
      quality.sample_rate = self.recipe.sample_rate
      quality.update(waveform[:, None])
    yield None, waveform


def to_table(mixtures: list[Mixture]) -> str:
  """A CSV file."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerows([COLUMNS, *map(dataclasses.astuple, mixtures)])
  return out.getvalue()


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
