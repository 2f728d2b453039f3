"""Waveforms to probabilities with an exported classifier: numpy in, numpy out."""

import numpy as np

from atst_jax.artifacts.classifiers.scoring import head_of, score
from atst_jax.artifacts.embedding import batch_of, of_full_scale
from atst_jax.artifacts.model import Model
from atst_jax.audio.sliding import sliding
from atst_jax.audio.waveforms import pieces
from atst_jax.prediction.sounds import check_length
from atst_jax.util.errors import UserError


def predict(audio, model: Model, sample_rate: float) -> np.ndarray:
  """The probability of every label of each sound, by the rule that the classifier was evaluated
  with: of sounds that are longer than it hears, the part that its head names counts.

  Args:
    audio: (B, N) samples, or a list of (N_i,) arrays; floats of full scale 1.0.
    model: of `load_model`, with a head.
    sample_rate: Hz of `audio`; it is resampled to the model's.

  Returns:
    (B, C) float32, in the order of `labels_of(model)`.

  Raises:
    UserError: a model without a head; audio that is not a batch, too short, not finite, not
      floats, or floats of another scale; a rate that is none.
  """
  head = head_of(model)
  mels = (model.mel(sound, sample_rate, whole=True) for sound in batch_of(audio))
  return head.probabilities(score(model, mels))


def predict_windows(
  audio: np.ndarray, model: Model, sample_rate: float, *, window: float, hop: float
) -> tuple[np.ndarray, np.ndarray]:
  """The same of windows of one long sound.

  Args:
    audio: (N,) samples.
    model, sample_rate: as of `predict`.
    window, hop: seconds.

  Returns:
    (W, 2) float64, where windows start and end in seconds, and (W, C) float32. The last window may
    be shorter.

  Raises UserError as `predict`, and for windows that the classifier does not hear.
  """
  if getattr(audio, "ndim", 1) != 1:
    raise UserError(f"audio of shape {audio.shape}: expected one sound of one axis")
  head, times = head_of(model), []
  check_length(model, head, window, hop)

  def mels():
    samples = pieces(of_full_scale(audio), sample_rate, model.sample_rate)
    for part in sliding(
      samples, sample_rate=model.sample_rate, seconds=window, hop=hop, min_samples=model.min_samples
    ):
      times.append((part.start, part.end))
      yield model.mel(part.samples, model.sample_rate, whole=True)

  logits = score(model, mels())
  return np.array(times).reshape(-1, 2), head.probabilities(logits)


def labels_of(model: Model) -> tuple[str, ...]:
  """The names of a classifier's C labels. Raises UserError for a model without a head."""
  return head_of(model).labels


def thresholds_of(model: Model) -> np.ndarray:
  """(C,) the probability from which on each label is given. Raises UserError for a model without a
  head, and for one that gives each sound one label, the likeliest."""
  head = head_of(model)
  if head.thresholds is None:
    raise UserError("this classifier has no thresholds: it gives each sound its likeliest label")
  return np.array(head.thresholds, np.float32)
