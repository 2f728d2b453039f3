"""librosa, imported with a folder where numba can keep compiled functions."""

import contextlib
import importlib.util
import os
import pathlib
import stat
import sys
import tempfile


def import_librosa():
  """The module librosa.

  Numba, which librosa uses, keeps compiled functions beside librosa or in the home folder. If it
  can write neither (a user without home in a container), the import fails. It is then given a
  temporary folder.
  """
  if "numba" not in sys.modules and "NUMBA_CACHE_DIR" not in os.environ:
    found = importlib.util.find_spec("librosa")
    beside = os.path.dirname(found.origin) if found and found.origin else ""
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not any(map(_can_be_written, (beside, home))):
      os.environ["NUMBA_CACHE_DIR"] = _own_temporary_folder()
  import librosa

  return librosa


def _own_temporary_folder() -> str:
  """A folder of this user, kept for later processes, because compiling takes 20 s. Code is loaded
  from it, so nobody else may write there."""
  path = os.path.join(tempfile.gettempdir(), f"numba-{os.getuid()}")
  with contextlib.suppress(FileExistsError):
    os.mkdir(path, 0o700)
  found = os.lstat(path)
  if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
    return path
  return tempfile.mkdtemp(prefix="numba-")


def _can_be_written(folder: str) -> bool:
  """Whether files can be made in a folder, or in the nearest one above it that exists."""
  if not os.path.isabs(folder):
    return False
  path = pathlib.Path(folder)
  there = next(place for place in (path, *path.parents) if place.exists())
  return os.access(there, os.W_OK)
