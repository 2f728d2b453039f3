"""The ONNX graph of `onnx_graph` with weights of 8 bits: a quarter of the bytes, and other numbers.

The weights of matrix products are rounded to 8 bits, by column; what they are multiplied with is
rounded when it is known (dynamic quantization of onnxruntime). Convolutions stay as they are.
"""

import logging
import os
import tempfile

import jax
import numpy as np

from atst_jax.artifacts.model import Model
from atst_jax.artifacts.programs import onnx_graph
from atst_jax.artifacts.programs.graph import NEEDED
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

NAME = "encoder_int8.onnx"
LOST = 0.2  # of the vectors' norm, at most: beyond that something is wrong


def build(model: Model) -> bytes:
  """The serialised ONNX model of an export. Raises UserError as `onnx_graph.build`."""
  try:
    from onnxruntime.quantization import QuantType, quantize_dynamic
  except ImportError as error:
    raise UserError(NEEDED) from error
  with tempfile.TemporaryDirectory() as folder:
    whole, rounded = (os.path.join(folder, name) for name in ("whole.onnx", "rounded.onnx"))
    with open(whole, "wb") as file:
      file.write(onnx_graph.build(model))
    logging.disable(logging.WARNING)  # it recommends a step that changes nothing here
    try:
      quantize_dynamic(
        whole,
        rounded,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
      )
    finally:
      logging.disable(logging.NOTSET)
    with open(rounded, "rb") as file:
      return file.read()


def add(folder: str, model: Model) -> float:
  """Writes `encoder_int8.onnx` into an export, and says what it loses.

  Returns:
    How far its vectors of noise lie from the encoder's, relative to their norm.

  Raises:
    UserError: onnx or onnxruntime is not installed.
    RuntimeError: they lie too far.
  """
  path = os.path.join(folder, NAME)
  with storage.writing(path) as file:
    file.write(build(model))
  rng, frames = np.random.Generator(np.random.Philox(1)), min(model.chunk_frames, 203)
  mel = rng.normal(-40, 20, (2, frames, model.frontend.n_mels)).astype(np.float32)
  length, peak = np.full(2, frames, np.int32), mel.max((1, 2))
  ours = np.asarray(jax.jit(model.outputs)(model.variables, mel, length, peak)["scene"])
  theirs = onnx_graph.load(path)(mel, length, peak)["scene"]
  lost = float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))
  if not lost <= LOST:
    raise RuntimeError(f"{path}: vectors differ by {lost:.0%} of their norm from the model's")
  log.info("%s: vectors differ by %.2g %% of their norm from the encoder's", NAME, 100 * lost)
  return lost
