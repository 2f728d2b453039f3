"""Opens a sound with the library that reads it. Errors become rejects with a reason."""

import contextlib
import dataclasses
import errno
import os
import stat

import numpy as np

from atst_jax.util import storage
from atst_jax.util.errors import StoreError

from .formats import GET_PYAV, Patched, ending, has_pyav, needs_pyav, unfinished_wav
from .pyav import open_pyav
from .streams import Streams, look

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; outside, a header is damaged or hostile
MISSED_SECONDS = 0.1  # fewer are rounding of the header
MOST_OF_A_WAV = 0xFFFFFFFF  # bytes of samples
SOUGHT = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")
SEEKABLE = ("PCM_", "FLOAT", "DOUBLE")  # kinds of samples in which seeking is exact
SYSTEM_ERROR = 2  # of libsndfile: an error of the operating system
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
  """A file that cannot be used: `reason` is a word for counts, `detail` says more and names no
  path."""

  def __init__(self, reason: str, detail: str = ""):
    super().__init__(f"{reason} ({detail})" if detail else reason)
    self.reason, self.detail = reason, detail


class _Remote:
  """A remote file for libsndfile, which takes an error for the end of the file. `error` keeps
  it."""

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
  """An argument for soundfile: a file name, or an object that reads from a store. Raises Reject,
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
  """Raises StoreError for a fault of the machine (memory, handles, a disk that is gone): the next
  start may read the file."""
  if error.errno in OF_THE_MACHINE:
    raise StoreError(f"{path}: {error.strerror}; run the same command again") from error


class Sound:
  """A sound that is being decoded.

  Attributes:
    samplerate: Hz.
    channels: C.
    frames: samples by the header, -1 if it does not tell.
  """

  def __init__(self, file, streams: Streams, *, by_pyav: bool, error: str = ""):
    """`file` is a soundfile.SoundFile or a PyAvFile; `error` says why PyAV does not read it."""
    self._file, self._streams, self._by_pyav = file, streams, by_pyav
    self.samplerate, self.channels, self._read = file.samplerate, file.channels, 0
    self._limit, self._error = streams.fact or streams.promised, error
    if by_pyav and (streams.more or streams.uncounted):  # the container tells of the first
      self.frames, self._limit = streams.promised or -1, None
    else:
      self.frames = file.frames if self._limit is None else min(file.frames, self._limit)

  @property
  def behind(self) -> float:
    """Seconds of samples that follow those of which the header tells."""
    return max(self._streams.present - 1, 0) * self.frames / self.samplerate

  def read(self, size: int) -> np.ndarray:
    """(n, C) float32, the next samples; n is `size`, or less at the end."""
    if self._limit is not None:
      size = min(size, self._limit - self._read)
    block = self._file.read(size, dtype="float32", always_2d=True)
    self._read += len(block)
    return block

  def skip(self, seconds: float) -> int:
    """Seeks to the last whole second before `seconds`, and returns it. Returns 0 if seeking is not
    exact to the sample (packed formats except FLAC)."""
    packed = self._by_pyav or not self._file.subtype.startswith(SEEKABLE)
    place = int(seconds) * self.samplerate
    if packed or not 0 < place < self.frames or self._file.format not in SOUGHT:
      return 0
    self._read = self._file.seek(place)
    return int(seconds)

  def missed(self) -> str:
    """Says which part of a file, read to its end, was not read; "" if all was."""
    streams, seconds = self._streams, self._read / self.samplerate
    whole = (streams.promised or self.frames / (streams.present or 1)) / self.samplerate
    error = self._error or getattr(self._file, "error", "")
    if streams.more and (error or not self._by_pyav):
      return f"{seconds:.1f} s read, more streams follow{_remedy(error, 'them')}"
    if streams.unended:
      return f"{seconds:.1f} s read, its last page does not end the stream: it was cut"
    if self.behind > MISSED_SECONDS:
      return (
        f"{seconds:.1f} s read, the header tells of no more, {self.behind:.1f} s follow; "
        "`prepare --repair_headers` reads them"
      )
    if whole - seconds <= MISSED_SECONDS or (self._by_pyav and not streams.promised):
      return ""
    if streams.promised and not streams.more:
      remedy = _remedy(error, "the rest") if streams.uncounted else ""
      return f"{seconds:.1f} of {whole:.1f} s read, its header does not count its frames{remedy}"
    if self._by_pyav:  # its parser may miss the first block of a later stream
      return f"{seconds:.2f} of {whole:.2f} s read of its streams; cut it apart before each 'fLaC'"
    return f"{seconds:.1f} s read, the header tells of {whole:.1f} s: it was cut"


def _remedy(error: str, what: str) -> str:
  """What remarks add about PyAV, which failed with `error`, or is not installed."""
  if error:
    return f"; PyAV: {error}"
  return "" if has_pyav() else f"; {GET_PYAV} reads {what}"


@contextlib.contextmanager
def _decoder(path: str, handle, repair_headers: bool):
  """A Sound of a `_handle`."""
  import soundfile

  with contextlib.ExitStack() as stack:
    raw = stack.enter_context(open(handle, "rb")) if isinstance(handle, bytes) else handle
    streams = look(raw)
    raw.seek(0)
    if streams.several:
      raise Reject("undecodable", "several WAVs in a row: cut the file apart before each 'RIFF'")
    if needs_pyav(path) and not has_pyav():
      raise Reject("undecodable", f"{ending(path)} needs PyAV: {GET_PYAV}")
    only_pyav, error = needs_pyav(path) or (has_pyav() and streams.open_length), ""
    if only_pyav or (has_pyav() and (streams.more or streams.uncounted)):
      try:
        file = stack.enter_context(open_pyav(raw, partly=not only_pyav))
      except ValueError as failure:
        if only_pyav:
          raise
        error = str(failure)
        raw.seek(0)
      else:
        yield Sound(file, streams, by_pyav=True)
        return
    if streams.open_length:
      raise Reject(
        "undecodable",
        f"its header leaves the length open (it was written into a pipe): {GET_PYAV} reads it",
      )
    try:
      file = stack.enter_context(soundfile.SoundFile(handle))
    except soundfile.LibsndfileError as failure:
      yield Sound(_second_try(raw, stack, failure), streams, by_pyav=True)
      return
    found = Sound(file, streams, by_pyav=False, error=error)
    if file.frames <= 0 or (repair_headers and found.behind > MISSED_SECONDS):
      found = _repaired(raw, stack, streams, repair_headers)
    yield found


def _repaired(raw, stack: contextlib.ExitStack, streams: Streams, repair_headers: bool) -> Sound:
  """A WAV whose header tells of too few samples, read to its end. Raises Reject for a file without
  samples, and if that is not asked for."""
  import soundfile

  if not (found := unfinished_wav(raw)):
    raise Reject("empty", "no samples" + ": it was cut" * streams.unended)
  place, behind = found
  if not repair_headers:
    raise Reject(
      "empty",
      f"the header was never finished: it tells of no samples, {behind} bytes follow; "
      "`prepare --repair_headers` reads them",
    )
  raw.seek(0)
  file = stack.enter_context(soundfile.SoundFile(Patched(raw, place, b"\xff" * 4)))
  streams = dataclasses.replace(streams, present=max(behind / MOST_OF_A_WAV, 1.0), fact=None)
  return Sound(file, streams, by_pyav=False)


def _second_try(raw, stack: contextlib.ExitStack, error: Exception):
  """A file that libsndfile cannot open, opened by PyAV. Raises libsndfile's `error` if neither can,
  or if it is the operating system's."""
  if not has_pyav() or getattr(error, "code", 0) == SYSTEM_ERROR:
    raise error
  raw.seek(0)
  try:
    file = stack.enter_context(open_pyav(raw))
  except ValueError:
    raise error from None
  return file


@contextlib.contextmanager
def open_sound(path: str, repair_headers: bool = False):
  """A Sound. Every error while it is open is a Reject, except a store that does not answer."""
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
  # TypeError and ValueError: of formats without a header, and of PyAV
  except (soundfile.SoundFileError, TypeError, ValueError) as error:
    if getattr(error, "code", 0) == SYSTEM_ERROR and not storage.is_remote(path):
      try:
        open(path, "rb").close()
      except OSError as system:
        _raise_unless_of_the_file(path, system)
    said = str(error) if isinstance(error, ValueError) else getattr(error, "error_string", "")
    raise Reject("undecodable", said or "format not recognised") from error
