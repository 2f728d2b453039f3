"""An encoder as an ONNX graph: log-mel in, vectors out, any batch and length.

Inputs and outputs are those of `jax_program`; the file's metadata holds what its caller needs:
front-end, normalisation, chunks, and the length rule (`max_seconds`).
"""

from collections.abc import Callable

import numpy as np

from atst_jax.artifacts.model import Model
from atst_jax.artifacts.programs.graph import Graph, encode, import_onnx, serialized, session

# how sounds become mel, and chunks a sound's vector: this program sees one chunk
TOLD = ("frontend", "normalization", "chunk_frames", "tail", "max_seconds")


def build(model: Model) -> bytes:
  """The serialised ONNX model of an export, checked.

  Raises:
    UserError: onnx is not installed, the kind of encoder brings no nodes, or the weights are too
      many for one file.
  """
  import_onnx()
  g, n_mels = Graph(), model.frontend.n_mels
  scene, frames = encode(g, model, "mel", g.op("Cast", "length", to=7), "peak")
  g.name(scene, "scene")
  g.name(frames, "frames")
  inputs = [
    ("mel", np.float32, ["B", "T", n_mels]),
    ("length", np.int32, ["B"]),
    ("peak", np.float32, ["B"]),
  ]
  outputs = [
    ("scene", np.float32, ["B", model.encoder.size(1)]),
    ("frames", np.float32, ["B", "N", model.encoder.width]),
  ]
  return serialized(g, inputs, outputs, {key: model.config[key] for key in TOLD})


def load(path: str) -> Callable:
  """The function (mel, length, peak) -> {"scene", "frames"} of a file, run by onnxruntime on the
  CPU. Raises UserError if onnxruntime is not installed."""
  run = session(path)
  return lambda mel, length, peak: run(mel=mel, length=length, peak=peak)
