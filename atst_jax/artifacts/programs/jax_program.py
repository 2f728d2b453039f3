"""An encoder as one serialised program (`jax.export`): weights inside, any batch, at most
`chunk_frames` frames of a transformer, for CPU, CUDA and TPU.

  from jax import export
  encode = export.deserialize(bytearray(open("encoders/base/encoder.jax", "rb").read())).call
  vectors = encode(mel, length, peak)  # {"scene": (B, 2·D), "frames": (B, N, D)}

mel (B, T, F) float32 dB of the export's front-end, padded at will; length (B,) int32 valid frames;
peak (B,) float32, the whole clip's maximum in dB. T is from `hop` to `chunk_frames`,
without an end of BYOL-A's encoders: longer clips are cut into chunks and their vectors averaged, as
`Model.embed` does. JAX guarantees to load a program for six months; from version 0.12 on it
refuses older ones unless it is told otherwise (`EXPIRED`). Weights in safetensors and ONNX graphs
have no such end. config.json says when a program was written, and by which JAX (`programs`).
"""

import datetime
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import export

from atst_jax.artifacts.model import Model
from atst_jax.util.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")
EXPIRED = "JAX_EXPORT_DESERIALIZE_EXPIRED_VERSIONS"


def build(model: Model) -> bytes:
  """The program of a model, which takes (mel, length, peak) and returns `Model.outputs`."""
  bounds = [f"t >= {model.hop}"]
  if not model.encoder.any_length:
    bounds.append(f"t <= {model.chunk_frames}")
  B, T = export.symbolic_shape("b, t", scope=export.SymbolicScope(bounds))
  arguments = (
    jax.ShapeDtypeStruct((B, T, model.frontend.n_mels), jnp.float32),
    jax.ShapeDtypeStruct((B,), jnp.int32),
    jax.ShapeDtypeStruct((B,), jnp.float32),
  )
  variables = jax.tree.map(jnp.asarray, model.variables)
  forward = lambda mel, length, peak: model.outputs(variables, mel, length, peak)
  return bytes(export.export(jax.jit(forward), platforms=PLATFORMS)(*arguments).serialize())


def written() -> dict:
  """What config.json says of a program that is written now."""
  today = datetime.datetime.now(datetime.UTC).date()
  return {"date": today.isoformat(), "jax": jax.__version__, "guaranteed_months": 6}


def load(path: str) -> Callable:
  """The function (mel, length, peak) -> {"scene", "frames"} of a file. Raises UserError if the file
  is no program."""
  try:
    with open(path, "rb") as file:
      return export.deserialize(bytearray(file.read())).call
  except FileNotFoundError as error:
    raise UserError(
      f"{path} does not exist; write it with `python -m atst_jax.export --artifacts=…,jax`"
    ) from error
  except Exception as error:  # flatbuffers and MLIR raise errors of their own
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"{path}: not a program that this version of JAX ({jax.__version__}) reads ({reason}). "
      f"Export it again from its weights, or use the JAX that config.json names; {EXPIRED}=1 loads "
      "a program whose six months are over"
    ) from error
