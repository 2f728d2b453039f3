"""What a tree of arrays holds, in one number for each array: the same on any mesh, of any number of processes."""

import jax
import jax.numpy as jnp


@jax.jit
def _mark(x):
  """Σ_i bits(x_i) · (2i + 1) modulo 2^32, and whether all values are finite. Exact in any order of summation."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize == 4 else x.astype(jnp.uint32)
  index = jnp.uint32(0)  # in row-major order; not by a reshape, which would gather what is sharded
  for axis, size in enumerate(x.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32), jnp.all(jnp.isfinite(x))


def fingerprint(tree) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """({path: mark}, {path: all finite}) of arrays of 4 bytes; compiled once for each shape, not fetched."""
  marks = {jax.tree_util.keystr(path, simple=True, separator="/"): _mark(x)
           for path, x in jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip
  return {k: mark for k, (mark, _) in marks.items()}, {k: finite for k, (_, finite) in marks.items()}


def fetch(marks: dict[str, jax.Array]) -> dict[str, int]:
  """The marks as Python integers below 2^32; waits for the device."""
  return {k: int(v) for k, v in jax.device_get(marks).items()}
