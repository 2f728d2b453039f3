"""Speed, each part against what it cannot do without.

  python -m atst_jax.benchmark prepare --input=recordings [--frontend=atst --files=400 --repeats=3 --json]

`prepare` compares the job that writes shards with a bare loop of decoding, resampling and log-mel over the same files,
both in one process and in turns, and the pool of processes with one process.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

import numpy as np

from atst_jax.errors import UserError
from atst_jax.frontend import get_frontend, log_mel, mel_filters


def bare_loop(paths: list[str], frontend, filters) -> float:
  """Decodes, mixes, resamples and transforms every file, and keeps nothing. Returns the seconds of audio."""
  import soundfile
  import soxr

  audio = 0.0
  for path in paths:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    samples = samples.mean(axis=1)
    if rate != frontend.sample_rate:
      samples = soxr.resample(samples, rate, frontend.sample_rate)
    log_mel(samples, frontend, filters).astype(np.float16)
    audio += len(samples) / frontend.sample_rate
  return audio


def measure_prepare(folder: str, *, frontend: str, files: int, repeats: int, workers: int) -> dict:
  """Numbers of `prepare`: medians over the repeats. Raises UserError for a folder without usable audio."""
  from threadpoolctl import threadpool_limits

  from data_pipeline.audio import Reject, duration
  from data_pipeline.plan import hash_order
  from data_pipeline.shards import Settings, ShardTask, write_task
  from data_pipeline.sources import list_sources
  from data_pipeline.workers import write_tasks

  front = get_frontend(frontend)
  filters = mel_filters(front)
  sources = []
  for source in hash_order(list_sources(folder).sources, seed=0):
    try:
      if duration(source.path) >= front.min_samples / front.sample_rate and len(sources) < files:
        sources.append(source)
    except Reject:
      continue
  if not sources:
    raise UserError(f"--input={folder}: no file of it can be used")
  labels = tuple(sorted({label for source in sources for label in source.labels}))
  paths = [source.path for source in sources]
  num_bytes = sum(map(os.path.getsize, paths))
  times = {"bare": [], "one": [], "pool": []}
  with tempfile.TemporaryDirectory() as output, threadpool_limits(1):
    settings = Settings(output, output, front, filters, labels, float("inf"))
    whole = ShardTask("train-00000-of-00001.tfrecord", "train", tuple(sources))
    parts = [ShardTask(f"train-{i:05d}-of-{4 * workers:05d}.tfrecord", "train", tuple(sources[i :: 4 * workers]))
             for i in range(4 * workers)]  # fmt: skip
    audio = bare_loop(paths, front, filters)  # once beforehand: libraries loaded, files in memory
    for _ in range(repeats):
      times["bare"].append(_seconds(lambda: bare_loop(paths, front, filters)))
      times["one"].append(_seconds(lambda: write_task(whole, settings, lambda files, clips: None)))
      times["pool"].append(_seconds(lambda: write_tasks(parts, settings, workers=workers)))
  bare, one, pool = (statistics.median(times[key]) for key in ("bare", "one", "pool"))
  return {
    "files": len(sources),
    "hours": audio / 3600,
    "bare_clips_per_second": len(sources) / bare,
    "clips_per_second": len(sources) / one,
    "share_of_bare_loop": bare / one,
    "hours_per_core_minute": audio / 3600 / (one / 60),
    "megabytes_per_second": num_bytes / 1e6 / one,
    "workers": workers,
    "pool_clips_per_second": len(sources) / pool,
    "pool_speedup": one / pool,
  }


def _seconds(function) -> float:
  started = time.perf_counter()
  function()
  return time.perf_counter() - started


def main(argv=None) -> int:
  parser = argparse.ArgumentParser("python -m atst_jax.benchmark", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
  parser.add_argument("part", choices=("prepare",))
  parser.add_argument("--input", required=True, help="a folder of recordings")
  parser.add_argument("--frontend", default="atst")
  parser.add_argument("--files", type=int, default=400, help="at most so many, drawn by a hash of their names")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of the pool")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  try:
    for key in ("files", "repeats", "workers"):
      if getattr(flags, key) < 1:
        raise UserError(f"--{key}={getattr(flags, key)}: must be at least 1")
    result = measure_prepare(flags.input, frontend=flags.frontend, files=flags.files, repeats=flags.repeats,
                             workers=flags.workers)  # fmt: skip
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if flags.json:
    print(json.dumps(result))
    return 0
  print("{files} files, {hours:.2f} hours of audio".format(**result))
  print("one process: {clips_per_second:.0f} clips/s, {hours_per_core_minute:.2f} hours of audio per core-minute, "
        "{megabytes_per_second:.1f} MB/s read; {share_of_bare_loop:.0%} of a bare loop of decoding, resampling and "
        "log-mel ({bare_clips_per_second:.0f} clips/s)".format(**result))  # fmt: skip
  print("pool of {workers}, its start included: {pool_clips_per_second:.0f} clips/s, {pool_speedup:.2f} times one "
        "process".format(**result))  # fmt: skip
  return 0


if __name__ == "__main__":
  sys.exit(main())
