"""Log-mel clips to logits with an exported classifier, as the evaluation that trained it scores
them."""

from collections.abc import Iterable

import numpy as np

from atst_jax.artifacts.classifiers.head import Head, read_head
from atst_jax.artifacts.model import Model
from atst_jax.audio.waveforms import LongMel, Mel, central
from atst_jax.util.errors import UserError


def head_of(model: Model) -> Head:
  """The model's head. Raises UserError if it is an encoder alone."""
  head = read_head(model.config["head"], hop=model.hop, depth=model.depth)
  if head is None:
    raise UserError(
      "the model is an encoder without a classifier; export a fine-tuning run, or a linear "
      "evaluation with --config.export=FOLDER"
    )
  return head


def clip_of(head: Head, mel: Mel) -> np.ndarray:
  """(T, F) dB of a sound as the head was trained to hear it: cropped, in the precision of prepared
  shards (float16), and filled up."""
  crop = central if head.crop == "center" else _first
  clip = crop(mel, head.max_frames).astype(np.float16).astype(np.float32)
  missing = 0 if head.fill_frames is None else head.fill_frames - len(clip)
  return np.pad(clip, ((0, max(missing, 0)), (0, 0)), constant_values=head.fill_db or 0)


def _first(mel: Mel, frames: int) -> np.ndarray:
  if not isinstance(mel, LongMel):
    return mel[:frames]
  kept, count = [], 0
  for block in mel:
    kept.append(block)
    count += len(block)
    if count >= frames:
      break
  return np.concatenate(kept)[:frames]


def score(model: Model, mels: Iterable[Mel]) -> np.ndarray:
  """(N, C) logits of the log-mels of N sounds. Raises UserError for one that cannot be embedded,
  and for a model without a head."""
  head = head_of(model)
  weights = model.variables["head"]
  vectors = model.embed(
    (clip_of(head, mel) for mel in mels), num_blocks=head.blocks, max_frames=head.max_frames
  )
  return vectors @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
