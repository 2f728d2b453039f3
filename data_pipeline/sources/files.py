"""Audio files: what is known of one before it is decoded, and lists of them."""

import collections
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable

from atst_jax.util import storage
from atst_jax.util.errors import UserError

# what folders and columns call the splits
SPLIT_NAMES = {
  "train": "train",
  "training": "train",
  "valid": "valid",
  "val": "valid",
  "validation": "valid",
  "dev": "valid",
  "test": "test",
  "eval": "test",
  "evaluation": "test",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
  """One audio file, or a segment of one. `fold` is -1 where there is none; `id` is unique in a
  listing and stable."""

  path: str  # where to read it
  id: str  # the posix path relative to the root, unless a manifest says otherwise
  labels: tuple[str, ...] = ()
  multi_label: bool = False
  fold: int = -1
  split: str = "train"
  # a speaker, a session, a recording: what must not stand in two parts of a division
  group: str = ""
  # seconds from the file's beginning; the whole file where neither is given
  start: float = 0.0
  end: float = math.inf
  line: int = 0  # of the table that lists a segment

  @property
  def whole(self) -> bool:
    """Whether it is a whole file."""
    return self.start == 0 and self.end == math.inf

  @property
  def rest(self) -> bool:
    """Whether it is what no segment of a table covers."""
    return not self.whole and not self.line


def describe_skipped(skipped: dict[str, int]) -> list[str]:
  """A line about the files of a folder that were not looked at, if there are any."""
  if not skipped:
    return []
  found = ", ".join(f"{count} {kind}" for kind, count in skipped.items())
  return [f"{sum(skipped.values())} files skipped, not audio or hidden: {found}"]


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
  # whole recordings whose table has no annotation: all of them is rest
  unannotated: tuple[Source, ...] = ()
  # sentences about how the input was read
  notes: tuple[str, ...] = ()

  def told(self) -> list[str]:
    """Sentences about what is not among the sources, and how the input was read."""
    return [*self.notes, *describe_skipped(self.skipped)]

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


def known_splits(names: Iterable[str], where: str) -> dict[str, str]:
  """{name: split} of folders or of values of a column, in any case, that name splits.

  Raises UserError where two of them would become one split; `where` begins the message.
  """
  found = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
  for split in set(found.values()):
    same = sorted(name for name in found if found[name] == split)
    if len(same) > 1:
      raise UserError(f"{where}: {' and '.join(map(repr, same))} both mean {split!r}; rename one")
  return found


def said(splits: dict[str, str]) -> str:
  """What became of names of splits, for a message."""
  return ", ".join(f"{name} is {split}" for name, split in sorted(splits.items()))


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
