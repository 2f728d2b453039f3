"""Random access to the clips of a shard: straight from the file into a row of a batch, checked."""

import io
import os
import struct
import threading
from collections.abc import Iterator
from typing import IO, NamedTuple

import google_crc32c
import numpy as np

from atst_jax.data.dataset import Clip, Shard
from atst_jax.data.tfrecord import (
  CHECKSUM,
  RecordError,
  file_size,
  find_feature,
  masked,
  read_length,
)
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError
from atst_jax.util.logs import log

# of a record: what comes before the spectrogram lies in them, or else the record is read whole
HEAD_BYTES = 512


class Span(NamedTuple):
  """Where a record's payload lies in its file, and the spectrogram in the payload; in bytes."""

  offset: int
  size: int
  mel: int
  mel_size: int


class Index:
  """The spans of a shard's clips, found by reading the heads of its records; of what is broken, the
  reason."""

  def __init__(self, shard: Shard, n_mels: int, file: IO[bytes]):
    self.shard, self.n_mels = shard, n_mels
    self.spans: list[Span | RecordError] = []
    self._end = file_size(file)
    try:
      while len(self.spans) < shard.num_clips:
        self.spans.append(self._next(file))
    except RecordError as error:  # the file is lost from here on
      self.spans += [error] * (shard.num_clips - len(self.spans))

  @property
  def is_damaged(self) -> bool:
    """Whether a record is broken."""
    return any(isinstance(span, RecordError) for span in self.spans)

  def _next(self, file) -> Span | RecordError:
    number = len(self.spans)
    size = read_length(file, self.shard.path, number)
    if size is None:
      raise RecordError(
        f"{self.shard.path}: {number} clips, {self.shard.num_clips} expected; cut on a record "
        "boundary?"
      )
    offset = file.tell()
    if offset + size + 4 > self._end:  # before memory is asked for
      raise RecordError(f"{self.shard.path}: record {number}: file ends inside the record")
    head = file.read(min(size, HEAD_BYTES))
    try:
      try:
        mel, mel_size = find_feature(head, b"mel")
      except IndexError:
        head += file.read(size - len(head))
        mel, mel_size = find_feature(head, b"mel")
      if not mel_size or mel + mel_size > size or mel_size % (2 * self.n_mels):
        raise ValueError
      span: Span | RecordError = Span(offset, size, mel, mel_size)
    except (ValueError, IndexError, KeyError):
      span = self._diagnosis(file, offset, size)
    file.seek(offset + size + 4)
    return span

  def _diagnosis(self, file, offset, size) -> RecordError:
    """Why a record is no clip."""
    number = len(self.spans)
    file.seek(offset)
    payload, crc = file.read(size), file.read(4)
    if len(payload) < size or len(crc) < 4:  # cut short meanwhile
      raise RecordError(f"{self.shard.path}: record {number}: file ends inside the record")
    if struct.unpack("<I", crc)[0] != masked(google_crc32c.value(payload)):
      return RecordError(CHECKSUM.format(path=self.shard.path, number=number))
    try:
      Clip.decode(payload, self.n_mels, f"{self.shard.path}: record {number}")
    except RecordError as error:
      return error
    return RecordError(f"{self.shard.path}: record {number}: not a clip of this schema")


def rows(mel: np.ndarray) -> list[np.ndarray]:
  """The bytes of each clip of a batch (B, T, F), to be written into."""
  return list(mel.reshape(len(mel), -1).view(np.uint8))


class ShardReader:
  """An open shard. Reads one clip at a time; not for several threads at once.

  Args:
    shard: to read.
    n_mels: bands of its spectrograms.
    damage: counts what is broken, and says when it is too much.
    index: of an earlier reader of the shard; made where there is none.

  Raises:
    StoreError: the file cannot be opened.
    UserError: it is not the one that `shard` describes.
  """

  def __init__(self, shard: Shard, n_mels: int, damage: "Damage", index: Index | None = None):
    self.shard, self.damage = shard, damage
    try:
      self._file = storage.open_binary(shard.path, buffering=0)
      try:
        size = file_size(self._file)
        self.index = index or Index(shard, n_mels, self._file)
        # Of a file that was cut short, records are damaged, and told as such.
        cut = size < shard.num_bytes and (index or self.index.is_damaged)
        if size != shard.num_bytes and not cut:
          raise UserError(
            f"{shard.path}: {size} bytes, {shard.num_bytes} expected: it was exchanged while it "
            "was read; bring the old data back, or train on the new in a new workdir"
          )
      except BaseException:
        self._file.close()
        raise
    except OSError as error:
      raise self._unreadable(error) from error
    here = isinstance(self._file, io.FileIO) and hasattr(os, "preadv")
    self._descriptor = self._file.fileno() if here else None
    self._scratch = np.empty(1 << 16, np.uint8)

  def close(self) -> None:
    """Closes the shard, which cannot be read afterwards."""
    self._file.close()

  def _unreadable(self, error: OSError) -> StoreError:
    return StoreError(
      f"{self.shard.path}: cannot be read ({error.strerror or error}); run the same "
      "command again when it can"
    )

  def read(self, number: int, where: np.float32, out: np.ndarray) -> tuple[int, int]:
    """Reads a clip into `out`, the bytes of (T, F) float16 (`rows`): padded with zeros, or the
    window that begins at the share `where` of what is too long. Returns (its valid frames, the
    number of the record taken).

    A broken record is replaced by a sound one of the shard, always by the same, if some damage is
    allowed.

    Raises UserError: no record is sound, or too many are not.
    """
    record: int = number
    others: Iterator[int] | None = None
    while True:
      try:
        return self._read(record, where, out), record
      except RecordError as error:
        self.damage.add(self.shard.path, record, error)
      # an order of its own for each number: a lost part is replaced by all of the rest
      if others is None:
        draws = np.random.Philox(key=[number, 0]).random_raw(len(self.index.spans))
        others = iter(np.argsort(draws, kind="stable").tolist())
      if (following := next(others, None)) is None:
        break
      record = following
    raise UserError(
      f"{self.shard.path}: no sound record; run `python -m data_pipeline.prepare repair`"
    )

  def centre(self, number: int, frames: int) -> np.float32:
    """The share `where` with which `read` takes the central window of so many frames."""
    span = self.index.spans[number]
    extra = (
      0
      if isinstance(span, RecordError)
      else max(span.mel_size // (2 * self.index.n_mels) - frames, 0)
    )
    return np.float32((extra // 2 + 0.5) / (extra + 1))

  def clip(self, number: int) -> Clip:
    """A whole clip, with its labels."""
    span = self.index.spans[number]
    if isinstance(span, RecordError):
      raise span
    payload = np.empty(span.size, np.uint8)
    self._fill(span.offset, payload)
    return Clip.decode(payload.tobytes(), self.index.n_mels, f"{self.shard.path}: record {number}")

  def _fill(self, offset: int, *parts: np.ndarray) -> int:
    """Reads what follows `offset` into the parts, by one system call if the file is here. Returns
    the bytes read, less than asked for only where the file ends."""
    try:
      if self._descriptor is not None:
        got = os.preadv(self._descriptor, parts, offset)  # type: ignore[arg-type]  # arrays are buffers
        if got == sum(map(len, parts)):
          return got
      self._file.seek(offset)
      total = 0
      for part in parts:
        while len(part) and (got := self._file.readinto(part)):  # type: ignore[attr-defined]  # files opened for bytes have it
          total, part = total + got, part[got:]
      return total
    except OSError as error:
      raise self._unreadable(error) from error

  def _read(self, number, where, out) -> int:
    span = self.index.spans[number]
    if isinstance(span, RecordError):
      raise span
    offset, size, mel, mel_size = span
    frame = 2 * self.index.n_mels
    frames, room = mel_size // frame, len(out) // frame
    length, begin = frames, mel
    if frames > room:
      length = room
      begin += int(where * np.float32(frames - room + 1)) * frame
    end = begin + length * frame
    after = size - end + 4
    if begin + after > len(self._scratch):
      self._scratch = np.empty(begin + after, np.uint8)
    head, tail = self._scratch[:begin], self._scratch[begin : begin + after]
    window = out[: end - begin]
    if self._fill(offset, head, window, tail) < size + 4:
      raise RecordError(f"{self.shard.path}: record {number}: file ends inside the record")
    crc = google_crc32c.value(head)
    crc = google_crc32c.extend(crc, window)
    crc = google_crc32c.extend(crc, tail[:-4])
    if int.from_bytes(tail[-4:].tobytes(), "little") != masked(crc):
      raise RecordError(CHECKSUM.format(path=self.shard.path, number=number))
    if length < room:
      out[end - begin :] = 0
    return length


class Damage:
  """Counts the broken records of a run, each once, and says when there are too many. Used from
  several threads.

  Args:
    share: of the clips that may be broken; at 0 the first one is an error.
    clips: how many there are.
  """

  def __init__(self, share: float, clips: int):
    self.share, self.allowed = share, int(share * clips)
    self._found, self._lock = set(), threading.Lock()

  def add(self, path: str, record: int, error: RecordError) -> None:
    """Raises the error if none is allowed, UserError beyond what is."""
    if not self.share:
      raise error
    with self._lock:
      if (path, record) in self._found:
        return
      self._found.add((path, record))
      if len(self._found) > self.allowed:
        raise UserError(
          f"{error}: {len(self._found)} damaged clips, data.max_damaged allows {self.allowed}; run "
          "`python -m data_pipeline.prepare repair`, or raise it"
        )
      log.warning(
        "%s; another clip of the shard takes its place, %d of this run so far (allowed: %d)",
        error,
        len(self._found),
        self.allowed,
      )
