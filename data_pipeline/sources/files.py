"""Audio files before they are decoded, and lists of them."""

import collections
import dataclasses
import difflib
import functools
import hashlib
import math
import os
import re
from collections.abc import Iterable

from atst_jax.util import storage
from atst_jax.util.errors import UserError, printable

# Names of splits in folders and columns.
SPLIT_NAMES = {
  "train": "train",
  "training": "train",
  "valid": "valid",
  "val": "valid",
  "validation": "valid",
  "dev": "valid",
  "test": "test",
  "testing": "test",
  "eval": "test",
  "evaluation": "test",
}
ALIKE = 0.8  # of names of columns and splits: `lable` and `labels` are, `pitch` and `path` are not
BY_FILE = "recording"  # what a group is where files name the groups


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
  group: str = ""  # a speaker, a session, a recording: divisions keep it in one part
  # seconds from the file's beginning; by default the whole file
  start: float = 0.0
  end: float = math.inf
  line: int = 0  # of the table that lists a segment

  @property
  def recordings(self) -> tuple[str, ...]:
    """Paths of all files that it is made of."""
    return (self.path,)

  @property
  def whole(self) -> bool:
    """Whether it is a whole file."""
    return self.start == 0 and self.end == math.inf

  @property
  def rest(self) -> bool:
    """Whether it is a stretch that no segment of the table covers."""
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

  sources: list  # of Source, or of other items that `Settings.read` turns into sounds
  kind: str
  # the name of fold i, if folds have names
  fold_names: list[str] = dataclasses.field(default_factory=list)
  root: str = ""  # the folder that all paths lie in
  # files on disk that a subset left out, by class
  not_drawn: dict[str, int] = dataclasses.field(default_factory=dict)
  # other files of a folder: their number by ending, and of hidden ones
  skipped: dict[str, int] = dataclasses.field(default_factory=dict)
  grouped_by: str = ""  # what a group is: "speaker"
  divided_by_owner: bool = False  # the set's owner published the folds and splits
  unannotated: tuple[Source, ...] = ()  # recordings whose table is empty
  notes: tuple[str, ...] = ()  # sentences about how the input was read

  def told(self) -> list[str]:
    """Sentences about how the input was read and which files were skipped."""
    return [*self.notes, *describe_skipped(self.skipped)]

  @property
  def label_names(self) -> list[str]:
    """All classes, sorted. Classes of files that were not drawn are among them."""
    return sorted(
      {label for source in self.sources for label in source.labels} | self.not_drawn.keys()
    )

  @property
  def multi_label(self) -> bool:
    """Whether files may have several classes."""
    return any(source.multi_label for source in self.sources)


def known_splits(names: Iterable[str], where: str) -> dict[str, str]:
  """{name: split} of those names, of folders or in a column, that mean a split.

  Raises UserError if two of them mean the same split; `where` begins the message.
  """
  found = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
  for split in set(found.values()):
    same = sorted(name for name in found if found[name] == split)
    if len(same) > 1:
      raise UserError(f"{where}: {' and '.join(map(repr, same))} both mean {split!r}; rename one")
  return found


@functools.cache
def meant_split(name: str) -> str:
  """The name of a split that this one probably is, mistyped; "" if it is one, or like none. What
  goes on from one, as `test_b`, `test2` and `testA` do, is meant."""
  if re.match(f"(?i:{'|'.join(SPLIT_NAMES)})([^a-z]|$)", name):
    return ""
  near = [split for split in SPLIT_NAMES if split[0] == name[0].lower()]
  swapped = [split for split in near if sorted(split) == sorted(name.lower())]
  return next(iter(swapped or difflib.get_close_matches(name.lower(), near, 1, ALIKE)), "")


def with_known_splits(path: str, sources: list[Source], notes: list[str]) -> list[Source]:
  """The sources of a table, with `val`, `dev`, `eval`… renamed to the splits they mean; all are
  multi-label if one is. Splits of other names are noted."""
  splits = known_splits({source.split for source in sources}, path)
  if renamed := {name: split for name, split in splits.items() if name != split}:
    notes.append(f"{path}: of the splits, {said(renamed)}")
  found = {splits.get(source.split, source.split) for source in sources}
  if found - set(SPLIT_NAMES.values()):
    told = ", ".join(sorted(found))
    notes.append(f"{path}: its splits are {told}; evaluations read train, valid and test")
  multi_label = any(source.multi_label for source in sources)
  if not renamed and not multi_label:
    return sources
  return [
    dataclasses.replace(s, multi_label=multi_label, split=splits.get(s.split, s.split))
    for s in sources
  ]


def check_labels(names: Iterable[str]) -> None:
  """Raises UserError for two classes that differ in case or spaces only."""
  alike: dict[str, str] = {}
  for name in names:
    before = alike.setdefault("".join(name.split()).casefold(), name)
    if before != name:
      raise UserError(
        f"the classes {before!r} and {name!r} differ in case or spaces only: write them alike, or "
        "set --exact_labels if they are two"
      )


def with_groups(sources: list[Source], named: dict[str, str], root: str) -> list[Source]:
  """Gives all sources of a file one group: that of `named`, or else the file, where it has several
  rows or segments."""
  rows = collections.Counter(source.path for source in sources)
  several = [path for path, count in rows.items() if count > 1]
  groups = {path: printable(os.path.relpath(path, root)) for path in several}
  groups |= {source.path: source.group for source in sources if source.group} | named
  group_of = lambda source: groups.get(source.path, "")
  return [
    source
    if source.group == group_of(source)
    else dataclasses.replace(source, group=group_of(source))
    for source in sources
  ]


def said(splits: dict[str, str]) -> str:
  """Which split each name means, for a message."""
  return ", ".join(f"{name} is {split}" for name, split in sorted(splits.items()))


def inside(path: str, root: str) -> bool:
  """Whether `path` lies under `root` once links are followed; stores have no links."""
  if storage.is_remote(root):
    return f"{path}/".startswith(f"{root.rstrip('/')}/") and ".." not in path.split("/")
  root = os.path.realpath(root)
  return os.path.commonpath([root, os.path.realpath(path)]) == root


def subset(listing: Listing, number: int) -> Listing:
  """Keeps the `number` training files on disk whose ids hash lowest, all other splits, and the
  missing files, which are counted.

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
