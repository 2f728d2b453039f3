"""Normalisations of log-mel: ATST's of a crop, BYOL-A's and SSAST's by constants, logarithms of
magnitudes as COLA and VGGish take them, and BYOL-A's of a batch of views."""

from collections.abc import Callable

import jax.numpy as jnp

from atst_jax.method.groups import valid_frames

NEPERS_PER_DB = 0.23025851  # ln(10) / 10, of power
LOG_EPS = 1.1920929e-07  # 2^-23, the power that BYOL-A adds inside its logarithm; Kaldi's floor


def min_max(mel, *, peak, top_db, low, high):
  """dB clamped to `top_db` below `peak`, then mapped so that low..high dB becomes -1..1; any shapes
  that broadcast.

  The formula of ATST's released code (torchaudio AmplitudeToDB, MinMax): no clipping to [-1, 1].
  """
  return 2 * (jnp.maximum(mel, peak - top_db) - low) / (high - low) - 1


def standardize(mel, *, peak, mean, std):
  """(ln(power + 2^-23) - mean) / std, as BYOL-A; dB in, mean and std in nepers. `peak` plays no
  part."""
  del peak
  return (jnp.logaddexp(NEPERS_PER_DB * mel, jnp.log(LOG_EPS)) - mean) / std


def half_standardize(mel, *, peak, mean, std):
  """(ln(max(power, 2^-23)) - mean) / (2 std), as SSAST; dB in, mean and std in nepers. `peak` plays
  no part."""
  del peak
  return (jnp.maximum(NEPERS_PER_DB * mel, jnp.log(LOG_EPS)) - mean) / (2 * std)


def log_magnitude(mel, *, peak, floor, offset):
  """ln(max(magnitude, floor) + offset) of dB of a front-end of magnitudes: VGGish adds 0.01, COLA
  has a floor of 1e-5. `peak` plays no part."""
  del peak
  return jnp.log(jnp.maximum(jnp.exp(NEPERS_PER_DB / 2 * mel), floor) + offset)


NORMALIZATIONS: dict[str, Callable] = {
  "min_max": min_max,
  "standard": standardize,
  "half_standard": half_standardize,
  "log_magnitude": log_magnitude,
}
WANTED = {
  "min_max": {"top_db", "low", "high"},
  "standard": {"mean", "std"},
  "half_standard": {"mean", "std"},
  "log_magnitude": {"floor", "offset"},
}


def normalize(mel, *, kind, peak, **constants):
  """`NORMALIZATIONS[kind]` with its own constants."""
  return NORMALIZATIONS[kind](mel, peak=peak, **constants)


def check_normalization(*, kind, **constants) -> None:
  """Raises ValueError, KeyError or TypeError for constants that `normalize` cannot use: they may
  come from a file."""
  wanted = WANTED[kind]
  if set(constants) != wanted or not all(
    type(v) in (int, float) and abs(v) < 1e6 for v in constants.values()
  ):
    raise ValueError(
      f"normalization {kind} needs {', '.join(sorted(wanted))}, numbers; it has {constants}"
    )
  if kind == "log_magnitude":
    floor, offset = constants["floor"], constants["offset"]
    if min(floor, offset) < 0 or floor + offset <= 0:
      raise ValueError(f"normalization {kind} of {constants} takes the logarithm of nothing")
    return
  span = (
    constants["std"]
    if "std" in constants
    else min(constants["high"] - constants["low"], constants["top_db"])
  )
  if span <= 0:
    raise ValueError(f"normalization {kind} of {constants} divides by nothing")


def nepers_per_unit(*, kind, **constants):
  """Nepers of power per unit of `normalize`'s output: the energy-domain mixture's k (15.005 for
  released ATST)."""
  if kind == "standard":
    return constants["std"]
  if kind == "half_standard":
    return 2 * constants["std"]
  if kind == "log_magnitude":
    return 2.0
  return NEPERS_PER_DB * (constants["high"] - constants["low"]) / 2


def normalize_batch(x, length):
  """BYOL-A's post-normalisation: one mean and one unbiased standard deviation of all valid values
  of all views.

  Args:
    x: (B, K, T, F).
    length: (B, K) valid frames or None.

  Returns:
    x normalised (padding stays 0), and the standard deviation that it was divided by, ().
  """
  valid = (
    jnp.ones((1, 1, 1, 1), jnp.float32)
    if length is None
    else valid_frames(length, x.shape[2])[..., None].astype(x.dtype)
  )
  count = jnp.sum(jnp.broadcast_to(valid, (*x.shape[:3], 1))) * x.shape[3]
  mean = jnp.sum(x * valid) / count
  std = jnp.sqrt(jnp.sum(jnp.square(x - mean) * valid) / (count - 1))
  std = jnp.maximum(std, jnp.finfo(jnp.float32).eps)
  return (x - mean) / std * valid, std
