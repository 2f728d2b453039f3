"""Windows of equal length over a sound that is read in pieces. Memory is that of one window."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from atst_jax.util.errors import UserError

LONGEST = 600.0  # seconds of a window, whose samples are held in memory


class Window(NamedTuple):
  """A part of a sound.

  Attributes:
    start, end: seconds from the sound's beginning.
    samples: (N,) float32.
  """

  start: float
  end: float
  samples: np.ndarray


def check_windows(seconds: float, hop: float, *, shortest: float) -> None:
  """Raises UserError for windows outside `shortest` to LONGEST seconds, and for an impossible
  hop."""
  if not shortest <= seconds <= LONGEST:
    raise UserError(
      f"--window={seconds:g}: must be {shortest:g} to {LONGEST:g} seconds; shorter ones hold "
      "nothing that this encoder sees, longer ones are not held in memory"
    )
  if not 0.01 <= hop <= LONGEST:
    raise UserError(f"--hop={hop:g}: must be 0.01 to {LONGEST:g} seconds")


def sliding(
  pieces: Iterable[np.ndarray],
  *,
  sample_rate: int,
  seconds: float,
  hop: float,
  min_samples: int = 1,
) -> Iterator[Window]:
  """Yields windows that begin every `hop` seconds, until one reaches the end of the sound.

  The last window may be shorter. It is left out if it has fewer than `min_samples`, unless it is
  the only one: its reader then says that the sound is too short. If the hop is longer than a
  window, the samples between windows are skipped.

  Args:
    pieces: (n,) consecutive samples of the sound, as `decode.read_blocks` gives them.
    sample_rate: Hz.
    seconds: of a window.
    hop: seconds between the beginnings of windows.
  """
  size, number, first, count = max(1, round(seconds * sample_rate)), 0, 0, 0
  held = np.zeros(0, np.float32)  # samples from `first` on
  start_of = lambda number: round(number * hop * sample_rate)
  waiting: list[np.ndarray] = []  # pieces behind them
  for piece in pieces:
    waiting.append(np.asarray(piece, np.float32))
    count += len(piece)
    # A window is given once a sample behind it is there: one that reaches the end is the last.
    if count <= start_of(number) + size:
      continue
    held, waiting = np.concatenate([held, *waiting]), []
    while count > start_of(number) + size:
      start = start_of(number)
      part = held[start - first : start - first + size]
      yield Window(start / sample_rate, (start + size) / sample_rate, part)
      number += 1
    kept = min(start_of(number), count)
    held, first = held[kept - first :].copy(), kept
  start = start_of(number)
  if number == 0 or count - start >= max(min_samples, 1):
    part = np.concatenate([held, *waiting])[start - first :]
    yield Window(start / sample_rate, count / sample_rate, part)
