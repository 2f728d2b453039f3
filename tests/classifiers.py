"""A tiny classifier that was never trained, and recordings for it."""

import dataclasses

import numpy as np
import soundfile

from atst_jax.artifacts import export, folder
from atst_jax.artifacts.classifiers.head import Head, folded
from atst_jax.artifacts.model import load_model
from tests.evaluation import write_encoder

LABELS = ("ant", "bee, wild", "cat")
HEAD = Head(
  labels=LABELS,
  multi_label=True,
  activation="sigmoid",
  thresholds=(0.5, 0.4, 0.6),
  blocks=2,
  max_frames=101,
  crop="center",
  fill_frames=None,
  fill_db=None,
  about={"source": "a test"},
)


def write_classifier(output, encoder, **changes):
  """An export of the encoder with a drawn head, standardised so that labels come and go."""
  config, variables, _ = folder.read(str(encoder))
  head = dataclasses.replace(HEAD, **changes)
  rng = np.random.default_rng(1)
  size = 16 * head.blocks  # twice the tiny encoder's width
  weights = folded(
    rng.normal(0, 0.5, (size, 3)), rng.normal(0, 1, 3), rng.normal(0, 0.1, size), np.full(size, 0.5)
  )
  kept = {key: config[key] for key in ("encoder", "normalization", "chunk_frames", "tail")}
  export.write(
    str(output),
    {**variables, "head": weights},
    head=head,
    frontend=load_model(str(encoder)).frontend,
    provenance={"step": 1},
    **kept,
  )
  return str(output)


def write_place(place):
  """In a folder: an encoder, a classifier, and recordings, three sound ones, one damaged, one too
  short. Returns it."""
  write_encoder(place / "encoder")
  write_classifier(place / "classifier", place / "encoder")
  (place / "sounds" / "a").mkdir(parents=True)
  rng = np.random.default_rng(0)
  for name, samples in (("a/one", 30_000), ("two", 11_000), ("three", 9_000), ("short", 100)):
    soundfile.write(place / "sounds" / f"{name}.wav", rng.normal(0, 0.1, samples), 16000)
  (place / "sounds" / "damaged.wav").write_bytes(b"RIFF and nothing more")
  return place
