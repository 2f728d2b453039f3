"""Which labels of a sound are told, and the files that tell them: CSV, JSON lines, labels of
Audacity, selection tables of Raven."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from atst_jax.artifacts.classifiers.head import Head, chosen_labels
from atst_jax.artifacts.classifiers.scoring import head_of
from atst_jax.artifacts.model import Model
from atst_jax.audio.decode import duration
from atst_jax.audio.frontend import FrontEnd
from atst_jax.audio.sound_file import Reject
from atst_jax.util.errors import UserError, printable

DIGITS = 6  # of probabilities, behind the point
COLUMNS = ("id", "start", "end", "label", "probability", "threshold")
RAVEN = (
  *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)"),
  *("High Freq (Hz)", "Begin Path", "File Offset (s)", "Annotation", "Probability", "Threshold"),
)


class Row(NamedTuple):
  """A label of a sound: `start` and `end` in seconds of the recording at `path`."""

  path: str
  id: str
  start: float
  end: float
  label: str
  probability: float
  threshold: float | None  # where a sound has several labels

  def told(self) -> dict:
    """Its COLUMNS, rounded."""
    values = self._asdict()
    rounded = {key: round(values[key], 3) for key in ("start", "end")}
    for key in ("probability", "threshold"):
      rounded[key] = None if values[key] is None else round(values[key], DIGITS)
    return {key: rounded.get(key, values[key]) for key in COLUMNS}


class Selection(NamedTuple):
  """Which labels are told.

  Attributes:
    labels: places of those that are asked about, ascending.
    top: so many of them, the likeliest; None: see `select`.
    least: those of at least this probability.
  """

  labels: np.ndarray
  top: int | None
  least: float | None


def selection_of(
  model: Model, labels: str | None, top: int | None, least: float | None
) -> Selection:
  """The selection that flags ask for. Raises UserError for labels that the model does not know, and
  for a model without a head."""
  return Selection(chosen_labels(head_of(model), labels), top, least)


def select(head: Head, selection: Selection, logits: np.ndarray, probabilities) -> list[int]:
  """Places of the labels of a sound that are told, the likeliest first: by `top` and `least` if
  either is given, else those that reach their threshold, and of one label each the likeliest.

  Args:
    logits, probabilities: (C,).
  """
  order = [int(place) for place in np.argsort(-logits, kind="stable")]
  if selection.top is None and selection.least is None:
    if head.thresholds is not None:
      order = [place for place in order if probabilities[place] >= head.thresholds[place]]
    else:
      order = order[:1]
  wanted = set(selection.labels.tolist())
  order = [place for place in order if place in wanted][: selection.top]
  if selection.least is not None:
    order = [place for place in order if probabilities[place] >= selection.least]
  return order


def _csv(file, rows: Iterable[Row], **_) -> None:
  writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
  writer.writeheader()
  writer.writerows(row.told() for row in rows)


def _json_lines(file, rows: Iterable[Row], **_) -> None:
  for row in rows:
    file.write(json.dumps(row.told(), ensure_ascii=False) + "\n")


def _one_line(text: str) -> str:
  return " ".join(text.split())


def _in_a_cell(path: str) -> str:
  """A path, whose spaces have to remain if it is to be found."""
  return re.sub(r"[\t\r\n]", " ", path)


def _audacity(file, rows: Iterable[Row], **_) -> None:
  for row in rows:
    file.write(f"{row.start:.6f}\t{row.end:.6f}\t{_one_line(row.label)}\n")


def _raven(file, rows: Iterable[Row], *, frontend: FrontEnd, paths: list[str]) -> None:
  """Times run through all recordings, one after the other, as Raven opens them; the offset is that
  in the recording."""
  begins = dict(_begins(paths))
  file.write("\t".join(RAVEN) + "\n")
  for number, row in enumerate(rows, 1):
    begin, told = begins[row.path], row.told()
    values = (
      *(number, "Spectrogram 1", 1),
      *(f"{begin + row.start:.6f}", f"{begin + row.end:.6f}"),
      *(frontend.f_min, frontend.f_max),
      *(_in_a_cell(printable(row.path)), f"{row.start:.6f}", _one_line(row.label)),
      *(told["probability"], told["threshold"]),
    )
    file.write("\t".join("" if x is None else str(x) for x in values) + "\n")


def _begins(paths: list[str]) -> Iterator[tuple[str, float]]:
  """Yields (path, seconds of all recordings before it)."""
  before = 0.0
  for path in paths:
    yield path, before
    if len(paths) > 1:
      try:
        before += duration(path)
      except Reject:
        continue


# By the ending of the output, of which the first that fits counts.
WRITERS: dict[str, Callable] = {
  ".csv": _csv,
  ".jsonl": _json_lines,
  ".selections.txt": _raven,
  ".txt": _audacity,
}


def check_output(path: str, recordings: int) -> None:
  """Raises UserError for an ending that is no format, and for one that cannot hold so many
  recordings."""
  ending = _ending(path)
  if ending is None:
    raise UserError(
      f"--output={path}: must end with .csv, .jsonl (JSON lines), .selections.txt (Raven) or .txt "
      "(Audacity)"
    )
  if ending == ".txt" and recordings > 1:
    raise UserError(
      f"--output={path}: labels of Audacity are of one recording, and --input has {recordings}; "
      "take .selections.txt, .csv or .jsonl, or predict one recording at a time"
    )


def _ending(path: str) -> str | None:
  return next((ending for ending in WRITERS if path.lower().endswith(ending)), None)


def write(path: str, file, rows: Iterable[Row], *, frontend: FrontEnd, paths: list[str]) -> None:
  """Writes rows into an open text file, in the format of the path's ending."""
  WRITERS[_ending(path) or ".csv"](file, rows, frontend=frontend, paths=paths)
