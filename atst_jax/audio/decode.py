"""Audio files to mono waveforms at the front-end's rate, block by block: memory is bounded by the
longest piece."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np

from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

from .channels import LOUDEST, MEAN, Levels, mean_of
from .sound_file import Reject, Sound, open_sound

BLOCK_VALUES = 1 << 18  # samples x channels decoded at a time
SILENT_PEAK = 1e-4  # -80 dB of full scale: below the dither of 16 bits
FULL_SCALE = 127 / 128  # the highest value of 8 bits
CLIPPED_SHARE = 0.01
DC_OFFSET = 0.02
ALL = slice(None)  # of the channels
MAX_PEAK = 1e9  # full scale is 1.0; far beyond, the power overflows float32


@dataclasses.dataclass
class Quality:
  """Levels of a file before it is mixed and resampled, gathered block by block.

  Attributes:
    missed: says which part of the file was not read, "" if all was.
    levels: of its channels, if several are averaged.
    notes: JSON of a mixture about its parts.
  """

  sample_rate: int = 0  # Hz
  peak: float = 0.0
  values: int = 0
  full_scale_values: int = 0
  total: float = 0.0
  missed: str = ""
  levels: Levels = dataclasses.field(default_factory=Levels)
  notes: list = dataclasses.field(default_factory=list)

  def update(self, block: np.ndarray) -> None:
    """Adds an (N, C) block. Raises Reject for NaN, infinite or absurdly large samples."""
    peak = float(max(block.max(initial=0.0), -block.min(initial=0.0)))
    if not peak < MAX_PEAK:  # NaN and infinity propagate to the peak
      raise Reject("non_finite", f"a sample is {peak}")
    self.peak = max(self.peak, peak)
    self.values += block.size
    if peak >= FULL_SCALE:
      self.full_scale_values += int(np.count_nonzero(np.abs(block) >= FULL_SCALE))
    self.total += float(block.sum(dtype=np.float64))
    if block.shape[1] > 1:
      self.levels.update(block)

  def add(self, other: "Quality") -> None:
    """Adds that of another part of the same sound."""
    self.sample_rate, self.peak = other.sample_rate, max(self.peak, other.peak)
    self.values += other.values
    self.full_scale_values += other.full_scale_values
    self.total += other.total
    self.missed = self.missed or other.missed
    self.levels.add(other.levels)

  def remarks(self) -> dict[str, str]:
    """{kind: detail} of faults of a sound that is used all the same."""
    found = {"incomplete": self.missed} if self.missed else {}
    if below := self.levels.cancelled:
      found["cancelled"] = f"{below:.0f} dB"
    return found

  @property
  def silent(self) -> bool:
    """Whether the peak is below -80 dB of full scale."""
    return self.peak < SILENT_PEAK

  @property
  def clipped(self) -> bool:
    """Whether more than CLIPPED_SHARE of the samples are at full scale."""
    return self.full_scale_values > CLIPPED_SHARE * self.values

  @property
  def dc(self) -> bool:
    """Whether the mean is farther from 0 than DC_OFFSET of full scale."""
    return abs(self.total) > DC_OFFSET * self.values


def raw_blocks(file: Sound) -> Iterator[np.ndarray]:
  """Yields (N, C) float32 blocks at the file's own rate, up to the decoder's end."""
  size = max(1, BLOCK_VALUES // file.channels)
  read = size
  # A shorter block is the last. One more call would cost a short file a twentieth of its time.
  while read == size:
    block = file.read(size)
    read = len(block)
    if read:
      yield block


def choose_channel(path: str, channels: str, repair_headers: bool = False) -> slice:
  """The channels of a file that are averaged: all for "mean", else one. Raises Reject."""
  if channels == MEAN:
    return ALL
  with open_sound(path, repair_headers) as file:
    if channels == LOUDEST:
      levels = Levels()
      if file.channels > 1:
        for block in raw_blocks(file):
          levels.update(block)
      number = levels.loudest
    else:
      number = int(channels) - 1
      if number >= file.channels:
        raise Reject("no_channel", f"it has {file.channels}, --channels={channels}")
  return slice(number, number + 1)


def _blocks(file: Sound, quality: Quality, kept: slice) -> Iterator[np.ndarray]:
  """Yields (N,) float32 mono blocks at the file's own rate."""
  quality.sample_rate = file.samplerate
  for block in raw_blocks(file):
    quality.update(block[:, kept])
    yield mean_of(block[:, kept])
  quality.missed = file.missed()


def _resampled(
  file: Sound, sample_rate: int, quality: Quality, kept: slice = ALL
) -> Iterator[np.ndarray]:
  """Yields (N,) float32 mono blocks at `sample_rate`."""
  if file.samplerate == sample_rate:
    yield from _blocks(file, quality, kept)
    return
  import soxr

  blocks = _blocks(file, quality, kept)
  first, second = next(blocks, None), next(blocks, None)
  # A stream would give the same samples in one and a half times the time.
  if first is not None and second is None:
    yield soxr.resample(first, file.samplerate, sample_rate)
    return
  stream = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32")
  for block in itertools.chain(filter(lambda block: block is not None, (first, second)), blocks):
    yield stream.resample_chunk(block)
  yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def duration(path: str) -> float:
  """Seconds, from the header if it tells, else by decoding. Raises Reject."""
  with open_sound(path) as file:
    frames = file.frames if file.frames > 0 else sum(map(len, raw_blocks(file)))
    return frames / file.samplerate


def read_pieces(
  path: str,
  *,
  sample_rate: int,
  min_samples: int = 1,
  max_seconds: float = 60.0,
  quality: Quality | None = None,
  repair_headers: bool = False,
  channels: str = MEAN,
) -> Iterator[tuple[int | None, np.ndarray]]:
  """Decodes a file, mixes it to mono, resamples it and cuts it if it is long.

  Args:
    path: anything libsndfile or PyAV reads, any rate, width and number of channels.
    sample_rate: Hz of the result.
    min_samples: fewer samples at that rate are rejected.
    max_seconds: a longer file is cut into consecutive pieces of this length. A last piece of less
      than a second is dropped. `math.inf` never cuts.
    quality: filled in by the time the first piece is yielded.
    repair_headers: read a WAV with an unfinished header to the end of the file.
    channels: "mean" of all, the "loudest", or a channel's number from 1.

  Yields:
    (number, (N,) float32): number is None for a whole file, 0, 1, ... for the pieces of a long
    one.

  Raises:
    Reject: always before the first piece: a long file is decoded once beforehand.
  """
  quality = Quality() if quality is None else quality
  max_samples = max_seconds * sample_rate
  kept = choose_channel(path, channels, repair_headers)
  with open_sound(path, repair_headers) as file:
    checked = file.frames > max_seconds * file.samplerate
    if checked:
      _check_whole(path, repair_headers, quality, kept)
      quality = Quality()
    number, held, size = 0, [], 0
    for block in _resampled(file, sample_rate, quality, kept):
      held.append(block)
      size += len(block)
      while size > max_samples:
        if not checked:  # the file is longer than its header says
          _check_whole(path, repair_headers, Quality(), kept)
          checked = True
        samples, cut = np.concatenate(held), int(max_samples)
        yield number, samples[:cut]
        number, held, size = number + 1, [samples[cut:]], size - cut
  if number == 0:
    if size < min_samples:
      raise Reject("too_short", f"{size} samples at {sample_rate} Hz, {min_samples} needed")
    yield None, np.concatenate(held)
  elif size >= sample_rate:
    yield number, np.concatenate(held)


def _check_whole(path: str, repair_headers: bool, quality: Quality, kept: slice) -> None:
  """Decodes a file to its end. Raises Reject."""
  with open_sound(path, repair_headers) as file:
    for _ in _blocks(file, quality, kept):
      pass


def read_blocks(
  path: str,
  sample_rate: int,
  start: float = 0.0,
  end: float = math.inf,
  *,
  kept: slice = ALL,
  quality: Quality | None = None,
) -> Iterator[np.ndarray]:
  """Yields a file as (n,) float32 mono blocks at `sample_rate` Hz; memory does not grow with its
  length.

  Args:
    path: anything libsndfile or PyAV reads.
    sample_rate: Hz.
    start, end: seconds; only this part, or less if the file ends before. The beginning is not
      decoded if the format can be sought.
    kept: the channels that are averaged (`choose_channel`).
    quality: is told what is read.

  Raises UserError with the file and the reason if it cannot be decoded, is empty or holds NaN,
  after the blocks before the damage.
  """
  quality = quality or Quality()
  first, last = round(start * sample_rate), end if end == math.inf else round(end * sample_rate)
  try:
    with open_sound(path) as file:
      # One second more, so that the resampler has begun.
      place = file.skip(start - 1) * sample_rate
      for block in _resampled(file, sample_rate, quality, kept):
        stop = min(len(block), last - place)
        if (part := block[max(first - place, 0) : max(int(stop), 0)]).size:
          yield part
        place += len(block)
        if place >= last:
          return
    if quality.missed:
      _tell_missed(path, quality.missed)
  except Reject as error:
    raise UserError(f"cannot use the audio file {path}: {error}") from error


@functools.lru_cache(4096)  # a long file is read more than once
def _tell_missed(path: str, missed: str) -> None:
  log.warning("%s: not all of it is used: %s", path, missed)


def load_audio(path: str, sample_rate: int) -> np.ndarray:
  """(N,) float32 mono waveform of a whole file at `sample_rate` Hz. Raises UserError as
  `read_blocks`."""
  return np.concatenate([np.zeros(0, np.float32), *read_blocks(path, sample_rate)])
