"""The nearest vectors of a collection by cosine: exact, or through an index beside the file.

Vectors are compared as they are, or whitened: projected on the principal directions of the
collection, each divided by its standard deviation. A few directions hold nearly all the variance
of a trained encoder's vectors, and what tells sounds apart often lies in the others.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from atst_jax.artifacts.collection.vectors import Table
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

EXACT_BELOW = 100_000  # vectors; more are searched through an index
WHITENED = 256  # directions at most
VECTORS_PER_DIRECTION = 4  # at least: with fewer, all whitened vectors are equally far apart
SMALLEST_VARIANCE = 1e-6  # of a direction, relative to the largest
WIDEST = 4096  # numbers of a vector, up to which all vectors are looked at
BLOCK = 8192  # rows at a time
# of usearch's graph: neighbours of a node, and candidates while building and while searching
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 64, 128
ROUNDING = 1e-6  # of a cosine in float32
DUPLICATES_SEEN = 32  # neighbours of each vector among which an index looks for duplicates


class Whitening(NamedTuple):
  """Mean (D,) and directions (D, M), divided by their standard deviations."""

  mean: np.ndarray
  directions: np.ndarray


def whitening(vectors: np.ndarray) -> Whitening:
  """Principal directions of (N, D) vectors, by one pass over blocks of rows.

  At most WHITENED, N / VECTORS_PER_DIRECTION (one at least), and those with SMALLEST_VARIANCE. Of
  vectors with more than WIDEST numbers at most WIDEST are looked at, evenly taken: the time grows
  with the cube of the smaller side.

  Raises:
    UserError: all vectors are equal.
  """
  if vectors.shape[1] > WIDEST:
    vectors = vectors[:: -(-len(vectors) // WIDEST)]
  rows, width = vectors.shape
  mean = np.zeros(width)
  for block in _blocks(vectors):
    mean += block.sum(0, dtype=np.float64) / rows
  variances, directions = _principal(vectors, mean)
  most = min(WHITENED, max(1, rows // VECTORS_PER_DIRECTION))
  kept = np.flatnonzero(variances > SMALLEST_VARIANCE * max(variances[-1], 1e-30))[-most:]
  if not len(kept):
    raise UserError(f"{rows} vectors, all the same, cannot be whitened; needed are two that differ")
  scaled = directions[:, kept] / np.sqrt(variances[kept])
  return Whitening(mean.astype(np.float32), scaled.astype(np.float32))


def _principal(vectors: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(variances ascending, directions as columns (D, n)), n = D or, if they are fewer, N."""
  rows, width = vectors.shape
  if rows < width:  # the same directions by way of the smaller matrix
    centred = np.asarray(vectors, np.float64) - mean
    variances, sides = np.linalg.eigh(centred @ centred.T / rows)
    scale = np.sqrt(np.maximum(variances, 1e-30) * rows)
    return variances, centred.T @ (sides / scale)
  scatter = np.zeros((width, width))
  for block in _blocks(vectors):
    centred = (block - mean).astype(np.float32)
    scatter += centred.T @ centred
  variances, directions = np.linalg.eigh(scatter / rows)
  return variances, directions


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
  for start in range(0, len(vectors), BLOCK):
    yield np.asarray(vectors[start : start + BLOCK], np.float32)


def unit(vectors: np.ndarray, whiten: Whitening | None) -> np.ndarray:
  """(n, D) vectors, whitened if asked for, of length 1; a vector of zeros stays one."""
  if whiten is not None:
    vectors = (vectors - whiten.mean) @ whiten.directions
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


class Exact:
  """Compares with every vector of a collection."""

  def __init__(self, vectors: np.ndarray, whiten: Whitening | None):
    self.whiten = whiten
    self.rows = np.concatenate([unit(block, whiten) for block in _blocks(vectors)])

  def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (Q, k) and cosines (Q, k) of the nearest to (Q, D) queries of length 1, best first."""
    k = min(k, len(self.rows))
    cosines = queries @ self.rows.T
    found = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    near = np.take_along_axis(cosines, found, axis=1)
    order = np.argsort(-near, axis=1, kind="stable")
    return np.take_along_axis(found, order, 1), np.take_along_axis(near, order, 1)

  def duplicates(self, cosine: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows (i, j), i < j, whose cosine is at least so much."""
    for start in range(0, len(self.rows), BLOCK // 8):
      cosines = self.rows[start : start + BLOCK // 8] @ self.rows[start:].T
      for i, j in np.argwhere(np.triu(cosines >= cosine - ROUNDING, 1)):
        yield start + int(i), start + int(j), float(cosines[i, j])


class Indexed:
  """Searches a graph of near neighbours (usearch: HNSW, half precision) that lies beside the file,
  with the whitening if there is one.

  It is built once, and read where it lies: memory and time are those of a search. A file of vectors
  that was made anew needs its index made anew.

  Attributes:
    whiten: of queries.
  """

  def __init__(self, path: str, table: Table, whitened: bool):
    usearch = _import_usearch()
    self.path = f"{path}.{'whitened' if whitened else 'raw'}.usearch"
    self._directions = f"{self.path}.npz"
    is_there = os.path.exists(self.path)
    about = {
      "job": table.about["job"],
      "params_hash": table.about["params_hash"],
      "vectors": len(table.ids),
    }
    if is_there:
      self._check(about, path)
    self.whiten = self._whitening(table.vectors, is_there) if whitened else None
    self.index = usearch.Index(
      ndim=table.vectors.shape[1] if self.whiten is None else self.whiten.directions.shape[1],
      metric="cos",
      dtype="f16",
      connectivity=CONNECTIVITY,
      expansion_add=EXPANSION_ADD,
      expansion_search=EXPANSION_SEARCH,
    )
    if is_there:
      self.index.view(self.path)
    else:
      self._build(table.vectors, about)

  def _check(self, about: dict, path: str) -> None:
    try:
      with open(f"{self.path}.json", encoding="utf-8") as file:
        known = json.load(file)
    except (OSError, ValueError):
      known = None
    if known != about:
      raise UserError(
        f"{self.path} is not the index of {path} as it is now; remove the index and search again"
      )

  def _whitening(self, vectors: np.ndarray, is_there: bool) -> Whitening:
    """That of the index, which is as old as it; computed before it is built."""
    if is_there:
      try:
        with np.load(self._directions, allow_pickle=False) as arrays:
          return Whitening(arrays["mean"], arrays["directions"])
      except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
          f"{self._directions}, the whitening of {self.path}, cannot be read; remove the index and "
          "search again"
        ) from error
    found = whitening(vectors)
    with storage.writing(self._directions) as file:
      np.savez(file, **found._asdict())
    return found

  def _build(self, vectors: np.ndarray, about: dict) -> None:
    log.info("building the index of %d vectors, once: %s", len(vectors), self.path)
    for number, block in enumerate(_blocks(vectors)):
      rows = np.arange(number * BLOCK, number * BLOCK + len(block), dtype=np.uint64)
      self.index.add(rows, unit(block, self.whiten))
    part = storage.temporary_name(self.path)
    self.index.save(part)
    with storage.writing(f"{self.path}.json") as file:
      file.write(json.dumps(about).encode())
    os.replace(part, self.path)

  def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `Exact.nearest`, for nearly all of the nearest."""
    found = self.index.search(queries, min(k, len(self.index)))
    rows = np.atleast_2d(found.keys).astype(np.int64)
    return rows, 1 - np.atleast_2d(found.distances)

  def duplicates(self, cosine: float) -> Iterator[tuple[int, int, float]]:
    """As `Exact.duplicates`, among the DUPLICATES_SEEN nearest of each vector."""
    found, full = {}, 0
    for start in range(0, len(self.index), BLOCK):
      keys = np.arange(start, min(start + BLOCK, len(self.index)), dtype=np.uint64)
      rows, cosines = self.nearest(np.asarray(self.index.get(keys), np.float32), DUPLICATES_SEEN)
      full += int((cosines[:, DUPLICATES_SEEN - 1 :] >= cosine - ROUNDING).sum())
      for i, near, values in zip(keys.tolist(), rows.tolist(), cosines.tolist(), strict=True):
        for j, value in zip(near, values, strict=True):
          if i != j and value >= cosine - ROUNDING:
            found[min(i, j), max(i, j)] = value
    if full:
      log.warning(
        "%d vectors have %d or more such neighbours, of which the index looked at no more; "
        "--exact lists all pairs",
        full,
        DUPLICATES_SEEN - 1,
      )
    for (i, j), value in found.items():
      yield i, j, value


def _import_usearch():
  try:
    import usearch.index
  except ImportError as error:
    raise UserError(
      f"more than {EXACT_BELOW:,} vectors are searched with usearch: pip install -e .[search], "
      "or give --exact"
    ) from error
  return usearch.index


def searcher(path: str, table: Table, *, whitened: bool, exact: bool) -> Exact | Indexed:
  """What searches the collection of a file: exact below EXACT_BELOW vectors or if asked for. Its
  `whiten` is that of queries."""
  if exact or len(table.ids) < EXACT_BELOW:
    return Exact(table.vectors, whitening(table.vectors) if whitened else None)
  return Indexed(path, table, whitened)
