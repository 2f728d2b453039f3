"""How far a long job is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time

from atst_jax import logs

LINE_SECONDS = 10.0


class Progress:
  """Shows files, clips per second and the time left on stderr, unless quiet is wanted."""

  def __init__(self, total: int):
    self.total, self.files, self.clips = total, 0, 0
    self.started = self.shown = time.monotonic()
    self.bar = None
    if sys.stderr.isatty() and not logs.is_quiet():
      import tqdm

      self.bar = tqdm.tqdm(total=total, unit="file", dynamic_ncols=True)

  def update(self, files: int, clips: int) -> None:
    """Takes the totals so far."""
    if self.bar is not None:
      self.bar.set_postfix_str(f"{self._rate(clips):.0f} clips/s", refresh=False)
      self.bar.update(files - self.files)
    elif time.monotonic() - self.shown >= LINE_SECONDS and not logs.is_quiet():
      self.shown = time.monotonic()
      left = (self.total - files) * (self.shown - self.started) / max(1, files)
      print(f"{files} of {self.total} files, {self._rate(clips):.0f} clips/s, {left:.0f} s left", file=sys.stderr)
    self.files, self.clips = files, clips

  def _rate(self, clips: int) -> float:
    return clips / max(1e-3, time.monotonic() - self.started)

  def close(self) -> None:
    """Ends the bar's line, where there is a bar."""
    if self.bar is not None:
      self.bar.close()
