"""Windows of clips, on the device: what an objective's encoder sees.

Letters: B clips, K windows of each, T frames, F mel bins.
"""

import jax
import jax.numpy as jnp

from atst_jax.method.groups import SILENT, valid_frames
from atst_jax.method.normalization import normalize
from atst_jax.method.views import FLOOR_DB


def clip_keys(key, clips: int, number: int):
  """(clips, number) keys, of a clip by its index in the global batch: the same on any mesh."""
  return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), number))(jnp.arange(clips))


def draw_starts(keys, length, frames: int):
  """(B, K) keys, (B,) valid frames -> (B, K) first frames of windows, uniform over where a window
  lies inside the clip; of shorter clips 0."""
  last = jnp.maximum(length - frames, 0)
  draw = lambda key, last: jax.random.randint(key, (), 0, last + 1)
  return jax.vmap(jax.vmap(draw, (0, None)))(keys, last)


def take_windows(mel, length, starts, frames: int):
  """Windows of clips in dB; what a shorter clip lacks is silence, half of it at each end.

  Args:
    mel: (B, T, F) dB, any float type, padded after `length`.
    length: (B,) valid frames.
    starts: (B, K) first frames.

  Returns:
    (B, K, frames, F) float32 dB.
  """
  mel = jnp.pad(mel, ((0, 0), (0, frames), (0, 0)))  # a slice that would overrun is moved back
  cut = lambda clip, start: jax.lax.dynamic_slice_in_dim(clip, start, frames)
  windows = jax.vmap(jax.vmap(cut, (None, 0)))(mel, starts).astype(jnp.float32)
  sound = jnp.minimum(length, frames)
  heard = valid_frames(sound, frames)[:, None, :, None]
  windows = jnp.where(heard, windows, FLOOR_DB)
  return jax.vmap(lambda x, shift: jnp.roll(x, shift, axis=1))(windows, (frames - sound) // 2)


def peaks(mel, length):
  """(B, T, F) dB, (B,) -> (B,) the largest value of each clip's valid frames."""
  heard = valid_frames(length, mel.shape[1])[..., None]
  return jnp.max(jnp.where(heard, mel.astype(jnp.float32), SILENT), (1, 2))


def normalized(windows, peak, normalization):
  """(B, K, T, F) dB to what the encoder sees, by a config's `views.normalization`; `peak` (B,) is
  that of the clip, as when it is embedded."""
  return normalize(windows, peak=peak[:, None, None, None], **normalization)
