"""Sounds, their files, and what is read of them."""

import io

import numpy as np
import soundfile

from atst_jax.audio.decode import Quality, read_pieces

RATE = 44100


def sound(seconds, seed=0):
  """(N,) below a half of full scale, of little above 5 kHz."""
  rng = np.random.default_rng(seed)
  found = np.convolve(rng.standard_normal(int(seconds * RATE)), np.hanning(16), "same")
  return (0.4 * found / np.abs(found).max()).astype(np.float32)


def quality(path, **options):
  found = Quality()
  pieces = list(read_pieces(str(path), sample_rate=RATE, quality=found, **options))
  return np.concatenate([waveform for _, waveform in pieces]), found


def tone(hertz, rate, seconds=1.0, channels=1):
  """(N, channels) at half of full scale."""
  wave = 0.5 * np.sin(2 * np.pi * hertz / rate * np.arange(int(seconds * rate)))
  return np.repeat(wave[:, None], channels, 1)


def encoded(samples, rate, **options):
  """The bytes of a file."""
  file = io.BytesIO()
  soundfile.write(file, samples, rate, **options)
  return file.getvalue()
