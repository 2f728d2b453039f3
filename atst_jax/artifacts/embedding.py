"""Waveforms to vectors with an exported encoder, under HEAR's names: numpy in, numpy out.

Sounds may have any length. An export's length rule (`Model.max_seconds`) says whether a longer one
is embedded whole or only its central seconds, as ATST's evaluations do. Sounds are cut into chunks
(for a transformer as long as the training crop, because positions beyond it were never trained),
padding is masked, and the chunks' embeddings are averaged. Needs neither TensorFlow nor librosa.
"""

from collections.abc import Iterator

import numpy as np

from atst_jax.artifacts.model import Model, load_model
from atst_jax.util.errors import UserError

MOST_PEAK = 64.0  # full scale is 1.0; floats overshoot it a little, 16-bit integers by far

__all__ = ["Model", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]


def get_scene_embeddings(audio, model: Model, sample_rate: float, **options) -> np.ndarray:
  """One vector for each sound (HEAR's name and shapes).

  Args:
    audio: (B, N) samples, or a list of (N_i,) arrays; floats of full scale 1.0. Long ones take no
      more memory than they are.
    model: of `load_model`.
    sample_rate: Hz of `audio`; it is resampled to the model's.
    options: of `Model.embed`; the last block alone by default. With `max_frames` above the
      export's length rule so many frames of the sound's middle count, not the rule.

  Returns:
    (B, D) float32.

  Raises:
    UserError: audio that is not a batch, too short, not finite, not floats, or floats of another
      scale; a rate that is none.
  """
  most, rule = options.get("max_frames"), model.rule_frames
  whole = rule is not None and most is not None and most > rule
  mels = (model.mel(a, sample_rate, whole=whole) for a in batch_of(audio))
  return model.embed(mels, **{"num_blocks": 1, **options})


def get_timestamp_embeddings(
  audio, model: Model, sample_rate: float
) -> tuple[np.ndarray, np.ndarray]:
  """A vector for every `model.hop` frames of the whole sound (HEAR's name and shapes). The length
  rule is of vectors of sounds: it does not apply.

  Args:
    audio, model, sample_rate: as of `get_scene_embeddings`.

  Returns:
    (B, T, D) float32, and (B, T) float64, their centres in milliseconds. Where lengths differ, T is
    the longest's; behind the end of a shorter sound vectors are 0 and times NaN.
  """
  found = [model.embed_frames(model.mel(a, sample_rate, whole=True)) for a in batch_of(audio)]
  longest = max(map(len, found), default=0)
  frame_ms = 1000 * model.frontend.hop_length / model.sample_rate
  # frame i is centred at i · frame_ms, or begins there
  frontend = model.frontend
  first = 0 if frontend.is_centred else 500 * frontend.win_length / model.sample_rate
  centres = first + (np.arange(longest) * model.hop + model.encoder.centre) * frame_ms
  out = np.zeros((len(found), longest, model.config["encoder"]["width"]), np.float32)
  times = np.full(out.shape[:2], np.nan)
  for i, rows in enumerate(found):
    out[i, : len(rows)], times[i, : len(rows)] = rows, centres[: len(rows)]
  return out, times


def batch_of(audio) -> Iterator:
  """The sounds of a batch. Raises UserError for one sound alone, and where it comes to one of
  another scale."""
  if getattr(audio, "ndim", 2) < 2:
    raise UserError(
      f"audio of shape {audio.shape}: expected a batch of sounds; for one sound pass [audio]"
    )
  return map(of_full_scale, audio)


def of_full_scale(sound):
  """The sound, unless its samples go far beyond 1.0. Raises UserError."""
  samples = np.asarray(sound)
  if samples.dtype.kind == "f" and samples.size:
    peak = float(max(samples.max(), -samples.min()))
    if MOST_PEAK < peak < np.inf:
      raise UserError(
        f"audio with samples up to {peak:g}: expected floats of full scale 1.0 (divide 16-bit "
        "integers by 32768)"
      )
  return sound
