"""Checks of a prepared dataset against its `dataset.json`, and its statistics computed anew."""

import json
import os
import sys

import numpy as np

from atst_jax.data.dataset import MANIFEST, Dataset, RecordError, Shard, write_json
from atst_jax.util import storage
from atst_jax.util.cli import Parser, nearest
from atst_jax.util.errors import StoreError, UserError

from .mel_statistics import MelStatistics, merge_statistics
from .plan import shard_name


def verify(root: str) -> tuple[dict[str, str], int]:
  """({path of a bad shard: what is wrong}, number of sound clips).

  Checks the sha256 and the number of records of every shard, and the content of every record.
  """
  dataset = Dataset.described(root)
  problems, ids, num_clips = {}, set(), 0
  for split in dataset.splits:
    for shard in dataset.shards(split):
      try:
        found = _verify_shard(dataset, shard, split, ids)
        ids |= found
        num_clips += len(found)
      except StoreError:
        raise
      except (RecordError, OSError) as error:
        problems[shard.path] = str(error)
  listed = {
    os.path.basename(shard.path) for split in dataset.splits for shard in dataset.shards(split)
  }
  for name in sorted(set(filter(shard_name, storage.names(root))) - listed):
    path = os.path.join(root, name)
    problems[path] = f"{path}: not listed in {MANIFEST}"
  return problems, num_clips


def _verify_shard(dataset: Dataset, shard: Shard, split: str, before: set[str]) -> set[str]:
  """The ids of a sound shard. `before` are those of the sound shards before it."""
  if not storage.is_file(shard.path):
    raise RecordError(f"{shard.path}: missing, {shard.num_clips} clips expected")
  ids = set()
  for number, clip in enumerate(dataset.shard_clips(shard)):
    where = f"{shard.path}: record {number}"
    if clip.split != split:
      raise RecordError(f"{where}: split {clip.split!r}, {MANIFEST} has it among {split!r}")
    if not np.isfinite(clip.mel).all():
      raise RecordError(f"{where}: the spectrogram holds NaN or infinity")
    if clip.id in ids or clip.id in before:
      raise RecordError(f"{where}: id {clip.id!r} occurs twice")
    ids.add(clip.id)
  if storage.sha256(shard.path) != shard.sha256:
    raise RecordError(f"{shard.path}: sha256 differs from {MANIFEST}, though every record reads")
  return ids


def compute_statistics(root: str, split: str) -> dict:
  """Statistics over the stored mel values of a split. Raises UserError for damage and unknown
  splits."""
  dataset = Dataset.load(root)
  if split not in dataset.splits:
    raise UserError(
      f"{root} has no split {split!r} but {', '.join(dataset.splits)}; name one with --split"
      f"{nearest(split, dataset.splits)}"
    )
  statistics = MelStatistics()
  for clip in dataset.clips(split):
    statistics.add(clip.mel)
  return merge_statistics([statistics.to_json()], split)


def store_statistics(root: str, split: str) -> dict:
  """Computes the statistics of a split and stores them in `dataset.json`."""
  statistics = compute_statistics(root, split)
  write_json(
    os.path.join(root, MANIFEST), {**Dataset.described(root).manifest, "statistics": statistics}
  )
  return statistics


VERIFY = """Checks counts, sha256 and every record of a prepared dataset.

  python -m data_pipeline.prepare verify data/mine

Exit code 2 if a shard is bad. `prepare repair`, with the flags that prepared it, writes it again.
"""
STATISTICS = """Computes the statistics of a prepared dataset anew and stores them.

  python -m data_pipeline.prepare stats data/mine
  python -m data_pipeline.prepare stats data/mine --split=valid"""


def main(argv: list[str]) -> int:
  """`prepare verify`: returns 0, or 2 if a shard is bad. Raises UserError."""
  parser = Parser("data_pipeline.prepare verify", VERIFY)
  parser.add_argument("dataset")
  args = parser.parse(argv)
  problems, num_clips = verify(args.dataset)
  for problem in problems.values():
    print(problem, file=sys.stderr)
  if problems:
    print(
      f"{len(problems)} bad shards; `prepare repair` with the flags that prepared them writes them "
      "again",
      file=sys.stderr,
    )
    return 2
  print(f"{args.dataset}: {num_clips} clips, every shard and record sound")
  return 0


def main_of_statistics(argv: list[str]) -> int:
  """`prepare stats`: prints them as JSON and returns 0. Raises UserError."""
  parser = Parser("data_pipeline.prepare stats", STATISTICS)
  parser.add_argument("dataset")
  parser.add_argument("--split", default="train", help="the clips to compute them over")
  args = parser.parse(argv)
  print(json.dumps(store_statistics(args.dataset, args.split)))
  return 0
