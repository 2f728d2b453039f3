"""Vectors of many files: pieces that remain after a kill, and the one file that they are joined to.

A file has one vector, or one for each of its windows or frames, with their times. A piece
(`pieces`) holds some of the files, in order.
"""

import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from atst_jax.util import storage
from atst_jax.util.errors import UserError

SUFFIXES = (".npz", ".parquet")


class Table(NamedTuple):
  """A finished file of vectors."""

  ids: list[str]
  vectors: np.ndarray  # (N, D) float32
  about: dict  # `job`, `params_hash`, `settings`, `dimensions`, `blocks`…, as strings or numbers
  spans: np.ndarray | None = None  # (N, 2) start and end in seconds, of windows and frames

  def name(self, row: int) -> str:
    """The id of a vector, with the times of a window."""
    if self.spans is None:
      return self.ids[row]
    start, end = (f"{time:.3f}".rstrip("0").rstrip(".") for time in self.spans[row])
    return f"{self.ids[row]} [{start}-{end} s]"

  def span(self, row: int) -> tuple[float, float] | None:
    """Start and end of a window in seconds; None where vectors are of files."""
    if self.spans is None:
      return None
    start, end = self.spans[row]
    return float(start), float(end)

  def find(self, name: str) -> int | None:
    """The row of a name, or the first one of an id; None if there is none."""
    id = name
    if self.spans is not None and name not in self.ids:
      id = name.rpartition(" [")[0]
    rows = [row for row, other in enumerate(self.ids) if other == id]
    return next((row for row in rows if name in (id, self.name(row))), None)


class Block(NamedTuple):
  """Consecutive vectors."""

  ids: list[str]  # of the file that each is from
  spans: np.ndarray | None  # (len(ids), 2) start and end in seconds; None where files are whole
  vectors: np.ndarray  # (len(ids), D) float32


class Piece(NamedTuple):
  """Vectors of consecutive files, and those that could not be used."""

  blocks: Iterable[Block]
  rejected: list[tuple[str, str]]  # (id, reason); complete once the blocks were read


def save_piece(path: str, piece: Piece) -> None:
  """Writes a piece, whole or not at all; one of its blocks is in memory."""
  with storage.writing(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
    for number, block in enumerate(piece.blocks):
      _write_member(archive, f"id_{number:05d}", np.array(block.ids, str))
      if block.spans is not None:
        _write_member(archive, f"span_{number:05d}", block.spans)
      _write_member(archive, f"vector_{number:05d}", block.vectors)
    _write_member(archive, "rejected", np.array(piece.rejected, str).reshape(-1, 2))


def _write_member(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
  with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
    np.lib.format.write_array(member, array, allow_pickle=False)


def _members(path: str, kind: str) -> Iterator[np.ndarray]:
  """Yields the arrays of a kind of the blocks of a piece; other kinds are not read."""
  with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
    for name in arrays.files:
      if name.startswith(f"{kind}_"):
        yield arrays[name]


def load_piece(path: str) -> Piece | None:
  """A piece, all of which can be read, or None where there is none or it is damaged."""
  try:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
      for name in arrays.files:
        arrays[name]
      rejected = [(str(id), str(reason)) for id, reason in arrays["rejected"]]
  # damage shows in the readers of zip files and of numpy's headers as any of them
  except Exception:
    return None
  return Piece(_blocks(path), rejected)


def _blocks(path: str) -> Iterator[Block]:
  spans = _members(path, "span")
  for ids, vectors in zip(_members(path, "id"), _members(path, "vector"), strict=True):
    yield Block([str(id) for id in ids], next(spans, None), vectors)


def finished_piece(path: str) -> Piece:
  """A piece that was written before. Raises UserError if it is gone since."""
  piece = load_piece(path)
  if piece is None:
    raise UserError(f"{path} was removed or damaged meanwhile; run the same command again")
  return piece


def job_of(path: str) -> str | None:
  """The job that a finished file holds the vectors of, or None if there is no file. Raises
  UserError for another's."""
  if not os.path.exists(path):
    return None
  try:
    if path.endswith(".npz"):
      with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return str(arrays["job"])
    return json.loads(import_parquet(path).read_schema(path).metadata[b"atst_jax"])["job"]
  except Exception as error:  # pyarrow and zipfile raise many kinds
    raise UserError(
      f"--output={path} exists and is not of this program; choose another name"
    ) from error


def read(path: str) -> Table:
  """A finished file. Vectors of an .npz stay on the disk until they are used. Raises UserError."""
  if not path.endswith(SUFFIXES) or not os.path.isfile(path):
    raise UserError(f"{path}: no such .npz or .parquet of vectors; `embed` writes them")
  try:
    if path.endswith(".npz"):
      with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        about = {name: arrays[name].item() for name in arrays.files if not arrays[name].ndim}
        ids = [str(id) for id in arrays["id"]]
        spans = np.stack([arrays["start"], arrays["end"]], 1) if "start" in arrays.files else None
      _check_about(about)
      return Table(ids, _mapped_vectors(path), about, spans)
    table = import_parquet(path).read_table(path)
    about = json.loads(table.schema.metadata[b"atst_jax"])
    about.pop("rejected")
    _check_about(about)
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    spans = None
    if "start" in table.column_names:
      spans = np.stack([table[name].to_numpy() for name in ("start", "end")], 1)
    return Table(table["id"].to_pylist(), flat.reshape(table.num_rows, -1), about, spans)
  except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
    raise UserError(f"{path}: not a file of vectors that `embed` wrote, or damaged") from error


def _check_about(about: dict) -> None:
  """Raises KeyError where it is not said what the vectors are of."""
  for key in ("job", "params_hash"):
    about[key]


def _mapped_vectors(path: str) -> np.ndarray:
  """The vectors, which lie uncompressed in a zip file, mapped into memory."""
  with zipfile.ZipFile(path) as archive:
    start = archive.getinfo("vector.npy").header_offset
  with open(path, "rb") as file:
    file.seek(start + 26)
    names = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
    file.seek(start + 30 + names)
    version = np.lib.format.read_magic(file)
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, _, kind = read_header(file)
    return np.memmap(file, kind, "r", file.tell(), shape)


def import_parquet(path: str):
  """pyarrow.parquet; UserError if it is not installed."""
  try:
    import pyarrow.parquet
  except ImportError as error:
    raise UserError(
      f"--output={path} needs pyarrow: pip install -e .[parquet], or write an .npz"
    ) from error
  return pyarrow.parquet


def rejected_of(pieces: list[str]) -> list[tuple[str, str]]:
  """(id, reason) of what could not be used, of all pieces."""
  return [pair for path in pieces for pair in finished_piece(path).rejected]


def ids_of(path: str) -> Iterator[np.ndarray]:
  """Yields the ids of the vectors of each block of a piece."""
  return _members(path, "id")


def write_npz(path: str, pieces: list[str], about: dict) -> None:
  """Joins pieces to `id` (N,), `vector` (N, D), `rejected` (M, 2) of ids and reasons, and a scalar
  for each key of `about`; of windows and frames also `start` and `end` (N,) in seconds. One block
  is in memory."""
  rejected = np.array(rejected_of(pieces), str).reshape(-1, 2)
  ids = lambda: (block for piece in pieces for block in ids_of(piece))
  spans = [block for piece in pieces for block in _members(piece, "span")]
  count, kind = 0, np.dtype("<U1")
  for block in ids():
    count, kind = count + len(block), max(kind, block.dtype, key=lambda kind: kind.itemsize)
  vectors = (block.astype("<f4") for piece in pieces for block in _members(piece, "vector"))
  with storage.writing(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
    _write_long(archive, "id", (count,), kind, (block.astype(kind) for block in ids()))
    _write_member(archive, "rejected", rejected)
    if spans:
      for name, times in zip(("start", "end"), np.concatenate(spans).T, strict=True):
        _write_member(archive, name, np.ascontiguousarray(times))
    for name, value in about.items():
      _write_member(archive, name, np.array(value))
    _write_long(archive, "vector", (count, about["dimensions"]), np.dtype("<f4"), vectors)


def _write_long(archive, name: str, shape: tuple, kind: np.dtype, parts) -> None:
  """A member of consecutive parts, one of which is in memory."""
  header = {"descr": kind.str, "fortran_order": False, "shape": shape}
  with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
    np.lib.format.write_array_header_1_0(member, header)
    for part in parts:
      member.write(part.tobytes())


def write_parquet(path: str, pieces: list[str], about: dict) -> None:
  """Joins pieces to the columns `id` and `vector`, of windows and frames also `start` and `end`;
  `about` and the rejected files are JSON under the schema's key `atst_jax`."""
  parquet = import_parquet(path)
  import pyarrow as pa

  vector = pa.list_(pa.float32(), about["dimensions"])
  fields = [("id", pa.string()), ("vector", vector)]
  if about["rows"] != "files":
    fields[1:1] = [("start", pa.float64()), ("end", pa.float64())]
  told = {"atst_jax": json.dumps({**about, "rejected": rejected_of(pieces)})}
  schema = pa.schema(fields, told)
  with storage.writing(path) as file, parquet.ParquetWriter(file, schema) as writer:
    for block in (block for piece in pieces for block in _blocks(piece)):
      columns = {
        "id": pa.array(block.ids, pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(
          pa.array(block.vectors.ravel(), pa.float32()), type=vector
        ),
      }
      if block.spans is not None:
        columns["start"], columns["end"] = (pa.array(times) for times in block.spans.T)
      writer.write_table(pa.table(columns, schema=schema))
