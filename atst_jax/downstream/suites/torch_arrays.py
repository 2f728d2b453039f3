"""PyTorch tensors of the benchmark suites to arrays of the encoder, and back."""

import os

import numpy as np

from atst_jax.artifacts.model import Model, load_model
from atst_jax.util.errors import UserError

VARIABLE = "ATST_JAX_ENCODER"


def open_encoder(path: str = "") -> Model:
  """The export at `path`, or at the environment's ATST_JAX_ENCODER for suites that pass none.
  Raises UserError."""
  path = path or os.environ.get(VARIABLE, "")
  if not path:
    raise UserError(
      f"which encoder? Set the environment variable {VARIABLE} to the folder of an export"
    )
  return load_model(path)


def samples(audio, model: Model, *, over_time: bool = False) -> np.ndarray:
  """(B, N) or (N,) tensor at the model's rate -> (B, N') float32. Clips that are too short for the
  encoder, or with `over_time` for one vector over time, end in silence, with which the suites fill
  shorter clips of a batch, too."""
  array = np.atleast_2d(audio.detach().cpu().numpy().astype(np.float32, copy=False))
  least = model.frontend.samples_of(model.hop) if over_time else model.min_samples
  return np.pad(array, ((0, 0), (0, max(0, least - array.shape[1]))))


def like(array: np.ndarray, audio):
  """The array as a tensor on the device of `audio`."""
  import torch

  return torch.from_numpy(np.array(array)).to(audio.device)
