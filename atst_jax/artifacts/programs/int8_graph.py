"""The ONNX graph of `onnx_graph` with weights of 8 bits: a quarter of the bytes, and other numbers.

The weights of matrix products are rounded to 8 bits, by column; what they are multiplied with is
rounded when it is known (dynamic quantization of onnxruntime). Convolutions stay as they are.
"""

import logging
import os
import tempfile
from typing import NamedTuple

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
CLIPS = 8


class Loss(NamedTuple):
  """What rounding costs, beside the model in float32 on CLIPS sounds of noise.

  Attributes:
    vectors: how far they lie from the encoder's, relative to their norm.
    probabilities: the greatest difference of one, of a classifier.
    same: sounds whose likeliest label is the same, of a classifier.
  """

  vectors: float
  probabilities: float | None = None
  same: int | None = None

  def told(self) -> str:
    """In words."""
    text = f"vectors differ by {100 * self.vectors:.2g} % of their norm from the encoder's"
    if self.probabilities is not None:
      text += (
        f", probabilities by {self.probabilities:.2g} at most, and {self.same} of {CLIPS} sounds "
        "have the same likeliest label"
      )
    return f"{text} (on {CLIPS} sounds of noise)"


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
        # 7 bits: CPUs without VNNI add two products of 8 bits in 16 bits, which 8 bits overflow
        # (onnxruntime 1.23, its own `session.x64quantprecision`)
        reduce_range=True,
      )
    finally:
      logging.disable(logging.NOTSET)
    with open(rounded, "rb") as file:
      return file.read()


def add(folder: str, model: Model) -> Loss:
  """Writes `encoder_int8.onnx` into an export. Returns what it loses, and says so in the log.

  Raises:
    UserError: onnx or onnxruntime is not installed.
    RuntimeError: vectors lie too far from the encoder's.
  """
  path = os.path.join(folder, NAME)
  with storage.writing(path) as file:
    file.write(build(model))
  loss = measure(path, model)
  if not loss.vectors <= LOST:
    raise RuntimeError(
      f"{path}: vectors differ by {loss.vectors:.0%} of their norm from the model's"
    )
  log.info("%s: %s", NAME, loss.told())
  return loss


def measure(path: str, model: Model) -> Loss:
  """Runs a graph and the model in float32 on the log-mels of CLIPS sounds of noise, of several
  levels and spectra, as long as a chunk or two seconds."""
  rng, frames = np.random.Generator(np.random.Philox(1)), min(model.chunk_frames, 203)
  noise = rng.normal(size=(CLIPS, model.frontend.samples_of(frames)))
  noise[1::2] = np.cumsum(noise[1::2], axis=1)  # every other one is low
  noise *= 10.0 ** rng.uniform(-3, -0.5, (CLIPS, 1)) / np.abs(noise).max(1, keepdims=True)
  mel = np.stack([model.log_mel(sound, model.sample_rate) for sound in noise])
  length, peak = np.full(CLIPS, mel.shape[1], np.int32), mel.max((1, 2))
  ours = jax.jit(model.outputs)(model.variables, mel, length, peak)
  theirs = onnx_graph.load(path)(mel, length, peak)
  apart = {key: np.asarray(theirs[key]) - np.asarray(ours[key]) for key in ours}
  vectors = float(np.linalg.norm(apart["scene"]) / np.linalg.norm(ours["scene"]))
  if "probabilities" not in ours:
    return Loss(vectors)
  same = theirs["logits"].argmax(1) == np.asarray(ours["logits"]).argmax(1)
  return Loss(vectors, float(np.abs(apart["probabilities"]).max()), int(same.sum()))
