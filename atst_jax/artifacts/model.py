"""An exported encoder as something that embeds log-mel clips of any length."""

from collections.abc import Callable, Iterable, Iterator

import jax.numpy as jnp
import numpy as np

from atst_jax.artifacts import batches
from atst_jax.artifacts import folder as exported
from atst_jax.artifacts.batches import Chunk, Clips, Place, Program, Queue
from atst_jax.artifacts.classifiers.head import head_outputs
from atst_jax.artifacts.folder import check_length
from atst_jax.audio import waveforms
from atst_jax.audio.frontend import FrontEnd, mel_filters
from atst_jax.audio.waveforms import Mel
from atst_jax.method.normalization import normalize
from atst_jax.method.views import FLOOR_DB
from atst_jax.models.chunking import TAILS, weighted_chunks
from atst_jax.models.encoders import fresh_variables
from atst_jax.runtime.devices import full_precision, resolve_dtype
from atst_jax.util.errors import UserError


class Model:
  """An exported encoder, ready to embed. Make it with `load_model`.

  Attributes:
    config: the export's config.json.
    frontend: parameters of the log-mel spectrogram.
    sample_rate: Hz; audio of another rate is resampled, if its rate is stated.
    chunk_frames: frames of a chunk.
    max_seconds: the export's length rule: of longer sounds only the central `max_seconds` are
      embedded; None: sounds are embedded whole.
    fill_frames: shorter sounds, and shorter last chunks, are filled with silence, as when the
      encoder was trained; None: they are not.
    depth: blocks of a transformer; 1 for a convolutional encoder.
    hop: frames for each vector over time.
    encoder: the linen module, and `variables` its arrays.
  """

  def __init__(
    self,
    config: dict,
    variables,
    filters: np.ndarray | None,
    *,
    dtype: str = "float32",
    devices: list | None = None,
  ):
    """Args:
    config, variables, filters: of `folder.read`.
    dtype: of the encoder's products: "float32", "bfloat16", or "auto" (float32 on a CPU).
    devices: that batches lie over; all of this process by default.
    """
    self.config, self.variables, self._filters = config, variables, filters
    self.frontend = FrontEnd.from_json(config["frontend"])
    self.sample_rate = self.frontend.sample_rate
    self.chunk_frames: int = config["chunk_frames"]
    self.max_seconds: float | None = config["max_seconds"]
    self.fill_frames: int | None = config.get("fill_frames")
    self.dtype = resolve_dtype(dtype)
    self._devices = devices
    self.encoder = batches.fast_encoder(config["encoder"], self.dtype)
    self.depth, self.hop = self.encoder.blocks, self.encoder.hop
    self._pool = Program(self.pooled, variables, devices)
    self._over_time = Program(self._frames, variables, devices)

  @property
  def filters(self) -> np.ndarray:
    """(n_fft // 2 + 1, F) mel filters of the front-end."""
    return mel_filters(self.frontend) if self._filters is None else self._filters

  def normalized(self, mel, peak, length):
    """What the encoder sees of chunks: (B, T, F) dB, (B,) maximum of their clip, (B,) valid frames
    -> (B, T, F)."""
    x = normalize(mel.astype(jnp.float32), peak=peak[:, None, None], **self.config["normalization"])
    return jnp.where((jnp.arange(mel.shape[1])[None] < length[:, None])[..., None], x, 0)

  def _encoded(self, variables, mel, peak, length):
    with full_precision(self.dtype):
      return self.encoder.apply(variables, self.normalized(mel, peak, length), length)

  def _frames(self, variables, mel, peak, length, mean_over):
    """(B, N, D): the vectors over time of chunks."""
    del mean_over
    return self.encoder.frames(self._encoded(variables, mel, peak, length)[1])

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
      variables, mel: `self.variables`; (B, T, F) dB, T at most a transformer's `chunk_frames`.
      length, peak: (B,) valid frames; (B,) dB, maximum of the whole clip.

    Returns:
      {"scene": (B, 2D) [CLS, mean] of the last block, or (B, D) of a convolutional encoder;
      "frames": (B, N, D)}, and `head_outputs` of a classifier.
    """
    y, before = self._encoded(variables, mel, peak, length)
    pool = lambda blocks: self.encoder.pool(y, before, length, num_blocks=blocks)
    found = {"scene": pool(1), "frames": self.encoder.frames(before)}
    return found | head_outputs(self.config["head"], variables, pool)

  def reinitialized(self, seed: int) -> "Model":
    """The same with fresh random parameters: the baseline of every probe."""
    frames, n_mels = self.chunk_frames, self.frontend.n_mels
    return self._with({}, fresh_variables(self.encoder, frames, n_mels, seed))

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
    return self._with({"normalization": constants})

  def limited(self, max_seconds: float | None) -> "Model":
    """The same encoder with another length rule. Raises UserError if that is no length."""
    check_length(max_seconds)
    return self._with({"max_seconds": max_seconds})

  def _with(self, changes: dict, variables=None) -> "Model":
    """The same with other entries of the config, or with other variables. What a model has compiled
    serves the other too, where they compute the same."""
    config, variables = {**self.config, **changes}, variables or self.variables
    other = Model(config, variables, self._filters, dtype=self.dtype, devices=self._devices)
    if other.config["normalization"] == self.config["normalization"]:
      other._pool, other._over_time = self._pool.of(variables), self._over_time.of(variables)
    return other

  def mel(self, audio: np.ndarray, sample_rate: float, *, whole: bool = False) -> Mel:
    """(N,) samples at `sample_rate` Hz -> log-mel dB: (T, F), or what stands for it where it is
    long.

    The export's length rule crops the waveform, as ATST's released evaluations do; with `whole` it
    is left whole, which vectors over time need.

    Raises UserError for audio that is too short, not finite, not floats or not mono.
    """
    return self.mel_of(lambda: waveforms.pieces(audio, sample_rate, self.sample_rate), whole=whole)

  def mel_of(self, waveform: Callable[[], Iterator[np.ndarray]], *, whole: bool = False) -> Mel:
    """The same of a sound that is read in pieces at the model's rate, from its start at every
    call."""
    if self.max_seconds is not None and not whole:
      waveform = waveforms.central_samples(waveform, round(self.max_seconds * self.sample_rate))
    return waveforms.mel_of(waveform, self.frontend, self._filters)

  def log_mel(self, audio: np.ndarray, sample_rate: float) -> np.ndarray:
    """The whole sound's log-mel as an array (T, F), however long."""
    mel = self.mel(audio, sample_rate, whole=True)
    return waveforms.central(mel, len(mel))

  def chunks(self, mel, tail):
    """`weighted_chunks` of a clip. What is shorter than `fill_frames`, a whole clip or the last
    chunk, is filled up; it has the weight of its sound."""
    fill, size, frames = self.fill_frames or 0, self.chunk_frames, len(mel)
    rule = {"chunk_frames": size, "hop": self.hop, "tail": tail}
    for chunk, mean_over, weight in weighted_chunks(waveforms.cut(mel, size), frames, **rule):
      yield waveforms.surrounded(chunk, fill, FLOOR_DB), max(mean_over, fill), weight

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
        default. What `mel` returns is cropped already, as a waveform (for more of a sound than the
        rule has, make it with `whole=True`); of a spectrogram that comes from elsewhere the crop
        differs from that in the frames at its two ends.
      tail: how the chunks of a longer clip are averaged; the export's own rule by default.
        "weighted": by length. "keep": all alike. "drop": alike, but a chunk after the first counts
        only if more than half of it is there. "released": as "drop", and the sum over a chunk's
        patches is divided by the patches from its start to the end of the clip, as ATST's released
        code does (a 10-s clip's first mean is 0.6 of itself); of that transformer alone. An encoder
        with a `context` needs no rule: its vector is that of one pass over the whole clip.

    Returns:
      (clips, 2 · num_blocks · D) float32; (clips, D) of a convolutional encoder.

    Raises:
      UserError: an unknown tail, or another encoder's; a clip with the wrong number of mel bins.
    """
    tail = self.config["tail"] if tail is None else batches.checked_tail(tail, self.encoder)
    if tail not in TAILS:
      raise UserError(f"tail={tail!r}: choose one of {', '.join(TAILS)}")
    num_blocks = self.depth if num_blocks is None else num_blocks
    max_frames = self.rule_frames if max_frames is None else max_frames
    clips = Clips()
    queue = Queue(self._pool, self.chunk_frames, num_blocks=num_blocks)
    for index, mel in enumerate(mels):
      self.check(mel, index)
      clips.begin()
      mel = mel if max_frames is None else waveforms.central(mel, max_frames)
      peak = waveforms.peak_of(mel)
      if self.encoder.context is not None and len(mel) > self.chunk_frames:
        clips.add([(Place(index, 1, True), batches.maximum_plus_mean(self._vectors(mel, peak)))])
        continue
      for chunk, mean_over, weight in self.chunks(mel, tail):
        place = Place(index, weight, len(chunk) == self.chunk_frames)
        # a copy, so that a waiting chunk does not keep its whole clip in memory
        chunk = Chunk(np.array(chunk, np.float32), peak, mean_over)
        clips.add(queue.add(place, chunk))
    clips.add(queue.flush())
    return clips.means(self.width(num_blocks))

  def check(self, mel, index=0, *, over_time: bool = False) -> None:
    """Raises UserError for a spectrogram that has no vector, or no vector over time."""
    if isinstance(mel, np.ndarray) and (mel.ndim != 2 or mel.shape[1] != self.frontend.n_mels):
      raise UserError(
        f"clip {index} has shape {mel.shape}; expected (frames, {self.frontend.n_mels})"
      )
    if len(mel) < (least := self.hop if over_time else self.shortest):
      who = "vectors over time need" if over_time else "this encoder needs"
      raise UserError(f"a clip of {len(mel)} frames; {who} at least {least}")

  @property
  def rule_frames(self) -> int | None:
    """Frames of the export's length rule, if there is one."""
    if self.max_seconds is None:
      return None
    return self.frontend.num_frames(round(self.max_seconds * self.sample_rate))

  @property
  def shortest(self) -> int:
    """Frames of the shortest clip that can be embedded."""
    return 1 if self.fill_frames else self.hop

  @property
  def min_samples(self) -> int:
    """The shortest waveform at `sample_rate` that can be embedded."""
    return self.frontend.samples_of(self.shortest)

  def width(self, num_blocks: int) -> int:
    """Numbers in a vector of `embed`."""
    return self.encoder.size(num_blocks)

  def _vectors(self, mel: Mel, peak: float) -> Iterator[np.ndarray]:
    return batches.vectors_over_time(self._over_time, self.encoder, mel, peak, self.chunk_frames)

  def embed_frames(self, mel: Mel) -> np.ndarray:
    """(T, F) dB -> (T // hop, D): the last block's patch tokens, or a convolutional encoder's
    frames. Nothing is filled up."""
    return np.concatenate(list(self.frame_blocks(mel)))

  def frame_blocks(self, mel: Mel) -> Iterator[np.ndarray]:
    """Yields the same in parts (N, D), each in memory for a batch of chunks."""
    self.check(mel, over_time=True)
    return self._vectors(mel, waveforms.peak_of(mel))


def load_model(folder: str, *, dtype: str = "float32", devices: list | None = None) -> Model:
  """Opens an exported encoder. One from before length rules embeds sounds whole; a line says so.

  Args:
    folder: of an export.
    dtype, devices: as of `Model`.

  Raises:
    UserError: the folder is not an export or is damaged; an unknown dtype.
  """
  return Model(*exported.read(folder), dtype=dtype, devices=devices)
