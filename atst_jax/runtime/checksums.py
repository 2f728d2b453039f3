"""The manifest of a folder: size and SHA-256 of every file in it, and a few facts. Checksums of the
arrays of a state.

A check mostly costs hashing: 0.57 GB/s on one core without instructions for SHA. The state of ATST
Base with both losses is 1.5 GB: 1.3 s on two such cores.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.util import storage
from atst_jax.util.errors import StoreError

NAME = "manifest.json"
THREADS = 8  # hashlib releases the GIL


class Damaged(Exception):
  """A fault of a folder; the message says which."""


def _digests(folder: str, names: list[str]) -> list[str]:
  with ThreadPoolExecutor(THREADS) as pool:
    return list(pool.map(lambda name: storage.sha256(os.path.join(folder, name)), names))


def write(folder: str, facts: dict, *, ignore: tuple[str, ...] = ()) -> None:
  """Reads every file of the folder except `ignore`, and writes the manifest with the facts, whole
  or not at all."""
  sizes = {name: size for name, size in storage.find(folder) if name not in (NAME, *ignore)}
  files = {
    name: [size, digest]
    for (name, size), digest in zip(sizes.items(), _digests(folder, list(sizes)), strict=True)
  }
  storage.write_text(
    os.path.join(folder, NAME),
    json.dumps({**facts, "files": dict(sorted(files.items()))}, indent=1),
  )


def read(folder: str) -> dict:
  """The manifest. Raises Damaged if there is none, or it is not valid."""
  try:
    found = json.loads(storage.read_text(os.path.join(folder, NAME)))
    for size, digest in found["files"].values():
      if not (isinstance(size, int) and isinstance(digest, str)):
        raise TypeError("files")
  except FileNotFoundError:
    raise Damaged(f"no {NAME}: its save never ended, or an older version wrote it") from None
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    if isinstance(error, StoreError):
      raise
    raise Damaged(f"{NAME} cannot be read ({type(error).__name__}: {error})") from error
  return found


def check(folder: str) -> dict:
  """The manifest of a folder, once all files agree with it. Raises Damaged with the first file that
  does not."""
  found = read(folder)
  sizes = dict(storage.find(folder))
  for name, (size, _) in found["files"].items():
    if name not in sizes:  # names of a manifest are only ever compared, never opened
      raise Damaged(f"{name} is missing")
    if sizes[name] != size:
      raise Damaged(f"{name} has {sizes[name]} bytes instead of {size}")
  try:
    digests = _digests(folder, list(found["files"]))
  except OSError as error:
    raise Damaged(f"{error.filename} cannot be read ({error.strerror})") from error
  for (name, (_, expected)), digest in zip(found["files"].items(), digests, strict=True):
    if digest != expected:
      raise Damaged(f"the contents of {name} are not what was written")
  return found


@jax.jit
def _checksum(x):
  """Σ_i bits(x_i) · (2i + 1) modulo 2^32, and whether all values are finite. Exact in any order of
  summation."""
  bits = (
    jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize == 4 else x.astype(jnp.uint32)
  )
  index = jnp.uint32(0)  # in row-major order; a reshape would gather sharded arrays
  for axis, size in enumerate(x.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32), jnp.all(jnp.isfinite(x))


def checksum_on_host(x: np.ndarray) -> int:
  """The same checksum of an array in this process's memory."""
  bits = np.ascontiguousarray(x).reshape(-1)
  bits = bits.view(np.uint32) if x.dtype.itemsize == 4 else bits.astype(np.uint32)
  weights = 2 * np.arange(bits.size, dtype=np.uint32) + np.uint32(1)
  return int(np.sum(bits * weights, dtype=np.uint32))


def named_leaves(tree) -> dict:
  """{path: leaf}, names joined by "/"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def array_checksums(tree) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """({path: checksum}, {path: all finite}) of arrays of 4 bytes, on the device; compiled once for
  each shape."""
  sums = {name: _checksum(x) for name, x in named_leaves(tree).items()}
  return {k: x for k, (x, _) in sums.items()}, {k: finite for k, (_, finite) in sums.items()}


def fetch(sums: dict[str, jax.Array]) -> dict[str, int]:
  """The checksums as Python integers below 2^32; waits for the device."""
  return {k: int(v) for k, v in jax.device_get(sums).items()}
