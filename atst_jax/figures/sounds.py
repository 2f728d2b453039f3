"""Sounds on a page: their spectrograms and players, as data URIs."""

import io

import numpy as np

from atst_jax.audio.decode import read_blocks
from atst_jax.util import html_page
from atst_jax.util.errors import UserError

PLAYER_SECONDS = 6.0  # of a file


def heard(path: str, sample_rate: int, start: float, end: float) -> np.ndarray | None:
  """(N,) the samples of a recording from `start` to `end` seconds; None if they cannot be read."""
  try:
    return np.concatenate([np.zeros(0, np.float32), *read_blocks(path, sample_rate, start, end)])
  except UserError:
    return None


def player(waveform: np.ndarray, sample_rate: int) -> str:
  """A sound as a data URI: MP3 if libsndfile writes it, else WAV."""
  import soundfile

  form, kind = (
    ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("WAV", "audio/wav")
  )
  file = io.BytesIO()
  soundfile.write(file, np.clip(waveform, -1, 1), sample_rate, format=form)
  return html_page.data_uri(file.getvalue(), kind)
