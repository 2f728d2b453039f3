"""Files on this machine and in object stores, under one name each: a local path, `gs://…`,
`s3://…`, any of fsspec's (pip install -e .[gcs] or .[s3]).

A remote path is a string with a scheme; `os.path.join`, `dirname` and `basename` work as on a local
one. Credentials and endpoints are fsspec's: environment, default logins or ~/.config/fsspec.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

from atst_jax.util import lock
from atst_jax.util.errors import StoreError, UserError

WHOLE_BYTES = 64 << 20  # a smaller remote file is read in one request
BLOCK_BYTES = 4 << 20  # of a larger one
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}  # of this package, by scheme


def absolute(path: str) -> str:
  """The path from the root on, without a slash at its end."""
  path = os.fspath(path)
  return path.rstrip("/") if is_remote(path) else os.path.abspath(path)


def is_file(path: str) -> bool:
  """Whether it is a file, links followed; not a pipe or a device."""
  return size(path) >= 0


def is_folder(path: str) -> bool:
  """Whether it is a folder, links followed. Raises StoreError."""
  if not is_remote(path):
    return os.path.isdir(path)
  with store(path) as (fs, inner):
    return fs.isdir(inner)


def exists(path: str) -> bool:
  """Whether it is a folder or a regular file; a pipe or a device is neither."""
  return is_folder(path) or is_file(path)


def size(path: str) -> int:
  """Bytes of a regular file, or -1."""
  try:
    if not is_remote(path):
      status = os.stat(path)
      return status.st_size if stat.S_ISREG(status.st_mode) else -1
    with store(path) as (fs, inner):
      info = fs.info(inner)
      return int(info["size"]) if info["type"] == "file" else -1
  except OSError:
    return -1


def sizes(paths: Iterable[str], root: str) -> list[int]:
  """`size` of many files under `root`, of a store by one listing."""
  if not is_remote(root):
    return [size(path) for path in paths]
  known = {os.path.join(root, relative): number for relative, number in find(root)}
  return [known.get(path, -1) for path in paths]


def find(root: str) -> Iterator[tuple[str, int]]:
  """Yields (path relative to the root, bytes) of every file below `root`; of a store by one
  listing."""
  if not is_remote(root):
    for folder, _, files in os.walk(root):
      for name in files:
        path = os.path.join(folder, name)
        yield os.path.relpath(path, root), size(path)
    return
  with store(root) as (fs, inner):
    inner = inner.rstrip("/")
    for path, info in fs.find(inner, detail=True).items():
      if info["type"] == "file":
        yield path[len(inner) + 1 :], int(info["size"])


def names(folder: str) -> list[str]:
  """Names of the files and folders in a folder, in order; none if it does not exist."""
  try:
    if not is_remote(folder):
      return sorted(os.listdir(folder))
    with store(folder) as (fs, inner):
      found = fs.ls(inner, detail=False)
      return sorted({os.path.basename(path.rstrip("/")) for path in found} - {""})
  except (FileNotFoundError, NotADirectoryError):
    return []


def make_folder(path: str) -> None:
  """Makes a folder and those above it; in a store, nothing."""
  if not is_remote(path):
    os.makedirs(path, exist_ok=True)


def remove(path: str) -> None:
  """Removes a file; one that is gone is no error."""
  with contextlib.suppress(FileNotFoundError):
    if not is_remote(path):
      os.unlink(path)
      return
    with store(path) as (fs, inner):
      fs.rm_file(inner)


def remove_folder(path: str) -> None:
  """Removes a folder and all that is in it; one that is gone is no error."""
  with contextlib.suppress(FileNotFoundError):
    if not is_remote(path):
      shutil.rmtree(path)
      return
    with store(path) as (fs, inner):
      fs.rm(inner, recursive=True)


def move_folder(path: str, target: str) -> None:
  """Renames a folder, whose new name must be free; in a store every file is copied."""
  if not is_remote(path):
    os.rename(path, target)
    return
  with store(path) as (fs, inner):
    fs.mv(inner, fs._strip_protocol(target), recursive=True)


def free_bytes(path: str) -> float:
  """Free bytes on the disk of an existing folder; infinity for a store."""
  return float("inf") if is_remote(path) else shutil.disk_usage(path).free


def open_binary(path: str, buffering: int = -1) -> IO[bytes]:
  """Opens a file to read: a small remote one is fetched whole, a large one by blocks. Raises
  OSError, StoreError."""
  if not is_remote(path):
    return open(path, "rb", buffering)
  with store(path) as (fs, inner):
    info = fs.info(inner)
    if info["type"] != "file":
      raise IsADirectoryError(f"{path} is a folder")
    if info["size"] <= WHOLE_BYTES:
      return io.BytesIO(fs.cat_file(inner))
    return io.BufferedReader(Blocks(path, fs.open(inner, "rb", block_size=BLOCK_BYTES)), 1 << 20)


def open_text(path: str, encoding: str = "utf-8", newline: str | None = None) -> IO[str]:
  """Like `open` of a text for reading, of a path or an address. Raises OSError."""
  return io.TextIOWrapper(open_binary(path), encoding=encoding, newline=newline)


def read_text(path: str) -> str:
  """The whole file as UTF-8. Raises OSError, and UnicodeDecodeError for other bytes."""
  with open_text(path) as file:
    return file.read()


def read_json(path: str):
  """The value of a JSON file. Raises OSError, and ValueError if it is no JSON."""
  try:
    return json.loads(read_text(path))
  except RecursionError as error:
    raise ValueError("nested too deeply") from error


def read_array(path: str) -> np.ndarray:
  """The array of a local .npy file, mapped: it never needs more memory than the file has bytes, and
  holds no objects. Raises OSError, and ValueError if it is none."""
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except OSError:
    raise
  except Exception as error:  # numpy reads the header as Python, which raises many kinds
    raise ValueError(f"no .npy file ({type(error).__name__})") from error
  if not isinstance(array, np.ndarray):  # an archive of several
    array.close()
    raise ValueError("an archive, not an array")
  return array


def temporary_name(path: str) -> str:
  """A name beside `path` that no other process or host chooses."""
  return f"{path}.tmp-{uuid.uuid4().hex}"


@contextlib.contextmanager
def writing(path: str, mode: str = "wb", **options) -> Iterator[IO]:
  """A file to write, which appears under its name only when it is complete.

  A local file is synced and renamed. For a store it is written to a temporary file here and sent at
  the end; object stores show only complete objects. `options` are those of `open`.
  """
  if is_remote(path):
    with tempfile.NamedTemporaryFile(mode, **options) as file:
      yield file
      file.flush()
      with store(path) as (fs, inner):
        fs.put_file(file.name, inner)
    return
  temporary = temporary_name(path)
  try:
    with lock.mark(open(temporary, mode, **options)) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
      os.replace(temporary, path)  # while it is marked
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise


def write_text(path: str, text: str) -> None:
  """Writes UTF-8, whole or not at all."""
  with writing(path, "w", encoding="utf-8") as file:
    file.write(text)


def sha256(path: str) -> str:
  """64 hexadecimal digits over a file's bytes."""
  with open_binary(path) as file:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # files of bytes have readinto


def is_remote(path: str) -> bool:
  """Whether a path begins as a URL does, such as gs://."""
  return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


@contextlib.contextmanager
def store(path: str) -> Iterator[tuple]:
  """Yields (file system, path inside it). All errors of the store's library become an OSError of
  one file (absent, a folder) or a StoreError. A refusal is a StoreError: mostly a login has
  expired."""
  import fsspec

  scheme = path.split("://")[0]
  try:
    # No cache of listings: other processes write into the same folders. Not url_to_fs, for which
    # "::" in a name has a meaning.
    fs = fsspec.filesystem(scheme, use_listings_cache=False)
    yield fs, fs._strip_protocol(path)
  except (UserError, FileNotFoundError, IsADirectoryError):
    raise
  except (ImportError, ValueError) as error:
    extra = EXTRAS.get(scheme)
    remedy = f"pip install -e .[{extra}]" if extra else "see fsspec's list of protocols"
    refusal = StoreError(f"{path}: cannot use {scheme}:// ({error}); {remedy}")
    refusal.exit_code = UserError.exit_code  # it will not pass
    raise refusal from error
  except Exception as error:
    reason = " ".join(str(error).split())[:300]
    what = f"{path}: {type(error).__name__}: {reason}"
    raise StoreError(f"{what}; run the same command again") from error


class Blocks(io.RawIOBase):
  """A remote file that is read by blocks; its store's errors become StoreErrors."""

  def __init__(self, path, file):
    self._path, self._file = path, file

  def readable(self):
    """True: it is for reading only."""
    return True

  def seekable(self):
    """True: any block can be fetched."""
    return True

  def readinto(self, buffer):
    """Number of bytes read, 0 at the end. Raises StoreError."""
    with store(self._path):
      data = self._file.read(len(buffer))
    buffer[: len(data)] = data
    return len(data)

  def seek(self, offset, whence=io.SEEK_SET):
    """The new position in bytes; nothing is fetched."""
    return self._file.seek(offset, whence)

  def tell(self):
    """Position in bytes from the start."""
    return self._file.tell()

  def close(self):
    """Closes the store's file too."""
    self._file.close()
    super().close()
