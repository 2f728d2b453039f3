"""An exported encoder as something that embeds log-mel clips of any length."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax import export
from atst_jax.encoders import frames_per_vector, make_encoder
from atst_jax.errors import UserError
from atst_jax.frontend import FrontEnd, log_mel
from atst_jax.normalization import normalize
from atst_jax.transformer import pool_blocks

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz, as in preparation
BATCH = 32  # chunks encoded at a time, at most,
BATCH_FRAMES = 20_000  # and their frames
TAILS = ("released", "drop", "keep", "weighted")


def batch_rows(size: int) -> int:
  """Chunks of `size` frames that are encoded at a time."""
  return min(BATCH, max(1, BATCH_FRAMES // size))


class Model:
  """An exported encoder, ready to embed. Make it with `load_model`.

  Attributes:
    config: the export's config.json.
    frontend: parameters of the log-mel spectrogram.
    sample_rate: Hz; audio of another rate is resampled, if its rate is stated.
    chunk_frames: frames of a chunk.
    depth: blocks of a transformer; 1 for a convolutional encoder.
    hop: frames for each vector over time.
  """

  def __init__(self, config: dict, variables, filters: np.ndarray):
    self.config, self.variables, self._filters = config, variables, filters
    self.frontend = FrontEnd.from_json(config["frontend"])
    self.sample_rate = self.frontend.sample_rate
    self.chunk_frames: int = config["chunk_frames"]
    self.depth: int = config["encoder"].get("depth", 1)
    self.hop: int = frames_per_vector(config["encoder"])
    self._encoder = make_encoder(config["encoder"])
    self._encode = jax.jit(self._encoded)
    self._pool = jax.jit(self.pooled, static_argnames="num_blocks")

  def _encoded(self, variables, mel, peak, length):
    x = normalize(mel.astype(jnp.float32), peak=peak[:, None, None], **self.config["normalization"])
    x = jnp.where((jnp.arange(mel.shape[1])[None] < length[:, None])[..., None], x, 0)
    return self._encoder.apply(variables, x, length)

  def pooled(self, variables, mel, peak, length, mean_over, *, num_blocks: int):
    """The vectors of chunks, as a function of arrays to be jitted.

    Args:
      variables: of the encoder.
      mel: (B, T, F) dB.
      peak: (B,) dB, the maximum of the clip that a chunk is from.
      length: (B,) valid frames.
      mean_over: (B,) frames that the sum over a chunk's patches is divided by.
      num_blocks: as in `embed`.

    Returns:
      (B, D') float32.
    """
    y, before = self._encoded(variables, mel, peak, length)
    if "blocks" not in before:
      return y
    return pool_blocks(before["blocks"], length, patch_frames=self.hop, num_blocks=num_blocks, mean_over=mean_over)

  def reinitialized(self, seed: int) -> "Model":
    """The same architecture, front-end and normalisation with fresh random parameters: the baseline of every probe."""
    noise = jnp.zeros((1, self.chunk_frames, self.frontend.n_mels))
    return Model(self.config, self._encoder.init(jax.random.key(seed), noise), self._filters)

  def standardized(self, statistics: dict) -> "Model":
    """The same encoder with other constants of normalisation: BYOL-A standardises by those of the data it is used on.

    Args:
      statistics: of that data (`Dataset.statistics`): `log_mean` and `log_std`, of ln(power + 2^-23) in nepers.

    Raises:
      UserError: the encoder does not standardise.
    """
    if self.config["normalization"]["kind"] != "standard":
      raise UserError("this encoder does not standardise its input: its normalisation is "
                      f"{self.config['normalization']}")  # fmt: skip
    constants = {"kind": "standard", "mean": statistics["log_mean"], "std": statistics["log_std"]}
    return Model({**self.config, "normalization": constants}, self.variables, self._filters)

  def log_mel(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """(N,) samples at `sample_rate` Hz -> (T, F) dB. Raises UserError for audio that is too short or not finite, and
    for a rate that is none: it is never guessed."""
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float, np.integer, np.floating)) or not (
      MIN_RATE <= sample_rate <= MAX_RATE):  # fmt: skip
      raise UserError(f"sample_rate={sample_rate!r}: state the rate of the audio in Hz")
    audio = np.asarray(audio)
    if audio.dtype.kind != "f":
      raise UserError(f"audio of {audio.dtype}: expected floats of full scale 1.0")
    audio = audio.astype(np.float32, copy=False)
    if audio.ndim != 1 or not np.isfinite(audio).all():
      raise UserError(f"audio of shape {audio.shape}: expected one axis of finite samples (mix channels to mono first)")
    if sample_rate != self.sample_rate:
      import soxr

      audio = soxr.resample(audio, sample_rate, self.sample_rate)
    if len(audio) < self.frontend.min_samples:
      raise UserError(
        f"audio of {len(audio)} samples at {self.sample_rate} Hz; at least {self.frontend.min_samples} are needed"
      )
    return log_mel(audio, self.frontend, self._filters)

  def chunks(self, mel, tail):
    """Yields (chunk, frames that its mean is divided by, weight) of a clip, by the rule that `embed` describes."""
    drop_to = self.chunk_frames // 2 if tail in ("released", "drop") else self.hop - 1
    for start in range(0, len(mel), self.chunk_frames):
      chunk = mel[start : start + self.chunk_frames]
      if start == 0 or len(chunk) > drop_to:
        mean_over = len(mel) - start if tail == "released" else len(chunk)
        yield chunk, mean_over, len(chunk) if tail == "weighted" else 1

  def _padded_sizes(self) -> list[int]:
    """Lengths that chunks are padded to, ascending: few to compile, short clips cheap. Padding is masked."""
    sizes = [self.chunk_frames]
    while sizes[0] > min(128, self.chunk_frames // 4):
      sizes.insert(0, -(-sizes[0] // 2))
    return sizes

  def embed(self, mels: Iterable[np.ndarray], *, num_blocks: int | None = None, max_frames: int | None = None,
            tail: str | None = None) -> np.ndarray:  # fmt: skip
    """Embeds log-mel clips of any lengths.

    Args:
      mels: (T, F) dB arrays of this model's front-end. The clamp refers to the whole clip's maximum (released code).
      num_blocks: how many of a transformer's last blocks to concatenate, [CLS…, mean…]; all of them by default.
      max_frames: longer clips are cropped centrally (ATST's protocol: 12 s); no limit by default.
      tail: how the chunks of a longer clip are averaged; the export's own rule by default. "weighted": by length.
        "keep": all alike. "drop": alike, but a chunk after the first counts only if more than half of it is there.
        "released": as "drop", and the sum over a chunk's patches is divided by the patches from its start to the end
        of the clip, as ATST's released code does (a 10-s clip's first mean is 0.6 of itself).

    Returns:
      (clips, 2 · num_blocks · D) float32; (clips, D) of a convolutional encoder.

    Raises:
      UserError: an unknown tail, or a clip with the wrong number of mel bins.
    """
    tail = self.config["tail"] if tail is None else tail
    if tail not in TAILS:
      raise UserError(f"tail={tail!r}: choose one of {', '.join(TAILS)}")
    num_blocks = self.depth if num_blocks is None else num_blocks
    sums, weights, waiting = [], [], {}
    sizes = self._padded_sizes()

    def flush(size):
      clips, peaks, chunks, mean_over, chunk_weights = zip(*waiting.pop(size), strict=True)
      rows = batch_rows(size)
      batch = np.zeros((rows, size, self.frontend.n_mels), np.float32)
      for i, chunk in enumerate(chunks):
        batch[i, : len(chunk)] = chunk
      pad = lambda values, dtype: np.pad(np.asarray(values, dtype), (0, rows - len(values)))
      out = np.asarray(
        self._pool(
          self.variables,
          batch,
          pad(peaks, np.float32),
          pad([len(c) for c in chunks], np.int32),
          pad(mean_over, np.int32),
          num_blocks=num_blocks,
        )
      )
      for clip, vector, weight in zip(clips, out, chunk_weights, strict=False):
        sums[clip] = sums[clip] + weight * vector
        weights[clip] += weight

    for index, mel in enumerate(mels):
      if mel.ndim != 2 or mel.shape[1] != self.frontend.n_mels:
        raise UserError(f"clip {index} has shape {mel.shape}; expected (frames, {self.frontend.n_mels})")
      self._check_length(mel)
      sums.append(0.0)
      weights.append(0)
      start = max(len(mel) - (max_frames or len(mel)), 0) // 2
      mel = np.asarray(mel[start : start + (max_frames or len(mel))], np.float32)
      for chunk, mean_over, weight in self.chunks(mel, tail):
        size = next(size for size in sizes if len(chunk) <= size)
        waiting.setdefault(size, []).append((index, float(mel.max()), chunk, mean_over, weight))
        if len(waiting[size]) == batch_rows(size):
          flush(size)
    for size in list(waiting):
      flush(size)
    out = np.empty((len(sums), self.width(num_blocks)), np.float32)
    for i, weight in enumerate(weights):
      out[i], sums[i] = sums[i] / weight, None  # let go: the features of a large set fill memory once, not twice
    return out

  def _check_length(self, mel) -> None:
    if len(mel) < self.hop:
      raise UserError(f"a clip of {len(mel)} frames; this encoder needs at least {self.hop}")

  def width(self, num_blocks: int) -> int:
    """Numbers in a vector of `embed`."""
    encoder = self.config["encoder"]
    return encoder["width"] * (2 * num_blocks if encoder["kind"] == "transformer" else 1)

  def embed_frames(self, mel: np.ndarray) -> np.ndarray:
    """(T, F) dB -> (T // hop, D): the last block's patch tokens, or a convolutional encoder's frames."""
    self._check_length(mel)
    longest = self.chunk_frames // self.hop * self.hop
    peak = np.full(1, mel.max(), np.float32)
    out = []
    for start in range(0, len(mel) // self.hop * self.hop, longest):
      frames = min(longest, len(mel) - start)
      size = next(size for size in self._padded_sizes() if frames <= size)
      chunk = np.zeros((1, size, mel.shape[1]), np.float32)
      chunk[0, :frames] = mel[start : start + frames]
      _, before = self._encode(self.variables, chunk, peak, np.full(1, frames, np.int32))
      vectors = before["blocks"][-1, 0, 1:] if "blocks" in before else before["frames"][0]
      out.append(np.asarray(vectors)[: frames // self.hop])
    return np.concatenate(out)


def load_model(folder: str) -> Model:
  """Opens an exported encoder. Raises UserError if the folder is not one or is damaged."""
  return Model(*export.read(folder))
