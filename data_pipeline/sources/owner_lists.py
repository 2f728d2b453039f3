"""Tables, lists and file names of the owners of data sets, and divisions by a hash."""

import csv
import dataclasses
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterator

from atst_jax.util import storage
from atst_jax.util.errors import UserError, printable

from .files import Source, inside
from .tree import audio_files


@dataclasses.dataclass(frozen=True)
class OwnerFolder:
  """A folder that holds a data set as its owner ships it.

  Attributes:
    path: of the folder.
    layout: the key of LAYOUTS, for messages.
    follow_links: whether links may lead out of the folder.
  """

  path: str
  layout: str
  follow_links: bool = False

  def find(self, *names: str) -> str:
    """The path of the first of `names` that exists in the folder, or one folder below it."""
    below = (
      path
      for name in storage.names(self.path)
      if storage.is_folder(path := os.path.join(self.path, name))
    )
    for folder in itertools.chain([self.path], below):
      for name in names:
        if storage.exists(path := os.path.join(folder, name)):
          return path
    raise UserError(
      f"{self.path} holds no {' or '.join(names)}, which --layout={self.layout} needs; "
      "data_pipeline/README.md says how the data set is laid out"
    )

  def rows(self, path: str, *columns: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV file that has these columns."""
    with storage.open_text(path, "utf-8-sig", newline="") as file:
      reader = csv.DictReader(file)
      missing = [name for name in columns if name not in (reader.fieldnames or ())]
      if missing:
        raise UserError(
          f"{path}: no column {', '.join(missing)}, which --layout={self.layout} needs"
        )
      yield from reader

  def files(self, path: str) -> Iterator[tuple[str, str]]:
    """Yields (path, relative path) of the audio files below `path` (`tree.audio_files`)."""
    return audio_files(path, follow_links=self.follow_links)

  def parsed_files(
    self, path: str, pattern: str, example: str
  ) -> Iterator[tuple[str, str, re.Match]]:
    """Yields (path, id, match) of every audio file below `path`; raises UserError if one is not
    named after the pattern."""
    for file, relative in self.files(path):
      match = re.fullmatch(pattern, relative)
      if match is None:
        raise UserError(
          f"{file} is not named like {example}, which --layout={self.layout} expects; use "
          "--layout=folder, or a manifest with the columns path,label,fold"
        )
      yield file, printable(relative), match

  def source(self, path: str, *labels: str, **fields) -> Source:
    """A file of the data set. Raises UserError if its name or a link leads out of the folder."""
    outside = ".." in os.path.relpath(path, self.path).split(os.sep)
    if not outside and not self.follow_links:
      outside = not _folder_inside(os.path.dirname(path), self.path) or (
        os.path.islink(path) and not inside(path, self.path)
      )
    if outside:
      raise UserError(
        f"{path!r} lies outside {self.path}; mend the list that names it, or set --follow_links if "
        "it is a link that may be followed"
      )
    labels = tuple(printable(label) for label in labels)
    id = printable(os.path.relpath(path, self.path).replace(os.sep, "/"))
    return Source(path, id, labels, **fields)


@functools.cache
def _folder_inside(folder: str, root: str) -> bool:
  return inside(folder, root)


def lines_of(path: str) -> list[str]:
  """The lines of a text file that are not blank, stripped. Raises OSError."""
  return [line.strip() for line in storage.read_text(path).splitlines() if line.strip()]


def split_of(group: str, shares: dict[str, float]) -> str:
  """A split drawn by a hash of a group's name (a speaker, a session): no group is in two splits."""
  place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
  for split, share in shares.items():
    place -= share
    if place < 0:
      return split
  return next(iter(shares))
