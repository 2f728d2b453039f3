"""A thread that ends a run without progress, and writes a heartbeat for schedulers.

Stalled input, a collective with a process that has ended, and a store that does not answer raise no
error. After a limit without progress the stacks of all threads are written to standard error and to
a file of the workdir, and the process ends with exit code 74. The thread needs the GIL. If a call
never releases it, faulthandler's timer, which does not need it, writes the stacks to standard error
a little later and ends the process with 1.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time

from atst_jax.util import lock
from atst_jax.util.logs import log

EXIT_STALLED = 74  # something did not answer: a store, a disk, another process
PERIOD = 1.0  # seconds between two checks
GRACE = 30.0  # seconds after the limit, until faulthandler ends the process


class Watchdog:
  """Context manager: while it is open, the process ends if the time between two calls of `beat` or
  `phase` exceeds the limit.

  Args:
    workdir: gets heartbeat.json once in `PERIOD` and, at the end, stacks_process_N.txt.
    index: of this process; process 0 writes the heartbeat.
    step_seconds, start_seconds: limits of a step, and of every other phase; 0 for none.
  """

  def __init__(self, workdir: str, *, index: int, step_seconds: float, start_seconds: float):
    self._limits = {"step": step_seconds}
    self._other = start_seconds
    self._stacks = os.path.join(workdir, f"stacks_process_{index}.txt")
    self._heartbeat = os.path.join(workdir, "heartbeat.json") if index == 0 else None
    self._phase, self._moved, self._when = "start", time.monotonic(), time.time()
    self._step: int | None = None
    self._first: float | None = None  # when the first step had ended
    self._ended, self._thread = (
      threading.Event(),
      threading.Thread(target=self._watch, name="watchdog", daemon=True),
    )

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._ended.set()
    self._thread.join()
    faulthandler.cancel_dump_traceback_later()
    self._write("ended")

  def beat(self, step: int) -> None:
    """A step has ended; from here on the limit of a step counts."""
    self._step, self._when = step, time.time()
    self._first = self._first or self._when
    if self._phase != "step":
      self.phase("step")
    self._moved = time.monotonic()

  def phase(self, name: str) -> None:
    """A phase begins that may take longer."""
    self._phase, self._moved = name, time.monotonic()
    self._arm()

  def _limit(self) -> float:
    return self._limits.get(self._phase, self._other)

  def _arm(self):
    """Sets faulthandler's timer, or cancels it."""
    if limit := self._limit():
      left = max(limit - (time.monotonic() - self._moved), 0)
      faulthandler.dump_traceback_later(left + GRACE, exit=True, file=2)
    else:
      faulthandler.cancel_dump_traceback_later()

  def _watch(self):
    while not self._ended.wait(PERIOD):
      self._write(self._phase)
      limit = self._limit()
      if limit and time.monotonic() - self._moved > limit:
        self._end(limit)
      self._arm()

  def _end(self, limit):
    after = "" if self._step is None else f" after step {self._step}"
    message = (
      f"nothing has moved for {limit:g} s in phase {self._phase!r}{after}; the stacks of all "
      f"threads are in {self._stacks}. The same command goes on from the last checkpoint; "
      "guard.step_seconds and guard.start_seconds are the limits"
    )
    print(f"stalled: {message}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(2, all_threads=True)
    try:
      with open(self._stacks, "w", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    except OSError:
      pass
    self._write("stalled")
    lock.release()
    os._exit(EXIT_STALLED)

  def _write(self, phase):
    """Writes {"step", "step_time", "first_time", "time", "phase", "pid", "host"}, whole or not at
    all; not synced, since it is soon old."""
    if self._heartbeat is None:
      return
    beat = {
      "step": self._step,
      "step_time": round(self._when, 3),
      "first_time": self._first and round(self._first, 3),
      "time": round(time.time(), 3),
      "phase": phase,
      "pid": os.getpid(),
      "host": socket.gethostname(),
    }
    try:
      with open(f"{self._heartbeat}.tmp", "w", encoding="utf-8") as file:
        json.dump(beat, file)
      os.replace(f"{self._heartbeat}.tmp", self._heartbeat)
    except OSError as error:
      log.warning(
        "%s cannot be written (%s); the run goes on without it", self._heartbeat, error.strerror
      )
      self._heartbeat = None
