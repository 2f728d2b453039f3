"""An exported encoder as something that embeds log-mel clips of any length."""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.artifacts import folder as exported
from atst_jax.artifacts.folder import check_length
from atst_jax.audio.frontend import FrontEnd
from atst_jax.audio.waveforms import (
  Mel,
  central,
  central_samples,
  cut,
  mel_of,
  peak_of,
  pieces,
  windows,
)
from atst_jax.method.normalization import normalize
from atst_jax.models.chunking import TAILS, batch_rows, padded_sizes, weighted_chunks
from atst_jax.models.encoders import make_encoder
from atst_jax.util.errors import UserError
from atst_jax.util.numbers import as_written


class Model:
  """An exported encoder, ready to embed. Make it with `load_model`.

  Attributes:
    config: the export's config.json.
    frontend: parameters of the log-mel spectrogram.
    sample_rate: Hz; audio of another rate is resampled, if its rate is stated.
    chunk_frames: frames of a chunk.
    max_seconds: the export's length rule: of longer sounds only the central `max_seconds` are
      embedded; None: sounds are embedded whole.
    depth: blocks of a transformer; 1 for a convolutional encoder.
    hop: frames for each vector over time.
    encoder: the linen module, and `variables` its arrays.
  """

  def __init__(self, config: dict, variables, filters: np.ndarray | None):
    self.config, self.variables, self._filters = config, variables, filters
    self.frontend = FrontEnd.from_json(config["frontend"])
    self.sample_rate = self.frontend.sample_rate
    self.chunk_frames: int = config["chunk_frames"]
    self.max_seconds: float | None = config["max_seconds"]
    self.encoder = make_encoder(config["encoder"])
    self.depth, self.hop = self.encoder.blocks, self.encoder.hop
    self._encode = as_written(jax.jit(self._encoded))
    self._pool = as_written(jax.jit(self.pooled, static_argnames="num_blocks"))

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
    init = as_written(jax.jit(self.encoder.init))
    variables = init(jax.random.key(seed, impl="threefry2x32"), noise)
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

  def limited(self, max_seconds: float | None) -> "Model":
    """The same encoder with another length rule. Raises UserError if that is no length."""
    check_length(max_seconds)
    return Model({**self.config, "max_seconds": max_seconds}, self.variables, self._filters)

  def mel(self, audio: np.ndarray, sample_rate: float, *, whole: bool = False) -> Mel:
    """(N,) samples at `sample_rate` Hz -> log-mel dB: (T, F), or what stands for it where it is
    long.

    The export's length rule crops the waveform, as ATST's released evaluations do; with `whole` it
    is left whole, which vectors over time need.

    Raises UserError for audio that is too short, not finite, not floats or not mono.
    """
    return self.mel_of(lambda: pieces(audio, sample_rate, self.sample_rate), whole=whole)

  def mel_of(self, waveform: Callable[[], Iterator[np.ndarray]], *, whole: bool = False) -> Mel:
    """The same of a sound that is read in pieces at the model's rate, from its start at every
    call."""
    if self.max_seconds is not None and not whole:
      waveform = central_samples(waveform, round(self.max_seconds * self.sample_rate))
    return mel_of(waveform, self.frontend, self._filters)

  def log_mel(self, audio: np.ndarray, sample_rate: float) -> np.ndarray:
    """The whole sound's log-mel as an array (T, F), however long."""
    mel = self.mel(audio, sample_rate, whole=True)
    return central(mel, len(mel))

  def chunks(self, mel, tail):
    """`weighted_chunks` of a clip."""
    parts = cut(mel, self.chunk_frames)
    return weighted_chunks(parts, len(mel), chunk_frames=self.chunk_frames, hop=self.hop, tail=tail)

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
      max_frames: longer spectrograms are cropped centrally; to the export's length rule by
        default. What `mel` returns is cropped already, as a waveform; of a spectrogram that comes
        from elsewhere the crop differs from that in the frames at its two ends.
      tail: how the chunks of a longer clip are averaged; the export's own rule by default.
        "weighted": by length. "keep": all alike. "drop": alike, but a chunk after the first counts
        only if more than half of it is there. "released": as "drop", and the sum over a chunk's
        patches is divided by the patches from its start to the end of the clip, as ATST's released
        code does (a 10-s clip's first mean is 0.6 of itself). An encoder with a `context` needs no
        rule: its vector is that of one pass over the whole clip.

    Returns:
      (clips, 2 · num_blocks · D) float32; (clips, D) of a convolutional encoder.

    Raises:
      UserError: an unknown tail, or a clip with the wrong number of mel bins.
    """
    tail = self.config["tail"] if tail is None else tail
    if tail not in TAILS:
      raise UserError(f"tail={tail!r}: choose one of {', '.join(TAILS)}")
    num_blocks = self.depth if num_blocks is None else num_blocks
    if max_frames is None and self.max_seconds is not None:
      max_frames = self.frontend.num_frames(round(self.max_seconds * self.sample_rate))
    sums: list = []  # of each clip: its vector so far, None once it is out
    weights, waiting = [], {}
    sizes = padded_sizes(self.chunk_frames)

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
      if self.encoder.context is not None and len(mel) > self.chunk_frames:
        sums[index], weights[index] = self._one_pass(mel, peak), 1
        continue
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

  def _frame_parts(self, mel: Mel, peak: float) -> Iterator[np.ndarray]:
    """Yields a clip's consecutive (N, D) vectors over time, in memory for one chunk. Where an
    encoder knows its `context`, they are those of one pass over the whole clip."""
    context, hop = self.encoder.context or 0, self.hop
    inner = (self.chunk_frames - 2 * context) // hop * hop
    if len(mel) <= self.chunk_frames or inner < hop:  # a chunk alone, or chunks without context
      context, inner = 0, self.chunk_frames // hop * hop
    peaks = np.full(1, peak, np.float32)
    for part, before in windows(mel, inner, context):
      length = len(part)
      if length - before < hop:
        break
      size = next(size for size in padded_sizes(self.chunk_frames) if length <= size)
      chunk = np.zeros((1, size, part.shape[1]), np.float32)
      chunk[0, :length] = part
      _, found = self._encode(self.variables, chunk, peaks, np.full(1, length, np.int32))
      last = min((before + inner) // hop, length // hop)
      yield np.asarray(self.encoder.frames(found)[0])[before // hop : last]

  def _one_pass(self, mel: Mel, peak: float) -> np.ndarray:
    """(D,): maximum plus mean over time of a clip longer than a chunk, from its parts."""
    width = self.encoder.width
    top, total, count = np.full(width, -np.inf), np.zeros(width), 0
    for frames in self._frame_parts(mel, peak):
      top, total = np.maximum(top, frames.max(0)), total + frames.sum(0, dtype=np.float64)
      count += len(frames)
    return top + total / count

  def embed_frames(self, mel: Mel) -> np.ndarray:
    """(T, F) dB -> (T // hop, D): the last block's patch tokens, or a convolutional encoder's
    frames."""
    self.check(mel)
    return np.concatenate(list(self._frame_parts(mel, peak_of(mel))))


def load_model(folder: str) -> Model:
  """Opens an exported encoder. Raises UserError if the folder is not one or is damaged.

  An export from before length rules embeds sounds whole, and a line says so.
  """
  return Model(*exported.read(folder))
