"""Loudness: K-weighted and gated as of ITU-R BS.1770-4, by pyloudnorm."""

import functools
import math

import numpy as np

from atst_jax.util.errors import UserError

# Shorter sounds are repeated up to it, as in scaper: loudness is measured in blocks of 0.4 s.
MIN_SECONDS = 0.5


@functools.lru_cache(maxsize=8)
def loudness_meter(rate: int):
  """pyloudnorm's meter (ITU-R BS.1770-4) for a rate in Hz. Raises UserError where it is not
  installed."""
  try:
    import pyloudnorm
  except ImportError as error:
    raise UserError(
      "mixing sounds at a stated loudness needs pyloudnorm: pip install -e .[mixtures]"
    ) from error
  return pyloudnorm.Meter(rate)


def loudness(waveform: np.ndarray, rate: int) -> float:
  """LUFS of a mono waveform; -inf if no block of 0.4 s reaches -70 LUFS (silence).

  Args:
    waveform: (N,) samples, full scale 1.0; repeated up to 0.5 s if shorter.
    rate: Hz.

  Raises:
    ValueError: the waveform is empty, has more than one axis, or a sample is NaN or infinite.
    UserError: pyloudnorm is not installed.
  """
  if waveform.ndim != 1 or not len(waveform) or not np.isfinite(waveform).all():
    raise ValueError(f"waveform of shape {waveform.shape}: need one axis of finite samples")
  shortest = math.ceil(MIN_SECONDS * rate)
  if len(waveform) < shortest:
    waveform = np.tile(waveform, -(-shortest // len(waveform)))
  return float(loudness_meter(rate).integrated_loudness(waveform.astype(np.float64)))


def gain_to(waveform: np.ndarray, rate: int, lufs: float) -> float:
  """dB of gain that bring a waveform to a loudness. Raises as `loudness`, and ValueError for
  silence."""
  found = loudness(waveform, rate)
  if found == -math.inf:
    raise ValueError("a silent waveform has no loudness to start from")
  return lufs - found


def amplified(waveform: np.ndarray, gain_db: float) -> np.ndarray:
  """(N,) float32: the waveform times 10^(gain_db / 20)."""
  return (waveform * 10 ** (gain_db / 20)).astype(np.float32)


def faded(waveform: np.ndarray, rate: int, seconds: float) -> np.ndarray:
  """(N,) of the same type, faded by a quarter of a sine at both ends, at most half the waveform
  each."""
  n = min(round(seconds * rate), len(waveform) // 2)
  ramp = np.sin(0.5 * np.pi * np.arange(n) / max(n, 1)).astype(waveform.dtype)
  out = waveform.copy()
  out[:n] *= ramp
  out[len(out) - n :] *= ramp[::-1]
  return out
