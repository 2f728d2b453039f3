"""Audio to vectors with an exported encoder.

  python -m atst_jax.embed --encoder=encoders/base --input=recordings --output=vectors.npz

Audio of any length: it is cut into chunks as long as the training crop (positions beyond it were never trained),
padding is masked, and the chunks' embeddings are averaged. Needs neither TensorFlow nor librosa.
"""

import argparse
import os
import sys
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax import export
from atst_jax.encoders import pool_blocks
from atst_jax.errors import UserError
from atst_jax.frontend import FrontEnd, log_mel
from atst_jax.views import normalize

BATCH = 32  # chunks encoded at a time
TAILS = ("released", "drop", "keep", "weighted")


class Model:
  """An exported encoder, ready to embed. Make it with `load_model`.

  Attributes:
    config: the export's config.json.
    frontend: parameters of the log-mel spectrogram.
    sample_rate: Hz; audio of another rate is resampled, if its rate is stated.
    chunk_frames: frames of a chunk.
    depth: blocks of the encoder.
  """

  def __init__(self, config: dict, variables, filters: np.ndarray):
    self.config, self.variables, self._filters = config, variables, filters
    self.frontend = FrontEnd.from_json(config["frontend"])
    self.sample_rate = self.frontend.sample_rate
    self.chunk_frames: int = config["chunk_frames"]
    self.depth: int = config["encoder"]["depth"]
    self._patch = config["encoder"]["patch_frames"]
    self._encoder = export.make_encoder(config)
    self._encode = jax.jit(self._blocks)
    self._pool = jax.jit(self._pooled, static_argnames="num_blocks")

  def _blocks(self, variables, mel, peak, length):
    x = normalize(mel.astype(jnp.float32), peak=peak[:, None, None], **self.config["normalization"])
    x = jnp.where((jnp.arange(mel.shape[1])[None] < length[:, None])[..., None], x, 0)
    return self._encoder.apply(variables, x, length)[1]["blocks"]

  def _pooled(self, variables, mel, peak, length, mean_over, num_blocks):
    blocks = self._blocks(variables, mel, peak, length)
    return pool_blocks(blocks, length, patch_frames=self._patch, num_blocks=num_blocks, mean_over=mean_over)

  def reinitialized(self, seed: int) -> "Model":
    """The same architecture, front-end and normalisation with fresh random parameters: the baseline of every probe."""
    noise = jnp.zeros((1, self.chunk_frames, self.frontend.n_mels))
    return Model(self.config, self._encoder.init(jax.random.key(seed), noise), self._filters)

  def log_mel(self, audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """(N,) samples at `sample_rate` Hz -> (T, F) dB. Raises UserError for audio that is too short or not finite."""
    audio = np.asarray(audio, np.float32)
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

  def _chunks(self, mel, tail):
    """Yields (chunk, frames that its mean is divided by, weight) of a clip, by the rule that `embed` describes."""
    drop_to = self.chunk_frames // 2 if tail in ("released", "drop") else self._patch - 1
    for start in range(0, len(mel), self.chunk_frames):
      chunk = mel[start : start + self.chunk_frames]
      if start == 0 or len(chunk) > drop_to:
        mean_over = len(mel) - start if tail == "released" else len(chunk)
        yield chunk, mean_over, len(chunk) if tail == "weighted" else 1

  def embed(self, mels: Iterable[np.ndarray], *, num_blocks: int | None = None, max_frames: int | None = None,
            tail: str | None = None) -> np.ndarray:  # fmt: skip
    """Embeds log-mel clips of any lengths.

    Args:
      mels: (T, F) dB arrays of this model's front-end. The clamp refers to the whole clip's maximum (released code).
      num_blocks: how many of the last blocks to concatenate, [CLS…, mean…]; all of them by default.
      max_frames: longer clips are cropped centrally (ATST's protocol: 12 s); no limit by default.
      tail: how the chunks of a longer clip are averaged; the export's own rule by default. "weighted": by length.
        "keep": all alike. "drop": alike, but a chunk after the first counts only if more than half of it is there.
        "released": as "drop", and the sum over a chunk's patches is divided by the patches from its start to the end
        of the clip, as ATST's released code does (a 10-s clip's first mean is 0.6 of itself).

    Returns:
      (clips, 2 · num_blocks · D) float32.

    Raises:
      UserError: an unknown tail, or a clip with the wrong number of mel bins.
    """
    tail = self.config["tail"] if tail is None else tail
    if tail not in TAILS:
      raise UserError(f"tail={tail!r}: choose one of {', '.join(TAILS)}")
    num_blocks = self.depth if num_blocks is None else num_blocks
    sums, weights, waiting = [], [], {}
    # Three lengths of padding keep short clips cheap; padding is masked and does not change the result.
    sizes = sorted({min(self.chunk_frames, -(-self.chunk_frames // part)) for part in (1, 2, 4)})

    def flush(size):
      clips, peaks, chunks, mean_over, chunk_weights = zip(*waiting.pop(size), strict=True)
      batch = np.zeros((BATCH, size, self.frontend.n_mels), np.float32)
      for i, chunk in enumerate(chunks):
        batch[i, : len(chunk)] = chunk
      pad = lambda values, dtype: np.pad(np.asarray(values, dtype), (0, BATCH - len(values)))
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
      sums.append(0.0)
      weights.append(0)
      start = max(len(mel) - (max_frames or len(mel)), 0) // 2
      mel = np.asarray(mel[start : start + (max_frames or len(mel))], np.float32)
      for chunk, mean_over, weight in self._chunks(mel, tail):
        size = next(size for size in sizes if len(chunk) <= size)
        waiting.setdefault(size, []).append((index, float(mel.max()), chunk, mean_over, weight))
        if len(waiting[size]) == BATCH:
          flush(size)
    for size in list(waiting):
      flush(size)
    if not sums:
      return np.zeros((0, 2 * num_blocks * self.config["encoder"]["width"]), np.float32)
    return np.stack([s / w for s, w in zip(sums, weights, strict=True)]).astype(np.float32)

  def embed_frames(self, mel: np.ndarray) -> np.ndarray:
    """(T, F) dB -> (T // patch_frames, D), the last block's patch tokens, one every patch_frames frames."""
    hop = self.chunk_frames // self._patch * self._patch
    peak = np.full(1, mel.max(), np.float32)
    out = []
    for start in range(0, len(mel) // self._patch * self._patch, hop):
      chunk = np.zeros((1, hop, mel.shape[1]), np.float32)
      frames = min(hop, len(mel) - start)
      chunk[0, :frames] = mel[start : start + frames]
      blocks = self._encode(self.variables, chunk, peak, np.full(1, frames, np.int32))
      out.append(np.asarray(blocks[-1, 0, 1:])[: frames // self._patch])
    return np.concatenate(out)


def load_model(folder: str) -> Model:
  """Opens an exported encoder. Raises UserError if the folder is not one or is damaged."""
  return Model(*export.read(folder))


def get_scene_embeddings(audio, model: Model, sample_rate: int, **options) -> np.ndarray:
  """One vector for each sound (HEAR's name and shapes).

  Args:
    audio: (B, N) samples, or a list of (N_i,) arrays.
    model: of `load_model`.
    sample_rate: Hz of `audio`; it is resampled to the model's.
    options: of `Model.embed`; the last block alone by default.

  Returns:
    (B, D) float32.
  """
  return model.embed((model.log_mel(a, sample_rate) for a in audio), **{"num_blocks": 1, **options})


def get_timestamp_embeddings(audio, model: Model, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
  """A vector for every patch of frames (HEAR's name and shapes).

  Args:
    audio: (B, N) samples of one length.

  Returns:
    (B, T, D) float32, and (B, T) the centres of the patches in milliseconds.
  """
  vectors = np.stack([model.embed_frames(model.log_mel(a, sample_rate)) for a in audio])
  hop_ms = 1000 * model.frontend.hop_length / model.sample_rate
  patch = model.config["encoder"]["patch_frames"]
  times = (np.arange(vectors.shape[1]) * patch + (patch - 1) / 2) * hop_ms  # frame i is centred at i · hop
  return vectors, np.broadcast_to(times, vectors.shape[:2])


def embed_files(model: Model, paths: Iterable[str], **options):
  """(vectors, indices of the files embedded, {index: reason} of those that could not be read)."""
  from data_pipeline.audio import load_audio

  kept, rejected = [], {}

  def mels():
    for index, path in enumerate(paths):
      try:
        mel = model.log_mel(load_audio(path, model.sample_rate), model.sample_rate)
      except UserError as error:
        rejected[index] = str(error)
        continue
      kept.append(index)
      yield mel

  return model.embed(mels(), **options), kept, rejected


def main(argv=None) -> int:
  parser = argparse.ArgumentParser("python -m atst_jax.embed", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
  parser.add_argument("--encoder", required=True, help="exported encoder")
  parser.add_argument("--input", required=True, help="folder of recordings, or a manifest CSV")
  parser.add_argument("--output", required=True, help="FILE.npz with `id` (N,) and `vector` (N, D)")
  parser.add_argument("--blocks", type=int, default=1, help="how many of the last blocks to concatenate (default 1)")
  parser.add_argument("--tail", choices=TAILS, help="how chunks are averaged; the export's rule by default")
  flags = parser.parse_args(argv)
  try:
    return _main(flags)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _main(flags) -> int:
  from tqdm import tqdm

  from data_pipeline.sources import list_sources

  folder = os.path.dirname(flags.output) or "."
  if not os.access(folder, os.W_OK) or not flags.output.endswith(".npz"):
    raise UserError(f"--output={flags.output}: must be a .npz in a folder that exists and can be written")
  model = load_model(flags.encoder)
  if not 1 <= flags.blocks <= model.depth:
    raise UserError(f"--blocks={flags.blocks}: the encoder has {model.depth} blocks")
  sources = list_sources(flags.input).sources
  paths = tqdm([s.path for s in sources], unit="file", disable=not sys.stderr.isatty())
  vectors, kept, rejected = embed_files(model, paths, num_blocks=flags.blocks, tail=flags.tail)
  for index, reason in rejected.items():
    print(f"left out {sources[index].id}: {reason}", file=sys.stderr)
  if not kept:
    raise UserError(f"--input={flags.input}: none of {len(sources)} files could be read")
  temporary = f"{flags.output}.tmp-{os.getpid()}.npz"
  try:
    ids = np.array([sources[i].id for i in kept])
    np.savez(temporary, id=ids, vector=vectors, params_hash=model.config["params_hash"])
    os.replace(temporary, flags.output)
  except OSError as error:
    raise UserError(f"--output={flags.output}: cannot be written ({error.strerror})") from error
  finally:
    if os.path.exists(temporary):
      os.unlink(temporary)
  print(f"{flags.output}: {len(kept)} vectors of {vectors.shape[1]} numbers, {len(rejected)} files left out")
  return 0


if __name__ == "__main__":
  sys.exit(main())
