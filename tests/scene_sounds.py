"""Sounds for scenes: events between silence, and noises behind them."""

import csv
import itertools

import numpy as np
import soundfile

RATE = 16000


def write_scene_sounds(root):
  """events/CLASS: tones between silence, named as ESC-50's files; weather/CLASS: noises of 3 s."""
  rng = np.random.default_rng(0)
  t = np.arange(RATE) / RATE
  for name, hz in (("dog_bark", 500), ("horn", 1500), ("clock", 4000)):
    (root / "events" / name).mkdir(parents=True)
    for fold, take in itertools.product(range(1, 6), "AB"):
      tone = 0.1 * np.sin(2 * np.pi * hz * t) * (1 + 0.1 * rng.normal(size=RATE))
      silence = np.zeros(RATE // 4)
      soundfile.write(
        root / "events" / name / f"{fold}-{hz + fold}-{take}.wav",
        np.r_[silence, tone, silence],
        RATE,
      )
  for name, smooth in (("rain", 1), ("wind", 9)):
    (root / "weather" / name).mkdir(parents=True)
    for i in range(12):
      noise = np.convolve(rng.normal(0, 0.1, 3 * RATE), np.ones(smooth) / smooth, "same")
      soundfile.write(root / "weather" / name / f"{i}.wav", noise, RATE)
  return root


def rows(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))
