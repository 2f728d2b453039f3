"""Segments of one recording, read in one pass from its beginning, because seeking is wrong in some
formats (Vorbis)."""

import collections
import dataclasses
import heapq
import math
from collections.abc import Iterator, Sequence

import numpy as np

from .channels import MEAN, mean_of
from .decode import Quality, choose_channel, raw_blocks
from .sound_file import Reject, Sound, open_sound

END_SECONDS = 0.05  # a segment may end so far behind the file: times in tables are rounded
LAST_SECONDS = 1.0  # a shorter last piece of a long segment is left out


@dataclasses.dataclass(eq=False)
class Piece:
  """A segment, or a part of one that was cut.

  Attributes:
    index: of the segment.
    number: of the part; None if the segment is one piece.
    start, end: seconds.
    last: whether the segment ends here.
    waveform: (N,) float32, once it is known.
    reject: the reason if there is none.
    quality: of its samples.
  """

  index: int
  number: int | None
  start: float
  end: float
  last: bool
  waveform: np.ndarray | None = None
  reject: Reject | None = None
  quality: Quality = dataclasses.field(default_factory=Quality)

  def hear(self, block: np.ndarray, first: int, rate: int) -> None:
    """Adds the part of an (N, C) block that lies in the piece to its quality; `first` is the number
    of the block's first sample, at `rate` Hz."""
    low, high = round(self.start * rate), min(self.end * rate, first + len(block))
    part = block[max(low - first, 0) : max(round(high) - first, 0)]
    self.quality.sample_rate = rate
    if self.reject is None and len(part):
      try:
        self.quality.update(part)
      except Reject as error:
        self.reject = error

  def __lt__(self, other: "Piece") -> bool:
    return (self.end, self.start, self.index) < (other.end, other.start, other.index)


class _Waiting:
  """The pieces of all segments: those to begin, sorted by their start, and those that have begun,
  sorted by their end."""

  def __init__(self, spans: dict[int, tuple[float, float]], max_seconds: float):
    """`spans`: (start, end) in seconds of each segment that is read, by its number."""
    self._spans, self._max_seconds = spans, max_seconds
    self._begun: list[Piece] = []  # a heap
    # a heap of (start, index, number)
    self._to_begin = sorted((start, index, 0) for index, (start, _) in spans.items())

  def begin(self, until: float, *, cut: bool = True) -> list[Piece]:
    """The pieces that begin before `until` seconds and had not begun. `cut`: a too long piece is
    cut, and another begins behind it."""
    found = []
    while self._to_begin and self._to_begin[0][0] < until:
      start, index, number = heapq.heappop(self._to_begin)
      end = self._spans[index][1]
      long = end - start > self._max_seconds
      if long and cut:
        end = start + self._max_seconds
        heapq.heappush(self._to_begin, (end, index, number + 1))
      whole = number == 0 and not long
      piece = Piece(index, None if whole else number, start, end, last=not (long and cut))
      found.append(piece)
      heapq.heappush(self._begun, piece)
    return found

  def ended(self, until: float) -> Iterator[Piece]:
    """Yields the begun pieces that end by `until` seconds, in that order."""
    while self._begun and self._begun[0].end <= until:
      yield heapq.heappop(self._begun)

  @property
  def needed(self) -> float:
    """Seconds from which on samples are needed."""
    return min((piece.start for piece in self._begun), default=math.inf)

  @property
  def empty(self) -> bool:
    """Whether all pieces have ended."""
    return not self._begun and not self._to_begin


class _Held:
  """The samples that begun pieces still need, at the result's rate."""

  def __init__(self, sample_rate: int):
    self.rate, self.count = sample_rate, 0
    self._blocks: collections.deque[np.ndarray] = collections.deque()
    self._first = 0  # sample of the first block

  @property
  def seconds(self) -> float:
    """Of all samples added so far."""
    return self.count / self.rate

  def add(self, block: np.ndarray) -> None:
    """Adds the next samples."""
    self._blocks.append(block)
    self.count += len(block)

  def cut(self, start: float, end: float) -> np.ndarray:
    """(N,) from `start` to `end` seconds, or to the last sample."""
    first, last = round(start * self.rate), round(min(end, self.seconds) * self.rate)
    parts, place = [np.zeros(0, np.float32)], self._first
    for block in self._blocks:
      parts.append(block[max(first - place, 0) : max(last - place, 0)])
      place += len(block)
    parts = [part for part in parts if len(part)] or parts[:1]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

  def drop(self, before: float) -> None:
    """Drops the blocks that lie before so many seconds."""
    while self._blocks and self._first + len(self._blocks[0]) <= before * self.rate:
      self._first += len(self._blocks.popleft())


def _blocks(file: Sound, sample_rate: int, waiting: _Waiting, kept: slice) -> Iterator[np.ndarray]:
  """Yields (N,) float32 mono blocks at `sample_rate`. A fault is raised after the blocks before it.
  Begins pieces of `waiting` and updates their quality."""
  import soxr

  stream = None
  if file.samplerate != sample_rate:
    stream = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32")
  convert = lambda block, last: block if stream is None else stream.resample_chunk(block, last=last)
  rest, first = np.zeros(0, np.float32), 0
  pieces: list[Piece] = []
  try:
    for raw in raw_blocks(file):
      block = raw[:, kept]
      last = first + len(block)
      pieces += waiting.begin(last / file.samplerate)
      for piece in pieces:
        piece.hear(block, first, file.samplerate)
      pieces = [piece for piece in pieces if piece.end * file.samplerate > last]
      mono = mean_of(block)
      if not np.isfinite(mono.sum()):
        raise Reject("non_finite", f"behind {first / file.samplerate:.1f} s")
      first = last
      yield convert(mono, False)
  except Exception:
    yield convert(rest, True)
    raise
  yield convert(rest, True)


def read_segments(
  path: str,
  spans: Sequence[tuple[float, float]],
  *,
  sample_rate: int,
  min_samples: int = 1,
  max_seconds: float = 60.0,
  context: Sequence[float] = (),
  repair_headers: bool = False,
  channels: str = MEAN,
) -> Iterator[Piece]:
  """Decodes a recording once, and gives its segments: slices of the whole after decoding, mixing
  and resampling.

  Args:
    path, sample_rate, min_samples, repair_headers, channels: as of `decode.read_pieces`.
    spans: (start, end) of each segment in seconds; an infinite end is the file's.
    max_seconds: a longer segment is cut into consecutive pieces of this length. A last piece of
      less than a second is left out.
    context: seconds that are added to each segment on both sides, as far as the file goes; by
      default none.

  Yields:
    Pieces with a waveform or a reject, those of a segment in their order. The `last` piece of a
    segment has neither if it was short and left out. Reversed segments come first, then pieces
    sorted by their end.
  """
  wide = {}  # spans as they are cut
  for index, (start, end) in enumerate(spans):
    more = context[index] if context else 0.0
    if start < end:
      wide[index] = max(start - more, 0.0), end + more
    else:
      yield Piece(
        index, None, start, end, True, reject=Reject("reversed", f"{start:g} to {end:g} s")
      )
  waiting, held, failed, missed = _Waiting(wide, max_seconds), _Held(sample_rate), None, ""
  try:
    kept = choose_channel(path, channels, repair_headers)
    with open_sound(path, repair_headers) as file:
      for block in _blocks(file, sample_rate, waiting, kept):
        held.add(block)
        for piece in waiting.ended(held.seconds):
          yield _filled(piece, held, min_samples)
        if waiting.empty:
          return
        held.drop(waiting.needed)
      missed = file.missed()
  except Reject as error:
    failed = error
  waiting.begin(math.inf, cut=False)
  given = set()
  for piece in waiting.ended(math.inf):
    if piece.index in given:  # the file has ended in an earlier piece of the segment
      continue
    given.add(piece.index)
    end = spans[piece.index][1]
    piece.last, piece.number, piece.quality.missed = True, piece.number or None, missed
    if failed is not None:
      piece.reject = failed
    else:
      piece.reject = beyond_end(end, held.seconds, missed) or piece.reject
    yield _filled(piece, held, min_samples)


def beyond_end(end: float, seconds: float, missed: str = "") -> Reject | None:
  """The reject of a segment that ends at `end` seconds, behind the recording's end; None if it does
  not.

  Args:
    seconds: of the recording.
    missed: says which part of it was not read.
  """
  if end == math.inf or end <= seconds + END_SECONDS:
    return None
  text = f"it ends at {end:g} s, the file at {seconds:.2f} s"
  return Reject("beyond_end", f"{text}: {missed}" if missed else text)


def _filled(piece: Piece, held: _Held, min_samples: int) -> Piece:
  """The piece with its waveform, or the reject of one that is too short."""
  if piece.reject is not None:
    return piece
  waveform = held.cut(piece.start, piece.end)
  if piece.number and piece.last and len(waveform) < LAST_SECONDS * held.rate:
    return piece
  if len(waveform) < min_samples:
    text = f"{len(waveform)} samples at {held.rate} Hz, {min_samples} needed"
    piece.reject = Reject("too_short", text)
  else:
    piece.waveform = waveform
  return piece
