"""The page of a search: what was found, to see and to hear."""

from atst_jax.audio.decode import load_audio
from atst_jax.audio.frontend import get_frontend, log_mel
from atst_jax.data.dataset_page import image
from atst_jax.figures.run_page import PLAYER_SECONDS, sound
from atst_jax.util import html_page, storage
from atst_jax.util.errors import UserError

SHOWN = 200  # of one page
FRONT_END = "atst"  # of the spectrograms, whichever the encoder has


def write_page(
  path: str, query: str, found: list[tuple[str, float]], recordings: dict[str, str]
) -> None:
  """Writes one HTML file that loads nothing.

  Args:
    found: (id, cosine), best first; SHOWN of them are drawn.
    recordings: {id: path of its file}.

  Raises:
    UserError: none of what was found is among the recordings.
  """
  known = {id for id, _ in found} & set(recordings)
  if not known:
    raise UserError(
      f"--input: none of what was found, such as {found[0][0]!r}, is among its "
      f"{len(recordings)} files; give what was embedded"
    )
  items = [
    {"id": id, "cosine": cosine, **_shown(recordings[id])}
    for id, cosine in found[:SHOWN]
    if id in known
  ]
  text = html_page.render("figures/found_page.html", title=f"Nearest to {query}", items=items)
  with storage.writing(path) as file:
    file.write(text.encode())


def _shown(path: str) -> dict[str, str | None]:
  """Spectrogram and player of the start of a file; None for what cannot be read."""
  frontend = get_frontend(FRONT_END)
  try:
    waveform = load_audio(path, frontend.sample_rate)
  except UserError:
    return {"image": None, "sound": None}
  start = waveform[: round(PLAYER_SECONDS * frontend.sample_rate)]
  return {"image": image(log_mel(start, frontend)), "sound": sound(path, frontend.sample_rate)}
