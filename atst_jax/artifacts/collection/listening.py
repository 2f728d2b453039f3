"""Recordings as an encoder hears them, several channels as one, and what is strange about some."""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from atst_jax.artifacts.embedding import MOST_PEAK
from atst_jax.audio.channels import CANCELLED
from atst_jax.audio.decode import Quality, choose_channel, read_blocks
from atst_jax.audio.sound_file import Reject
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

MOST_NAMES = 10  # of files that are told
REMARKS = {
  "cancelled": CANCELLED,
  "loud": "{} files whose samples go far beyond full scale, which is 1.0; 16-bit integers saved as "
  "floats must be divided by 32768:",
}


class Listener:
  """Reads recordings, and keeps what is strange about them. One serves all threads of a job.

  Attributes:
    sample_rate: Hz of what it gives.
    channels: "mean" of all, the "loudest", or a channel's number from 1.
  """

  def __init__(self, sample_rate: int, channels: str):
    self.sample_rate, self.channels = sample_rate, channels
    self._remarks: dict[str, dict[str, str]] = {kind: {} for kind in REMARKS}

  def reader(
    self, path: str, start: float = 0.0, end: float = math.inf
  ) -> Callable[[], Iterator[np.ndarray]]:
    """A function that yields a recording, or its part between two seconds, as `decode.read_blocks`
    does, from the start at every call."""
    kept = functools.cache(lambda: choose_channel(path, self.channels))
    return lambda: self._blocks(path, start, end, kept)

  def _blocks(self, path, start, end, kept: Callable[[], slice]) -> Iterator[np.ndarray]:
    quality = Quality()
    try:
      channels = kept()
    except Reject as error:
      raise UserError(f"cannot use the audio file {path}: {error}") from error
    yield from read_blocks(path, self.sample_rate, start, end, kept=channels, quality=quality)
    self.note(path, quality)

  def note(self, path: str, quality: Quality) -> None:
    """Keeps what is strange about a recording, or a part of one."""
    if below := quality.remarks().get("cancelled"):
      self._remarks["cancelled"][path] = below
    if quality.peak > MOST_PEAK:
      self._remarks["loud"][path] = f"up to {quality.peak:g}"

  def tell(self) -> None:
    """Warns of the recordings that are strange: how many, and which."""
    for kind, text in REMARKS.items():
      if found := sorted(self._remarks[kind].items()):
        lines = [f"{path}: {detail}" for path, detail in found[:MOST_NAMES]]
        if (more := len(found) - MOST_NAMES) > 0:
          lines.append(f"and {more} more")
        log.warning("%s", "\n  ".join([text.format(len(found)), *lines]))
