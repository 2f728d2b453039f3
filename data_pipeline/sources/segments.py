"""Segments of recordings: selection tables of Raven (and of BirdNET), and label files of Audacity.

Segments of manifests have the columns `start` and `end` (`manifest`).
"""

import collections
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator

from atst_jax.util import storage
from atst_jax.util.cli import nearest
from atst_jax.util.errors import UserError, printable

from .files import BY_FILE, Listing, Source
from .tables import Table, not_utf8
from .tree import audio_files

BEGIN, END = "Begin Time (s)", "End Time (s)"  # of Raven
OFFSET = "File Offset (s)"  # from the beginning of the selection's own file, in a table of several
FILES = ("Begin Path", "Begin File")
LABELS = ("Annotation", "Common Name", "Species", "Label", "Type")
SECONDS = r"(\d{1,9}([.,]\d*)?|[.,]\d+)(e(\+?0?\d|-\d{1,2}))?"
LABEL_LINE = r"\s*-?\d+(?:[.,]\d+)?\t-?\d+(?:[.,]\d+)?(\t.*)?"  # of Audacity


def make_segment(source: Source, *, start: float, end: float, line: int, relative: str) -> Source:
  """A source as the segment from `start` to `end` in seconds, or the whole file if that is all.

  Args:
    source: with an empty id to get one.
    line: of the table.
    relative: the recording's path from the root: in the id, and the default group of a segment.
  """
  if start == 0 and end == math.inf:
    return dataclasses.replace(source, id=source.id or relative)
  id = source.id or f"{relative}#{_text(start)}-{'' if end == math.inf else _text(end)}"
  group = source.group or relative
  return dataclasses.replace(source, id=id, start=start, end=end, line=line, group=group)


def _text(seconds: float) -> str:
  """Without zeros at the end; microseconds at most."""
  return f"{seconds:.6f}".rstrip("0").rstrip(".")


def seconds_of(text: str, empty: float, where: str) -> float:
  """A time of a table; `empty` if there is none. Raises UserError for anything but seconds from
  0."""
  if not text.strip():
    return empty
  if not re.fullmatch(SECONDS, text.strip(), re.IGNORECASE):
    raise UserError(f"{where}: the time {text!r} is not a number of seconds from 0, such as 12.5")
  return float(text.strip().replace(",", "."))


def kind_of(path: str) -> str:
  """The layout of a table: "raven", "audacity", or "manifest"."""
  try:
    with storage.open_text(path, "utf-8-sig") as file:
      head = file.readline().rstrip("\r\n")
  except (OSError, UnicodeDecodeError):
    return "manifest"  # which says what is wrong
  if {BEGIN, END} <= {name.strip() for name in head.split("\t")}:
    return "raven"
  return "audacity" if re.fullmatch(LABEL_LINE, head) else "manifest"


@dataclasses.dataclass(frozen=True)
class _Row:
  """One annotation: its line, the recording it names ("" in a table of one recording), its times in
  seconds, and its label."""

  line: int
  file: str
  start: float
  end: float
  label: str


def raven(
  path: str, *, root: str = "", label_column: str = "", follow_links: bool = False
) -> Listing:
  """Selection tables of Raven: one, or a folder of them beside their recordings.

  Args:
    path: the table, or the folder.
    root: of the recordings, by default the folder or the table's own.
    label_column: by default the first of LABELS that a table has.
    follow_links: as of `tree.audio_files`.

  Raises UserError, with the line, for text that does not parse and a table without a recording.
  """
  return _listing("raven", path, root, follow_links, lambda table: _raven_rows(table, label_column))


def audacity(path: str, *, root: str = "", follow_links: bool = False) -> Listing:
  """Label files of Audacity (START, END and LABEL between tabs): one, or a folder of them beside
  their recordings; as `raven`."""
  return _listing("audacity", path, root, follow_links, _audacity_rows)


def _raven_rows(path: str, label_column: str) -> Iterator[_Row]:
  table = Table(path)
  header = table.header
  if missing := [name for name in (BEGIN, END) if name not in header]:
    raise UserError(f"{path}: no column {missing[0]!r}, so it is no selection table of Raven")
  if label_column and label_column not in header:
    raise UserError(
      f"{path}: --label_column={label_column}: the columns are {', '.join(header)}"
      f"{nearest(label_column, header)}"
    )
  label = label_column or next((name for name in LABELS if name in header), "")
  first = ""
  for line, values in table:
    row, where = dict(zip(header, values, strict=True)), f"{path} line {line}"
    file = next((row[name] for name in FILES if row.get(name, "").strip()), "")
    first = first or file
    if file != first and not row.get(OFFSET, "").strip():
      raise UserError(
        f"{where}: a table of several recordings counts time through all of them; export it with "
        f"the column {OFFSET!r}"
      )
    start, end = (seconds_of(row[name], -1.0, where) for name in (BEGIN, END))
    if min(start, end) < 0:
      raise UserError(f"{where}: {BEGIN!r} and {END!r} must be given")
    if row.get(OFFSET, "").strip():
      offset = seconds_of(row[OFFSET], 0.0, where)
      start, end = offset, offset + end - start
    yield _Row(line, file, start, end, row[label] if label else "")


def _audacity_rows(path: str) -> Iterator[_Row]:
  try:
    text = storage.read_text(path)
  except UnicodeDecodeError as error:
    raise UserError(not_utf8(path)) from error
  for line, row in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
    if not row.strip() or row.startswith("\\"):  # "\": frequencies of the line above
      continue
    if not re.fullmatch(LABEL_LINE, row):
      raise UserError(
        f"{path} line {line}: {row!r} is not START, END and LABEL between tabs, as Audacity "
        "exports them"
      )
    start, end, *label = row.strip().split("\t", 2)
    where = f"{path} line {line}"
    times = (seconds_of(start, 0.0, where), seconds_of(end, 0.0, where))
    yield _Row(line, "", *times, label[0] if label else "")


def _listing(
  kind: str, path: str, root: str, follow_links: bool, rows_of: Callable[[str], Iterator[_Row]]
) -> Listing:
  """The segments of the tables at `path`; `rows_of` reads one."""
  folder = storage.is_folder(path)
  root = root or (path if folder else os.path.dirname(storage.absolute(path)))
  files = audio_files(root, follow_links=follow_links)
  recordings = {relative: file for file, relative in files}
  by_name, by_stem = _by(str, recordings), _by(lambda name: os.path.splitext(name)[0], recordings)
  found: dict[str, Source] = {}
  empty: set[str] = set()  # recordings whose tables have no row
  twice = 0
  for name in sorted(_texts(path)) if folder else [os.path.basename(path)]:
    table = os.path.join(path, name) if folder else path
    own = _recordings_of(name, by_stem)
    if folder and not own and kind_of(table) != kind:
      continue  # a text of another kind
    rows = [*rows_of(table)]
    if own and not rows:
      empty.add(_only(own, table, root))
    for row in rows:
      where = f"{table} line {row.line}"
      named = row.file.strip()
      relative = _named(named, by_name, where) if named else _only(own, where, root)
      one = Source(recordings[relative], "", tuple(filter(None, [row.label.strip()])))
      one = make_segment(
        one, start=row.start, end=row.end, line=row.line, relative=printable(relative)
      )
      before = found.setdefault(one.id, one)
      if before is not one and set(one.labels) <= set(before.labels):
        twice += 1
      elif before is not one:
        labels = before.labels + one.labels
        found[one.id] = dataclasses.replace(before, labels=labels, multi_label=True)
  several = any(source.multi_label for source in found.values())
  sources = [dataclasses.replace(source, multi_label=several) for source in found.values()]
  annotated = {source.path for source in sources}
  whole = [name for name in sorted(empty) if recordings[name] not in annotated]
  bare = len(recordings) - len(annotated) - len(whole)
  notes = {
    f"{path}: {twice} annotations stand twice and count once": twice,
    f"{path}: annotations of the same times are one clip with several labels": several,
    f"{path}: {bare} recordings have no annotation and are left out": bare,
  }
  said = tuple(note for note, true in notes.items() if true)
  unannotated = tuple(
    Source(recordings[name], printable(name), group=printable(name)) for name in whole
  )
  return Listing(sources, kind, grouped_by=BY_FILE, root=root, notes=said, unannotated=unannotated)


def _texts(root: str) -> Iterator[str]:
  """Relative paths of the text files below a folder that are not hidden."""
  if storage.is_remote(root):
    names: Iterable[str] = (relative for relative, _ in storage.find(root))
  else:
    names = (
      os.path.relpath(os.path.join(folder, name), root)
      for folder, _, files in os.walk(root)
      for name in files
    )
  return (
    name
    for name in names
    if name.lower().endswith((".txt", ".tsv")) and not re.search(r"(^|/)\.", name)
  )


def _by(key: Callable[[str], str], names: Iterable[str]) -> dict[str, list[str]]:
  """Relative paths by what `key` makes of their file names."""
  found = collections.defaultdict(list)
  for name in names:
    found[key(os.path.basename(name))].append(name)
  return found


def _recordings_of(table: str, by_stem: dict[str, list[str]]) -> list[str]:
  """The recordings whose name, without its ending, begins the table's name: REC.wav for REC.txt and
  REC.Table.1.selections.txt. The longest name wins, then a recording beside the table."""
  folder, stem = os.path.split(table)
  while "." in stem:
    stem = stem.rpartition(".")[0]
    names = by_stem.get(stem, [])
    beside = [name for name in names if os.path.dirname(name) == folder]
    if beside or (names and not folder):
      return beside or names
  return []


def _only(names: list[str], where: str, root: str) -> str:
  """The one recording of a table's name. Raises UserError for none and for several."""
  if not names:
    raise UserError(
      f"{where}: no recording under {root} has the table's name (REC.wav for REC.txt); set --root "
      "to the recordings, or rename the table"
    )
  if len(names) > 1:
    raise UserError(
      f"{where}: {len(names)} recordings have the table's name, {names[0]} and {names[1]}; put it "
      "beside its own, or rename the other"
    )
  return names[0]


def _named(file: str, by_name: dict[str, list[str]], where: str) -> str:
  """The recording that a row names, by its path on any machine. Raises UserError."""
  name = re.split(r"[/\\]", file.strip())[-1]
  found = by_name.get(name, [])
  if len(found) != 1:
    raise UserError(
      f"{where}: {len(found) or 'no'} recordings are called {name!r}; "
      + ("give files of one name tables of their own" if found else "set --root to their folder")
    )
  return found[0]
