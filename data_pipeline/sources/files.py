"""Audio files on disk: what is known of one before it is decoded, and how they are found."""

import collections
import dataclasses
import os
from collections.abc import Iterator

from atst_jax.audio.formats import ending, is_audio
from atst_jax.util import storage
from atst_jax.util.errors import UserError

HIDDEN, NO_ENDING = "hidden", "(no ending)"  # among the endings of files that are skipped


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
  """One audio file. `fold` is -1 where there is none; `id` is unique in a listing and stable."""

  path: str  # where to read it
  id: str  # the posix path relative to the root, unless a manifest says otherwise
  labels: tuple[str, ...] = ()
  multi_label: bool = False
  fold: int = -1
  split: str = "train"
  # a speaker, a session, a recording: what must not stand in two parts of a division
  group: str = ""


def printable(text: str) -> str:
  """A file name as valid unicode: bytes that are not UTF-8 become `\\xff` escapes, all else
  stays."""
  return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def inside(path: str, root: str) -> bool:
  """Whether `path` lies under `root` once links are followed; stores have no links."""
  if storage.is_remote(root):
    return f"{path}/".startswith(f"{root.rstrip('/')}/") and ".." not in path.split("/")
  root = os.path.realpath(root)
  return os.path.commonpath([root, os.path.realpath(path)]) == root


def _is_hidden(relative: str) -> bool:
  """Whether a file, or a folder above it, is hidden or an archive's leftover of a Mac."""
  return any(part[:1] == "." or part == "__MACOSX" for part in relative.split("/"))


def audio_files(root: str, skipped: collections.Counter | None = None) -> Iterator[tuple[str, str]]:
  """Yields (path, relative posix path) of every audio file under `root`, unordered.

  Hidden files and folders and `__MACOSX` are skipped. Links to files are followed, links to folders
  not: their files are listed where they lie.

  Args:
    skipped: counts the other files by ending, and as HIDDEN.

  Raises UserError for a link that leaves the root and for a folder that cannot be read.
  """
  skipped = collections.Counter() if skipped is None else skipped
  for path, relative in _files(root):
    if _is_hidden(relative):
      skipped[HIDDEN] += 1
    elif is_audio(relative):
      yield path, relative
    else:
      skipped[printable(ending(relative)) or NO_ENDING] += 1


def _files(root: str) -> Iterator[tuple[str, str]]:
  """Yields (path, relative posix path) of every file."""
  if storage.is_remote(root):
    for relative, _ in storage.find(root):
      yield os.path.join(root, relative), relative
    return

  def below(folder: str) -> str:
    """What the relative paths of a folder's files begin with."""
    relative = os.path.relpath(folder, root).replace(os.sep, "/")
    return "" if relative == "." else f"{relative}/"

  def unreadable(error):
    if not _is_hidden(below(error.filename)):
      raise UserError(
        f"cannot list {error.filename}: {error.strerror}; mend its permissions or choose another "
        "--input"
      )

  for folder, folders, files in os.walk(root, onerror=unreadable):
    prefix = below(folder)
    for name in [*folders, *filter(is_audio, files)]:
      path = os.path.join(folder, name)
      if os.path.islink(path) and not _is_hidden(prefix + name) and not inside(path, root):
        raise UserError(
          f"{path} is a link out of {root}; remove it, or copy what it points to into the folder"
        )
    for name in files:
      yield os.path.join(folder, name), prefix + name
