"""Recordings for mixing: listed, divided so that none is in two splits, and read whole."""

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np

from atst_jax.audio.decode import Reject, duration, read_pieces
from atst_jax.util import storage
from atst_jax.util.cli import nearest
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

from ..sources.files import Listing, Source
from ..sources.inputs import list_files

SPLITS = ("train", "valid", "test")
LONGEST = 1800.0  # seconds of a background, which is decoded as a whole
# Drawn of each class's recordings if a set lacks the split: first the test, then of the others.
SHARES = {"test": 0.2, "valid": 0.1}
# ESC-50: FOLD-FREESOUNDID-TAKE: the takes of a sound are one recording.
TAKE = re.compile(r"(?P<recording>(.*/)?\d-\d+)-[A-Z](-\d+)?\.\w+")


@contextlib.contextmanager
def errors_of(flag: str) -> Iterator[None]:
  """Raises errors about --input, --layout… as errors about --FLAG, --FLAG_layout…"""
  try:
    yield
  except UserError as error:
    text = str(error).replace("--input", f"--{flag}")
    for name in ("layout", "root", "follow_links"):
      text = text.replace(f"--{name}", f"--{flag}_{name}")
    raise UserError(text) from None


def list_set(
  path: str, flag: str, *, layout: str, root: str = "", follow_links: bool = False
) -> Listing:
  """`list_files` of the value of --FLAG; errors name that flag."""
  with errors_of(flag):
    listing = list_files(path, layout=layout, root=root, follow_links=follow_links)
  for note in listing.notes:
    log.info(note)
  return listing


def check_classes(listing: Listing, wanted: list[str], flag: str) -> None:
  """Raises UserError if the listing lacks one of the classes."""
  have = listing.label_names
  if unknown := sorted(set(wanted) - set(have)):
    raise UserError(
      f"--{flag}: no class {unknown[0]!r}{nearest(unknown[0], have)}; there are "
      f"{', '.join(have[:60])}{', …' if len(have) > 60 else ''}"
    )


def check_disjoint(used: Iterable[tuple[str, str]]) -> None:
  """Raises UserError if a recording is in the test split and in another; `used` yields (recording,
  split) of all mixed recordings."""
  sides = collections.defaultdict(set)
  for recording, split in used:
    sides[recording].add(split == "test")
  if shared := sorted(recording for recording, found in sides.items() if len(found) > 1):
    raise UserError(
      f"the division leaks: {len(shared)} recordings are in the test and in other splits, the "
      f"first is {shared[0]}; give it one split in its manifest"
    )


def long_enough(sources: list[Source], seconds: float, workers: int) -> list[Source]:
  """Sources of `seconds` to LONGEST, by their headers."""

  def fits(source):
    try:
      return seconds <= duration(source.path) <= LONGEST
    except Reject:
      return False

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    return [source for source, keep in zip(sources, pool.map(fits, sources), strict=True) if keep]


def load(path: str, sample_rate: int) -> np.ndarray:
  """(N,) float32 of a whole recording. Raises Reject."""
  ((_, waveform),) = read_pieces(path, sample_rate=sample_rate, max_seconds=math.inf)
  return waveform


def rng_of(text: str, order: Literal["little", "big"]) -> np.random.Generator:
  """A generator that depends on the text alone. `order`: of the bytes of its hash."""
  return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], order))


def table_text(columns: Iterable[str], rows: Iterable[Iterable]) -> str:
  """A CSV file."""
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows([columns, *rows])
  return text.getvalue()


@dataclasses.dataclass(frozen=True)
class Recordings:
  """Files by split and class. A file has one class here."""

  by_class: dict[str, dict[str, list[Source]]]  # split -> class -> files, by id

  @property
  def classes(self) -> list[str]:
    """Names of all splits' classes, sorted."""
    return sorted({label for classes in self.by_class.values() for label in classes})


def recording_of(source: Source) -> str:
  """The name of what divisions keep together: a group, ESC-50's takes of one sound, or the file."""
  match = TAKE.fullmatch(source.id)
  return source.group or (match["recording"] if match else source.id)


def list_recordings(
  path: str,
  *,
  flag: str,
  layout: str,
  root: str = "",
  follow_links: bool = False,
  classes: list[str],
  classes_flag: str,
  eval_fold: int,
  seed: int,
) -> Recordings:
  """Lists a folder or manifest and divides it.

  A set's own test split is kept. Of a set with folds, `eval_fold` is the test; of any other, a
  fifth is drawn. A tenth of the rest is drawn for validation, unless the set has such a split.
  Draws are by hash, class by class: two recordings at least, a third at most. Missing files are
  left out.

  Args:
    flag, classes_flag: name the set and its classes in messages.
    layout, root, follow_links: of `list_files`.
    classes: those to keep; all if empty.
    eval_fold: -1 is the last.
    seed: of the draws.

  Raises:
    UserError: as `list_files`, for unknown classes, or for files of several of them.
  """
  listing = list_set(path, flag, layout=layout, root=root, follow_links=follow_links)
  check_classes(listing, classes, classes_flag)
  kept = _labelled(listing.sources, set(classes or listing.label_names), classes_flag)
  sizes = storage.sizes([source.path for source in kept], listing.root)
  kept = [source for source, size in zip(kept, sizes, strict=True) if size > 0]
  if not kept:
    raise UserError(
      f"--{flag}={path}: none of the files of {', '.join(classes) or 'any class'} is there"
    )
  split_of = _divide(kept, eval_fold, seed, flag, owned=listing.divided_by_owner)
  by_class: dict = {split: collections.defaultdict(list) for split in SPLITS}
  for source in kept:
    by_class[split_of(source)][source.labels[0]].append(source)
  return Recordings({split: dict(groups) for split, groups in by_class.items()})


def _labelled(sources: list[Source], wanted: set[str], flag: str) -> list[Source]:
  """The files of the wanted classes, each with that class alone."""
  kept = []
  for source in sources:
    labels = [label for label in source.labels if label in wanted]
    if len(labels) > 1:
      raise UserError(
        f"{source.id!r} is of several classes ({', '.join(labels)}); choose with --{flag} classes "
        "that do not occur together"
      )
    if labels:
      kept.append(dataclasses.replace(source, labels=tuple(labels)))
  return kept


def _divide(
  sources: list[Source], eval_fold: int, seed: int, flag: str, *, owned: bool
) -> Callable[[Source], str]:
  """The split of a file.

  Args:
    owned: the set's owner made its divisions: they stay, even if they part a recording.

  Raises UserError, unless `owned`, for a recording with files in two splits.
  """
  given = _given(sources, eval_fold, flag)
  key = lambda source: (recording_of(source), given(source) if owned else "")
  own = collections.defaultdict(set)
  for source in sources:
    own[key(source)].add(given(source))
  if divided := sorted(name for name, found in own.items() if len(found) > 1):
    raise UserError(
      f"--{flag}: files of the recording {divided[0][0]!r} are in "
      f"{' and '.join(sorted(own[divided[0]]))}; "
      "give all of a recording's files the same split and fold"
    )
  parts = {name: found.pop() for name, found in own.items()}
  classes = collections.defaultdict(set)
  for source in sources:
    classes[source.labels[0]].add(key(source))
  for split, share in SHARES.items():
    if split in parts.values():
      continue
    for label in sorted(classes):
      rest = [name for name in classes[label] if parts[name] == "train"]
      rest.sort(key=lambda name: hashlib.sha256(f"{seed}:{name[0]}".encode()).digest())
      # Some were drawn already, with another of their classes.
      drawn = sum(parts[name] == split for name in classes[label])
      number = drawn + len(rest)
      count = min(max(2, round(share * number)), number // 3) - drawn
      parts |= dict.fromkeys(rest[: max(count, 0)], split)
  return lambda source: parts[key(source)]


def _given(sources: list[Source], eval_fold: int, flag: str) -> Callable[[Source], str]:
  """Gives the set's own split of a file; "train" if it has none."""
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
