"""A pool of processes that write shards. The bytes do not depend on the number of processes."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool

from atst_jax.data.dataset import write_json
from atst_jax.util import storage
from atst_jax.util.cli import guard, sigterm_as_interrupt
from atst_jax.util.errors import UserError
from atst_jax.util.logs import Progress

from ..sources.files import Source
from .shard import Settings, ShardTask, read_sidecar, write_task

# One thread per process: the pool fills the cores, and sums in matrix products come in one order.
# The memory of a clip is kept for the next one: glibc would give it back, and page faults would
# take a tenth of the time.
ENVIRONMENT = dict.fromkeys(
  (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
  ),
  "1",
) | dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(64 << 20))
NOT_BEGUN = -1
CHUNK = 8  # items that a process is given at a time
DIED = "a worker process died: killed, or out of memory"
CRASHERS = "crashers.json"  # in the work folder
_worker: dict = {}  # the arguments of `_start` in this process


class Stopped(Exception):
  """The job ended early; the same command continues it."""


def _start(settings: Settings, done, stop) -> None:
  def leave_with_parent():
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)

  threading.Thread(target=leave_with_parent, daemon=True).start()
  _worker.update(settings=settings, done=done, stop=stop)


def _work(index: int, task: ShardTask) -> None:
  def on_file(files: int, clips: int) -> None:
    _worker["done"][2 * index], _worker["done"][2 * index + 1] = files, clips
    if _worker["stop"].value:
      raise Stopped

  write_task(task, _worker["settings"], on_file)


@contextlib.contextmanager
def environment(values: dict[str, str]):
  """Sets environment variables for processes that are started inside."""
  before = {key: os.environ.get(key) for key in values}
  os.environ.update(values)
  try:
    yield
  finally:
    for key, value in before.items():
      if value is None:
        del os.environ[key]
      else:
        os.environ[key] = value


@contextlib.contextmanager
def _signals(stop):
  """SIGINT and SIGTERM ask to stop; a second one kills. No handler raises: an exception could leave
  the pool locked."""

  def request(number, frame):
    stop.value = 1
    signal.signal(number, signal.SIG_DFL)

  before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _submit(
  pool: concurrent.futures.ProcessPoolExecutor, tasks: list[ShardTask]
) -> set[concurrent.futures.Future]:
  """Starts the workers. They ignore SIGINT, as this process does meanwhile: the parent stops
  them."""
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    return {pool.submit(_work, i, task) for i, task in enumerate(tasks)}
  finally:
    signal.signal(signal.SIGINT, before)


def write_tasks(tasks: list[ShardTask], settings: Settings, *, workers: int) -> None:
  """Writes all shards. A file that crashes the decoder and its process becomes a reject.

  Raises:
    Stopped: by a signal (no message), or because a worker died; finished shards stay.
    UserError: the output cannot be written.
  """
  while tasks:
    settings = dataclasses.replace(settings, crashers=frozenset(_crashers(settings.work)))
    crashed = _write_tasks(tasks, settings, workers=workers)
    if crashed:
      write_json(os.path.join(settings.work, CRASHERS), sorted({*settings.crashers, *crashed}))
    tasks = [
      task
      for task in tasks
      if crashed and read_sidecar(task, settings.output, settings.work) is None
    ]


def _crashers(work: str) -> list[str]:
  path = os.path.join(work, CRASHERS)
  return json.loads(storage.read_text(path)) if storage.is_file(path) else []


def _write_tasks(tasks: list[ShardTask], settings: Settings, *, workers: int) -> list[str]:
  """Writes shards. If a process died, returns the ids of files that crash one; some shards are then
  not written."""
  # A fork would copy locks without the threads that hold them.
  context = multiprocessing.get_context("spawn")
  done, stop = context.RawArray("q", [NOT_BEGUN, 0] * len(tasks)), context.RawValue("b", 0)
  pool = concurrent.futures.ProcessPoolExecutor(
    min(workers, len(tasks)),
    mp_context=context,
    initializer=_start,
    initargs=(settings, done, stop),
  )
  progress = Progress(sum(len(task.sources) for task in tasks))
  with environment(ENVIRONMENT), _signals(stop):
    try:
      pending = _submit(pool, tasks)
      while pending:
        finished, pending = concurrent.futures.wait(
          pending, 0.5, concurrent.futures.FIRST_COMPLETED
        )
        progress.update(sum(max(files, 0) for files in done[::2]), sum(done[1::2]))
        for future in finished:
          future.result()
        if stop.value and pending:
          raise Stopped
    except BrokenProcessPool as error:
      open_files = (
        []
        if stop.value
        else [
          task.sources[files]
          for task, files in zip(tasks, done[::2], strict=True)
          if 0 <= files < len(task.sources)
        ]
      )
      if crashed := [source.id for source in open_files if _crashes(context, source, settings)]:
        return crashed
      names = ", ".join(repr(source.id) for source in open_files) or "none"
      told = f"{DIED} (fewer --workers need less; open were: {names})"
      raise Stopped("" if stop.value else told) from error
    except OSError as error:
      raise UserError(
        f"cannot write to {settings.output}: {error.strerror or error}; mend that and run the same "
        "command again"
      ) from error
    finally:
      stop.value = 1
      pool.shutdown(cancel_futures=True)
      progress.close()
  return []


def _decode(source: Source, settings: Settings) -> None:
  with contextlib.suppress(Exception):  # only a crash is of interest
    for _ in settings.read(
      source, sample_rate=settings.frontend.sample_rate, max_seconds=settings.max_seconds
    ):
      pass


def _crashes(context, source: Source, settings: Settings) -> bool:
  """Whether decoding this file alone crashes a process. SIGKILL does not count: the system sends it
  when memory is short."""
  process = context.Process(target=_decode, args=(source, settings))
  process.start()
  process.join()
  return process.exitcode not in (0, 1, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)


def each(function: Callable, items: list, *, workers: int) -> Iterator:
  """Yields function(item) in the order of the items. One worker is this process. Raises Stopped if
  a worker dies."""
  progress = Progress(len(items))
  with contextlib.ExitStack() as stack:
    stack.callback(progress.close)
    results: Iterator = map(function, items)
    if workers > 1:
      # the parent stops them
      ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
      context = multiprocessing.get_context("spawn")
      stack.enter_context(environment(ENVIRONMENT))
      pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=ignore)
      stack.callback(pool.shutdown, cancel_futures=True)
      results = pool.map(function, items, chunksize=CHUNK)
    try:
      for number, result in enumerate(results, 1):
        progress.update(number, number)
        yield result
    except BrokenProcessPool as error:
      raise Stopped(DIED + " (fewer --workers need less)") from error


def run(work: Callable[[], int | None]) -> int:
  """`cli.guard`; SIGTERM and a dead worker end the job like Ctrl-C."""

  def go():
    try:
      return work()
    except Stopped as error:
      raise KeyboardInterrupt(str(error)) from error

  with sigterm_as_interrupt():
    return guard(go)
