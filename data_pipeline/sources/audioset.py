"""AudioSet as its owners list it and as downloaders name its clips."""

import csv
import json
import os
import re
from collections.abc import Iterator

from atst_jax.util import storage
from atst_jax.util.errors import UserError

from .files import Listing, Source
from .owner_lists import OwnerFolder

AUDIOSET_LISTS = {
  "balanced_train_segments.csv": "train",
  "unbalanced_train_segments.csv": "train",
  "eval_segments.csv": "test",
}


def audioset(folder: OwnerFolder) -> Listing:
  """AudioSet (Gemmeke et al., 2017): any of the three segment lists, class_labels_indices.csv (or
  ontology.json), and clips anywhere below. A clip's name is its YouTube id, with or without the
  start in seconds or milliseconds."""
  names, root = _audioset_classes(folder), folder.path
  lists = [name for name in AUDIOSET_LISTS if storage.is_file(os.path.join(root, name))]
  if not lists:
    raise UserError(
      f"{root} holds none of {', '.join(AUDIOSET_LISTS)}, which --layout=audioset needs"
    )
  files: dict[str, str] = {}  # name without extension -> the first path, in the order of names
  for file, relative in folder.files(root):
    stem = os.path.splitext(os.path.basename(relative))[0]
    files[stem] = min(files.get(stem, file), file)
  sources = {}
  for name in lists:
    for number, (video, start, end, labels) in enumerate(
      _audioset_segments(os.path.join(root, name)), 1
    ):
      unknown = [mid for mid in labels if mid not in names]
      if unknown or not re.fullmatch(r"[A-Za-z0-9_-]{11}", video):
        what = f"class {unknown[0]!r}" if unknown else f"video {video!r}"
        raise UserError(f"{os.path.join(root, name)} segment {number}: unknown {what}")
      id = f"{video}_{start:.3f}"
      path = next(
        (files[stem] for stem in _audioset_stems(video, start, end) if stem in files), None
      )
      sources[id] = Source(
        path or os.path.join(root, f"{id}.wav"),
        id,
        tuple(names[mid] for mid in labels),
        True,
        split=AUDIOSET_LISTS[name],
      )
  return Listing(list(sources.values()), "audioset")


def _audioset_stems(video: str, start: float, end: float) -> Iterator[str]:
  """Names that downloaders give a clip: start, or start and end, in seconds or milliseconds, `Y` in
  front or not."""
  for begin in (video, f"Y{video}"):
    yield begin
    for form in ("{:.3f}".format, "{:g}".format, "{:.1f}".format, _milliseconds):
      yield f"{begin}_{form(start)}"
      for join in "_-":
        yield f"{begin}_{form(start)}{join}{form(end)}"


def _milliseconds(seconds: float) -> str:
  return str(round(1000 * seconds))


def _audioset_segments(path: str) -> Iterator[tuple[str, float, float, list[str]]]:
  """Yields (video, start, end in seconds, class ids) of a list, whose first lines are comments."""
  with storage.open_text(path, newline="") as file:
    lines = (line for line in file if not line.startswith("#"))
    for row in csv.reader(lines, skipinitialspace=True):
      if row:
        yield row[0], float(row[1]), float(row[2]), row[3].split(",")


def _audioset_classes(folder: OwnerFolder) -> dict[str, str]:
  """Class id -> name."""
  if storage.is_file(path := os.path.join(folder.path, "class_labels_indices.csv")):
    return {row["mid"]: row["display_name"] for row in folder.rows(path, "mid", "display_name")}
  ontology = storage.read_text(folder.find("ontology.json", "class_labels_indices.csv"))
  return {entry["id"]: entry["name"] for entry in json.loads(ontology)}
