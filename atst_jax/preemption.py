"""Stop requests: SIGTERM, SIGINT and SIGUSR1 ask a job to save and end; a second signal ends it at once."""

import os
import signal

EXIT_RESUME = 75  # the job stopped early; the same command continues it
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
  """Context manager: while it is open, the first signal sets `requested`; handlers are restored afterwards."""

  def __enter__(self):
    self.requested = False
    self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, _):
    if self.requested:
      os._exit(128 + number)
    self.requested = True
    os.write(2, f"\n{signal.Signals(number).name}: finishing this step and saving; once more ends at once\n".encode())
