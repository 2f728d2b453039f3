"""White noise that is added to a log-mel spectrogram, as if it had been added to the waveform.

COLA adds noise to waveforms; shards hold log-mel. A mel bin is taken for one bin of the spectrum
with an unknown phase, and a complex normal number is added to it. So the mean power of the noise is
right, and so is its interference with the sound; in filters over magnitudes that hold a tone the
sum is up to 2.6 dB too low. Its spread is right for the narrow filters at the bottom, and too large
for the wide ones. Neighbouring frames and filters have noise of their own, though their windows
overlap.

The noise is relative to the energy of the clip. For a front-end of level "unit" it is 1. Else it is
that of the mel bins; what lies outside of them is not there. A filter over magnitudes does not tell
it: it is taken as that of noise, so for tones it is too small.
"""

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.audio.frontend import POWER_FLOOR, FrontEnd, analysis_window
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


def _window_energy(mel, length, frontend: FrontEnd):
  """(B,) energies of the clips' waveforms, times the energy of a window: (B, T, F) dB, (B,) valid
  frames."""
  window = float(np.square(analysis_window(frontend), dtype=np.float64).sum())
  if frontend.level == "unit":
    return jnp.full(len(length), window, jnp.float32)
  height, total = filter_sizes(frontend)
  # Of a filter over magnitudes, the power that noise with a flat spectrum has in it.
  weight = 4 / np.pi / total if frontend.spectrum == "magnitude" else 1 / height
  power = jnp.square(_amplitude(mel)) * weight.astype(np.float32)[None, None]
  heard = valid_frames(length, mel.shape[1])[..., None]
  # Parseval: the squares of half the spectrum, over all frames, against those of the samples
  energy = jnp.sum(jnp.where(heard, power, 0), (1, 2))
  return 2 * frontend.hop_length / frontend.n_fft * energy


def _amplitude(db):
  return jnp.exp(NEPERS_PER_DB / 2 * db.astype(jnp.float32))


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
  magnitudes = frontend.spectrum == "magnitude"
  total = jnp.asarray(filter_sizes(frontend)[1], jnp.float32)
  variance = level**2 * _window_energy(mel, length, frontend)  # of a bin of the spectrum
  deviation = jnp.sqrt(variance / 2)[:, None] * (total if magnitudes else jnp.sqrt(total))[None]
  draw = lambda key: jax.random.normal(key, (2, *windows.shape[1:]))
  drawn = jax.vmap(draw)(key) * deviation[:, None, None]  # (B, 2, T, F)
  real, imaginary = drawn[:, 0], drawn[:, 1]
  noisy = jnp.square(_amplitude(windows) + real) + jnp.square(imaginary)
  floor = POWER_FLOOR**2 if magnitudes else POWER_FLOOR
  return jnp.log(jnp.maximum(noisy, floor)) / NEPERS_PER_DB
