"""Sounds made by a pool of processes, and written as files to listen to."""

import concurrent.futures
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool

from atst_jax.util import storage
from atst_jax.util.logs import Progress

from ..shards.workers import ENVIRONMENT, Stopped, environment
from .known_background import CONDITIONS, Mixture, Recipe, sound

CHUNK = 8  # items that a process is given at a time


def each(function: Callable, items: list, *, workers: int) -> Iterator:
  """Yields function(item) in the order of the items; with one worker in this process. Raises
  Stopped if one dies."""
  progress = Progress(len(items))
  try:
    if workers == 1:
      yield from _counted(map(function, items), progress)
      return
    context = multiprocessing.get_context("spawn")
    # the parent says when to stop
    ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with environment(ENVIRONMENT):
      pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=ignore)
      try:
        yield from _counted(pool.map(function, items, chunksize=CHUNK), progress)
      except BrokenProcessPool as error:
        raise Stopped(
          "a worker process died: killed, or out of memory (fewer --workers need less)"
        ) from error
      finally:
        pool.shutdown(cancel_futures=True)
  finally:
    progress.close()


def _counted(results: Iterator, progress: Progress) -> Iterator:
  for number, result in enumerate(results, 1):
    progress.update(number, number)
    yield result


def _write(job: tuple[str, str, Mixture, str, str, Recipe]) -> None:
  import soundfile

  path, condition, mixture, foreground, background, recipe = job
  waveform = sound(mixture, condition, foreground, background, recipe)
  with storage.writing(path) as file:
    soundfile.write(file, waveform, recipe.sample_rate, format="WAV", subtype="PCM_16")


def write_audio(
  folder: str,
  mixtures: list[Mixture],
  foregrounds: dict[str, str],
  backgrounds: dict[str, str],
  recipe: Recipe,
  *,
  workers: int,
) -> None:
  """Writes FOLDER/CONDITION/NUMBER.wav, 16 bits; NUMBER is that of the mixture's row, from 0.

  Args:
    foregrounds, backgrounds: path of each id.
  """
  jobs = []
  for condition in CONDITIONS:
    storage.make_folder(os.path.join(folder, condition))
    jobs += [
      (
        os.path.join(folder, condition, f"{number:06d}.wav"),
        condition,
        mixture,
        foregrounds[mixture.foreground],
        backgrounds[mixture.background],
        recipe,
      )
      for number, mixture in enumerate(mixtures)
    ]
  for _ in each(_write, jobs, workers=workers):
    pass
