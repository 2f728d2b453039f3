"""Stop requests: SIGTERM, SIGINT and SIGUSR1 ask a job to save and end; a second signal ends it at
once."""

import contextlib
import os
import signal
import threading

from jax.experimental.multihost_utils import reached_preemption_sync_point

# the training went wrong for good (`recovery`); the same command would meet it again
EXIT_DIVERGED = 3
EXIT_RESUME = 75  # the job stopped early; the same command continues it
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PATIENCE = 5.0  # seconds for a job that has nothing to save to clean up


class Interrupted(KeyboardInterrupt):
  """A signal where there is nothing to save: what is finished is kept, the same command continues
  (`cli.guard`)."""


class StopRequest:
  """Context manager: while it is open, the first signal sets `requested`; handlers are restored
  afterwards.

  Until `begin` is called, a job that is `starting` has nothing to save: the signal raises
  Interrupted in the main thread, and ends the process with 75 if that is inside a call, such as a
  compilation, for longer than `PATIENCE`.

  With several processes (`distributed`) they have to agree on the step (`agreed`): JAX's preemption
  service, which handles SIGTERM itself, does that, so SIGTERM is left to it and the other signals
  become one.
  """

  def __init__(self, *, distributed: bool, starting: bool = False):
    self.requested, self._distributed, self._starting = (
      False,
      distributed,
      starting and not distributed,
    )
    self._asked = 0

  def __enter__(self):
    self._previous, self._pipe = {}, None
    # only the main one can have handlers
    if threading.current_thread() is not threading.main_thread():
      return self
    signals = SIGNALS[1:] if self._distributed else SIGNALS
    self._previous = {s: signal.signal(s, self._handle) for s in signals}
    if self._starting:
      # Python calls handlers between two of its own instructions; the number of a signal is written
      # here at once.
      self._pipe = os.pipe()
      os.set_blocking(self._pipe[1], False)
      threading.Thread(target=self._wait, args=self._pipe[:1], name="signals", daemon=True).start()
    self._outer = signal.set_wakeup_fd(
      self._pipe[1] if self._pipe else -1, warn_on_full_buffer=False
    )
    return self

  def __exit__(self, *_):
    self.begin()
    if self._previous:
      signal.set_wakeup_fd(self._outer, warn_on_full_buffer=False)
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def begin(self) -> None:
    """From here on the job saves what it has when it is asked to stop."""
    self._starting = False
    if self._pipe:
      signal.set_wakeup_fd(-1)
      os.close(self._pipe[1])  # its reader ends
      self._pipe = None

  def agreed(self) -> bool:
    """Whether to stop after this step. Of several processes each has to ask after every step.

    The service answers True once, at the number after the highest that any process had asked with
    when the signal came: so the number counts the questions of this process's life, whatever steps
    a continued run or a second one is at.
    """
    if not self._distributed:
      return self.requested
    self._asked += 1
    return reached_preemption_sync_point(self._asked)

  def _wait(self, pipe):
    with contextlib.closing(os.fdopen(pipe, "rb", 0)) as numbers:
      if numbers.read(1):
        threading.Event().wait(PATIENCE)
        if self._starting:
          os.write(2, b"stopped before there was anything to save; the same command starts again\n")
          os._exit(EXIT_RESUME)

  def _handle(self, number, _):
    if self.requested:
      os._exit(128 + number)
    self.requested = True
    if self._starting:
      raise Interrupted(signal.Signals(number).name)
    if self._distributed:
      os.kill(os.getpid(), signal.SIGTERM)
    told = f"{signal.Signals(number).name}: finishing this step and saving; once more ends at once"
    os.write(2, f"\n{told}\n".encode())
