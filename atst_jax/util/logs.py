"""Log lines on standard error, and a progress bar."""

import logging
import sys
import time

from atst_jax.util.errors import plain

log = logging.getLogger("atst_jax")


class _StandardError(logging.StreamHandler):
  """Writes to the standard error of that moment."""

  stream = property(lambda self: sys.stderr, lambda self, _: None)

  def emit(self, record):
    """Writes a line; on a terminal above a progress bar."""
    if not sys.stderr.isatty():
      super().emit(record)
      return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
      super().emit(record)


class _Plain(logging.Formatter):
  """Escapes names in messages, so that they cannot write lines of their own."""

  def format(self, record):
    return plain(super().format(record))


def _once(record: logging.LogRecord) -> bool:
  """Whether this process writes a line. Of several processes of a job the first writes all lines;
  the others write warnings and errors, and everything with `--verbosity=debug`."""
  jax = sys.modules.get("jax")
  if record.levelno >= logging.WARNING or log.level <= logging.DEBUG:
    return True
  if jax is None or not hasattr(jax, "distributed") or not jax.distributed.is_initialized():
    return True
  try:
    return jax.process_index() == 0
  except RuntimeError:  # no devices
    return True


def set_up(level: int = logging.INFO) -> None:
  """Sets up readable lines on standard error, from a level on."""
  handler = _StandardError()
  handler.addFilter(_once)
  handler.setFormatter(_Plain("%(asctime)s %(message)s", "%H:%M:%S"))
  log.handlers[:] = [handler]
  log.setLevel(level)
  log.propagate = False


def is_quiet() -> bool:
  """Whether only warnings, errors and results are wanted (`--verbosity=quiet`)."""
  return log.level >= logging.WARNING


def progress_bar(total, initial, unit):
  """A tqdm bar on a terminal; nothing elsewhere or with `--verbosity=quiet`."""
  from tqdm import tqdm

  disable = is_quiet() or not sys.stderr.isatty()
  return tqdm(total=total, initial=initial, unit=unit, disable=disable, dynamic_ncols=True)


LINE_SECONDS = 10.0


class Progress:
  """Shows files, clips per second and the time left on stderr, unless quiet is wanted."""

  def __init__(self, total: int):
    self.total, self.files, self.clips = total, 0, 0
    self.started = self.shown = time.monotonic()
    self.bar = progress_bar(total, 0, "file")

  def update(self, files: int, clips: int) -> None:
    """Takes the totals so far."""
    if not self.bar.disable:
      self.bar.set_postfix_str(f"{self._rate(clips):.0f} clips/s", refresh=False)
      self.bar.update(files - self.files)
    elif time.monotonic() - self.shown >= LINE_SECONDS and not is_quiet():
      self.shown = time.monotonic()
      left = (self.total - files) * (self.shown - self.started) / max(1, files)
      print(
        f"{files} of {self.total} files, {self._rate(clips):.0f} clips/s, {left:.0f} s left",
        file=sys.stderr,
      )
    self.files, self.clips = files, clips

  def _rate(self, clips: int) -> float:
    return clips / max(1e-3, time.monotonic() - self.started)

  def close(self) -> None:
    """Ends the bar's line, if there is a bar."""
    self.bar.close()
