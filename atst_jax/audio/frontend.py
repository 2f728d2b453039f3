"""Log-mel front-ends in numpy: the only mel spectrogram in the repository.

`T` frames, `F` mel bins. Values are dB, neither clamped nor normalised: of power 10·log10(max(x,
1e-10)), of magnitudes 20·log10(max(x, 1e-10)).
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator

import numpy as np

from atst_jax.audio.frames import emphasized, filters_over_mel, norm
from atst_jax.audio.librosa_import import import_librosa
from atst_jax.util.errors import UserError

POWER_FLOOR = 1e-10  # torchaudio AmplitudeToDB, librosa power_to_db: -100 dB; of magnitudes -200
SPECTRA = ("power", "magnitude", "kaldi")
LEVELS = ("recorded", "unit")
SCALES = ("htk", "slaney", "htk_mel")
WINDOWS = ("hamming", "hann", "blackman", "boxcar")  # scipy's, periodic
BLOCK_FRAMES = 128  # frames transformed at a time: what they need stays in a core's cache


@dataclasses.dataclass(frozen=True)
class FrontEnd:
  """Parameters of a log-mel spectrogram; windows are periodic.

  Of a power spectrum frames are centred and edges reflected. Of magnitudes frames begin with the
  waveform, as in TensorFlow: a frame that would end behind the waveform is left out. "kaldi" is a
  power spectrum of such frames, prepared by `emphasized`, with a symmetric window.

  At level "unit" a sound is divided by the L2 norm of all its samples, as COLA does it with clips.
  """

  name: str
  sample_rate: int  # Hz
  n_fft: int  # samples
  win_length: int  # samples; shorter windows are centred in the FFT
  hop_length: int  # samples
  window: str
  n_mels: int
  f_min: float  # Hz
  f_max: float  # Hz
  mel_scale: str  # "htk", "slaney", or "htk_mel": HTK's, triangles straight over mel, not over Hz
  mel_norm: str  # "none" or "slaney" (area normalisation)
  spectrum: str = "power"  # of SPECTRA
  level: str = "recorded"  # of LEVELS

  @property
  def hash(self) -> str:
    """16 hexadecimal digits over every parameter but the name. Two front-ends are the same if these
    agree."""
    values = {k: v for k, v in self._values().items() if k != "name"}
    pad = "reflect" if self.is_centred else "none"
    text = json.dumps({**values, "db_power_floor": POWER_FLOOR, "pad": pad}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def _values(self) -> dict:
    """All fields, but for the usual `spectrum` and `level`: older files have no such fields."""
    usual = {("spectrum", SPECTRA[0]), ("level", LEVELS[0])}
    return {k: v for k, v in dataclasses.asdict(self).items() if (k, v) not in usual}

  @property
  def is_centred(self) -> bool:
    """Whether frame i is centred at i hops, or begins there."""
    return self.spectrum == "power"

  @property
  def frame_samples(self) -> int:
    """Samples of a frame before the FFT."""
    return self.n_fft if self.is_centred else self.win_length

  @property
  def min_samples(self) -> int:
    """The shortest waveform: one that can be reflected by half an FFT, or one window."""
    return self.n_fft // 2 + 1 if self.is_centred else self.win_length

  def num_frames(self, num_samples: int) -> int:
    """Frames T of a waveform of N samples: one for each hop, and one."""
    return (num_samples - (0 if self.is_centred else self.win_length)) // self.hop_length + 1

  def samples_of(self, frames: int) -> int:
    """The shortest waveform of so many frames, and of `min_samples`."""
    samples = (frames - 1) * self.hop_length + (0 if self.is_centred else self.win_length)
    return max(self.min_samples, samples)

  def to_json(self) -> dict:
    """All fields, and their `hash`; what `from_json` reads."""
    return {**self._values(), "hash": self.hash}

  @classmethod
  def from_json(cls, values: dict) -> "FrontEnd":
    """Raises UserError if the stored hash is not that of the stored parameters."""
    fields = {f.name for f in dataclasses.fields(cls)}
    if not isinstance(values, dict):
      raise UserError(f"front-end is a {type(values).__name__}, expected its parameters")
    if set(values) | {"spectrum", "level"} != fields | {"hash"}:
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
    """Whether types and ranges are those of a spectrogram that can be computed. It may come from a
    file."""
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
      and self.mel_scale in SCALES
      and self.mel_norm in (("none",) if self.mel_scale == "htk_mel" else ("none", "slaney"))
      and self.spectrum in SPECTRA
      and self.level in LEVELS
    )


# The paper's, the released code's (audiossl), released BYOL-A v2's, the difference-aware paper's,
# whose n_fft and mel scale are not stated: 400 (no padding) and Slaney as in BYOL-A v2; COLA's
# (tf.signal) and VGGish's, of magnitudes; SSAST's (torchaudio's Kaldi fbank).
FRONTENDS = {
  frontend.name: frontend
  for frontend in (
    FrontEnd("atst", 16000, 1024, 400, 160, "hamming", 64, 60.0, 7800.0, "htk", "none"),
    FrontEnd("audiossl", 16000, 1024, 1024, 160, "hann", 64, 60.0, 7800.0, "htk", "none"),
    FrontEnd("byola", 16000, 1024, 1024, 160, "hann", 64, 60.0, 7800.0, "slaney", "slaney"),
    FrontEnd("byola_htk", 16000, 1024, 1024, 160, "hann", 64, 60.0, 7800.0, "htk", "none"),
    FrontEnd("difference", 16000, 400, 400, 160, "hann", 64, 50.0, 8000.0, "slaney", "slaney"),
    FrontEnd(
      *("cola", 16000, 1024, 400, 160, "hann", 64, 60.0, 7800.0, "htk_mel", "none", "magnitude"),
      level="unit",
    ),
    FrontEnd(
      *("vggish", 16000, 512, 400, 160, "hann", 64, 125.0, 7500.0, "htk_mel", "none", "magnitude")
    ),
    FrontEnd(
      *("ssast", 16000, 512, 400, 160, "hann", 128, 20.0, 8000.0, "htk_mel", "none", "kaldi")
    ),
  )
}


def get_frontend(name: str) -> FrontEnd:
  """Raises UserError for a name that is not in FRONTENDS."""
  if name not in FRONTENDS:
    raise UserError(f"unknown front-end {name!r}; choose one of {', '.join(FRONTENDS)}")
  return FRONTENDS[name]


@functools.lru_cache(maxsize=8)
def mel_filters(frontend: FrontEnd) -> np.ndarray:
  """(n_fft // 2 + 1, F) float32 triangular filters, by librosa where they are straight over Hz."""
  if frontend.mel_scale == "htk_mel":
    return filters_over_mel(frontend)
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
  """(frame_samples,) float32. A window that is shorter than an FFT lies in the middle of a centred
  frame."""
  import scipy.signal

  periodic = frontend.spectrum != "kaldi"
  window = scipy.signal.get_window(frontend.window, frontend.win_length, fftbins=periodic)
  missing = frontend.frame_samples - frontend.win_length
  before, after = missing // 2, missing - missing // 2
  return np.pad(window, (before, after)).astype(np.float32)


def log_mel(
  waveform: np.ndarray, frontend: FrontEnd, filters: np.ndarray | None = None
) -> np.ndarray:
  """Log-mel spectrogram of a mono waveform at `frontend.sample_rate`.

  Args:
    waveform: (N,) float samples, full scale 1.0, at least `frontend.min_samples` of them: a whole
      sound, where the front-end's level is "unit".
    frontend: parameters.
    filters: (n_fft // 2 + 1, F) mel filters of an export; by default `mel_filters(frontend)`.

  Returns:
    (T, F) float32 dB, T = `frontend.num_frames(N)`.

  Raises:
    ValueError: the waveform is not one-dimensional or too short.
  """
  if waveform.ndim != 1 or len(waveform) < frontend.min_samples:
    raise ValueError(
      f"waveform of shape {waveform.shape}: need one axis of at least {frontend.min_samples} "
      "samples"
    )
  filters = mel_filters(frontend) if filters is None else filters
  signal = waveform.astype(np.float32, copy=False)
  if frontend.level == "unit":
    signal = signal / norm([signal])
  if frontend.is_centred:
    signal = np.pad(signal, frontend.n_fft // 2, mode="reflect")
  frames = _frames(signal, frontend)
  out = np.empty((len(frames), frontend.n_mels), np.float32)
  for start in range(0, len(frames), BLOCK_FRAMES):
    out[start : start + BLOCK_FRAMES] = _transform(
      frames[start : start + BLOCK_FRAMES], frontend, filters
    )
  return out


def _frames(signal, frontend):
  """(N,) samples -> (T, frame_samples) of them."""
  every = np.lib.stride_tricks.sliding_window_view(signal, frontend.frame_samples)
  return every[:: frontend.hop_length]


def _transform(frames, frontend, filters):
  """(t, frame_samples) samples -> (t, F) float32 dB."""
  import scipy.fft

  frames = emphasized(frames) if frontend.spectrum == "kaldi" else frames
  spectrum = scipy.fft.rfft(frames * analysis_window(frontend), frontend.n_fft, axis=-1)
  power = spectrum.real**2 + spectrum.imag**2
  if frontend.spectrum == "magnitude":
    return 20.0 * np.log10(np.maximum(np.sqrt(power) @ filters, POWER_FLOOR))
  return 10.0 * np.log10(np.maximum(power @ filters, POWER_FLOOR))


def log_mel_blocks(
  pieces: Iterable[np.ndarray], frontend: FrontEnd, filters: np.ndarray | None = None
) -> Iterator[np.ndarray]:
  """Log-mel spectrogram of a waveform in pieces. Memory does not grow with its length.

  Args:
    pieces: (n,) float32 samples each, of any lengths; together at least `frontend.min_samples`.
      For a front-end of level "unit" they are divided by their `norm` already.
    frontend, filters: as of `log_mel`.

  Yields:
    (t, F) float32 dB, t <= BLOCK_FRAMES. Their concatenation is `log_mel` of the concatenation, to
    the bit.

  Raises:
    ValueError: the pieces are too short together.
  """
  filters = mel_filters(frontend) if filters is None else filters
  half, hop = frontend.n_fft // 2 * frontend.is_centred, frontend.hop_length
  # Frames are transformed in the groups of `log_mel`, because a product's rounding depends on its
  # rows. Half a window is held back behind each group: the end of the sound is reflected.
  group = frontend.frame_samples + (BLOCK_FRAMES - 1) * hop
  held, begun, read = np.zeros(0, np.float32), False, 0
  for piece in pieces:
    held, read = np.concatenate([held, piece]), read + len(piece)
    if not begun and len(held) > half:
      held, begun = np.concatenate([held[half:0:-1], held]), True
    while begun and len(held) > group + half:
      yield _transform(_frames(held[:group], frontend), frontend, filters)
      held = held[BLOCK_FRAMES * hop :]
  if read < frontend.min_samples:
    raise ValueError(f"waveform of {read} samples: need at least {frontend.min_samples}")
  held = np.concatenate([held, held[-2 : -half - 2 : -1]])
  # nothing may be left of frames that are not centred
  frames = _frames(held, frontend) if len(held) >= frontend.frame_samples else held[:0]
  for start in range(0, len(frames), BLOCK_FRAMES):
    yield _transform(frames[start : start + BLOCK_FRAMES], frontend, filters)
