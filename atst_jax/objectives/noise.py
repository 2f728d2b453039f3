"""White noise that is added to a log-mel spectrogram, as if it had been added to the waveform.

COLA adds noise to waveforms; shards hold log-mel. A mel bin is taken for one bin of the spectrum
with an unknown phase, and a complex normal number is added to it. So the mean power of the noise is
right, and so is its interference with the sound. Its spread is right for the narrow filters at the
bottom, and too large for the wide ones. Neighbouring frames and filters have noise of their own,
though their windows overlap. The energy of the sound, which the level of the noise refers to, is
that of its mel bins; what lies outside of them is not there. A filter over magnitudes does not tell
it: it is taken as that of noise, so for tones it is too small.
"""

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.audio.frontend import POWER_FLOOR, FrontEnd
from atst_jax.method.groups import valid_frames
from atst_jax.method.normalization import NEPERS_PER_DB


def _edges(frontend: FrontEnd) -> np.ndarray:
  """(F + 2,) Hz: where the triangles of the mel filters begin, peak and end."""
  ends = np.array([frontend.f_min, frontend.f_max])
  if frontend.mel_scale == "slaney":  # linear below 1 kHz, then logarithmic
    step = np.log(6.4) / 27
    to_mel = lambda hz: np.where(hz < 1000, 3 * hz / 200, 15 + np.log(hz / 1000) / step)
    to_hz = lambda mel: np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(step * (mel - 15)))
  else:
    to_mel = lambda hz: 2595 * np.log10(1 + hz / 700)
    to_hz = lambda mel: 700 * (10 ** (mel / 2595) - 1)
  lowest, highest = map(float, to_mel(np.maximum(ends, 1e-9)))
  return to_hz(np.linspace(lowest, highest, frontend.n_mels + 2))


def filter_sizes(frontend: FrontEnd) -> tuple[np.ndarray, np.ndarray]:
  """(F,) height of every mel filter, and (F,) its sum over the bins of the spectrum."""
  edges = _edges(frontend)
  width = edges[2:] - edges[:-2]
  height = 2 / width if frontend.mel_norm == "slaney" else np.ones_like(width)
  return height, height * width / 2 * frontend.n_fft / frontend.sample_rate


def add_white_noise(key, windows, mel, length, *, level: float, frontend: FrontEnd):
  """Log-mel of waveforms with noise.

  Args:
    key: one of each clip, (B,).
    windows: (B, T, F) dB, windows of the clips.
    mel: (B, T', F) dB, the whole clips, which give the sound's energy.
    length: (B,) their valid frames.
    level: standard deviation of the noise's samples, in units of the L2 norm of the clip's
      waveform.

  Returns:
    (B, T, F) float32 dB.
  """
  height, total = (jnp.asarray(x, jnp.float32) for x in filter_sizes(frontend))
  magnitudes = frontend.spectrum == "magnitude"
  amplitude = lambda db: jnp.exp(NEPERS_PER_DB / 2 * db.astype(jnp.float32))
  # Of a filter over magnitudes, the power that noise with a flat spectrum has in it.
  weight = 4 / np.pi / total if magnitudes else 1 / height
  heard = valid_frames(length, mel.shape[1])[..., None]
  power = jnp.square(amplitude(mel)) * weight[None, None]
  energy = jnp.sum(jnp.where(heard, power, 0), (1, 2))  # (B,)
  # Parseval: the squares of half the spectrum, over all frames, against those of the samples
  variance = level**2 * 2 * frontend.hop_length / frontend.n_fft * energy
  deviation = jnp.sqrt(variance / 2)[:, None] * (total if magnitudes else jnp.sqrt(total))[None]
  draw = lambda key: jax.random.normal(key, (2, *windows.shape[1:]))
  drawn = jax.vmap(draw)(key) * deviation[:, None, None]  # (B, 2, T, F)
  real, imaginary = drawn[:, 0], drawn[:, 1]
  noisy = jnp.square(amplitude(windows) + real) + jnp.square(imaginary)
  floor = POWER_FLOOR**2 if magnitudes else POWER_FLOOR
  return jnp.log(jnp.maximum(noisy, floor)) / NEPERS_PER_DB
