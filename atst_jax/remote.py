"""Object stores behind fsspec, and one kind of error for whatever their libraries raise."""

import contextlib
import io
import re
from collections.abc import Iterator

from atst_jax.errors import StoreError, UserError

PACKAGES = {"gs": "pip install -e .[gcs]", "gcs": "pip install -e .[gcs]", "s3": "pip install -e .[s3]"}


def is_remote(path: str) -> bool:
  """Whether a path begins as a URL does, such as gs://."""
  return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


@contextlib.contextmanager
def store(path: str) -> Iterator[tuple]:
  """Yields (file system, path inside it). Whatever the store's library raises becomes an OSError of one file (absent,
  a folder) or a StoreError: a refusal too, since it is mostly a login that has expired."""
  import fsspec

  scheme = path.split("://")[0]
  try:
    # Listings are never kept: other processes write into the same folders. Not url_to_fs: "::" is a part of a name.
    fs = fsspec.filesystem(scheme, use_listings_cache=False)
    yield fs, fs._strip_protocol(path)
  except (UserError, FileNotFoundError, IsADirectoryError):
    raise
  except (ImportError, ValueError) as error:
    remedy = PACKAGES.get(scheme, "see fsspec's list of protocols")
    raise StoreError(f"{path}: cannot use {scheme}:// ({error}); {remedy}") from error
  except Exception as error:
    reason = " ".join(str(error).split())[:300]
    raise StoreError(f"{path}: {type(error).__name__}: {reason}; run the same command again") from error


class Blocks(io.RawIOBase):
  """A remote file that is read by blocks; what its store raises becomes a StoreError there too."""

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
