"""The input of a preparation: a folder, a manifest or a known data set as a list of audio files
with labels and folds.

No file is decoded. The list is sorted by id, whatever the order of the file system or the manifest.
"""

import collections
import csv
import dataclasses
import itertools
import os
from collections.abc import Callable

from atst_jax.util import storage
from atst_jax.util.errors import UserError, printable

from . import layouts
from .files import Listing, Source, check_labels, known_splits, said, subset
from .manifest import read_manifest
from .owner_lists import OwnerFolder
from .rest import add_rest
from .segments import audacity, kind_of, raven
from .tables import is_recording
from .tree import audio_files

# Options that go with some layouts only.
TABLE_OPTIONS = {
  "root": ("manifest", "raven", "audacity"),
  "path_column": ("manifest",),
  "label_column": ("manifest", "raven"),
  "label_separator": ("manifest",),
  "whole_files": ("manifest",),
}


def folder(path: str, *, classes: bool = True, follow_links: bool = False) -> Listing:
  """Any tree of audio files. The class is the parent folder relative to the input; files directly
  in it have none.

  Args:
    classes: every folder is a class. Otherwise, if all folders of the first level have names of
      splits (train, valid, test…), they are splits, and classes begin below them.
    follow_links: as of `tree.audio_files`.
  """
  skipped = collections.Counter()
  found = sorted(
    (relative, file) for file, relative in audio_files(path, skipped, follow_links=follow_links)
  )
  tops = {relative.partition("/")[0] if "/" in relative else "" for relative, _ in found}
  splits = {} if classes else known_splits(tops, f"--input={path}")
  # a class may be called `train`; beside other folders of folders, one of folders is a split
  nested = bool(splits) and all(relative.count("/") > 1 for relative, _ in found)
  if (len(splits) > 1 or nested) and splits.keys() != tops:
    others = sorted(tops - splits.keys())
    raise UserError(
      f"--input={path}: of its folders {', '.join(sorted(splits))} mean splits, and beside them is "
      f"{others[0] or 'files'!r}; move it away, call it train, valid or test, or give "
      "--layout=folder if all are classes"
    )
  if splits.keys() != tops:
    splits = {}
  sources = []
  for relative, file in found:
    top, _, below = relative.partition("/")
    parent = printable(os.path.dirname(below if splits else relative))
    split = splits.get(top, "train")
    sources.append(Source(file, printable(relative), (parent,) if parent else (), split=split))
  note = f"{path}: its folders are splits ({said(splits)}); --layout=folder takes them for classes"
  notes = (note,) if splits else ()
  return Listing(sources, "folder", skipped=dict(sorted(skipped.items())), notes=notes)


OWN: dict[str, Callable[..., Listing]] = {
  "folder": folder,
  "manifest": read_manifest,
  "raven": raven,
  "audacity": audacity,
}
LAYOUTS: dict[str, Callable[..., Listing]] = {**OWN, **layouts.LAYOUTS}


def _list(path: str, layout: str, options: dict, follow_links: bool) -> Listing:
  """The listing of an input in a layout, "" for a folder of any kind."""
  if not layout:
    return folder(path, classes=False, follow_links=follow_links)
  if layout in OWN:
    return OWN[layout](path, **options, follow_links=follow_links)
  listing = LAYOUTS[layout](OwnerFolder(path, layout, follow_links))
  return dataclasses.replace(listing, divided_by_owner=layout not in layouts.DRAWN)


def _check(path: str, layout: str, is_folder: bool, options: dict) -> None:
  """Raises UserError for a layout or an option that does not go with the input."""
  if layout not in ("raven", "audacity") and (layout == "manifest") == is_folder:
    kind, wanted = ("folder", "file") if is_folder else ("file", "folder")
    raise UserError(f"--input={path} is a {kind}, --layout={layout} needs a {wanted}")
  for key, value in options.items():
    if (layout or "folder") not in TABLE_OPTIONS[key]:
      flag = f"--{key}" if value is True else f"--{key}={value}"
      raise UserError(
        f"{flag} only serves a {' or '.join(TABLE_OPTIONS[key])}, and --input={path} is read as "
        f"{layout or 'folder'}; leave it out"
      )


def list_sources(
  path: str,
  *,
  layout: str = "",
  follow_links: bool = False,
  rest: bool = False,
  exact_labels: bool = False,
  number: int = 0,
  **options,
) -> Listing:
  """Lists the audio files of an input.

  Args:
    path: a folder, or a table (`manifest`, `segments`).
    layout: of LAYOUTS. By default the first line of a table tells, and a folder is one of classes
      or of splits.
    follow_links: links out of the input's folder are followed.
    rest: stretches that no segment covers are listed too, without a label.
    exact_labels: classes may differ in case or spaces only.
    number: of the training files that are kept, drawn by a hash of their ids (`files.subset`); 0
      keeps all.
    options: those of TABLE_OPTIONS that are not empty (`manifest.read_manifest`).

  Raises:
    UserError: the input does not exist, does not fit the layout, holds no audio or the same id
      twice.
  """
  is_folder = storage.is_folder(path)
  if not is_folder and not storage.is_file(path):
    raise UserError(f"--input={path} does not exist")
  if not is_folder and is_recording(path):
    raise UserError(f"--input={path} is a recording; give its folder, or a table that lists it")
  layout = layout or ("" if is_folder else kind_of(path))
  options = {key: value for key, value in options.items() if value}
  _check(path, layout, is_folder, options)
  try:
    listing = _list(path, layout, options, follow_links)
  except (KeyError, ValueError, TypeError, IndexError, AttributeError, csv.Error) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"--layout={layout}: a list in {path} does not read as its owners write it ("
      f"{type(error).__name__}: {error}); see data_pipeline/README.md"
    ) from error
  if layout in ("raven", "audacity") and not listing.sources and not (rest and listing.unannotated):
    raise UserError(
      f"--input={path}: no annotation in it; tables (.txt, .tsv) lie beside their recordings, and "
      "--rest makes clips of recordings whose table is empty"
    )
  if not listing.sources and not listing.unannotated:
    found = ", ".join(f"{count} {kind}" for kind, count in listing.skipped.items())
    raise UserError(
      f"--input={path} holds no audio (.wav, .flac, .mp3 …); found: {found or 'none'}"
    )
  root = listing.root or options.get("root", "")
  root = root or (path if is_folder else os.path.dirname(storage.absolute(path)))
  listing = dataclasses.replace(listing, root=root)
  if rest:
    listing = add_rest(listing)
  elif bare := len(listing.unannotated):
    note = f"{path}: {bare} recordings have an empty table and are left out; --rest takes them"
    listing = dataclasses.replace(listing, notes=(*listing.notes, note))
  listing = dataclasses.replace(listing, sources=sorted(listing.sources, key=lambda s: s.id))
  for one, other in itertools.pairwise(listing.sources):
    if one.id == other.id:
      raise UserError(
        f"{one.path!r} and {other.path!r} have the same id {one.id!r}; rename one of them"
      )
  if not exact_labels and layout not in layouts.LAYOUTS:
    check_labels(listing.label_names)
  return subset(listing, number) if number else listing


def list_files(path: str, **options) -> Listing:
  """`list_sources`, but a table of segments is refused."""
  listing = list_sources(path, **options)
  if not all(source.whole for source in listing.sources):
    raise UserError(
      f"--input={path} lists segments of recordings, and whole files are taken here: leave out the "
      "columns of their times, or cut the segments out first"
    )
  return listing
