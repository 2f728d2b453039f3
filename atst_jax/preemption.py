"""Stop requests: SIGTERM, SIGINT and SIGUSR1 ask a job to save and end; a second signal ends it at once."""

import os
import signal

EXIT_DIVERGED = 3  # the loss or the gradient is not finite; the same command would meet it again
EXIT_RESUME = 75  # the job stopped early; the same command continues it
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
  """Context manager: while it is open, the first signal sets `requested`; handlers are restored afterwards.

  With several processes (`distributed`) they have to agree on the step: JAX's preemption service, which handles SIGTERM
  itself, does that (`reached_preemption_sync_point`), so SIGTERM is left to it and the other signals become one.
  """

  def __init__(self, *, distributed: bool):
    self.requested, self._distributed = False, distributed

  def __enter__(self):
    signals = SIGNALS[1:] if self._distributed else SIGNALS
    self._previous = {s: signal.signal(s, self._handle) for s in signals}
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, _):
    if self.requested:
      os._exit(128 + number)
    self.requested = True
    if self._distributed:
      os.kill(os.getpid(), signal.SIGTERM)
    os.write(2, f"\n{signal.Signals(number).name}: finishing this step and saving; once more ends at once\n".encode())
