"""Vectors of many files: pieces that remain after a kill, and the one file that they are joined to.

A piece holds some of the files, in order; its name is a hash of all that decides its contents, so
that a job that is run again takes from `OUTPUT.part` what fits and computes the rest.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from atst_jax.util import storage
from atst_jax.util.errors import UserError

SUFFIXES = (".npz", ".parquet")
PIECE_FILES = 256
PIECE_BYTES = 64 << 20


class Table(NamedTuple):
  """A finished file of vectors."""

  ids: list[str]
  vectors: np.ndarray  # (N, D) float32
  about: dict  # `job`, `params_hash`, `dimensions`, `blocks`, `tail`, as strings or integers


class Piece(NamedTuple):
  """Vectors of consecutive files, and those that could not be used."""

  ids: list[str]
  vectors: np.ndarray  # (len(ids), D) float32
  rejected: list[tuple[str, str]]  # (id, reason)


def digest(value) -> str:
  """16 hexadecimal digits over any JSON."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def groups(sizes: Iterable[int]) -> Iterator[slice]:
  """Cuts files of so many bytes into pieces of at most PIECE_FILES files and, unless it is one,
  PIECE_BYTES."""
  start, total, end = 0, 0, 0
  for end, size in enumerate(sizes):
    if end > start and (end - start == PIECE_FILES or total + size > PIECE_BYTES):
      yield slice(start, end)
      start, total = end, 0
    total += size
  yield slice(start, end + 1)


def save_piece(path: str, piece: Piece) -> None:
  """Writes a piece, whole or not at all."""
  rejected = np.array(piece.rejected, str).reshape(-1, 2)
  with storage.writing(path) as file:
    np.savez(file, id=np.array(piece.ids, str), vector=piece.vectors, rejected=rejected)


def load_piece(path: str) -> Piece | None:
  """A piece, or None where there is none or it is damaged."""
  try:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
      rejected = [(str(id), str(reason)) for id, reason in arrays["rejected"]]
      return Piece([str(id) for id in arrays["id"]], arrays["vector"], rejected)
  # damage shows in the readers of zip files and of numpy's headers as any of them
  except Exception:
    return None


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
      return Table(ids, _mapped(path, "vector.npy"), about)
    table = import_parquet(path).read_table(path, columns=["id", "vector"])
    about = json.loads(table.schema.metadata[b"atst_jax"])
    about.pop("rejected")
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Table(table["id"].to_pylist(), flat.reshape(table.num_rows, -1), about)
  except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
    raise UserError(f"{path}: not a file of vectors that `embed` wrote, or damaged") from error


def _mapped(path: str, member: str) -> np.ndarray:
  """An array that lies uncompressed in a zip file, mapped into memory."""
  with zipfile.ZipFile(path) as archive:
    start = archive.getinfo(member).header_offset
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


def write_npz(path: str, pieces: list[str], about: dict) -> None:
  """Joins pieces to `id` (N,), `vector` (N, D), `rejected` (M, 2) of ids and reasons, and a scalar
  for each key of `about`; only one piece is in memory."""
  small = [(piece.ids, piece.rejected) for piece in map(finished_piece, pieces)]
  ids = np.array([id for names, _ in small for id in names], str)
  rejected = np.array([pair for _, pairs in small for pair in pairs], str).reshape(-1, 2)
  header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), about["dimensions"])}
  with storage.writing(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
    scalars = {key: np.array(value) for key, value in about.items()}
    for name, array in {"id": ids, "rejected": rejected, **scalars}.items():
      with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)
    with archive.open(zipfile.ZipInfo("vector.npy"), "w", force_zip64=True) as member:
      np.lib.format.write_array_header_1_0(member, header)
      for piece in pieces:
        member.write(finished_piece(piece).vectors.astype("<f4").tobytes())


def write_parquet(path: str, pieces: list[str], about: dict) -> None:
  """Joins pieces to the columns `id` and `vector`; `about` and the rejected files are JSON under
  the schema's key `atst_jax`."""
  parquet = import_parquet(path)
  import pyarrow as pa

  rejected = [pair for piece in pieces for pair in finished_piece(piece).rejected]
  vector = pa.list_(pa.float32(), about["dimensions"])
  schema = pa.schema(
    [("id", pa.string()), ("vector", vector)],
    {"atst_jax": json.dumps({**about, "rejected": rejected})},
  )
  with storage.writing(path) as file, parquet.ParquetWriter(file, schema) as writer:
    for piece in map(finished_piece, pieces):
      flat = pa.array(piece.vectors.ravel(), pa.float32())
      columns = [
        pa.array(piece.ids, pa.string()),
        pa.FixedSizeListArray.from_arrays(flat, type=vector),
      ]
      writer.write_table(pa.table(columns, schema=schema))
