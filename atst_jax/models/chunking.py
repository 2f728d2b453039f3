"""How clips that are longer than a chunk become one vector, and how chunks are put together for an
encoder.

Chunks of a batch are padded to one length, and padding is masked. A program is compiled for each
length, so there are few of them: twelfths of the longest chunk (half seconds where that has 6 s),
and lengths that many clips share. The choice depends on the clips alone, not on the number of
devices or on what was compiled before: a vector is the same to the bit wherever it is computed.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

TAILS = ("released", "drop", "keep", "weighted")
STEPS = 12  # lengths that are always there
FINE = 8  # frames; the lengths that clips share are multiples of it


class Budget(NamedTuple):
  """What a kind of device is given at a time, in frames.

  Attributes:
    batch: of the chunks that are encoded at a time. A CPU is fastest with what its caches hold.
    rows: of those chunks, at most.
    ahead: that are looked at before their lengths are chosen.
    program: that a length of its own must save, so that compiling a program for it is worth it.
  """

  batch: int
  rows: int
  ahead: int
  program: int


CPU = Budget(batch=2_500, rows=32, ahead=128_000, program=2_000)
ACCELERATOR = Budget(batch=20_000, rows=256, ahead=512_000, program=64_000)


def budget() -> Budget:
  """Of JAX's default devices."""
  return CPU if jax.default_backend() == "cpu" else ACCELERATOR


def batch_rows(size: int) -> int:
  """Chunks of `size` frames that a device encodes at a time."""
  return min(budget().rows, max(1, budget().batch // size))


def padded_sizes(chunk_frames: int) -> list[int]:
  """The lengths that are always there, ascending: STEPS equal steps to that of a chunk."""
  return sorted({-(-chunk_frames * step // STEPS) for step in range(1, STEPS + 1)})


def choose_sizes(lengths: Iterable[int], chunk_frames: int, program: int) -> dict[int, int]:
  """The length that each length of a chunk is padded to.

  Args:
    lengths: of the chunks that wait, in frames.
    chunk_frames: the longest one there can be.
    program: frames of padding that a length of its own must save.
  """
  steps, counts = padded_sizes(chunk_frames), collections.Counter(lengths)
  step_of = {length: next(step for step in steps if length <= step) for length in counts}
  fine_of = {length: min(-(-length // FINE) * FINE, step_of[length]) for length in counts}
  shared: collections.Counter = collections.Counter()
  for length, count in counts.items():
    shared[fine_of[length]] += count
  sizes = {}
  for length, step in step_of.items():
    fine = fine_of[length]
    sizes[length] = fine if shared[fine] * (step - fine) >= program else step
  return _merged(sizes, counts, program)


def _merged(sizes: dict[int, int], counts: dict[int, int], program: int) -> dict[int, int]:
  """The same, where sizes that save too little are padded to the next one."""
  used = sorted(set(sizes.values()))
  chunks: collections.Counter = collections.Counter()
  for length, count in counts.items():
    chunks[sizes[length]] += count
  instead, padding = {}, 0  # frames that were added to the chunks of the size below
  moved = 0  # chunks of the sizes below
  for size, larger in itertools.pairwise(used):
    moved += chunks[size]
    padding += moved * (larger - size)
    if padding < program:
      instead[size] = larger
    else:
      moved = padding = 0
  final = {}
  for length, size in sizes.items():
    while size in instead:
      size = instead[size]
    final[length] = size
  return final


def weighted_chunks(
  parts: Iterable[np.ndarray], frames: int, *, chunk_frames: int, hop: int, tail: str
) -> Iterator[tuple[np.ndarray, int, int]]:
  """Yields (chunk, frames that its mean is divided by, weight) of a clip.

  Args:
    parts: the clip, cut into `chunk_frames`.
    frames: of the clip.
    tail: of TAILS, the rule that `Model.embed` describes.
  """
  drop_to = chunk_frames // 2 if tail in ("released", "drop") else hop - 1
  for i, chunk in enumerate(parts):
    if i == 0 or len(chunk) > drop_to:
      mean_over = frames - i * chunk_frames if tail == "released" else len(chunk)
      yield chunk, mean_over, len(chunk) if tail == "weighted" else 1
