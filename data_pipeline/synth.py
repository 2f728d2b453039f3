"""Synthesised sounds for the demo: ten "words" of two vowels, spoken by 25 drawn speakers.

  python -m data_pipeline.synth --output=DIR --seed=0 --clips_per_class=150

A word glides from one vowel to another. The ten words are five pairs of vowels in both orders, so
that the average spectrum does not tell a word from its reverse. Pitch, vocal-tract length and
breath belong to the speaker. Duration, moment and speed of the glide, pauses, level and background
noise are drawn for every clip.

Writes DIR/WORD/sSS_TT.wav (16 kHz, 16 bit, mono; speaker SS, take TT) and the manifest
DIR/sounds.csv, whose five folds each leave five speakers out. Every byte is a function of the seed.
"""

import csv
import os
import sys
import wave
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from atst_jax.util.cli import Parser, guard
from atst_jax.util.errors import UserError

SAMPLE_RATE = 16000  # Hz
MANIFEST = "sounds.csv"
SPEAKERS, FOLDS = 25, 5
# Mean formants F1, F2, F3 of American English vowels in Hz (Peterson and Barney, 1952).
VOWELS = {
  "i": (270, 2290, 3010),
  "e": (530, 1840, 2480),
  "ae": (660, 1720, 2410),
  "a": (730, 1090, 2440),
  "o": (570, 840, 2410),
  "u": (300, 870, 2240),
  "er": (490, 1350, 1690),
}
PAIRS = (("i", "a"), ("u", "i"), ("a", "u"), ("e", "o"), ("ae", "er"))
WORDS = {"-".join(word): word for pair in PAIRS for word in (pair, pair[::-1])}
BANDWIDTHS = np.array([60, 100, 140])  # Hz, of F1, F2, F3
BLOCK = 160  # samples (10 ms) between two settings of the formants
FADE = 0.08  # of a word's duration, at its start and its end


class Speaker(NamedTuple):
  """What all clips of a speaker share."""

  pitch: float  # Hz
  slope: float  # octaves that the pitch rises in a word
  tract: float  # factor of all formants: above 1 for a short vocal tract
  breath: float  # 0 to 1


def draw_speaker(rng: np.random.Generator) -> Speaker:
  """A voice from low and long to high and short."""
  return Speaker(
    pitch=rng.uniform(75, 350),
    slope=rng.uniform(-0.6, 0.6),
    tract=rng.uniform(0.75, 1.35),
    breath=rng.uniform(0, 1),
  )


def _source(rng: np.random.Generator, speaker: Speaker, t: np.ndarray) -> np.ndarray:
  """(N,) what the vocal folds give: low-passed pulses at the pitch, and breath. t: (N,) 0 to 1."""
  vibrato = 0.02 * np.sin(2 * np.pi * 5 * np.arange(len(t)) / SAMPLE_RATE)
  octaves = rng.normal(0, 0.08) + speaker.slope * (t - 0.5) + vibrato
  periods = np.cumsum(speaker.pitch * np.exp2(octaves)) / SAMPLE_RATE
  pulses = np.diff(np.floor(periods), prepend=0)
  return lfilter([1], [1, -0.95], pulses + rng.normal(0, 0.01 + 0.03 * speaker.breath, len(t)))


def _resonate(source: np.ndarray, formants: np.ndarray) -> np.ndarray:
  """(N,) through three resonators in a row, whose frequencies (N / BLOCK, 3) in Hz change block by
  block."""
  sound, states = np.empty_like(source), np.zeros((3, 2))
  radius = np.exp(-np.pi * BANDWIDTHS / SAMPLE_RATE)
  angle = 2 * np.pi * formants / SAMPLE_RATE
  for block, angles in enumerate(angle):
    part = slice(block * BLOCK, (block + 1) * BLOCK)
    x = source[part]
    for k in range(3):
      poles = [1, -2 * radius[k] * np.cos(angles[k]), radius[k] ** 2]
      x, states[k] = lfilter([sum(poles)], poles, x, zi=states[k])
    sound[part] = x
  return sound


def speak(rng: np.random.Generator, word: str, speaker: Speaker) -> np.ndarray:
  """(N,) one take of a word of WORDS without pauses and background, peak 1; 0.5 to 0.9 s."""
  blocks = int(rng.uniform(0.5, 0.9) * SAMPLE_RATE / BLOCK)
  t = np.linspace(0, 1, blocks * BLOCK, endpoint=False)
  middle, width = rng.uniform(0.4, 0.6), rng.uniform(0.05, 0.12)
  share = 1 / (1 + np.exp(-(t[BLOCK // 2 :: BLOCK, None] - middle) / width))
  first, second = (np.array(VOWELS[vowel]) for vowel in WORDS[word])
  formants = speaker.tract * ((1 - share) * first + share * second)
  sound = _resonate(_source(rng, speaker, t), formants)
  sound *= np.minimum(1, np.minimum(t, 1 - t) / FADE)
  return sound / np.abs(sound).max()


def synthesise(rng: np.random.Generator, word: str, speaker: Speaker) -> np.ndarray:
  """(N,) int16 clip at SAMPLE_RATE: a take between pauses, in noise; about 1.2 s."""
  before, after = (int(SAMPLE_RATE * rng.uniform(0.05, 0.5)) for _ in range(2))
  clip = np.pad(speak(rng, word, speaker), (before, after))
  noise = lfilter([1], [1, -rng.uniform(0, 0.95)], rng.standard_normal(len(clip)))
  snr_db = rng.uniform(10, 30)
  clip += noise / noise.std() * clip.std() * 10 ** (-snr_db / 20)
  peak_db = rng.uniform(-20, -1)
  return np.round(clip / np.abs(clip).max() * 10 ** (peak_db / 20) * 32767).astype("<i2")


def write_wav(path: str, samples: np.ndarray) -> None:
  """Writes (N,) int16 as a mono WAV at SAMPLE_RATE. Raises OSError."""
  with wave.open(path, "wb") as file:
    file.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", ""))
    file.writeframes(samples.tobytes())


def write_classes(output: str, *, seed: int, clips_per_class: int) -> int:
  """Writes a folder of clips for each word, and the manifest. The speakers take turns.

  Returns:
    The number of clips.
  """
  rows = []
  for number, word in enumerate(WORDS):
    os.makedirs(os.path.join(output, word), exist_ok=True)
    for i in range(clips_per_class):
      take, index = divmod(i, SPEAKERS)
      speaker = draw_speaker(np.random.default_rng([seed, index, len(WORDS), 0]))
      clip = synthesise(np.random.default_rng([seed, index, number, take]), word, speaker)
      path = f"{word}/s{index:02d}_{take:02d}.wav"
      write_wav(os.path.join(output, path), clip)
      rows.append((path, word, index % FOLDS, f"s{index:02d}"))
  with open(os.path.join(output, MANIFEST), "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([("path", "label", "fold", "group"), *rows])
  return len(rows)


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
    "--clips_per_class", type=int, default=150, help="files of each word (default 150)"
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
  print(f"{args.output}: {count} clips of {len(WORDS)} words by {SPEAKERS} speakers")


if __name__ == "__main__":
  sys.exit(main())
