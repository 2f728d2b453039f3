"""Windows over a sound that is read in pieces."""

import numpy as np
import pytest

from atst_jax.audio.sliding import check_windows, sliding
from atst_jax.util.errors import UserError


def _windows(number, seconds, hop, piece, **options):
  sound = np.arange(number, dtype=np.float32)
  parts = (sound[i : i + piece] for i in range(0, number, piece))
  return list(sliding(parts, sample_rate=10, seconds=seconds, hop=hop, **options))


@pytest.mark.parametrize("piece", [1, 7, 100])
@pytest.mark.parametrize(
  "number, seconds, hop, spans",
  [
    (100, 6, 2, [(0, 6), (2, 8), (4, 10)]),
    (95, 3, 3, [(0, 3), (3, 6), (6, 9), (9, 9.5)]),
    (90, 3, 3, [(0, 3), (3, 6), (6, 9)]),  # none behind one that reaches the end
    (95, 1, 3, [(0, 1), (3, 4), (6, 7), (9, 9.5)]),  # gaps between them
    (40, 20, 1, [(0, 4)]),
    (20, 0.7, 0.35, [(0, 0.7), (0.4, 1.1), (0.7, 1.4), (1, 1.7), (1.4, 2)]),  # whole samples
  ],
)
def test_windows_are_the_parts_of_the_whole(number, seconds, hop, spans, piece):
  found = _windows(number, seconds, hop, piece)
  assert [(window.start, window.end) for window in found] == spans
  for window in found:
    expected = np.arange(round(10 * window.start), round(10 * window.end))
    np.testing.assert_array_equal(window.samples, expected)


def test_a_last_window_that_is_too_short_is_left_out():
  spans = lambda number: [w.end for w in _windows(number, 3, 3, 7, min_samples=10)]
  assert spans(69) == [3, 6] and spans(70) == [3, 6, 7]
  assert spans(5) == [0.5] and spans(0) == [0]  # the only one


def test_a_long_sound_is_not_held():
  """A day of samples at 10 Hz, of which windows of 3 s are held."""
  kept = 0
  pieces = (np.zeros(1000, np.float32) for _ in range(864))
  for window in sliding(pieces, sample_rate=10, seconds=3, hop=1):
    base = window.samples if window.samples.base is None else window.samples.base
    kept = max(kept, base.nbytes)
  assert kept < 2 * 4000


@pytest.mark.parametrize(
  "seconds, hop, message",
  [
    (0.01, 1, "--window=0.01: must be 0.04 to 600"),
    (601, 1, "--window=601"),
    (1, 0, "--hop=0: must be 0.01"),
    (float("nan"), 1, "--window=nan"),
  ],
)
def test_windows_that_cannot_be_cut(seconds, hop, message):
  with pytest.raises(UserError, match=message):
    check_windows(seconds, hop, shortest=0.04)
