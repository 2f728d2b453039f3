"""What is to be prepared: a folder, a manifest or a known data set as a list of audio files with
labels and folds.

Only names are looked at, nothing is decoded. The list is sorted by id and never depends on the
order in which the file system or a manifest gives the files.
"""

import collections
import csv
import dataclasses
import itertools
import os
from collections.abc import Callable

from atst_jax.util import storage
from atst_jax.util.errors import UserError

from . import layouts
from .files import Listing, Source, audio_files, printable, subset
from .manifest import read_manifest


def folder(path: str) -> Listing:
  """Any tree of audio files. The class is the parent folder relative to the input; files directly
  in it have none."""
  sources, skipped = [], collections.Counter()
  for file, relative in audio_files(path, skipped):
    parent = printable(os.path.dirname(relative))
    sources.append(Source(file, printable(relative), (parent,) if parent else ()))
  return Listing(sources, "folder", skipped=dict(sorted(skipped.items())))


def manifest(path: str, **options) -> Listing:
  """A CSV or TSV file (data_pipeline.sources.manifest)."""
  return Listing(read_manifest(path, **options), "manifest", grouped_by="value of `group`")


LAYOUTS: dict[str, Callable[..., Listing]] = {
  "folder": folder,
  "manifest": manifest,
  **layouts.LAYOUTS,
}


def list_sources(
  path: str,
  *,
  layout: str = "",
  root: str = "",
  path_column: str = "",
  label_column: str = "",
  number: int = 0,
) -> Listing:
  """Lists the audio files of an input.

  Args:
    path: a folder, or a manifest (data_pipeline.sources.manifest).
    layout: a key of LAYOUTS; by default "manifest" for a file and "folder" for a folder.
    root: the folder a manifest's paths start from, by default the manifest's own.
    path_column, label_column: what a manifest calls `path` and `label`, if otherwise.
    number: if not 0, so many of the training files are kept, drawn by a hash of their ids
      (`files.subset`).

  Raises:
    UserError: the input does not exist, does not fit the layout, holds no audio or the same id
      twice.
  """
  is_folder = storage.is_folder(path)
  if not is_folder and not storage.is_file(path):
    raise UserError(f"--input={path} does not exist")
  layout = layout or ("folder" if is_folder else "manifest")
  if (layout == "manifest") == is_folder:
    kind, wanted = ("folder", "file") if is_folder else ("file", "folder")
    raise UserError(f"--input={path} is a {kind}, --layout={layout} needs a {wanted}")
  given = {"root": root, "path_column": path_column, "label_column": label_column}
  options = {key: value for key, value in given.items() if value}
  if options and layout != "manifest":
    key, value = next(iter(options.items()))
    raise UserError(
      f"--{key}={value} only serves a manifest, and --input={path} is read as {layout}; leave it "
      "out"
    )
  try:
    listing = LAYOUTS[layout](path, **options)
  except (KeyError, ValueError, TypeError, IndexError, AttributeError, csv.Error) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"--layout={layout}: a list in {path} does not read as its owners write it ("
      f"{type(error).__name__}: {error}); see data_pipeline/README.md"
    ) from error
  if not listing.sources:
    found = ", ".join(f"{count} {kind}" for kind, count in listing.skipped.items())
    raise UserError(
      f"--input={path} holds no audio (.wav, .flac, .mp3 …); found: {found or 'none'}"
    )
  sources = sorted(listing.sources, key=lambda source: source.id)
  for one, other in itertools.pairwise(sources):
    if one.id == other.id:
      raise UserError(
        f"{one.path!r} and {other.path!r} have the same id {one.id!r}; rename one of them"
      )
  root = root or (path if is_folder else os.path.dirname(storage.absolute(path)))
  owned = layout not in ("folder", "manifest")
  listing = dataclasses.replace(listing, sources=sources, root=root, divided_by_owner=owned)
  return subset(listing, number) if number else listing
