"""What front-ends do to sounds and frames beyond what librosa and torchaudio do."""

from collections.abc import Iterable

import numpy as np

EMPHASIS = 0.97  # Kaldi's
LEAST_ENERGY = 1e-9  # COLA's epsilon


def norm(pieces: Iterable[np.ndarray]) -> np.float32:
  """The L2 norm of the samples of a sound, given in (n,) pieces; of silence a small number."""
  energy = sum(float(np.square(piece, dtype=np.float64).sum()) for piece in pieces)
  return np.float32(np.sqrt(max(energy, LEAST_ENERGY)))


def emphasized(frames: np.ndarray) -> np.ndarray:
  """Frames as Kaldi prepares them: each without its mean, each sample minus 0.97 of the one before
  (the first, of itself).

  Args:
    frames: (T, n) float32 samples.
  """
  frames = frames - frames.mean(-1, keepdims=True)
  before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
  return frames - np.float32(EMPHASIS) * before


def filters_over_mel(frontend) -> np.ndarray:
  """(n_fft // 2 + 1, F) float32 triangles straight over HTK's mel, as TensorFlow's
  `linear_to_mel_weight_matrix`, VGGish and Kaldi: the lowest bin of the FFT counts nowhere.

  Args:
    frontend: a `FrontEnd`.
  """
  mel = lambda hz: 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)
  edges = np.linspace(mel(frontend.f_min), mel(frontend.f_max), frontend.n_mels + 2)
  hertz = np.arange(frontend.n_fft // 2 + 1) * frontend.sample_rate / frontend.n_fft
  places, steps = mel(hertz)[:, None], np.diff(edges)
  rising = (places - edges[:-2]) / steps[:-1]
  falling = (edges[2:] - places) / steps[1:]
  filters = np.maximum(0, np.minimum(rising, falling))
  filters[0] = 0
  return filters.astype(np.float32)
