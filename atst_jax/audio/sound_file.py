"""Opens a sound by the library that reads it. What goes wrong becomes a reject with its reason."""

import contextlib
import errno
import os
import stat

from atst_jax.util import storage
from atst_jax.util.errors import StoreError

from .formats import Patched, ending, has_pyav, needs_pyav, unfinished_wav
from .pyav import open_pyav

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; outside, a header is damaged or hostile
SYSTEM_ERROR = 2  # of libsndfile: the operating system said no
OF_THE_MACHINE = {
  errno.EMFILE,
  errno.ENFILE,
  errno.ENOMEM,
  errno.ESTALE,
  errno.ENOTCONN,
  errno.ETIMEDOUT,
  errno.ENODEV,
  errno.EHOSTDOWN,
}


class Reject(Exception):
  """A file that cannot be used: `reason` is one of REASONS, `detail` says more and names no
  path."""

  def __init__(self, reason: str, detail: str = ""):
    super().__init__(f"{reason} ({detail})" if detail else reason)
    self.reason, self.detail = reason, detail


class _Remote:
  """A remote file for libsndfile, which takes an error in the middle for the end of the file:
  `error` keeps it."""

  def __init__(self, file):
    self._file, self.error = file, None

  def _call(self, method, *args, otherwise):
    try:
      return getattr(self._file, method)(*args)
    except Exception as error:
      self.error = self.error or error
      return otherwise

  def read(self, size=-1):
    return self._call("read", size, otherwise=b"")

  def seek(self, *args):
    return self._call("seek", *args, otherwise=-1)

  def tell(self):
    return self._call("tell", otherwise=0)


@contextlib.contextmanager
def _handle(path: str):
  """What soundfile opens: a file name, or an object that reads from a store. Raises Reject,
  OSError, StoreError."""
  if not storage.is_remote(path):
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
      raise Reject("undecodable", "not a regular file")
    if status.st_size == 0:
      raise Reject("empty", "0 bytes")
    yield os.fsencode(path)
    return
  with storage.open_binary(path) as file:
    if not file.read(1):
      raise Reject("empty", "0 bytes")
    file.seek(0)
    remote = _Remote(file)
    try:
      yield remote
    finally:
      if remote.error is not None:
        raise StoreError(f"{path}: {remote.error}; run the same command again") from remote.error


def _raise_unless_of_the_file(path: str, error: OSError) -> None:
  """Raises StoreError for what the machine lacks or a disk that is gone; the next start may read
  the file."""
  if error.errno in OF_THE_MACHINE:
    raise StoreError(f"{path}: {error.strerror}; run the same command again") from error


@contextlib.contextmanager
def _decoder(path: str, handle, repair_headers: bool):
  """A soundfile.SoundFile, or a PyAvFile, of what `_handle` gave."""
  import soundfile

  with contextlib.ExitStack() as stack:
    if needs_pyav(path):
      if not has_pyav():
        raise Reject("undecodable", f"{ending(path)} needs PyAV: pip install -e .[av]")
      yield stack.enter_context(open_pyav(_as_file(handle, stack)))
      return
    file = stack.enter_context(soundfile.SoundFile(handle))
    if file.frames <= 0:
      raw = _as_file(handle, stack)
      if not (found := unfinished_wav(raw)):
        raise Reject("empty", "no samples")
      place, behind = found
      if not repair_headers:
        raise Reject(
          "empty",
          f"the header was never finished: it tells of no samples, {behind} bytes follow; "
          "`prepare --repair_headers` reads them",
        )
      raw.seek(0)
      file = stack.enter_context(soundfile.SoundFile(Patched(raw, place, b"\xff" * 4)))
    yield file


def _as_file(handle, stack: contextlib.ExitStack):
  """What `_handle` gave as an object with read, seek and tell."""
  if not isinstance(handle, bytes):
    return handle
  return stack.enter_context(open(handle, "rb"))


@contextlib.contextmanager
def open_sound(path: str, repair_headers: bool = False):
  """A decoder; whatever fails while it is open is a Reject, but for a store that does not
  answer."""
  import soundfile

  try:
    with _handle(path) as handle, _decoder(path, handle, repair_headers) as file:
      if file.frames == 0:
        raise Reject("empty", "no samples")
      if not MIN_RATE <= file.samplerate <= MAX_RATE:
        raise Reject("undecodable", f"sample rate of {file.samplerate} Hz")
      yield file
  except StoreError:
    raise
  except FileNotFoundError as error:
    raise Reject("missing") from error
  except OSError as error:
    _raise_unless_of_the_file(path, error)
    raise Reject(
      "undecodable", os.strerror(error.errno) if error.errno else type(error).__name__
    ) from error
  # the latter two for headerless formats, and of PyAV
  except (soundfile.SoundFileError, TypeError, ValueError) as error:
    if getattr(error, "code", 0) == SYSTEM_ERROR and not storage.is_remote(path):
      try:
        open(path, "rb").close()
      except OSError as system:
        _raise_unless_of_the_file(path, system)
    said = str(error) if needs_pyav(path) else getattr(error, "error_string", "")
    raise Reject("undecodable", said or "format not recognised") from error
