"""What listing a data set needs: its result, tables and names as owners write them, divisions and subsets by hash."""

import csv
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator

from atst_jax.errors import UserError
from data_pipeline.files import Source, audio_files, inside, printable


@dataclasses.dataclass(frozen=True)
class Listing:
  """All files of an input, sorted by id. `fold_names[i]` names fold i, where folds have names."""

  sources: list[Source]
  kind: str
  fold_names: list[str] = dataclasses.field(default_factory=list)

  @property
  def label_names(self) -> list[str]:
    return sorted({label for source in self.sources for label in source.labels})

  @property
  def multi_label(self) -> bool:
    return any(source.multi_label for source in self.sources)


def find(root: str, layout: str, *names: str) -> str:
  """The first of `names` that exists under `root`, or one folder below it."""
  folders = [root, *sorted(entry.path for entry in os.scandir(root) if entry.is_dir())]
  for folder in folders:
    for name in names:
      if os.path.exists(path := os.path.join(folder, name)):
        return path
  raise UserError(f"{root} holds no {' or '.join(names)}, which --layout={layout} needs; data_pipeline/README.md says "
                  "how the data set is laid out")  # fmt: skip


def rows_of(path: str, layout: str, *columns: str) -> Iterator[dict[str, str]]:
  """Yields the rows of a CSV file that has these columns."""
  with open(path, encoding="utf-8-sig", newline="") as file:
    reader = csv.DictReader(file)
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
      raise UserError(f"{path}: no column {', '.join(missing)}, which --layout={layout} needs")
    yield from reader


def lines_of(path: str) -> list[str]:
  with open(path, encoding="utf-8") as file:
    return [line.strip() for line in file if line.strip()]


@functools.cache
def _folder_inside(folder: str, root: str) -> bool:
  return inside(folder, root)


def source(root: str, path: str, *labels: str, **fields) -> Source:
  """A file under `root`. Raises UserError if its name or a link leads out of there."""
  outside = ".." in os.path.relpath(path, root).split(os.sep) or not _folder_inside(os.path.dirname(path), root)
  if outside or (os.path.islink(path) and not inside(path, root)):
    raise UserError(f"{path!r} lies outside {root}; mend the list that names it, or copy the file into the folder")
  return Source(path, printable(os.path.relpath(path, root).replace(os.sep, "/")), labels, **fields)


def parsed_files(path: str, layout: str, pattern: str, example: str) -> Iterator[tuple[str, str, re.Match]]:
  """Yields (path, id, match) of every audio file; raises UserError if one is not named after the pattern."""
  for file, relative in audio_files(path):
    match = re.fullmatch(pattern, relative)
    if match is None:
      raise UserError(f"{file} is not named like {example}, which --layout={layout} expects; use --layout=folder, or a "
                      "manifest with the columns path,label,fold")  # fmt: skip
    yield file, printable(relative), match


def split_of(group: str, shares: dict[str, float]) -> str:
  """A split drawn by a hash of a group's name (a speaker, a session), so that no group is in two of them."""
  place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
  for split, share in shares.items():
    place -= share
    if place < 0:
      return split
  return next(iter(shares))


def subset(sources: Iterable[Source], number: int) -> list[Source]:
  """The `number` training files on disk whose ids hash lowest, and all of the other splits.

  AS-200K is this with 200,000 of AudioSet's training clips; the paper's own draw of 200,000 cannot be recovered.
  """
  sources = list(sources)
  there = [s for s in sources if s.split == "train" and os.path.isfile(s.path)]
  if len(there) < number:
    listed = sum(s.split == "train" for s in sources)
    raise UserError(f"--subset={number}: of {listed} training files listed {len(there)} are on disk; ask for fewer")
  train = sorted(there, key=lambda s: hashlib.sha256(s.id.encode()).digest())
  return train[:number] + [s for s in sources if s.split != "train"]
