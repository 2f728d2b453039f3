"""What is to be prepared: a folder, a manifest or a known data set as a list of audio files with labels and folds.

Only names are looked at, nothing is decoded. The list is sorted by id and never depends on the order in which the file
system or a manifest gives the files.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator

from atst_jax.errors import UserError
from data_pipeline.files import AUDIO_EXTENSIONS, Source, audio_files, printable
from data_pipeline.manifest import read_manifest


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


def folder(path: str, root: str) -> Listing:
  """Any tree of audio files. The class is the parent folder relative to the input; files directly in it have none."""
  sources = []
  for file, relative in audio_files(path):
    parent = printable(os.path.dirname(relative))
    sources.append(Source(file, printable(relative), (parent,) if parent else ()))
  return Listing(sources, "folder")


def _parsed_files(path: str, layout: str, pattern: str, example: str) -> Iterator[tuple[str, str, re.Match]]:
  """Yields (path, id, match) of every audio file; raises UserError if one is not named after the pattern."""
  for file, relative in audio_files(path):
    match = re.fullmatch(pattern, relative)
    if match is None:
      raise UserError(f"{file} is not named like {example}, which --layout={layout} expects; use --layout=folder, or a "
                      "manifest with the columns path,label,fold")  # fmt: skip
    yield file, printable(relative), match


def esc10(path: str, root: str) -> Listing:
  """ESC-10 (Piczak, 2015) as CLASS/FOLD-FREESOUNDID-TAKE.ogg, with its five folds."""
  pattern = r"(?P<label>[^/]+)/(?P<fold>\d+)-\d+-[A-Z]+\.\w+"
  files = _parsed_files(path, "esc10", pattern, "CLASS/FOLD-ID-TAKE.ogg")
  return Listing([Source(file, id, (m["label"],), fold=int(m["fold"])) for file, id, m in files], "esc10")


def fsdd(path: str, root: str) -> Listing:
  """Free Spoken Digit Dataset as DIGIT_SPEAKER_INDEX.flac. Fold i is the i-th speaker: folds leave one speaker out."""
  pattern = r"(.*/)?(?P<digit>\d)_(?P<speaker>[^_/]+)_\d+\.\w+"
  files = list(_parsed_files(path, "fsdd", pattern, "DIGIT_SPEAKER_INDEX.flac"))
  speakers = sorted({match["speaker"] for _, _, match in files})
  sources = [Source(file, id, (m["digit"],), fold=speakers.index(m["speaker"])) for file, id, m in files]
  return Listing(sources, "fsdd", [printable(speaker) for speaker in speakers])


def manifest(path: str, root: str) -> Listing:
  """A CSV or TSV file (data_pipeline.manifest)."""
  return Listing(read_manifest(path, root=root), "manifest")


LAYOUTS = {"folder": folder, "esc10": esc10, "fsdd": fsdd, "manifest": manifest}


def list_sources(path: str, *, layout: str = "", root: str = "") -> Listing:
  """Lists the audio files of an input.

  Args:
    path: a folder, or a manifest (data_pipeline.manifest).
    layout: a key of LAYOUTS; by default "manifest" for a file and "folder" for a folder.
    root: the folder a manifest's paths start from, by default the manifest's own.

  Raises:
    UserError: the input does not exist, does not fit the layout, holds no audio or the same id twice.
  """
  if not os.path.exists(path):
    raise UserError(f"--input={path} does not exist")
  layout = layout or ("folder" if os.path.isdir(path) else "manifest")
  if (layout == "manifest") == os.path.isdir(path):
    kind, wanted = ("folder", "file") if os.path.isdir(path) else ("file", "folder")
    raise UserError(f"--input={path} is a {kind}, --layout={layout} needs a {wanted}")
  if root and layout != "manifest":
    raise UserError(f"--root={root} only serves a manifest, and --input={path} is read as {layout}; leave it out")
  listing = LAYOUTS[layout](path, root)
  if not listing.sources:
    raise UserError(f"--input={path} holds no audio ({', '.join(AUDIO_EXTENSIONS)})")
  sources = sorted(listing.sources, key=lambda source: source.id)
  for one, other in itertools.pairwise(sources):
    if one.id == other.id:
      raise UserError(f"{one.path!r} and {other.path!r} have the same id {one.id!r}; rename one of them")
  return dataclasses.replace(listing, sources=sources)
