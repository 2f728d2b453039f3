"""Waveforms of any rate and length as log-mel: arrays of short ones; long ones are computed again
each time they are read."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from atst_jax.audio.frames import norm
from atst_jax.audio.frontend import FrontEnd, log_mel_blocks
from atst_jax.util.errors import UserError

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; another number is a mistake (16 for 16 kHz)
PIECE_SAMPLES = 1 << 18
HELD_FRAMES = 60_000  # ten minutes at 10 ms: 15 MB of mel are held, more are not


def check_rate(sample_rate) -> None:
  """Raises UserError unless this can be a sample rate in Hz."""
  if isinstance(sample_rate, bool) or not isinstance(
    sample_rate, (int, float, np.integer, np.floating)
  ):
    raise UserError(f"sample_rate={sample_rate!r}: state the rate of the audio in Hz")
  if not MIN_RATE <= sample_rate <= MAX_RATE:
    raise UserError(
      f"sample_rate={sample_rate}: state the rate of the audio in Hz, {MIN_RATE} to {MAX_RATE}"
    )


def pieces(audio, sample_rate: float, target_rate: int) -> Iterator[np.ndarray]:
  """Cuts an (N,) waveform into float32 pieces and resamples them as one stream.

  Raises:
    UserError: for a bad rate, more than one axis, integers (their full scale is not known), NaN or
      infinity.
  """
  check_rate(sample_rate)
  audio = np.asarray(audio)
  if audio.ndim != 1:
    raise UserError(
      f"audio of shape {audio.shape}: expected one axis of samples (mix channels to mono first)"
    )
  if audio.dtype.kind != "f":
    raise UserError(
      f"audio of {audio.dtype}: expected floats of full scale 1.0 (divide 16-bit integers by 32768)"
    )
  stream = None
  if sample_rate != target_rate:
    import soxr

    stream = soxr.ResampleStream(sample_rate, target_rate, 1, dtype="float32")
  for start in range(0, len(audio), PIECE_SAMPLES):
    piece = np.asarray(audio[start : start + PIECE_SAMPLES], np.float32)
    if not np.isfinite(piece).all():
      raise UserError(f"audio of {len(audio)} samples: not all of them are finite")
    last = start + PIECE_SAMPLES >= len(audio)
    yield piece if stream is None else stream.resample_chunk(piece, last=last)


def central_samples(
  waveform: Callable[[], Iterable[np.ndarray]], samples: int
) -> Callable[[], Iterator[np.ndarray]]:
  """A function that gives the pieces of a sound: of a longer one only its central `samples`.

  A longer sound is read twice, because its middle is only known at its end.
  """

  def read():
    held, total = [], 0
    for piece in waveform():
      total += len(piece)
      if total <= samples:
        held.append(piece)
      else:
        held.clear()
    if total <= samples:
      yield from held
      return
    start, position = (total - samples) // 2, 0
    for piece in waveform():
      part = piece[max(start - position, 0) : max(start + samples - position, 0)]
      position += len(piece)
      if len(part):
        yield part

  return read


class LongMel:
  """The log-mel of a sound that is too long for memory.

  Attributes:
    peak: its maximum, dB.
  """

  def __init__(self, blocks: Callable[[], Iterator[np.ndarray]], frames: int, peak: float):
    self._blocks, self._frames, self.peak = blocks, frames, peak

  def __len__(self):
    """Frames."""
    return self._frames

  def __iter__(self) -> Iterator[np.ndarray]:
    """Yields consecutive (t, F) dB blocks, computed anew."""
    return self._blocks()


Mel = np.ndarray | LongMel


def mel_of(
  waveform: Callable[[], Iterable[np.ndarray]], frontend: FrontEnd, filters: np.ndarray | None
) -> Mel:
  """The log-mel of a sound: an array of at most HELD_FRAMES, or a LongMel.

  Args:
    waveform: each call gives the sound's (n,) pieces at the front-end's rate, from the start. For a
      front-end of level "unit" all of it is read once more, for its norm.

  Raises:
    UserError: fewer samples than the front-end needs.
  """
  unit = norm(waveform()) if frontend.level == "unit" else None

  def blocks():
    read = 0

    def counted():
      nonlocal read
      for piece in waveform():
        read += len(piece)
        yield piece if unit is None else piece / unit

    try:
      yield from log_mel_blocks(counted(), frontend, filters)
    except ValueError as error:
      if isinstance(error, UserError) or read >= frontend.min_samples:
        raise
      raise UserError(
        f"audio of {read} samples at {frontend.sample_rate} Hz; at least "
        f"{frontend.min_samples} are needed"
      ) from error

  held, frames, peak = [], 0, -np.inf
  for block in blocks():
    frames, peak = frames + len(block), max(peak, float(block.max()))
    if frames <= HELD_FRAMES:
      held.append(block)
    else:
      held.clear()
  return np.concatenate(held) if held else LongMel(blocks, frames, peak)


def peak_of(mel: Mel) -> float:
  """The maximum in dB."""
  return mel.peak if isinstance(mel, LongMel) else float(mel.max())


def windows(mel: Mel, size: int, context: int) -> Iterator[tuple[np.ndarray, int]]:
  """Yields consecutive (size, F) parts of a spectrogram, each with up to `context` more frames
  before and behind it, and the number of those before. The last part may be shorter."""
  blocks = iter(mel) if isinstance(mel, LongMel) else iter([mel])
  held, position = next(blocks), 0
  for start in range(0, len(mel), size):
    first, stop = max(start - context, 0), min(start + size + context, len(mel))
    held, position = held[first - position :], first
    while position + len(held) < stop:
      held = np.concatenate([held, next(blocks)])
    yield held[: stop - first], start - first


def cut(mel: Mel, size: int) -> Iterator[np.ndarray]:
  """Yields consecutive (size, F) parts of a spectrogram; the last one may be shorter."""
  for part, _ in windows(mel, size, 0):
    yield part


def central(mel: Mel, frames: int) -> np.ndarray:
  """The central `frames` of a longer spectrogram, or all of a shorter one, as an array."""
  start = max(len(mel) - frames, 0) // 2
  if not isinstance(mel, LongMel):
    return mel[start : start + frames]
  kept, position = [], 0
  for block in mel:
    kept.append(block[max(start - position, 0) : max(start + frames - position, 0)])
    position += len(block)
  return np.concatenate(kept)


def surrounded(mel: Mel, frames: int, silence: float) -> Mel:
  """A spectrogram of fewer than so many frames with silence (dB), half of it at each end; a longer
  one as it is."""
  missing = frames - len(mel)
  if missing <= 0:
    return mel
  ends = (missing // 2, missing - missing // 2)
  return np.pad(central(mel, len(mel)), (ends, (0, 0)), constant_values=silence)
