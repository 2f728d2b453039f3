"""Log-mel front-ends in numpy: the only mel spectrogram in the repository.

`T` frames, `F` mel bins. Values are dB, 10·log10(max(power, 1e-10)), neither clamped nor
normalised.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from atst_jax.util.errors import UserError

POWER_FLOOR = 1e-10  # torchaudio AmplitudeToDB, librosa power_to_db: -100 dB
WINDOWS = ("hamming", "hann", "blackman", "boxcar")  # scipy's, periodic
BLOCK_FRAMES = 128  # frames transformed at a time: what they need stays in a core's cache


@dataclasses.dataclass(frozen=True)
class FrontEnd:
  """Parameters of a log-mel spectrogram; frames are centred, edges reflected, windows periodic,
  power spectrum."""

  name: str
  sample_rate: int  # Hz
  n_fft: int  # samples
  win_length: int  # samples; shorter windows are centred in the FFT
  hop_length: int  # samples
  window: str
  n_mels: int
  f_min: float  # Hz
  f_max: float  # Hz
  mel_scale: str  # "htk" or "slaney"
  mel_norm: str  # "none" or "slaney" (area normalisation)

  @property
  def hash(self) -> str:
    """16 hexadecimal digits over every parameter but the name. Two front-ends are the same if these
    agree."""
    values = {k: v for k, v in dataclasses.asdict(self).items() if k != "name"}
    text = json.dumps({**values, "db_power_floor": POWER_FLOOR, "pad": "reflect"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  @property
  def min_samples(self) -> int:
    """The shortest waveform that can be reflected by half an FFT."""
    return self.n_fft // 2 + 1

  def num_frames(self, num_samples: int) -> int:
    """Frames T of a waveform of N samples: one for each hop, and one."""
    return num_samples // self.hop_length + 1

  def to_json(self) -> dict:
    """All fields, and their `hash`; what `from_json` reads."""
    return {**dataclasses.asdict(self), "hash": self.hash}

  @classmethod
  def from_json(cls, values: dict) -> "FrontEnd":
    """Raises UserError if the stored hash is not that of the stored parameters."""
    fields = {f.name for f in dataclasses.fields(cls)}
    if not isinstance(values, dict):
      raise UserError(f"front-end is a {type(values).__name__}, expected its parameters")
    if set(values) != fields | {"hash"}:
      raise UserError(
        f"front-end holds the keys {sorted(values)}, expected {sorted(fields | {'hash'})}"
      )
    frontend = cls(**{k: v for k, v in values.items() if k != "hash"})
    if frontend.hash != values["hash"]:
      raise UserError(
        f"front-end {frontend.name!r}: stored hash {values['hash']} but its parameters give "
        f"{frontend.hash}"
      )
    if not frontend.is_possible:
      raise UserError(
        f"front-end {frontend.name!r}: its parameters are no log-mel spectrogram's: {values}"
      )
    return frontend

  @property
  def is_possible(self) -> bool:
    """Whether types and ranges are those of a spectrogram that can be computed: it may have been
    read from a file."""
    whole = {
      "sample_rate": 1_000_000,
      "n_fft": 1 << 16,
      "win_length": self.n_fft,
      "hop_length": self.n_fft,
      "n_mels": 1 << 12,
    }
    return (
      isinstance(self.name, str)
      and all(
        type(getattr(self, key)) is int and 1 <= getattr(self, key) <= most
        for key, most in whole.items()
      )
      and all(type(value) in (int, float) for value in (self.f_min, self.f_max))
      and 0 <= self.f_min < self.f_max <= self.sample_rate / 2
      and self.window in WINDOWS
      and self.mel_scale in ("htk", "slaney")
      and self.mel_norm in ("none", "slaney")
    )


# The paper's, the released code's (audiossl), released BYOL-A v2's, and the difference-aware
# paper's, whose n_fft and mel scale are not stated: 400 (no padding) and Slaney as in BYOL-A v2.
FRONTENDS = {
  frontend.name: frontend
  for frontend in (
    FrontEnd("atst", 16000, 1024, 400, 160, "hamming", 64, 60.0, 7800.0, "htk", "none"),
    FrontEnd("audiossl", 16000, 1024, 1024, 160, "hann", 64, 60.0, 7800.0, "htk", "none"),
    FrontEnd("byola", 16000, 1024, 1024, 160, "hann", 64, 60.0, 7800.0, "slaney", "slaney"),
    FrontEnd("byola_htk", 16000, 1024, 1024, 160, "hann", 64, 60.0, 7800.0, "htk", "none"),
    FrontEnd("difference", 16000, 400, 400, 160, "hann", 64, 50.0, 8000.0, "slaney", "slaney"),
  )
}


def get_frontend(name: str) -> FrontEnd:
  """Raises UserError for a name that is not in FRONTENDS."""
  if name not in FRONTENDS:
    raise UserError(f"unknown front-end {name!r}; choose one of {', '.join(FRONTENDS)}")
  return FRONTENDS[name]


def import_librosa():
  """The module librosa.

  Numba, which librosa uses, keeps compiled functions beside librosa or in the home folder, and
  fails at the import where neither can be written (a user without home in a container). A
  temporary folder stands for them then.
  """
  if "numba" not in sys.modules and "NUMBA_CACHE_DIR" not in os.environ:
    found = importlib.util.find_spec("librosa")
    beside = os.path.dirname(found.origin) if found and found.origin else ""
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not any(map(_can_be_written, (beside, home))):
      os.environ["NUMBA_CACHE_DIR"] = _own_temporary_folder()
  import librosa

  return librosa


def _own_temporary_folder() -> str:
  """One of this user's, kept from one process to the next: what is compiled takes 20 s. Code is
  loaded from it, so nobody else may write there."""
  path = os.path.join(tempfile.gettempdir(), f"numba-{os.getuid()}")
  with contextlib.suppress(FileExistsError):
    os.mkdir(path, 0o700)
  found = os.lstat(path)
  if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
    return path
  return tempfile.mkdtemp(prefix="numba-")


def _can_be_written(folder: str) -> bool:
  """Whether files can be made in a folder, or in the one above it that is there."""
  if not os.path.isabs(folder):
    return False
  path = pathlib.Path(folder)
  there = next(place for place in (path, *path.parents) if place.exists())
  return os.access(there, os.W_OK)


@functools.lru_cache(maxsize=8)
def mel_filters(frontend: FrontEnd) -> np.ndarray:
  """(n_fft // 2 + 1, F) float32 triangular filters, by librosa."""
  mel = import_librosa().filters.mel

  norm = None if frontend.mel_norm == "none" else frontend.mel_norm
  filters = mel(
    sr=frontend.sample_rate,
    n_fft=frontend.n_fft,
    n_mels=frontend.n_mels,
    fmin=frontend.f_min,
    fmax=frontend.f_max,
    htk=frontend.mel_scale == "htk",
    norm=norm,
    dtype=np.float32,
  )
  return np.ascontiguousarray(filters.T)


@functools.lru_cache(maxsize=8)
def analysis_window(frontend: FrontEnd) -> np.ndarray:
  """(n_fft,) float32: what frames are multiplied by; a shorter window lies in its middle."""
  import scipy.signal

  window = scipy.signal.get_window(frontend.window, frontend.win_length, fftbins=True)
  before = (frontend.n_fft - frontend.win_length) // 2
  after = frontend.n_fft - frontend.win_length - before
  return np.pad(window, (before, after)).astype(np.float32)


def log_mel(
  waveform: np.ndarray, frontend: FrontEnd, filters: np.ndarray | None = None
) -> np.ndarray:
  """Log-mel spectrogram of a mono waveform at `frontend.sample_rate`.

  Args:
    waveform: (N,) float samples, full scale 1.0, at least `frontend.min_samples` of them.
    frontend: parameters.
    filters: (n_fft // 2 + 1, F) mel filters, where they travel with an export;
      `mel_filters(frontend)` otherwise.

  Returns:
    (T, F) float32 dB, T = N // hop_length + 1.

  Raises:
    ValueError: the waveform is not one-dimensional or too short.
  """
  if waveform.ndim != 1 or len(waveform) < frontend.min_samples:
    raise ValueError(
      f"waveform of shape {waveform.shape}: need one axis of at least {frontend.min_samples} "
      "samples"
    )
  filters = mel_filters(frontend) if filters is None else filters
  padded = np.pad(waveform.astype(np.float32, copy=False), frontend.n_fft // 2, mode="reflect")
  frames = np.lib.stride_tricks.sliding_window_view(padded, frontend.n_fft)[:: frontend.hop_length]
  out = np.empty((len(frames), frontend.n_mels), np.float32)
  for start in range(0, len(frames), BLOCK_FRAMES):
    out[start : start + BLOCK_FRAMES] = _transform(
      frames[start : start + BLOCK_FRAMES], frontend, filters
    )
  return out


def _transform(frames, frontend, filters):
  """(t, n_fft) samples -> (t, F) float32 dB."""
  import scipy.fft

  spectrum = scipy.fft.rfft(frames * analysis_window(frontend), axis=-1)
  return 10.0 * np.log10(np.maximum((spectrum.real**2 + spectrum.imag**2) @ filters, POWER_FLOOR))


def log_mel_blocks(
  pieces: Iterable[np.ndarray], frontend: FrontEnd, filters: np.ndarray | None = None
) -> Iterator[np.ndarray]:
  """Log-mel spectrogram of a waveform that comes in pieces, in memory that does not grow with its
  length.

  Args:
    pieces: (n,) float32 samples each, of any lengths; together at least `frontend.min_samples`.
    frontend, filters: as of `log_mel`.

  Yields:
    (t, F) float32 dB, t <= BLOCK_FRAMES. Their concatenation is `log_mel` of the concatenation, to
    the bit.

  Raises:
    ValueError: the pieces are too short together.
  """
  filters = mel_filters(frontend) if filters is None else filters
  half, hop = frontend.n_fft // 2, frontend.hop_length
  # Frames are transformed in the same groups as by `log_mel`, because a product's rounding depends
  # on its rows. Half a window stays behind each group: the end of the sound is reflected.
  group = frontend.n_fft + (BLOCK_FRAMES - 1) * hop
  held, begun = np.zeros(0, np.float32), False
  for piece in pieces:
    held = np.concatenate([held, piece])
    if not begun and len(held) > half:
      held, begun = np.concatenate([held[half:0:-1], held]), True
    while begun and len(held) > group + half:
      frames = np.lib.stride_tricks.sliding_window_view(held[:group], frontend.n_fft)[::hop]
      yield _transform(frames, frontend, filters)
      held = held[BLOCK_FRAMES * hop :]
  if not begun:
    raise ValueError(f"waveform of {len(held)} samples: need at least {frontend.min_samples}")
  held = np.concatenate([held, held[-2 : -half - 2 : -1]])
  frames = np.lib.stride_tricks.sliding_window_view(held, frontend.n_fft)[::hop]
  for start in range(0, len(frames), BLOCK_FRAMES):
    yield _transform(frames[start : start + BLOCK_FRAMES], frontend, filters)
