"""Manifests: a CSV or TSV file with the header `path,label,fold,split,id,group`, of which only
`path` is required; further columns are not looked at."""

import csv
import difflib
import functools
import os
import re
from collections.abc import Iterator

from atst_jax.data.schema import SPLIT
from atst_jax.util import storage
from atst_jax.util.cli import nearest
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

from .files import Source, inside, printable

COLUMNS = ("path", "label", "fold", "split", "id", "group")
ALIKE = 0.8  # of names of columns: `lable` and `labels` are, `pitch` and `path` are not


def read_manifest(
  path: str, *, root: str = "", path_column: str = "", label_column: str = ""
) -> list[Source]:
  """Reads the files a manifest lists; whether they exist is not looked at.

  Args:
    path: the manifest, UTF-8, separated by tabs if its header holds one and by commas otherwise.
    root: the folder the paths start from, by default the manifest's own.
    path_column, label_column: what the table calls `path` and `label`, if otherwise.

  A `label` may hold several names separated by ';', which makes the whole manifest multi-label;
  `fold` is a whole number; `split` is `train` where empty; `id` is the path where empty; `group`
  names what clips have in common that must not be in two parts of a division (a speaker, a
  session), and is empty where nothing is known.

  Raises:
    UserError: with the line number, for a path, fold, split or id that will not do, and for a
      column whose name is nearly one of these.
  """
  root = root or os.path.dirname(storage.absolute(path))
  if not storage.is_folder(root):
    raise UserError(f"--root={root} is not a folder")
  folder_inside = functools.lru_cache(maxsize=None)(lambda folder: inside(folder, root))
  sources: list[Source] = []
  lines: dict[str, int] = {}  # of each id
  chosen = {"path": path_column, "label": label_column}
  for line, row in _rows(path, {name: column for name, column in chosen.items() if column}):
    where = f"{path} line {line}"
    relative = _relative_path(row["path"], where)
    file = os.path.join(root, relative)
    if not folder_inside(os.path.dirname(file)) or (
      os.path.islink(file) and not inside(file, root)
    ):
      raise UserError(
        f"{where}: {row['path']!r} leads out of {root} by a link; copy the file, or set --root"
      )
    id = row["id"] or printable(relative.replace(os.sep, "/"))
    if id in lines:
      raise UserError(
        f"{where}: id {id!r} stands in line {lines[id]} already; make the `id` column unique"
      )
    lines[id] = line
    labels = tuple(dict.fromkeys(name.strip() for name in row["label"].split(";") if name.strip()))
    sources.append(
      Source(
        file,
        id,
        labels,
        ";" in row["label"],
        _fold(row["fold"], where),
        _split(row["split"], where),
        row["group"].strip(),
      )
    )
  _check_piece_ids(path, lines)
  multi_label = any(source.multi_label for source in sources)
  return [Source(s.path, s.id, s.labels, multi_label, s.fold, s.split, s.group) for s in sources]


def _rows(path: str, chosen: dict[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
  """Yields (line number, a value for each of COLUMNS); quoted values may hold separators and
  newlines."""
  try:
    with storage.open_text(path, "utf-8-sig", newline="") as file:
      delimiter = "\t" if "\t" in file.readline() else ","
      file.seek(0)
      reader = csv.reader(file, delimiter=delimiter, strict=True)
      header = [name.strip() for name in next(reader, [])]
      places = _places(path, header, chosen)
      line = reader.line_num + 1
      for values in reader:
        if len(values) > len(header) or (values and len(values) < len(header)):
          raise UserError(
            f"{path} line {line}: {len(values)} values, {len(header)} columns in the header; quote "
            "values that hold a separator"
          )
        if values:
          found = {name: values[place] for name, place in places.items()}
          yield line, dict.fromkeys(COLUMNS, "") | found
        line = reader.line_num + 1
  except csv.Error as error:
    raise UserError(f"{path} line {reader.line_num}: {error}; is a quote left open?") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from error


def _places(path: str, header: list[str], chosen: dict[str, str]) -> dict[str, int]:
  """The column of each of COLUMNS that the header has; `chosen`: what it calls some of them."""
  for name, column in chosen.items():
    if column not in header:
      raise UserError(
        f"{path} line 1: --{name}_column={column}: the columns are {', '.join(header)}"
        f"{nearest(column, header)}"
      )
  wanted = {chosen.get(name, name): name for name in COLUMNS}
  others = [column for column in header if column not in wanted]
  for column in others:
    free = [name for name in wanted if name not in header and name[:1] == column[:1].lower()]
    if near := difflib.get_close_matches(column.lower(), free, n=1, cutoff=ALIKE):
      raise UserError(
        f"{path} line 1: {column}: did you mean {near[0]}? Rename the column, or leave it out; "
        f"known are {', '.join(COLUMNS)}"
      )
  used = [column for column in header if column in wanted]
  if "path" not in map(wanted.get, used) or len(set(used)) < len(used):
    raise UserError(
      f"{path} line 1: the header {header} must name `path`, and each column once; --path_column "
      "says what a table calls it"
    )
  if others:
    log.info("%s: columns that are not read: %s", path, ", ".join(map(repr, others)))
  return {wanted[column]: header.index(column) for column in used}


def _relative_path(text: str, where: str) -> str:
  if not text or "\0" in text:
    raise UserError(f"{where}: the path {text!r} is no file name")
  if storage.is_remote(text):
    raise UserError(
      f"{where}: the path {text!r} names a store; make it relative and set --root to the "
      "store's folder"
    )
  if os.path.isabs(text) or text.startswith("/") or ".." in re.split(r"[/\\]", text):
    raise UserError(
      f"{where}: the path {text!r} is absolute or holds '..'; make it relative to --root"
    )
  return os.path.normpath(text)


def _fold(text: str, where: str) -> int:
  if not text.strip():
    return -1
  if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
    raise UserError(f"{where}: fold {text!r} is not a whole number from 0")
  return int(text)


def _split(text: str, where: str) -> str:
  split = text.strip() or "train"
  # `all` means every split to TFDS.
  if not re.fullmatch(SPLIT, split) or split == "all":
    raise UserError(
      f"{where}: split {text!r} must be a word of at most 64 letters, digits and '_', and not `all`"
    )
  return split


def _check_piece_ids(path: str, lines: dict[str, int]) -> None:
  """Refuses ids that the pieces of another, long file could take."""
  for id, line in lines.items():
    match = re.fullmatch(r"(.*)#\d{4,}", id, re.DOTALL)
    if match and match[1] in lines:
      raise UserError(
        f"{path} line {line}: id {id!r} is what a piece of line {lines[match[1]]} would be called; "
        "rename it"
      )
