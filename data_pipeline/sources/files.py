"""Audio files: what is known of one before it is decoded, how they are found, and lists of them."""

import collections
import dataclasses
import hashlib
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


@dataclasses.dataclass(frozen=True)
class Listing:
  """All files of an input, sorted by id."""

  sources: list  # of Source, or of what else `Settings.read` makes sounds of
  kind: str
  # where folds have names, that of fold i
  fold_names: list[str] = dataclasses.field(default_factory=list)
  root: str = ""  # the folder that all paths lie in
  # files on disk that a subset left out, by class
  not_drawn: dict[str, int] = dataclasses.field(default_factory=dict)
  # files of a folder that are not prepared: by ending what is no audio, and hidden ones
  skipped: dict[str, int] = dataclasses.field(default_factory=dict)
  grouped_by: str = ""  # what a group is: "speaker"
  # folds and splits are those that the set's owner published
  divided_by_owner: bool = False

  @property
  def label_names(self) -> list[str]:
    """All classes, sorted, those of files that were not drawn included."""
    return sorted(
      {label for source in self.sources for label in source.labels} | self.not_drawn.keys()
    )

  @property
  def multi_label(self) -> bool:
    """Whether files may have several classes."""
    return any(source.multi_label for source in self.sources)


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


def subset(listing: Listing, number: int) -> Listing:
  """The `number` training files on disk whose ids hash lowest; all of the other splits; and, to be
  counted, those that are missing.

  AS-200K is this with 200,000 of AudioSet's training clips; the paper's own draw of 200,000 cannot
  be recovered.
  """
  train = [source for source in listing.sources if source.split == "train"]
  sizes = storage.sizes([source.path for source in train], listing.root)
  there = [source for source, size in zip(train, sizes, strict=True) if size >= 0]
  if len(there) < number:
    raise UserError(
      f"--subset={number}: of {len(train)} training files listed {len(there)} are there; ask for "
      "fewer"
    )
  there.sort(key=lambda source: hashlib.sha256(source.id.encode()).digest())
  left_out = {source.id for source in there[number:]}
  not_drawn = collections.Counter(label for source in there[number:] for label in source.labels)
  kept = [source for source in listing.sources if source.id not in left_out]
  return dataclasses.replace(listing, sources=kept, not_drawn=dict(not_drawn))
