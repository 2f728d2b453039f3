"""The recordings that pairs are made of: by class and by split, no recording in two splits."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Callable

from atst_jax.util import storage
from atst_jax.util.cli import nearest
from atst_jax.util.errors import UserError

from ..sources.files import Source
from ..sources.inputs import list_sources

SPLITS = ("train", "valid", "test")
SHARES = {
  "test": 0.2,
  "valid": 0.1,
}  # of a class's recordings, the latter of what is left: where a set has no such split
# ESC-50: FOLD-FREESOUNDID-TAKE: the takes of a sound are one recording.
TAKE = re.compile(r"(?P<recording>(.*/)?\d-\d+)-[A-Z](-\d+)?\.\w+")


@dataclasses.dataclass(frozen=True)
class Recordings:
  """Files by split and class. A file has one class here."""

  root: str
  by_class: dict[str, dict[str, list[Source]]]  # split -> class -> files, by id

  @property
  def classes(self) -> list[str]:
    """Names of all splits' classes, sorted."""
    return sorted({label for classes in self.by_class.values() for label in classes})

  def files(self) -> list[Source]:
    """All files of all splits."""
    return [
      file for classes in self.by_class.values() for files in classes.values() for file in files
    ]


def recording_of(id: str) -> str:
  """What must not be divided: ESC-50's takes of one sound, else the file."""
  match = TAKE.fullmatch(id)
  return match["recording"] if match else id


def list_recordings(
  path: str, *, flag: str, layout: str, classes: list[str], eval_fold: int, seed: int
) -> Recordings:
  """Lists a folder or manifest and divides it.

  A set with a test split keeps it; of one with folds, `eval_fold` is the test; of any other, a
  fifth. A tenth of the rest is for validation, unless the set has such a split. What is drawn is
  drawn by hash, class by class: two recordings at least, a third at most. Files that are missing
  are left out.

  Args:
    flag: "foreground" or "background", for messages.
    layout: of `data_pipeline.sources.inputs`.
    classes: those to keep; all if empty.
    eval_fold: -1: the last.
    seed: of what is drawn.

  Raises:
    UserError: as `list_sources`, for classes that are not there, or files of several of them.
  """
  listing = list_sources(path, layout=layout)
  if unknown := [name for name in classes if name not in listing.label_names]:
    names = listing.label_names
    raise UserError(
      f"--{flag}={path} has no class {unknown[0]!r}{nearest(unknown[0], names)}; there are "
      f"{', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
    )
  kept = _labelled(listing.sources, set(classes or listing.label_names), path, flag)
  sizes = storage.sizes([source.path for source in kept], listing.root)
  kept = [source for source, size in zip(kept, sizes, strict=True) if size > 0]
  if not kept:
    raise UserError(
      f"--{flag}={path}: none of the files of {', '.join(classes) or 'any class'} is there"
    )
  parts = _divide(kept, eval_fold, seed, flag)
  by_class: dict = {split: collections.defaultdict(list) for split in SPLITS}
  for source in kept:
    by_class[parts[recording_of(source.id)]][source.labels[0]].append(source)
  return Recordings(listing.root, {split: dict(groups) for split, groups in by_class.items()})


def _labelled(sources: list[Source], wanted: set[str], path: str, flag: str) -> list[Source]:
  """The files of the wanted classes, each with that class alone."""
  kept = []
  for source in sources:
    labels = [label for label in source.labels if label in wanted]
    if len(labels) > 1:
      key = {"foreground": "events", "background": "scenes"}[flag]
      raise UserError(
        f"--{flag}={path}: {source.id!r} is of several classes ({', '.join(labels)}); name with --{key} "
        "such as do not occur together"
      )
    if labels:
      kept.append(dataclasses.replace(source, labels=tuple(labels)))
  return kept


def _divide(sources: list[Source], eval_fold: int, seed: int, flag: str) -> dict[str, str]:
  """{recording: split}. Raises UserError for a recording with files in two of them."""
  given = _given(sources, eval_fold, flag)
  own = collections.defaultdict(set)
  for source in sources:
    own[recording_of(source.id)].add(given(source))
  if divided := sorted(name for name, found in own.items() if len(found) > 1):
    raise UserError(
      f"--{flag}: files of the recording {divided[0]!r} are in {' and '.join(sorted(own[divided[0]]))}; "
      "give all of a recording's files the same split and fold"
    )
  parts = {name: found.pop() for name, found in own.items()}
  classes = collections.defaultdict(set)
  for source in sources:
    classes[source.labels[0]].add(recording_of(source.id))
  for split, share in SHARES.items():
    if split in parts.values():
      continue
    for label in sorted(classes):
      rest = [name for name in classes[label] if parts[name] == "train"]
      rest.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
      count = min(max(2, round(share * len(rest))), len(rest) // 3)
      parts |= dict.fromkeys(rest[:count], split)
  return parts


def _given(sources: list[Source], eval_fold: int, flag: str) -> Callable[[Source], str]:
  """Of a file, the split that the set itself says; "train" where it says nothing."""
  splits, folds = {source.split for source in sources}, {source.fold for source in sources}
  if unknown := splits - set(SPLITS):
    raise UserError(f"--{flag}: the split {min(unknown)!r} is none of {', '.join(SPLITS)}")
  if "test" in splits or min(folds) < 0 or len(folds) == 1:
    return lambda source: source.split
  fold = max(folds) if eval_fold < 0 else eval_fold
  if fold not in folds:
    raise UserError(
      f"--eval_fold={fold}: --{flag} has the folds {', '.join(map(str, sorted(folds)))}"
    )
  return lambda source: "test" if source.fold == fold else source.split
