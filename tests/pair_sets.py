"""A tiny prepared set of pairs, for the tests of retrieval."""

import csv

import numpy as np

from atst_jax.data.dataset import Clip
from tests.evaluation import write_clips


def write_pairs(root, *, sizes=(("train", 20), ("test", 6)), frontend="atst", seed=0, frames=40):
  """A prepared set of pairs in two scenes; the answer's event is a band of the spectrum."""
  rng, clips, table = np.random.default_rng(seed), [], []
  for scene, split, i in (
    (scene, split, i) for scene in ("rain", "wind") for split, n in sizes for i in range(n)
  ):
    event = int(rng.integers(2))
    for suffix, loud in (("s1", False), ("s2", True)):
      mel = rng.normal(-60, 5, (frames, 64)) + (20 if scene == "wind" else 0)
      mel[:, 32 * event : 32 * event + 32] += 30 * loud
      clips.append(
        Clip(
          f"{scene}_{split}_{i}_{suffix}",
          mel.astype(np.float16),
          (event,) if loud else (),
          multi_label=True,
          split=split,
        )
      )
    name = f"{scene}_{split}_{i}"
    table.append(
      (
        name,
        f"{name}_s1",
        f"{name}_s2",
        f"add {('low', 'high')[event]}",
        "add",
        "low",
        scene,
        split,
      )
    )
  write_clips(root, clips, names=("low", "high"), name="pairs", frontend=frontend)
  write_table(
    root / "pairs.csv", ("id", "id1", "id2", "text", "kind", "event", "scene", "split"), table
  )
  write_table(
    root / "mixtures.csv",
    ("clip", "split", "role", "source"),
    [(clip.id, clip.split, "background", f"{clip.split}.wav") for clip in clips],
  )
  return root


def write_table(path, columns, rows):
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(rows)
