"""Threads that read ahead."""

import collections
import concurrent.futures
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")
PATIENCE = 0.1  # seconds after which a thread checks whether it should end


class _Answer(NamedTuple):
  """A thread's answer: a value, an error, or the end."""

  value: object = None
  error: BaseException | None = None
  last: bool = False


def prefetch_each(
  iterate: Callable[[Item], Iterable[Value]], items: Iterable[Item], *, workers: int, ahead: int
) -> Generator[Iterator[Value], None, None]:
  """Yields, for each item in order, an iterator over `iterate(item)`, to be read to its end.

  Threads run `iterate`, of at most 2 · `workers` items ahead and `ahead` values of each. An error
  is raised where its value would have come. Close the generator to end the threads.
  """
  stopped = threading.Event()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    waiting: collections.deque[queue.Queue] = collections.deque()
    try:
      for item in items:
        line: queue.Queue = queue.Queue(ahead)
        pool.submit(_fill, line, iterate, item, stopped)
        waiting.append(line)
        if len(waiting) > 2 * workers:
          yield _values(waiting.popleft())
      while waiting:
        yield _values(waiting.popleft())
    finally:
      stopped.set()
      pool.shutdown(cancel_futures=True)


def _fill(line: queue.Queue, iterate: Callable, item, stopped: threading.Event) -> None:
  try:
    for value in iterate(item):
      if not _put(line, _Answer(value), stopped):
        return
    _put(line, _Answer(last=True), stopped)
  except BaseException as error:
    _put(line, _Answer(error=error), stopped)


def _put(line: queue.Queue, answer: _Answer, stopped: threading.Event) -> bool:
  """Puts an answer into the queue; False if all was stopped before."""
  while not stopped.is_set():
    try:
      line.put(answer, timeout=PATIENCE)
    except queue.Full:
      continue
    return True
  return False


def _values(line: queue.Queue) -> Iterator:
  while True:
    answer = line.get()
    if answer.error is not None:
      raise answer.error
    if answer.last:
      return
    yield answer.value
