"""How clips that are longer than a chunk become one vector, and how chunks are put together for an
encoder."""

from collections.abc import Iterable, Iterator

import numpy as np

BATCH = 32  # chunks encoded at a time, at most,
BATCH_FRAMES = 20_000  # and their frames
TAILS = ("released", "drop", "keep", "weighted")


def batch_rows(size: int) -> int:
  """Chunks of `size` frames that are encoded at a time."""
  return min(BATCH, max(1, BATCH_FRAMES // size))


def padded_sizes(chunk_frames: int) -> list[int]:
  """Lengths that chunks are padded to, ascending: few to compile, short clips cheap. Padding is
  masked."""
  sizes = [chunk_frames]
  while sizes[0] > min(128, chunk_frames // 4):
    sizes.insert(0, -(-sizes[0] // 2))
  return sizes


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
