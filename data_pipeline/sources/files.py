"""Audio files on disk: what is known of one before it is decoded, and how they are found."""

import dataclasses
import os
from collections.abc import Iterator

from atst_jax.util import storage
from atst_jax.util.errors import UserError

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")


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


def audio_files(root: str) -> Iterator[tuple[str, str]]:
  """Yields (path, relative posix path) of every audio file under `root`, unordered.

  Links to files are followed, links to folders not: their files are listed where they lie. Raises
  UserError for a link that leaves the root and for a folder that cannot be read.
  """
  if storage.is_remote(root):
    for relative, _ in storage.find(root):
      if relative.lower().endswith(AUDIO_EXTENSIONS):
        yield os.path.join(root, relative), relative
    return

  def unreadable(error):
    raise UserError(
      f"cannot list {error.filename}: {error.strerror}; mend its permissions or choose another --input"
    )

  for folder, folders, files in os.walk(root, onerror=unreadable):
    files = [name for name in files if name.lower().endswith(AUDIO_EXTENSIONS)]
    for path in (os.path.join(folder, name) for name in folders + files):
      if os.path.islink(path) and not inside(path, root):
        raise UserError(
          f"{path} is a link out of {root}; remove it, or copy what it points to into the folder"
        )
    for path in (os.path.join(folder, name) for name in files):
      yield path, os.path.relpath(path, root).replace(os.sep, "/")
