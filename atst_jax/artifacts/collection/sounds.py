"""What an audio file gives an encoder: its log-mel, or that of each of its windows."""

from collections.abc import Iterator
from typing import NamedTuple

from atst_jax.artifacts.collection.listening import Listener
from atst_jax.artifacts.collection.pieces import digest
from atst_jax.artifacts.model import Model
from atst_jax.audio.sliding import check_windows, sliding
from atst_jax.audio.waveforms import Mel
from atst_jax.util.errors import StoreError, UserError

WHOLE, WINDOWS, FRAMES = "files", "windows", "frames"


class Rows(NamedTuple):
  """What gets a vector.

  Attributes:
    kind: WHOLE files, WINDOWS of them, or FRAMES: the encoder's vectors over time.
    window, hop: seconds, of WINDOWS.
  """

  kind: str = WHOLE
  window: float = 0.0
  hop: float = 0.0


class Sound(NamedTuple):
  """What is embedded, or why it cannot be.

  Attributes:
    mel: or the reason.
    start, end: seconds, of a window.
  """

  mel: Mel | str
  start: float = 0.0
  end: float = 0.0


def settings_hash(model: Model) -> str:
  """16 hexadecimal digits over what decides a vector beside the weights: sizes, front-end,
  normalisation, chunks, and what short sounds are filled up to where they are."""
  keys = ("encoder", "frontend", "normalization", "chunk_frames")
  filled = ("fill_frames",) if model.fill_frames else ()
  return digest({key: model.config[key] for key in (*keys, *filled)})


def check_rows(model: Model, rows: Rows) -> None:
  """Raises UserError for windows that this encoder cannot embed."""
  if rows.kind == WINDOWS:
    check_windows(rows.window, rows.hop, shortest=model.min_samples / model.sample_rate)
    if model.max_seconds is not None and rows.window > model.max_seconds:
      raise UserError(
        f"--window={rows.window:g}: this export embeds the central {model.max_seconds:g} s of "
        "longer sounds; take shorter windows, or --length=whole"
      )


def file_mel(model: Model, listener: Listener, path: str, *, over_time: bool = False) -> Mel | str:
  """The log-mel of an audio file, or the reason why it cannot be used. `over_time`: for vectors
  over time, of the whole file without the export's length rule. Raises StoreError."""
  try:
    mel = model.mel_of(listener.reader(path), whole=over_time)
    model.check(mel, over_time=over_time)
  except StoreError:
    raise
  except UserError as error:
    return str(error)
  return mel


def file_windows(model: Model, listener: Listener, path: str, rows: Rows) -> Iterator[Sound]:
  """Yields the windows of an audio file, each as if it were a file, and at last the reason if not
  all of it can be used; memory does not grow with its length. Raises StoreError."""
  end = 0.0
  try:
    for window in sliding(
      listener.reader(path)(),
      sample_rate=model.sample_rate,
      seconds=rows.window,
      hop=rows.hop,
      min_samples=model.min_samples,
    ):
      mel = model.mel(window.samples, model.sample_rate)
      model.check(mel)
      yield Sound(mel, window.start, window.end)
      end = window.end
  except StoreError:
    raise
  except UserError as error:
    yield Sound(f"from {end:g} s on: {error}" if end else str(error))


def sounds_of(model: Model, listener: Listener, path: str, rows: Rows) -> Iterator[Sound]:
  """Yields what is to be embedded of a file."""
  if rows.kind == WINDOWS:
    return file_windows(model, listener, path, rows)
  return iter([Sound(file_mel(model, listener, path, over_time=rows.kind == FRAMES))])
