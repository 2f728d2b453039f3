"""Minimum, maximum, mean and standard deviation of mel values, exact and therefore the same however they are split.

Float16 values are whole multiples of 2^-24, so that sums of values and of squares are kept as whole numbers: adding
them up gives the same bits in any order and grouping.
"""

import fractions
import math
from collections.abc import Iterable

import numpy as np

UNIT_BITS = 24  # the smallest float16 is 2^-24
_VALUES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)


class MelStatistics:
  """Counts how often every float16 occurs."""

  def __init__(self):
    self.histogram = np.zeros(1 << 16, np.int64)

  def add(self, mel: np.ndarray) -> None:
    """Adds a (T, F) float16 log-mel spectrogram of finite values."""
    bits = np.ascontiguousarray(mel, np.float16).view(np.uint16)
    self.histogram += np.bincount(bits.ravel(), minlength=1 << 16)

  def to_json(self) -> dict:
    """`sum` in units of 2^-24 dB and `sum_squares` in units of 2^-48 dB^2, as whole numbers of any length."""
    seen = np.flatnonzero(self.histogram)
    if not len(seen):
      return {"num_values": 0}
    counts = [int(count) for count in self.histogram[seen]]
    units = [int(value * (1 << UNIT_BITS)) for value in _VALUES[seen]]
    return {
      "num_values": sum(counts),
      "min": float(_VALUES[seen].min()) + 0.0,  # not -0.0
      "max": float(_VALUES[seen].max()) + 0.0,
      "sum": sum(count * unit for count, unit in zip(counts, units, strict=True)),
      "sum_squares": sum(count * unit * unit for count, unit in zip(counts, units, strict=True)),
    }


def merge_statistics(parts: Iterable[dict], split: str) -> dict:
  """`dataset.json` statistics in dB (population `std`) from the `to_json` of parts; {} if they hold no values."""
  parts = [part for part in parts if part["num_values"]]
  if not parts:
    return {}
  count = sum(part["num_values"] for part in parts)
  mean = fractions.Fraction(sum(part["sum"] for part in parts), count << UNIT_BITS)
  mean_square = fractions.Fraction(sum(part["sum_squares"] for part in parts), count << 2 * UNIT_BITS)
  return {
    "min": min(part["min"] for part in parts),
    "max": max(part["max"] for part in parts),
    "mean": float(mean),
    "std": math.sqrt(mean_square - mean * mean),
    "num_values": count,
    "split": split,
  }
