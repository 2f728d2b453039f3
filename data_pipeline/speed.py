"""How fast clips become shards, against a bare loop that only does what cannot be left out."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np

from atst_jax import storage
from atst_jax.errors import UserError
from atst_jax.frontend import FrontEnd, get_frontend, log_mel, mel_filters
from data_pipeline.audio import Reject, duration
from data_pipeline.files import Source
from data_pipeline.plan import hash_order
from data_pipeline.shards import Settings, ShardTask, write_task
from data_pipeline.sources import list_sources
from data_pipeline.workers import ENVIRONMENT, environment, write_tasks

SHARDS_PER_WORKER = 4


def bare_loop(paths: list[str], frontend: FrontEnd, filters: np.ndarray) -> float:
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


def _write(task: ShardTask, settings: Settings) -> None:
  write_task(task, settings, lambda files, clips: None)


def _seconds(function: Callable, *args) -> float:
  started = time.perf_counter()
  function(*args)
  return time.perf_counter() - started


def _peak_megabytes() -> float:
  """The most memory this process has held."""
  with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
    for line in file:
      if line.startswith("VmHWM:"):
        return int(line.split()[1]) / 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # also of the process it was forked from


def usable_files(folder: str, number: int, frontend: FrontEnd) -> list[Source]:
  """At most `number` files of a local folder, drawn by a hash of their names. Raises UserError if there is none."""
  if storage.is_remote(folder):
    raise UserError(f"--input={folder}: a folder of this machine is needed")
  sources = []
  for source in hash_order(list_sources(folder).sources, seed=0):
    try:
      if duration(source.path) >= frontend.min_samples / frontend.sample_rate and len(sources) < number:
        sources.append(source)
    except Reject:
      continue
  if not sources:
    raise UserError(f"--input={folder}: no file of it can be used")
  return sources


def measure_prepare(folder: str, *, frontend: str, files: int, passes: int, repeats: int, workers: int) -> dict:
  """Numbers of the job that writes shards: medians over the repeats.

  Args:
    files: of the folder, at most; all are read once beforehand, so that they are in memory.
    passes: times that they are prepared in one measurement.
    workers: processes of the pool.

  Raises UserError for a folder without usable audio.
  """
  front = get_frontend(frontend)
  filters = mel_filters(front)
  sources = usable_files(folder, files, front) * passes
  paths = [source.path for source in sources]
  share = lambda values, count: [values[i::count] for i in range(min(count, len(values)))]
  tasks = lambda parts: [ShardTask(f"train-{i:05d}-of-{len(parts):05d}.tfrecord", "train", tuple(part))
                         for i, part in enumerate(parts)]  # fmt: skip
  labels = tuple(sorted({label for source in sources for label in source.labels}))
  times: dict[str, list[float]] = {key: [] for key in ("bare", "one", "bares", "pool", "start")}
  context = multiprocessing.get_context("spawn")
  executor = lambda count: concurrent.futures.ProcessPoolExecutor(count, mp_context=context)
  with tempfile.TemporaryDirectory() as output, environment(ENVIRONMENT), executor(1) as one, executor(workers) as all:
    settings = Settings(output, output, front, filters, labels, float("inf"))
    (whole,), parts = tasks([sources]), tasks(share(sources, SHARDS_PER_WORKER * workers))
    audio = one.submit(bare_loop, paths, front, filters).result()
    list(all.map(bare_loop, share(paths, workers), [front] * workers, [filters] * workers))
    for _ in range(repeats):
      times["bare"].append(one.submit(_seconds, bare_loop, paths, front, filters).result())
      times["one"].append(one.submit(_seconds, _write, whole, settings).result())
      loops = lambda: list(all.map(bare_loop, share(paths, workers), [front] * workers, [filters] * workers))
      times["bares"].append(_seconds(loops))
      times["start"].append(_seconds(lambda: write_tasks(tasks(share(sources[:workers], workers)), settings,
                                                         workers=workers)))  # fmt: skip
      times["pool"].append(_seconds(lambda: write_tasks(parts, settings, workers=workers)))
    peak = one.submit(_peak_megabytes).result()
  bare, one, bares, pool, start = (statistics.median(times[key]) for key in times)
  return {
    "files": len(sources) // passes,
    "passes": passes,
    "hours": audio / 3600 / passes,
    "bare_clips_per_second": len(sources) / bare,
    "clips_per_second": len(sources) / one,
    "share_of_bare_loop": bare / one,
    "hours_per_core_minute": audio / 3600 / (one / 60),
    "megabytes_per_second": sum(map(os.path.getsize, paths)) / 1e6 / one,
    "workers": workers,
    "start_seconds": start,
    "pool_clips_per_second": len(sources) / (pool - start),
    "pool_speedup": one / (pool - start),
    "share_of_bare_loops": bares / (pool - start),
    "worker_megabytes": peak,
  }
