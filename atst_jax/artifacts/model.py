"""An exported encoder as something that embeds log-mel clips of any length."""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.artifacts import folder as exported
from atst_jax.audio.frontend import FrontEnd
from atst_jax.audio.waveforms import Mel, central, cut, mel_of, peak_of, pieces
from atst_jax.method.normalization import normalize
from atst_jax.models.encoders import make_encoder
from atst_jax.util.errors import UserError

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
    encoder: the linen module, and `variables` its arrays.
  """

  def __init__(self, config: dict, variables, filters: np.ndarray | None):
    self.config, self.variables, self._filters = config, variables, filters
    self.frontend = FrontEnd.from_json(config["frontend"])
    self.sample_rate = self.frontend.sample_rate
    self.chunk_frames: int = config["chunk_frames"]
    self.encoder = make_encoder(config["encoder"])
    self.depth, self.hop = self.encoder.blocks, self.encoder.hop
    self._encode = jax.jit(self._encoded)
    self._pool = jax.jit(self.pooled, static_argnames="num_blocks")

  def normalized(self, mel, peak, length):
    """What the encoder sees of chunks: (B, T, F) dB, (B,) maximum of their clip, (B,) valid frames
    -> (B, T, F)."""
    x = normalize(mel.astype(jnp.float32), peak=peak[:, None, None], **self.config["normalization"])
    return jnp.where((jnp.arange(mel.shape[1])[None] < length[:, None])[..., None], x, 0)

  def _encoded(self, variables, mel, peak, length):
    return self.encoder.apply(variables, self.normalized(mel, peak, length), length)

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
    return self.encoder.pool(y, before, length, num_blocks=num_blocks, mean_over=mean_over)

  def outputs(self, variables, mel, length, peak) -> dict:
    """One chunk's vectors as a function of arrays, to be traced: what exported programs compute.

    Args:
      variables: `self.variables`.
      mel: (B, T, F) dB, padded; T at most `chunk_frames` of a transformer.
      length: (B,) valid frames.
      peak: (B,) dB, maximum of the whole clip.

    Returns:
      {"scene": (B, 2D) [CLS, mean] of the last block, or (B, D) of a convolutional encoder;
      "frames": (B, N, D)}.
    """
    y, before = self._encoded(variables, mel, peak, length)
    scene = self.encoder.pool(y, before, length, num_blocks=1)
    return {"scene": scene, "frames": self.encoder.frames(before)}

  def reinitialized(self, seed: int) -> "Model":
    """The same architecture, front-end and normalisation with fresh random parameters: the baseline
    of every probe."""
    noise = jnp.zeros((1, self.chunk_frames, self.frontend.n_mels), jnp.float32)
    variables = jax.jit(self.encoder.init)(jax.random.key(seed, impl="threefry2x32"), noise)
    return Model(self.config, variables, self._filters)

  def standardized(self, statistics: dict) -> "Model":
    """The same encoder with other constants of normalisation: BYOL-A standardises by those of the
    data it is used on.

    Args:
      statistics: of that data (`Dataset.statistics`): `log_mean` and `log_std`, of ln(power +
        2^-23) in nepers.

    Raises:
      UserError: the encoder does not standardise.
    """
    if self.config["normalization"]["kind"] != "standard":
      raise UserError(
        "this encoder does not standardise its input: its normalisation is "
        f"{self.config['normalization']}"
      )
    constants = {"kind": "standard", "mean": statistics["log_mean"], "std": statistics["log_std"]}
    return Model({**self.config, "normalization": constants}, self.variables, self._filters)

  def mel(self, audio: np.ndarray, sample_rate: float) -> Mel:
    """(N,) samples at `sample_rate` Hz -> log-mel dB: (T, F), or what stands for it where it is
    long.

    Raises UserError for audio that is too short, not finite, not floats or not mono.
    """
    return self.mel_of(lambda: pieces(audio, sample_rate, self.sample_rate))

  def mel_of(self, waveform: Callable[[], Iterator[np.ndarray]]) -> Mel:
    """The same of a sound that is read in pieces at the model's rate, from its start at every
    call."""
    return mel_of(waveform, self.frontend, self._filters)

  def log_mel(self, audio: np.ndarray, sample_rate: float) -> np.ndarray:
    """`mel` as an array (T, F), however long."""
    mel = self.mel(audio, sample_rate)
    return central(mel, len(mel))

  def chunks(self, mel, tail):
    """Yields (chunk, frames that its mean is divided by, weight) of a clip, by the rule that
    `embed` describes."""
    drop_to = self.chunk_frames // 2 if tail in ("released", "drop") else self.hop - 1
    for i, chunk in enumerate(cut(mel, self.chunk_frames)):
      if i == 0 or len(chunk) > drop_to:
        mean_over = len(mel) - i * self.chunk_frames if tail == "released" else len(chunk)
        yield chunk, mean_over, len(chunk) if tail == "weighted" else 1

  def _padded_sizes(self) -> list[int]:
    """Lengths that chunks are padded to, ascending: few to compile, short clips cheap. Padding is
    masked."""
    sizes = [self.chunk_frames]
    while sizes[0] > min(128, self.chunk_frames // 4):
      sizes.insert(0, -(-sizes[0] // 2))
    return sizes

  def embed(
    self,
    mels: Iterable[Mel],
    *,
    num_blocks: int | None = None,
    max_frames: int | None = None,
    tail: str | None = None,
  ) -> np.ndarray:
    """Embeds log-mel clips of any lengths.

    Args:
      mels: (T, F) dB arrays of this model's front-end, or what `mel` returns. The clamp refers to
        the whole clip's maximum (released code).
      num_blocks: how many of a transformer's last blocks to concatenate, [CLS…, mean…]; all of them
        by default.
      max_frames: longer clips are cropped centrally (ATST's protocol: 12 s); no limit by default.
      tail: how the chunks of a longer clip are averaged; the export's own rule by default.
        "weighted": by length. "keep": all alike. "drop": alike, but a chunk after the first counts
        only if more than half of it is there. "released": as "drop", and the sum over a chunk's
        patches is divided by the patches from its start to the end of the clip, as ATST's released
        code does (a 10-s clip's first mean is 0.6 of itself).

    Returns:
      (clips, 2 · num_blocks · D) float32; (clips, D) of a convolutional encoder.

    Raises:
      UserError: an unknown tail, or a clip with the wrong number of mel bins.
    """
    tail = self.config["tail"] if tail is None else tail
    if tail not in TAILS:
      raise UserError(f"tail={tail!r}: choose one of {', '.join(TAILS)}")
    num_blocks = self.depth if num_blocks is None else num_blocks
    sums: list = []  # of each clip: its vector so far, None once it is out
    weights, waiting = [], {}
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
      self.check(mel, index)
      sums.append(0.0)
      weights.append(0)
      mel = mel if max_frames is None else central(mel, max_frames)
      peak = peak_of(mel)
      for chunk, mean_over, weight in self.chunks(mel, tail):
        size = next(size for size in sizes if len(chunk) <= size)
        # a copy, so that a waiting chunk does not keep its whole clip in memory
        waiting.setdefault(size, []).append(
          (index, peak, np.array(chunk, np.float32), mean_over, weight)
        )
        if len(waiting[size]) == batch_rows(size):
          flush(size)
    for size in list(waiting):
      flush(size)
    out = np.empty((len(sums), self.width(num_blocks)), np.float32)
    for i, weight in enumerate(weights):
      # freed here, so that the features of a large set are in memory only once
      out[i], sums[i] = sums[i] / weight, None
    return out

  def check(self, mel, index=0) -> None:
    """Raises UserError for a spectrogram that cannot be embedded."""
    if isinstance(mel, np.ndarray) and (mel.ndim != 2 or mel.shape[1] != self.frontend.n_mels):
      raise UserError(
        f"clip {index} has shape {mel.shape}; expected (frames, {self.frontend.n_mels})"
      )
    if len(mel) < self.hop:
      raise UserError(f"a clip of {len(mel)} frames; this encoder needs at least {self.hop}")

  def width(self, num_blocks: int) -> int:
    """Numbers in a vector of `embed`."""
    return self.encoder.size(num_blocks)

  def embed_frames(self, mel: Mel) -> np.ndarray:
    """(T, F) dB -> (T // hop, D): the last block's patch tokens, or a convolutional encoder's
    frames."""
    self.check(mel)
    peak = np.full(1, peak_of(mel), np.float32)
    out = []
    for part in cut(mel, self.chunk_frames // self.hop * self.hop):
      frames = len(part)
      if frames < self.hop:
        break
      size = next(size for size in self._padded_sizes() if frames <= size)
      chunk = np.zeros((1, size, part.shape[1]), np.float32)
      chunk[0, :frames] = part
      _, before = self._encode(self.variables, chunk, peak, np.full(1, frames, np.int32))
      out.append(np.asarray(self.encoder.frames(before)[0])[: frames // self.hop])
    return np.concatenate(out)


def load_model(folder: str) -> Model:
  """Opens an exported encoder. Raises UserError if the folder is not one or is damaged."""
  return Model(*exported.read(folder))
