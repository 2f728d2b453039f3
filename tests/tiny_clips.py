"""Five clips of four mel bands, and a prepared data set of them."""

import dataclasses
import os

import numpy as np

from atst_jax.audio.frontend import FRONTENDS
from atst_jax.data.dataset import MANIFEST, SCHEMA_VERSION, Clip, write_json, write_shard

FRONTEND = dataclasses.replace(FRONTENDS["atst"], name="tiny", n_mels=4)


def make_clip(number: int, frames: int = 3) -> Clip:
  mel = (
    np.random.default_rng(number).normal(-40.0, 20.0, (frames, FRONTEND.n_mels)).astype(np.float16)
  )
  return Clip(id=f"clip-{number}", mel=mel, labels=(number % 2,))


def same_clip(a: Clip, b: Clip) -> bool:
  fields = [f.name for f in dataclasses.fields(Clip) if f.name != "mel"]
  same_mel = (
    a.mel.dtype == b.mel.dtype and a.mel.shape == b.mel.shape and a.mel.tobytes() == b.mel.tobytes()
  )
  return same_mel and all(getattr(a, f) == getattr(b, f) for f in fields)


def write_tiny_dataset(root: str) -> str:
  """A prepared dataset of two shards with 3 and 2 clips."""
  shards = []
  for index, numbers in enumerate([(0, 1, 2), (3, 4)]):
    shard = write_shard(
      os.path.join(root, f"train-{index}.tfrecord"), (make_clip(n).encode() for n in numbers)
    )
    shards.append({**dataclasses.asdict(shard), "file": os.path.basename(shard.path)})
  shards = [{k: v for k, v in shard.items() if k != "path"} for shard in shards]
  splits = {"train": {"min_frames": 3, "max_frames": 3, "shards": shards}}
  manifest = {
    "schema": SCHEMA_VERSION,
    "frontend": FRONTEND.to_json(),
    "splits": splits,
    "label_names": ["a", "b"],
  }
  write_json(os.path.join(root, MANIFEST), manifest)
  return root
