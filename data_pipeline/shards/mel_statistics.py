"""Minimum, maximum, mean and standard deviation of mel values: exact, and so the same for any
division into parts.

Float16 values are whole multiples of 2^-24. Sums of values and of squares are therefore kept as
whole numbers, which add up to the same bits in any order. The same is computed of BYOL-A's
logarithms, ln(power + 2^-23), rounded to multiples of 2^-24.
"""

import fractions
import math
from collections.abc import Iterable

import numpy as np

WAITING_CLIPS, WAITING_VALUES = 32, 1 << 15
UNIT_BITS = 24  # the smallest float16 is 2^-24
_VALUES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
_NEPERS_PER_DB = math.log(10) / 10
_LOG_EPS = 2.0**-23  # float32 epsilon


class MelStatistics:
  """Counts how often every float16 occurs."""

  def __init__(self):
    self._histogram = np.zeros(1 << 16, np.int64)
    self._waiting: list[np.ndarray] = []  # short clips, to be counted together

  def add(self, mel: np.ndarray) -> None:
    """Adds a (T, F) float16 log-mel spectrogram of finite values."""
    self._waiting.append(np.ascontiguousarray(mel, np.float16).view(np.uint16).ravel())
    if len(self._waiting) == WAITING_CLIPS or mel.size > WAITING_VALUES:
      self._count()

  def _count(self) -> None:
    if self._waiting:
      self._histogram += np.bincount(np.concatenate(self._waiting), minlength=1 << 16)
      self._waiting.clear()

  def to_json(self) -> dict:
    """`sum` in units of 2^-24 dB and `sum_squares` in units of 2^-48 dB^2, as whole numbers of any
    length. Keys with `log_` are the same of nepers."""
    self._count()
    seen = np.flatnonzero(self._histogram)
    if not len(seen):
      return {"num_values": 0}
    counts = [int(count) for count in self._histogram[seen]]
    units = [int(value * (1 << UNIT_BITS)) for value in _VALUES[seen]]
    logs = np.logaddexp(_NEPERS_PER_DB * _VALUES[seen], math.log(_LOG_EPS))
    log_units = [round(float(value) * (1 << UNIT_BITS)) for value in logs]
    return {
      "num_values": sum(counts),
      "min": float(_VALUES[seen].min()) + 0.0,  # not -0.0
      "max": float(_VALUES[seen].max()) + 0.0,
      "sum": sum(count * unit for count, unit in zip(counts, units, strict=True)),
      "sum_squares": sum(count * unit * unit for count, unit in zip(counts, units, strict=True)),
      "log_sum": sum(count * unit for count, unit in zip(counts, log_units, strict=True)),
      "log_sum_squares": sum(
        count * unit * unit for count, unit in zip(counts, log_units, strict=True)
      ),
    }


def is_current(part: dict) -> bool:
  """Whether a `to_json` has all that `merge_statistics` needs; earlier versions wrote less."""
  return not part["num_values"] or "log_sum" in part


def _mean_and_std(parts: list[dict], count: int, prefix: str) -> tuple[float, float]:
  mean = fractions.Fraction(sum(part[f"{prefix}sum"] for part in parts), count << UNIT_BITS)
  mean_square = fractions.Fraction(
    sum(part[f"{prefix}sum_squares"] for part in parts), count << 2 * UNIT_BITS
  )
  return float(mean), math.sqrt(mean_square - mean * mean)


def merge_statistics(parts: Iterable[dict], split: str) -> dict:
  """`dataset.json` statistics from the `to_json` of parts; {} if they hold no values.

  min, max, mean and population std are in dB; log_mean and log_std are of ln(power + 2^-23), in
  nepers.
  """
  parts = [part for part in parts if part["num_values"]]
  if not parts:
    return {}
  count = sum(part["num_values"] for part in parts)
  mean, std = _mean_and_std(parts, count, "")
  log_mean, log_std = _mean_and_std(parts, count, "log_")
  return {
    "min": min(part["min"] for part in parts),
    "max": max(part["max"] for part in parts),
    "mean": mean,
    "std": std,
    "log_mean": log_mean,
    "log_std": log_std,
    "num_values": count,
    "split": split,
  }
