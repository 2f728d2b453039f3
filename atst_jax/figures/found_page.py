"""The page of a search: what was found, to see and to hear."""

from typing import NamedTuple

import numpy as np

from atst_jax.audio.frontend import get_frontend, log_mel
from atst_jax.data.dataset_page import image
from atst_jax.figures.sounds import PLAYER_SECONDS, heard, player
from atst_jax.util import html_page, storage

SHOWN = 200  # of one page
FRONT_END = "atst"  # of the spectrograms, whichever the encoder has
LONGEST, SHORTEST = 30.0, 0.5  # seconds of a window that are shown
NOTE = (
  f"Shown and played are the first {PLAYER_SECONDS:g} s of a file, and of a window all up to "
  f"{LONGEST:g} s; what is shorter than {SHORTEST:g} s stands in the middle of so much."
)


class Find(NamedTuple):
  """What was found.

  Attributes:
    name: for its caption.
    cosine: to the query.
    path: of its recording.
    span: start and end in seconds, of a window; None: it is the file.
  """

  name: str
  cosine: float
  path: str
  span: tuple[float, float] | None


def write_page(path: str, query: str, found: list[Find]) -> None:
  """Writes one HTML file that loads nothing; SHOWN of what was found, best first, are drawn."""
  items = [{"name": find.name, "cosine": find.cosine, **_shown(find)} for find in found[:SHOWN]]
  title = f"Nearest to {query}"
  text = html_page.render("figures/found_page.html", title=title, note=NOTE, items=items)
  with storage.writing(path) as file:
    file.write(text.encode())


def _shown(find: Find) -> dict[str, str | None]:
  """Spectrogram and player; None for what cannot be read. Nothing else of the recording is kept in
  memory."""
  frontend = get_frontend(FRONT_END)
  waveform = heard(find.path, frontend.sample_rate, *_part(find.span))
  if waveform is None or not len(waveform):
    return {"image": None, "sound": None}
  missing = max(frontend.min_samples - len(waveform), 0)
  mel = log_mel(np.pad(waveform, (0, missing)), frontend)
  return {"image": image(mel, frames=len(mel)), "sound": player(waveform, frontend.sample_rate)}


def _part(span: tuple[float, float] | None) -> tuple[float, float]:
  """Start and end in seconds of what is shown."""
  if span is None:
    return 0.0, PLAYER_SECONDS
  start, end = span
  start = max(start - max(SHORTEST - (end - start), 0) / 2, 0.0)
  return start, min(max(end, start + SHORTEST), start + LONGEST)
