"""The speed of writing shards, beside a bare loop that only decodes and transforms."""

import concurrent.futures
import contextlib
import math
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable

import numpy as np

from atst_jax.audio.decode import Reject, duration
from atst_jax.audio.frontend import FrontEnd, get_frontend, log_mel, mel_filters
from atst_jax.util import storage
from atst_jax.util.errors import UserError

from ..sources.files import Source
from ..sources.inputs import list_sources
from .plan import hash_order
from .shard import Settings, ShardTask, write_task
from .workers import ENVIRONMENT, environment, write_tasks

SHARDS_PER_WORKER = 4


def bare_loop(paths: list[str], frontend: FrontEnd, filters: np.ndarray) -> float:
  """Decodes, mixes, resamples and transforms every file, and keeps nothing. Returns the seconds of
  audio."""
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


def peak_megabytes() -> float:
  """The most memory that this process has had."""
  with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
    for line in file:
      if line.startswith("VmHWM:"):
        return int(line.split()[1]) / 1024
  # This counts the process that it was forked from, too.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def usable_files(folder: str, number: int, frontend: FrontEnd) -> list[Source]:
  """At most `number` files of a local folder, drawn by a hash of their names. Raises UserError if
  there is none."""
  if storage.is_remote(folder):
    raise UserError(f"--input={folder}: a folder of this machine is needed")
  sources = []
  for source in hash_order(list_sources(folder).sources, seed=0):
    try:
      if (
        duration(source.path) >= frontend.min_samples / frontend.sample_rate
        and len(sources) < number
      ):
        sources.append(source)
    except Reject:
      continue
  if not sources:
    raise UserError(f"--input={folder}: no file of it can be used")
  return sources


def measure_prepare(
  folder: str, *, frontend: str, files: int, seconds: float, repeats: int, workers: int
) -> dict:
  """Measures the job that writes shards. Numbers are medians over the repeats; ratios are medians
  of each repeat's ratio.

  Args:
    files: of the folder, at most; all are read once beforehand, so that they are in memory.
    seconds: that the bare loop takes at least; the files are repeated until it does.
    workers: processes of the pool.

  Raises UserError for a folder without usable audio.
  """
  front = get_frontend(frontend)
  filters = mel_filters(front)
  sources = usable_files(folder, files, front)
  share = lambda values, count: [values[i::count] for i in range(min(count, len(values)))]
  tasks = lambda parts: [
    ShardTask(f"train-{i:05d}-of-{len(parts):05d}.tfrecord", "train", tuple(part))
    for i, part in enumerate(parts)
  ]
  labels = tuple(sorted({label for source in sources for label in source.labels}))
  times: dict[str, list[float]] = {key: [] for key in ("bare", "one", "bares", "start", "pool")}
  context = multiprocessing.get_context("spawn")
  executor = lambda count: concurrent.futures.ProcessPoolExecutor(count, mp_context=context)
  with (
    tempfile.TemporaryDirectory() as output,
    environment(ENVIRONMENT),
    executor(1) as single,
    executor(workers) as all,
  ):
    settings = Settings(output, output, front, filters, labels, float("inf"))
    loop = lambda paths: single.submit(_seconds, bare_loop, paths, front, filters).result()
    loops = lambda paths: list(
      all.map(bare_loop, share(paths, workers), [front] * workers, [filters] * workers)
    )
    paths = [source.path for source in sources]
    audio = single.submit(bare_loop, paths, front, filters).result()
    passes = math.ceil(seconds / loop(paths))
    loops(paths)  # every process has started and loaded its libraries
    sources, paths = sources * passes, paths * passes
    (whole,), parts = tasks([sources]), tasks(share(sources, SHARDS_PER_WORKER * workers))
    few = tasks(share(sources[:workers], workers))
    for _ in range(repeats):
      times["bare"].append(loop(paths))
      times["one"].append(single.submit(_seconds, _write, whole, settings).result())
      times["bares"].append(_seconds(loops, paths))
      times["start"].append(_seconds(lambda: write_tasks(few, settings, workers=workers)))
      times["pool"].append(_seconds(lambda: write_tasks(parts, settings, workers=workers)))
    peak = single.submit(peak_megabytes).result()
  bare, one, bares, start, pool = (np.array(values) for values in times.values())
  # The work without the start, but at least a tenth where both take as long.
  pool = pool - min(start.min(), 0.9 * pool.min())
  median = lambda values: float(np.median(values))
  return {
    "files": len(sources) // passes,
    "passes": passes,
    "hours": audio / 3600,
    "bare_clips_per_second": median(len(sources) / bare),
    "clips_per_second": median(len(sources) / one),
    "share_of_bare_loop": median(bare / one),
    "hours_per_core_minute": median(audio * passes / 60 / one),
    "megabytes_per_second": median(sum(map(os.path.getsize, paths)) / 1e6 / one),
    "workers": workers,
    "start_seconds": median(start),
    "pool_clips_per_second": median(len(sources) / pool),
    "pool_speedup": median(one / pool),
    "share_of_bare_loops": median(bares / pool),
    "worker_megabytes": peak,
  }
