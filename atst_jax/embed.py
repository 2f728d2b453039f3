"""Audio to vectors with an exported encoder.

  python -m atst_jax.embed --encoder=encoders/base --input=recordings --output=vectors.npz

Audio of any length: it is cut into chunks (for a transformer as long as the training crop, because positions beyond it
were never trained), padding is masked, and the chunks' embeddings are averaged. Needs neither TensorFlow nor librosa.
"""

import argparse
import os
import sys
from collections.abc import Iterable

import numpy as np

from atst_jax import storage
from atst_jax.errors import UserError
from atst_jax.model import TAILS, Model, load_model


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
  """A vector for every `model.hop` frames (HEAR's name and shapes).

  Args:
    audio: (B, N) samples of one length.

  Returns:
    (B, T, D) float32, and (B, T) their centres in milliseconds.
  """
  vectors = np.stack([model.embed_frames(model.log_mel(a, sample_rate)) for a in audio])
  frame_ms = 1000 * model.frontend.hop_length / model.sample_rate
  times = (
    np.arange(vectors.shape[1]) * model.hop + (model.hop - 1) / 2
  ) * frame_ms  # frame i is centred at i · frame_ms
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
    return error.exit_code


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
  ids = np.array([sources[i].id for i in kept])
  try:
    with storage.writing(flags.output) as file:
      np.savez(file, id=ids, vector=vectors, params_hash=model.config["params_hash"])
  except OSError as error:
    raise UserError(f"--output={flags.output}: cannot be written ({error.strerror})") from error
  print(f"{flags.output}: {len(kept)} vectors of {vectors.shape[1]} numbers, {len(rejected)} files left out")
  return 0


if __name__ == "__main__":
  sys.exit(main())
