"""Synthesised sounds for the demo: ten classes that differ only in how a sound moves in time.

  python -m data_pipeline.synth --output=DIR --seed=0 --clips_per_class=100

Pitch, timbre, loudness, onset, length and background are drawn anew for every clip, so that the
average spectrum says little about the class: rising and falling glides, swells and fades are each
other's time reversals, slow and fast tremolo share their depth, regular and irregular strikes their
number. Files are 16 kHz, 16 bit, in a folder per class, and byte for byte a function of the seed.
"""

import os
import sys
import wave

import numpy as np

from atst_jax.util.cli import Parser, guard
from atst_jax.util.errors import UserError

SAMPLE_RATE = 16000  # Hz
SECONDS = (2.0, 4.0)
FADE_SECONDS = 0.02
MAX_HARMONICS = 16


def _seconds(n: int) -> np.ndarray:
  return np.arange(n) / SAMPLE_RATE


def rising_glide(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
  """(n,) pitch in semitones about the centre and (n,) amplitude, as for every class."""
  return rng.uniform(5, 14) * np.linspace(-0.5, 0.5, n), np.ones(n)


def falling_glide(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
  """`rising_glide`, backwards: 5 to 14 semitones."""
  pitch, amplitude = rising_glide(rng, n)
  return pitch[::-1], amplitude


def vibrato(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
  """Pitch swings by 5 to 14 semitones, 3 to 6 times a second."""
  phase = rng.uniform(0, 2 * np.pi)
  return rng.uniform(5, 14) / 2 * np.sin(
    2 * np.pi * rng.uniform(3, 6) * _seconds(n) + phase
  ), np.ones(n)


def _tremolo(rng: np.random.Generator, n: int, hz: float) -> tuple[np.ndarray, np.ndarray]:
  swing = np.sin(2 * np.pi * hz * _seconds(n) + rng.uniform(0, 2 * np.pi))
  return np.zeros(n), 1 + rng.uniform(0.8, 0.98) * swing


def slow_tremolo(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
  """Amplitude swings 2 to 3.5 times a second."""
  return _tremolo(rng, n, rng.uniform(2, 3.5))


def fast_tremolo(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
  """Amplitude swings 7 to 12 times a second."""
  return _tremolo(rng, n, rng.uniform(7, 12))


def _strikes(rng: np.random.Generator, n: int, onsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Decaying strikes at onsets from 0 to 1."""
  decay = rng.uniform(0.05, 0.25)  # seconds to 1/e
  amplitude = np.zeros(n)
  for start in (onsets * n).astype(int):
    amplitude[start:] += np.exp(-_seconds(n - start) / decay)
  return np.zeros(n), amplitude


def single_strike(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
  """One strike at the start, which decays."""
  return _strikes(rng, n, np.zeros(1))


def regular_strikes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
  """5 to 8 strikes, equally far apart."""
  return _strikes(rng, n, np.arange(count := rng.integers(5, 9)) / count)


def irregular_strikes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
  """5 to 8 strikes; the longest gap is 6 to 10 times the shortest."""
  gaps = rng.permutation(np.geomspace(1, rng.uniform(6, 10), rng.integers(5, 9)))
  return _strikes(rng, n, (np.cumsum(gaps) - gaps) / gaps.sum())


def swell(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
  """`fade`, backwards."""
  pitch, amplitude = fade(rng, n)
  return pitch, amplitude[::-1]


def fade(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
  """Amplitude decays exponentially by a factor of e^3 to e^5."""
  return np.zeros(n), np.exp(-rng.uniform(3, 5) * np.linspace(0, 1, n))


CLASSES = {
  movement.__name__: movement
  for movement in (
    rising_glide,
    falling_glide,
    vibrato,
    slow_tremolo,
    fast_tremolo,
    single_strike,
    regular_strikes,
    irregular_strikes,
    swell,
    fade,
  )
}


def _coloured_noise(rng: np.random.Generator, n: int, slope: float) -> np.ndarray:
  """(n,) noise of unit power whose spectrum falls by `slope` x 3 dB per octave."""
  size = 1 << (n - 1).bit_length()  # lengths with large prime factors are slow to transform
  spectrum = np.fft.rfft(rng.standard_normal(size))
  noise = np.fft.irfft(spectrum * np.maximum(np.arange(len(spectrum)), 8.0) ** (-slope / 2), size)[
    :n
  ]
  return noise / np.sqrt(np.mean(noise**2))


def _tone(rng: np.random.Generator, pitch: np.ndarray) -> np.ndarray:
  """(n,) harmonic tone of unit power: pitch in semitones about a random centre, random harmonics
  and breath."""
  hz = np.exp2(rng.uniform(np.log2(120), np.log2(900)) + pitch / 12)
  phase = np.cumsum(hz) / SAMPLE_RATE % 1.0
  rotation = np.exp(2j * np.pi * phase).astype(np.complex64)  # its k-th power is harmonic k
  tilt, count = rng.uniform(0.3, 2.0), rng.integers(2, MAX_HARMONICS + 1)
  tone, harmonic = (
    np.zeros(len(pitch)),
    np.full(len(pitch), np.exp(2j * np.pi * rng.uniform()), np.complex64),
  )
  for k in range(1, count + 1):
    harmonic *= rotation
    tone += (k * hz < 0.45 * SAMPLE_RATE) * (rng.uniform(0.1, 1) * k**-tilt) * harmonic.imag
  tone /= np.sqrt(np.mean(tone**2))
  breath = rng.uniform(0, 0.3)
  return (1 - breath) * tone + breath * _coloured_noise(rng, len(tone), rng.uniform(0, 2))


def synthesise(rng: np.random.Generator, name: str) -> np.ndarray:
  """(N,) int16 clip of a class at SAMPLE_RATE, N / SAMPLE_RATE within SECONDS."""
  n = int(rng.uniform(*SECONDS) * SAMPLE_RATE)
  length = int(rng.uniform(0.8, 1.0) * n)
  onset = rng.integers(0, n - length + 1)
  pitch, amplitude = CLASSES[name](rng, length)
  sound = _tone(rng, pitch) * amplitude
  edge = np.minimum(
    1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (FADE_SECONDS * SAMPLE_RATE)
  )
  sound *= edge
  clip = np.zeros(n)
  clip[onset : onset + length] = sound / np.abs(sound).max()
  snr_db = rng.uniform(20, 40)  # of the background to the peak
  clip += 10 ** (-snr_db / 20) * 0.3 * _coloured_noise(rng, n, rng.uniform(0, 2))
  peak_db = rng.uniform(-12, -1)
  return np.round(clip / np.abs(clip).max() * 10 ** (peak_db / 20) * 32767).astype("<i2")


def write_wav(path: str, samples: np.ndarray) -> None:
  """Writes (N,) int16 as a mono WAV at SAMPLE_RATE. Raises OSError."""
  with wave.open(path, "wb") as file:
    file.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", ""))
    file.writeframes(samples.tobytes())


def write_classes(output: str, *, seed: int, clips_per_class: int) -> int:
  """Writes `output/CLASS/NNNN.wav` and returns the number of files."""
  for number, name in enumerate(CLASSES):
    os.makedirs(os.path.join(output, name), exist_ok=True)
    for i in range(clips_per_class):
      samples = synthesise(np.random.default_rng([seed, number, i]), name)
      write_wav(os.path.join(output, name, f"{i:04d}.wav"), samples)
  return len(CLASSES) * clips_per_class


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code: 0 done, 2 a mistake in a flag or the output."""
  parser = Parser("data_pipeline.synth", __doc__)
  parser.add_argument(
    "--output", required=True, help="folder of the class folders; made if need be"
  )
  parser.add_argument(
    "--seed", type=int, default=0, help="of every clip; the same seed, the same bytes"
  )
  parser.add_argument(
    "--clips_per_class", type=int, default=100, help="files of each class (default 100)"
  )
  return guard(lambda: _main(parser.parse(argv)))


def _main(args) -> None:
  if args.seed < 0 or args.clips_per_class < 1:
    raise UserError("--seed must be at least 0 and --clips_per_class at least 1")
  if os.path.exists(args.output) and (not os.path.isdir(args.output) or os.listdir(args.output)):
    raise UserError(
      f"--output={args.output} exists and is not an empty folder; choose another or delete it"
    )
  try:
    count = write_classes(args.output, seed=args.seed, clips_per_class=args.clips_per_class)
  except OSError as error:
    raise UserError(f"--output={args.output}: cannot be written ({error.strerror})") from error
  print(f"{args.output}: {count} clips in {len(CLASSES)} classes")


if __name__ == "__main__":
  sys.exit(main())
