"""Common to all pictures: colours, axes in Hz, and writing."""

import os
from collections.abc import Callable

import numpy as np
from markupsafe import Markup

from atst_jax.audio.frontend import FrontEnd
from atst_jax.audio.librosa_import import import_librosa
from atst_jax.util import html_page, storage

# Okabe and Ito's, which are told apart with every kind of colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TOP_DB = 80.0  # shown below a clip's maximum
TICKS_HZ = (125, 250, 500, 1000, 2000, 4000)
LONGEST = 80  # characters of a title that fit


def save(figure, path: str, dpi: int = 110) -> None:
  """Writes a PNG, whole or not at all."""
  with storage.writing(path) as file:
    figure.savefig(file, format="png", dpi=dpi)


def literal(text: str, most: int = LONGEST) -> str:
  """A name or a path as matplotlib draws it as it is: not as mathematics (`$`), nor left out of a
  legend (`_`); the middle of more than `most` characters is left out."""
  if len(text) > most:
    text = f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"
  return " " * text.startswith("_") + text.replace("$", r"\$")


def draw_mel(axis, mel: np.ndarray, low: float, high: float, *, hop: float):
  """Draws (T, F) over seconds and bins, in colours from `low` to `high`. `hop`: seconds of a frame.
  Returns the image."""
  return axis.imshow(
    mel.T.astype(np.float32),
    origin="lower",
    aspect="auto",
    extent=(0, len(mel) * hop, -0.5, mel.shape[1] - 0.5),
    cmap="magma",
    vmin=low,
    vmax=high,
    interpolation="nearest",
  )


def frequency_ticks(frontend: FrontEnd) -> tuple[np.ndarray, list[str]]:
  """Positions in mel bins and labels in Hz, from the centre frequencies of the bins."""
  librosa = import_librosa()
  htk = frontend.mel_scale != "slaney"
  low, high = frontend.f_min, frontend.f_max
  centres = librosa.mel_frequencies(frontend.n_mels + 2, fmin=low, fmax=high, htk=htk)[1:-1]
  ticks = [hz for hz in TICKS_HZ if centres[0] <= hz <= centres[-1]]
  names = [f"{hz / 1000:g}k" if hz >= 1000 else f"{hz}" for hz in ticks]
  return np.interp(ticks, centres, np.arange(len(centres))), names


class Pictures:
  """Writes PNG files into a folder, and gives them as elements of a page."""

  def __init__(self, folder: str):
    self.folder = folder
    self.paths: list[str] = []

  def add(self, name: str, draw: Callable[[str], None], alt: str) -> Markup:
    """Draws `name`.png by `draw(path)`."""
    path = os.path.join(self.folder, f"{name}.png")
    draw(path)
    self.paths.append(path)
    return html_page.picture(path, alt)
