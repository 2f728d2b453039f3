"""Manifests: CSV or TSV files with the header `path,label,fold,split,id,group,start,end`. Only
`path` is required; other columns are not read."""

import difflib
import functools
import os
import re
from collections.abc import Callable, Iterator

from atst_jax.data.schema import SPLIT
from atst_jax.util import storage
from atst_jax.util.cli import nearest
from atst_jax.util.errors import UserError, printable

from .files import (
  ALIKE,
  BY_FILE,
  Listing,
  Source,
  inside,
  meant_split,
  with_groups,
  with_known_splits,
)
from .segments import make_segment, seconds_of
from .tables import Table

COLUMNS = ("path", "label", "fold", "split", "id", "group", "start", "end")
ALIASES = {"onset": "start", "offset": "end"}  # both or none
# Other names that tables often give a column. The message about one of them asks for ours.
OFFERED = {
  "path": ("filename", "file_name", "file", "filepath", "file_path", "wav", "audio", "begin_path"),
  "label": ("category", "class", "class_name", "event_label"),
  "start": ("start_time", "begin", "begin_time", "start_seconds", "start_s", "onset"),
  "end": ("end_time", "stop", "end_seconds", "end_s"),
}
BY_GROUP = "value of `group`"  # what a group is where a row names it
NOT_IN_A_NAME = ","  # of a label, unless --label_separator is given


def read_manifest(
  path: str,
  *,
  root: str = "",
  path_column: str = "",
  label_column: str = "",
  label_separator: str = "",
  whole_files: bool = False,
  follow_links: bool = False,
) -> Listing:
  """Lists the files of a manifest, whether they exist or not.

  Args:
    path: the manifest, UTF-8; separated by tabs, ';' or ','.
    root: the folder the paths start from, by default the manifest's own.
    path_column, label_column: the table's own names of `path` and `label`.
    label_separator: what separates several names in a `label`; by default ';', and a comma is
      refused.
    whole_files: `start` and `end` are not read.
    follow_links: links may lead out of the root.

  A `label` with several names makes the whole manifest multi-label. `fold` is a whole number. An
  empty `split` is `train`, an empty `id` the path. `group` is a speaker, a session…, which
  divisions keep in one part. With `start` and `end` in seconds (or `onset` and `offset`) a row is a
  segment of the file; its id is by default `PATH#START-END`. All rows of a file are in the group
  that one of them names; by default several rows, or segments, have the file as their group. A row
  that stands twice counts once.

  Raises:
    UserError: with the line number, for an invalid path, fold, split, label, group, time or id, and
      for a column whose name is nearly one of these.
  """
  root = root or os.path.dirname(storage.absolute(path))
  if not storage.is_folder(root):
    raise UserError(f"--root={root} is not a folder")
  folder_inside = functools.lru_cache(maxsize=None)(lambda folder: inside(folder, root))
  chosen = {"path": path_column, "label": label_column}
  notes: list[str] = []
  rows = lambda: _rows(path, {k: v for k, v in chosen.items() if v}, whole_files, notes)
  found: dict[str, Source] = {}
  lines: dict[str, int] = {}  # of each id
  groups: dict[str, tuple[str, int]] = {}  # of each file, and the line that names it
  twice = 0
  for line, row in rows():
    where = f"{path} line {line}"
    relative = _relative_path(row["path"], root, where, rows)
    file = os.path.join(root, relative)
    if not follow_links and (
      not folder_inside(os.path.dirname(file)) or (os.path.islink(file) and not inside(file, root))
    ):
      raise UserError(
        f"{where}: {row['path']!r} leads out of {root} by a link; set --follow_links, copy the "
        "file, or set --root"
      )
    source = make_segment(
      Source(
        file,
        row["id"],
        _labels(row["label"], label_separator, where),
        (label_separator or ";") in row["label"],
        _fold(row["fold"], where),
        _split(row["split"], where),
      ),
      start=seconds_of(row["start"], 0.0, where),
      end=seconds_of(row["end"], float("inf"), where),
      line=line,
      relative=printable(relative.replace(os.sep, "/")),
    )
    if group := row["group"].strip():
      other, first = groups.setdefault(file, (group, line))
      if group != other:
        raise UserError(
          f"{where}: the group of {relative!r} is {group!r} here and {other!r} in line {first}; "
          "give rows of one file one group, which divisions keep together"
        )
    before = found.setdefault(source.id, source)
    if before is not source:
      _check_same(before, source, where, lines[source.id])
      twice += 1
      continue
    lines[source.id] = line
  if not found:
    raise UserError(f"{path} lists no file: there is no row below its header")
  _check_piece_ids(path, lines)
  if twice:
    notes.append(f"{path}: {twice} rows stand twice and count once")
  named = {file: group for file, (group, _) in groups.items()}
  sources = with_groups([*found.values()], named, root)
  sources = with_known_splits(path, sources, notes)
  kinds = {BY_GROUP if source.path in named else BY_FILE for source in sources if source.group}
  grouped_by = " or ".join(sorted(kinds or {BY_FILE}))
  return Listing(sources, "manifest", grouped_by=grouped_by, notes=tuple(notes))


def _check_same(before: Source, source: Source, where: str, line: int) -> None:
  """Raises UserError unless two rows of one id say the same."""
  names = ("path", "labels", "fold", "split", "start", "end")
  if different := [name for name in names if getattr(before, name) != getattr(source, name)]:
    remedy = "make the `id` column unique"
    if different == ["labels"]:
      remedy = "write several labels of a file into one row, separated by ';'"
    raise UserError(
      f"{where}: id {source.id!r} stands in line {line} already, and differs in {different[0]}; "
      f"{remedy}"
    )


def _rows(
  path: str, chosen: dict[str, str], whole_files: bool, notes: list[str]
) -> Iterator[tuple[int, dict[str, str]]]:
  """Yields (line number, a value for each of COLUMNS)."""
  table = Table(path)
  wanted = [name for name in COLUMNS if not (whole_files and name in ("start", "end"))]
  places = _places(path, table.header, wanted, chosen)
  others = [name for name in table.header if table.header.index(name) not in places.values()]
  if others:
    notes.append(f"{path}: columns that are not read: {', '.join(map(repr, others))}")
  for line, values in table:
    yield line, dict.fromkeys(COLUMNS, "") | {name: values[i] for name, i in places.items()}


def _places(path: str, header: list[str], wanted: list[str], chosen: dict[str, str]) -> dict:
  """{column of ours: its place in the header}. `chosen`: {column of ours: the header's name}."""
  for name, column in chosen.items():
    if column not in header:
      raise UserError(
        f"{path} line 1: --{name}_column={column}: the columns are {', '.join(header)}"
        f"{nearest(column, header)}"
      )
  called = {name: chosen.get(name, name) for name in wanted}
  if set(ALIASES) <= set(header) and not {"start", "end"} & set(header) and "start" in wanted:
    called |= {name: alias for alias, name in ALIASES.items()}
  for name in wanted:
    if called[name] not in header:
      _ask(path, name, [column for column in header if column not in called.values()])
  used = [column for column in header if column in called.values()]
  if called["path"] not in used or len(set(used)) < len(used):
    raise UserError(
      f"{path} line 1: the header {header} must name `path`, and each column once; --path_column "
      "names it, if it is called otherwise"
    )
  places = {name: header.index(column) for name, column in called.items() if column in header}
  if len({"start", "end"} & places.keys()) == 1:
    raise UserError(
      f"{path} line 1: a segment needs both `start` and `end` (seconds); add the other column, or "
      "set --whole_files"
    )
  return places


def _ask(path: str, name: str, others: list[str]) -> None:
  """Raises UserError if one of the other columns probably is our column `name`."""
  written = lambda column: re.sub(r"\W+", "_", column.lower()).strip("_")  # "Start (s)": start_s
  near = [column for column in others if written(column) in OFFERED.get(name, ())]
  if not near and name not in ("start", "end"):
    alike = [column for column in others if column[:1].lower() == name[:1]]
    near = [
      column for column in alike if difflib.get_close_matches(column.lower(), [name], 1, ALIKE)
    ]
  if near:
    remedy = "Rename the column, or leave it out"
    if name in ("path", "label"):
      remedy = f"--{name}_column={near[0]} takes it; or rename the column, or leave it out"
    raise UserError(
      f"{path} line 1: {near[0]}: did you mean {name}? {remedy}; known are {', '.join(COLUMNS)}"
    )


def _labels(text: str, separator: str, where: str) -> tuple[str, ...]:
  if not separator and NOT_IN_A_NAME in text:
    raise UserError(
      f"{where}: the label {text!r} holds a comma: separate several labels by ';', or say "
      "--label_separator=, if commas do (--label_separator=';' if the comma is part of a name)"
    )
  names = (name.strip() for name in text.split(separator or ";"))
  return tuple(dict.fromkeys(name for name in names if name))


def _relative_path(text: str, root: str, where: str, rows: Callable[[], Iterator]) -> str:
  """The path from the root on. `rows`: reads the whole table, for the folder that all paths
  share."""
  if not text or "\0" in text:
    raise UserError(f"{where}: the path {text!r} is no file name")
  if ".." in re.split(r"[/\\]", text):
    raise UserError(f"{where}: the path {text!r} holds '..'; make it relative to --root")
  if "\\" in text and not storage.is_file(os.path.join(root, text)):
    text = text.replace("\\", "/")  # a table of Windows
  if re.match(r"[A-Za-z]:/", text):
    raise UserError(
      f"{where}: the path {text!r} is one of Windows with a drive; make it relative to --root"
    )
  if not (text.startswith("/") or storage.is_remote(text)):
    return os.path.normpath(text)
  base = storage.absolute(root)
  if text.startswith(f"{base}/"):
    return os.path.normpath(text.removeprefix(f"{base}/"))
  texts = [row["path"].replace("\\", "/") for _, row in rows()]
  absolute = [one for one in texts if one.startswith("/") or storage.is_remote(one)]
  shared = _shared_folder(absolute)
  remedy = "make the paths relative to --root"
  if others := len(texts) - len(absolute):
    remedy = f"make it relative to --root, as {others} other paths are"
  elif shared:
    remedy = f"set --root={shared}, the folder that all {len(absolute)} paths share"
  raise UserError(f"{where}: the path {text!r} is absolute and outside --root={root}; {remedy}")


def _shared_folder(paths: list[str]) -> str:
  """The deepest folder that all lie in, or "" if that is a file system's or a store's top."""
  if len({storage.is_remote(path) for path in paths}) > 1:
    return ""
  shared = os.path.commonpath([os.path.dirname(path) for path in paths])
  shared = shared.replace(":/", "://", 1)  # of a store
  return "" if shared == "/" or shared.endswith("://") else shared


def _fold(text: str, where: str) -> int:
  if not text.strip():
    return -1
  if not re.fullmatch(r"[0-9]{1,9}(\.0*)?", text.strip()):
    raise UserError(f"{where}: fold {text!r} is not a whole number from 0")
  return int(text.partition(".")[0])


def _split(text: str, where: str) -> str:
  split = text.strip() or "train"
  if meant := meant_split(split):
    raise UserError(f"{where}: split {split!r}: did you mean {meant!r}? If not, rename it")
  # `all` means every split to TFDS.
  if not re.fullmatch(SPLIT, split) or split == "all":
    raise UserError(
      f"{where}: split {text!r} must be a word of at most 64 letters, digits and '_', and not `all`"
    )
  return split


def _check_piece_ids(path: str, lines: dict[str, int]) -> None:
  """Refuses ids that pieces of another, long file could have."""
  for id, line in lines.items():
    match = re.fullmatch(r"(.*)#\d{4,}", id, re.DOTALL)
    if match and match[1] in lines:
      raise UserError(
        f"{path} line {line}: id {id!r} is what a piece of line {lines[match[1]]} would be called; "
        "rename it"
      )
