"""Stop requests: SIGTERM, SIGINT, SIGUSR1 and SIGHUP ask a job to save and end. A second signal
ends it at once, unless it is SIGHUP or comes with the first.

`Starting` answers signals until a job has something to save, then `StopRequest`. If SIGHUP (the
terminal was closed) is ignored, as under `nohup`, it stays so.

Importing this module does not load JAX: the handlers must be set before.
"""

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable

from atst_jax.util import lock

EXIT_DIVERGED = 3  # the training diverged (`recovery`); the same command would diverge again
EXIT_RESUME = 75  # the job stopped early; the same command continues it
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Seconds between a failure of one of several processes and its end, in which the others can print
# their messages. Process 0 waits after a signal too: JAX ends the others when it is gone.
LAST_WORDS = 2.0
# Seconds in which several signals are one request. When a terminal closes, the kernel and the shell
# send SIGHUP; the end of a session sends SIGTERM too; `timeout` signals its child and its group.
TOGETHER = 1.0

_current: "Starting | None" = None  # of this process


def hold() -> None:
  """Keeps signals waiting until `Starting` answers them, also while the process is replaced."""
  signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def retake() -> None:
  """Takes SIGTERM back from JAX's preemption service, which `jax.distributed.initialize` starts. A
  StopRequest gives it back."""
  if _current is not None:
    _current.take_sigterm()


def _is_main_thread() -> bool:
  return threading.current_thread() is threading.main_thread()


def _answer(handler: Callable, but: tuple[int, ...] = ()) -> dict:
  """Sets the handler of all signals but some. Returns the previous handlers."""
  if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    but = (*but, signal.SIGHUP)
  return {s: signal.signal(s, handler) for s in SIGNALS if s not in but}


def _get_c_handler(number: int) -> int | None:
  """The C handler of a signal; `signal.getsignal` only knows Python's."""
  get = ctypes.pythonapi.PyOS_getsig
  get.argtypes, get.restype = [ctypes.c_int], ctypes.c_void_p
  return get(number)


def _set_c_handler(number: int, handler: int) -> None:
  put = ctypes.pythonapi.PyOS_setsig
  put.argtypes, put.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
  put(number, handler)


def _leave_to_thread(number, frame) -> None:
  """The handler of signals that `Starting` answers."""


def _tell(text: str) -> None:
  """Writes a line to standard error, unless it is closed."""
  with contextlib.suppress(OSError):
    os.write(2, f"{text}\n".encode())


def _leave_terminal() -> None:
  """Sends output for a closed terminal to /dev/null; every line would be an error there."""
  for descriptor in (1, 2):
    try:
      os.write(descriptor, b"\n")
    except OSError:
      with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), descriptor)


class Starting(contextlib.ContextDecorator):
  """Context manager of a command: a signal ends its process with 75, since it has nothing to save.

  A thread ends it by `os._exit`. An exception in the main thread would come late in a call of
  minutes, such as a compilation. It could also be a segmentation fault: during a library's import,
  or when Python ends while JAX goes on compiling in threads. Files on a disk are whole at every
  instant, so nothing has to be cleaned up.
  """

  def __init__(self):
    self.last_words = 0.0
    self._service: int | None = None  # JAX's handler of SIGTERM, while it is out of service
    self._previous: dict = {}

  def _recreate_cm(self):
    return type(self)()

  def __enter__(self):
    global _current
    if not _is_main_thread():  # other threads cannot set handlers
      return self
    _current = self
    # The number of a signal is written here at once; Python calls a handler only between two
    # instructions.
    self._pipe = os.pipe()
    os.set_blocking(self._pipe[1], False)
    threading.Thread(target=self._wait, name="signals", daemon=True).start()
    self._outer = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
    self._previous = _answer(_leave_to_thread)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return self

  def __exit__(self, *_):
    if not self._previous:
      return
    signal.set_wakeup_fd(self._outer, warn_on_full_buffer=False)
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}
    os.close(self._pipe[1])  # its reader ends

  @property
  def is_open(self) -> bool:
    """Whether its handlers are set."""
    return bool(self._previous)

  def take_sigterm(self) -> None:
    """See `retake`."""
    if not self._previous:
      return
    # Python does not know C's handler, and could not set it again.
    self._service = _get_c_handler(signal.SIGTERM)
    signal.signal(signal.SIGTERM, _leave_to_thread)

  def pause(self) -> None:
    """A StopRequest answers signals from here on."""
    signal.set_wakeup_fd(-1)
    if self._service is not None:
      _set_c_handler(signal.SIGTERM, self._service)

  def resume(self) -> None:
    """The StopRequest has ended."""
    if not self._previous:
      return
    signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
    if self._service is not None:
      self.take_sigterm()

  def _wait(self):
    with contextlib.closing(os.fdopen(self._pipe[0], "rb", 0)) as numbers:
      number = numbers.read(1)
    if number:
      time.sleep(self.last_words)
      _tell(f"stopped: {signal.Signals(number[0]).name}; run the same command again to continue")
      lock.release()
      os._exit(EXIT_RESUME)


class StopRequest:
  """Context manager: from `begin` on, the first signal sets `requested`; handlers are restored
  afterwards. A job calls it when it has something to save; until then `Starting` answers signals.

  Several processes (`distributed`) agree on the step (`agreed`) by JAX's preemption service. It
  handles SIGTERM itself; the other signals are turned into SIGTERM.
  """

  def __init__(self, *, distributed: bool):
    self.requested, self._distributed = False, distributed
    self._asked, self._previous = 0, {}
    self._when = 0.0  # of the request
    self._outer: Starting | None = None

  def __enter__(self):
    if self._distributed and _current is not None:
      import jax

      _current.last_words = LAST_WORDS if jax.process_index() == 0 else 0.0
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}
    if self._outer is not None:
      self._outer.resume()

  def begin(self) -> None:
    """From here on the job saves when it is asked to stop."""
    if self._previous or not _is_main_thread():
      return
    if _current is not None and _current.is_open:
      self._outer = _current
      self._outer.pause()
    self._previous = _answer(self._handle, but=(signal.SIGTERM,) if self._distributed else ())

  def agreed(self) -> bool:
    """Whether to stop after this step. Of several processes each has to ask after every step.

    The service answers True once: at the number after the highest one that any process had asked
    with when the signal came. The number therefore counts the questions of this process, not the
    steps of a run.
    """
    if not self._distributed:
      return self.requested
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    self._asked += 1
    return reached_preemption_sync_point(self._asked)

  def _handle(self, number, _):
    if number == signal.SIGHUP:
      _leave_terminal()
    if self.requested:
      if number != signal.SIGHUP and time.monotonic() - self._when > TOGETHER:
        lock.release()
        os._exit(128 + number)
      return
    self.requested, self._when = True, time.monotonic()
    if self._distributed:
      os.kill(os.getpid(), signal.SIGTERM)
    name = signal.Signals(number).name
    _tell(f"\n{name}: finishing this step and saving; once more ends at once")
