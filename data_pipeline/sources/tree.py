"""The audio files below a folder. Hidden and other files are counted. Links out of the folder are
followed only if that is asked for."""

import collections
import os
from collections.abc import Iterator

from atst_jax.audio.formats import ending, is_audio
from atst_jax.util import storage
from atst_jax.util.errors import UserError, printable

from .files import inside

# among the endings of files that are skipped
HIDDEN, NO_ENDING, LINKED_TWICE = "hidden", "(no ending)", "(linked twice)"


def audio_files(
  root: str, skipped: collections.Counter | None = None, *, follow_links: bool = False
) -> Iterator[tuple[str, str]]:
  """Yields (path, relative posix path) of every audio file under `root`, unordered.

  Hidden files and folders and `__MACOSX` are skipped. Links to files are followed, links to folders
  not: their files are listed where they lie.

  Args:
    skipped: counts the other files by ending, and as HIDDEN and LINKED_TWICE.
    follow_links: links out of the root are followed, to folders too, and each file is listed once:
      where it lies, if that is under the root, else under the first of its names.

  Raises UserError for a link that leaves the root, unless it is followed, and for a folder that
  cannot be read.
  """
  skipped = collections.Counter() if skipped is None else skipped
  links = follow_links and not storage.is_remote(root)
  for path, relative in _followed(root, skipped) if links else _files(root):
    if _is_hidden(relative):
      skipped[HIDDEN] += 1
    elif is_audio(relative):
      yield path, relative
    else:
      skipped[printable(ending(relative)) or NO_ENDING] += 1


def _is_hidden(relative: str) -> bool:
  """Whether a file, or a folder above it, is hidden or an archive's leftover of a Mac."""
  return any(part[:1] == "." or part == "__MACOSX" for part in relative.split("/"))


def _walk(top: str, prefix: str) -> Iterator[tuple[str, str, list[str], list[str]]]:
  """`os.walk`, with the prefix of the relative paths in each folder: `prefix` in `top` itself."""

  def below(folder: str) -> str:
    relative = os.path.relpath(folder, top).replace(os.sep, "/")
    return prefix if relative == "." else f"{prefix}{relative}/"

  def unreadable(error):
    if not _is_hidden(below(error.filename)):
      raise UserError(
        f"cannot list {error.filename}: {error.strerror}; mend its permissions or choose another "
        "--input"
      )

  for folder, folders, files in os.walk(top, onerror=unreadable):
    yield folder, below(folder), folders, files


def _files(root: str) -> Iterator[tuple[str, str]]:
  """Yields (path, relative posix path) of every file."""
  if storage.is_remote(root):
    for relative, _ in storage.find(root):
      yield os.path.join(root, relative), relative
    return
  for folder, prefix, folders, files in _walk(root, ""):
    for name in [*folders, *filter(is_audio, files)]:
      path = os.path.join(folder, name)
      if os.path.islink(path) and not _is_hidden(prefix + name) and not inside(path, root):
        raise UserError(
          f"{path} is a link out of {root}; set --follow_links to read what it points to, or "
          "remove it"
        )
    for name in files:
      yield os.path.join(folder, name), prefix + name


def _followed(root: str, skipped: collections.Counter) -> Iterator[tuple[str, str]]:
  """`_files` with all links followed. Folders are entered once, so that links in a circle end."""
  found: dict[str, tuple[bool, str, str]] = {}  # of each target: by a link?, relative, path
  entered: set[str] = set()
  waiting = [("", root)]
  while waiting:
    links = []
    for prefix, top in sorted(waiting):
      for folder, below, folders, files in _walk(top, prefix):
        target = os.path.realpath(folder)
        if target in entered:
          folders.clear()
          continue
        entered.add(target)
        links += [
          (f"{below}{name}/", path)
          for name in folders
          if os.path.islink(path := os.path.join(folder, name)) and not _is_hidden(below + name)
        ]
        for name in files:
          path = os.path.join(folder, name)
          target, linked = os.path.realpath(path), os.path.islink(path) or top != root
          one = (linked, below + name, path)
          skipped[LINKED_TWICE] += target in found
          found[target] = min(found.get(target, one), one)
    waiting = links
  skipped += collections.Counter()  # drops zeros
  for _, relative, path in found.values():
    yield path, relative
