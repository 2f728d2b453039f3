"""BYOL-A's files, v1 and v2."""

import math

import numpy as np

from atst_jax.artifacts import export
from atst_jax.artifacts.torch_files import to_variables
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.models.encoders import make_encoder
from atst_jax.util.errors import UserError

# of BYOL-A's loaders: librosa's and nnAudio's (Slaney) filters, torchaudio's (HTK)
BYOLA_FRONTENDS = ("byola", "byola_htk")
HTK_CONSTANTS = (-5.49, 5.04)  # mean and deviation that v1's README gives, of torchaudio's filters


def _check_frontend(version: str, frontend: str | None, mean: float, std: float) -> str:
  """The name of the front-end of a BYOL-A file, as it is stated. Raises UserError if v1's is not
  stated, or if mean and deviation are those of the other one's filters."""
  if frontend is None and version == "AudioNTT2020":
    raise UserError(
      "a file of BYOL-A v1 does not say which front-end its input had: state --frontend=byola "
      "(librosa's Slaney filters, on which the released weights were trained), with --mean and "
      "--std of data prepared so; or --frontend=byola_htk (torchaudio's HTK filters, of which v1's "
      f"README gives --mean={HTK_CONSTANTS[0]} --std={HTK_CONSTANTS[1]})"
    )
  frontend = frontend or BYOLA_FRONTENDS[0]
  if frontend not in BYOLA_FRONTENDS:
    raise UserError(f"--frontend={frontend}: a file of BYOL-A takes {' or '.join(BYOLA_FRONTENDS)}")
  if frontend == "byola" and np.allclose((mean, std), HTK_CONSTANTS, atol=5e-3):
    raise UserError(
      f"--mean={mean} --std={std} are what v1's README gives for HTK filters: state "
      "--frontend=byola_htk, or mean and deviation of your data prepared with --frontend=byola"
    )
  return frontend


def read_byola(
  tensors: dict, mean: float | None, std: float | None, frontend: str | None = None
) -> dict:
  """Keyword arguments of `export.write` for BYOL-A's tensors."""
  if mean is None or std is None or not (math.isfinite(mean) and 0 < std < math.inf):
    raise UserError(
      "BYOL-A's files lack the mean and deviation that its input is standardised by; state --mean "
      "and --std in nepers: `log_mean` and `log_std` of your data's dataset.json, prepared with "
      "the front-end (--frontend=byola or byola_htk)"
    )
  version = "AudioNTT2020" if "features.8.weight" in tensors else "AudioNTT2022"
  frontend = _check_frontend(version, frontend, mean, std)
  encoder = {"kind": "cnn", "version": version, "width": 1, "hidden": 1, "dropout": 0.3}
  variables = to_variables(tensors, make_encoder(encoder).torch_names())
  kernels = [variables["params"][name]["kernel"] for name in ("fc1", "fc2")]
  if any(kernel.ndim != 2 for kernel in kernels):
    raise UserError("the encoder's fc.0.weight and fc.3.weight must be matrices")
  (features, encoder["hidden"]), (_, out) = (kernel.shape for kernel in kernels)
  encoder["width"] = features + out if version == "AudioNTT2022" else out
  return {
    "variables": variables,
    "encoder": encoder,
    "frontend": FRONTENDS[frontend],
    "tail": "weighted",
    "normalization": {"kind": "standard", "mean": mean, "std": std},
    "chunk_frames": export.LONG_CHUNK,
  }
