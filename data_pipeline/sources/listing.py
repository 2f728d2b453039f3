"""What listing a data set needs: its result, tables and names as owners write them, divisions and
subsets by hash."""

import collections
import csv
import dataclasses
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterator

from atst_jax.util import storage
from atst_jax.util.errors import UserError

from .files import Source, audio_files, inside, printable


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


def find(root: str, layout: str, *names: str) -> str:
  """The first of `names` that exists under `root`, or one folder below it."""
  below = (
    path for name in storage.names(root) if storage.is_folder(path := os.path.join(root, name))
  )
  for folder in itertools.chain([root], below):
    for name in names:
      if storage.exists(path := os.path.join(folder, name)):
        return path
  raise UserError(
    f"{root} holds no {' or '.join(names)}, which --layout={layout} needs; data_pipeline/README.md says "
    "how the data set is laid out"
  )


def rows_of(path: str, layout: str, *columns: str) -> Iterator[dict[str, str]]:
  """Yields the rows of a CSV file that has these columns."""
  with storage.open_text(path, "utf-8-sig", newline="") as file:
    reader = csv.DictReader(file)
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
      raise UserError(f"{path}: no column {', '.join(missing)}, which --layout={layout} needs")
    yield from reader


def lines_of(path: str) -> list[str]:
  """The lines of a text file that are not blank, stripped. Raises OSError."""
  return [line.strip() for line in storage.read_text(path).splitlines() if line.strip()]


@functools.cache
def _folder_inside(folder: str, root: str) -> bool:
  return inside(folder, root)


def source(root: str, path: str, *labels: str, **fields) -> Source:
  """A file under `root`. Raises UserError if its name or a link leads out of there."""
  outside = ".." in os.path.relpath(path, root).split(os.sep) or not _folder_inside(
    os.path.dirname(path), root
  )
  if outside or (os.path.islink(path) and not inside(path, root)):
    raise UserError(
      f"{path!r} lies outside {root}; mend the list that names it, or copy the file into the folder"
    )
  labels = tuple(printable(label) for label in labels)
  return Source(path, printable(os.path.relpath(path, root).replace(os.sep, "/")), labels, **fields)


def parsed_files(
  path: str, layout: str, pattern: str, example: str
) -> Iterator[tuple[str, str, re.Match]]:
  """Yields (path, id, match) of every audio file; raises UserError if one is not named after the
  pattern."""
  for file, relative in audio_files(path):
    match = re.fullmatch(pattern, relative)
    if match is None:
      raise UserError(
        f"{file} is not named like {example}, which --layout={layout} expects; use --layout=folder, or a "
        "manifest with the columns path,label,fold"
      )
    yield file, printable(relative), match


def split_of(group: str, shares: dict[str, float]) -> str:
  """A split drawn by a hash of a group's name (a speaker, a session), so that no group is in two of
  them."""
  place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
  for split, share in shares.items():
    place -= share
    if place < 0:
      return split
  return next(iter(shares))


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
      f"--subset={number}: of {len(train)} training files listed {len(there)} are there; ask for fewer"
    )
  there.sort(key=lambda source: hashlib.sha256(source.id.encode()).digest())
  left_out = {source.id for source in there[number:]}
  not_drawn = collections.Counter(label for source in there[number:] for label in source.labels)
  kept = [source for source in listing.sources if source.id not in left_out]
  return dataclasses.replace(listing, sources=kept, not_drawn=dict(not_drawn))
