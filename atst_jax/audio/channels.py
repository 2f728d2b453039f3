"""Several channels as one: their mean, the loudest, or one of them; and whether they cancel each
other in the mean."""

import re

import numpy as np

from atst_jax.util.errors import UserError

MEAN, LOUDEST = "mean", "loudest"
CANCELLED = (  # how many files, for a message that lists them
  "{} files whose channels cancel each other, so far is their mean below the loudest; "
  "--channels=loudest takes the loudest:"
)
CANCELLED_DB = 20.0  # channels cancel each other if their mean is this far below the loudest


def check_channels(channels: str) -> None:
  """Raises UserError for what is none of MEAN, LOUDEST and a channel's number from 1."""
  if channels not in (MEAN, LOUDEST) and not re.fullmatch(r"[1-9]\d{0,3}", channels):
    raise UserError(
      f"--channels={channels}: choose {MEAN}, {LOUDEST}, or a channel's number from 1, such as 2"
    )


def mean_of(block: np.ndarray) -> np.ndarray:
  """(N, C) -> (N,) float32."""
  if block.shape[1] == 1:
    return block[:, 0]
  if block.shape[1] == 2:  # the same bits in a tenth of the time
    return (block[:, 0] + block[:, 1]) / np.float32(2)
  return block.mean(axis=1)


class Levels:
  """The energies of channels and of their mean, gathered block by block."""

  def __init__(self):
    self._of_channels: np.ndarray | None = None
    self._of_mean = 0.0

  def update(self, block: np.ndarray) -> None:
    """Adds an (N, C) block."""
    products = (block.T @ block).astype(np.float64)  # (C, C), in one pass
    self._add(np.diagonal(products), float(products.sum()) / block.shape[1] ** 2)

  def add(self, other: "Levels") -> None:
    """Adds those of another part of the same sound."""
    if other._of_channels is not None:
      self._add(other._of_channels, other._of_mean)

  def _add(self, of_channels: np.ndarray, of_mean: float) -> None:
    before = 0.0 if self._of_channels is None else self._of_channels
    self._of_channels = before + of_channels
    self._of_mean += of_mean

  @property
  def loudest(self) -> int:
    """The first channel with the most energy; 0 if nothing was added."""
    return 0 if self._of_channels is None else int(np.argmax(self._of_channels))

  @property
  def cancelled(self) -> float:
    """Decibels of the mean below the loudest channel, if CANCELLED_DB or more; 0 otherwise."""
    if self._of_channels is None or not self._of_channels.max() > 0:
      return 0.0
    share = max(self._of_mean / self._of_channels.max(), 1e-12)
    below = -10 * float(np.log10(share))
    return below if below >= CANCELLED_DB else 0.0
