"""What the owners of data sets write: tables, lists and names of files. Divisions by a hash."""

import csv
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Iterator

from atst_jax.util import storage
from atst_jax.util.errors import UserError

from .files import Source, audio_files, inside, printable


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
    f"{root} holds no {' or '.join(names)}, which --layout={layout} needs; data_pipeline/README.md "
    "says how the data set is laid out"
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
        f"{file} is not named like {example}, which --layout={layout} expects; use "
        "--layout=folder, or a manifest with the columns path,label,fold"
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
