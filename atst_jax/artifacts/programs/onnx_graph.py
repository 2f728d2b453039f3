"""An encoder as an ONNX graph: log-mel in, vectors out, and what a classifier's head says of them,
any batch.

Inputs and outputs are those of `jax_program`; the file's metadata holds what its caller needs:
front-end, normalisation, chunks, the length rule (`max_seconds`), and how several channels become
one (`channels`).
"""

from collections.abc import Callable

import numpy as np

from atst_jax.artifacts.folder import EMBEDDING
from atst_jax.artifacts.model import Model
from atst_jax.artifacts.programs.graph import Graph, encode, import_onnx, serialized, session

# how sounds become mel, and chunks a sound's vector: this program sees one chunk
TOLD = ("frontend", *EMBEDDING[1:], "channels", "head")


def build(model: Model) -> bytes:
  """The serialised ONNX model of an export, checked.

  Raises:
    UserError: onnx is not installed, the kind of encoder brings no nodes, or the weights are too
      many for one file.
  """
  import_onnx()
  g, n_mels = Graph(), model.frontend.n_mels
  head, length = model.config["head"], g.op("Cast", "length", to=7)
  blocks = head["blocks"] if head else 1
  vectors, frames = encode(g, model, "mel", length, "peak", num_blocks=blocks)
  g.name(_last_block(g, model, vectors, blocks), "scene")
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
  if head:
    logits = g.dense(vectors, model.variables["head"])
    g.name(logits, "logits")
    g.name(probabilities(g, logits, head["activation"]), "probabilities")
    labels = len(head["labels"])
    outputs += [(name, np.float32, ["B", labels]) for name in ("logits", "probabilities")]
  return serialized(g, inputs, outputs, {key: model.config.get(key) for key in TOLD})


def _last_block(g: Graph, model: Model, vectors: str, blocks: int) -> str:
  """The vectors of the last block alone, of those of several, [CLS…, mean…]."""
  if blocks == 1:
    return vectors
  parts = g.op("Split", vectors, outputs=2 * blocks, axis=-1)
  return g.op("Concat", parts[blocks - 1], parts[-1], axis=-1)


def probabilities(g: Graph, logits: str, activation: str) -> str:
  """The nodes of `classifiers.head.ACTIVATIONS`."""
  if activation == "softmax":
    return g.op("Softmax", logits, axis=-1)
  if activation == "sigmoid":
    return g.op("Sigmoid", logits)
  return g.op("Clip", logits, g.const(0), g.const(1))


def load(path: str) -> Callable:
  """The function (mel, length, peak) -> {"scene", "frames"} of a file, run by onnxruntime on the
  CPU. Raises UserError if onnxruntime is not installed."""
  run = session(path)
  return lambda mel, length, peak: run(mel=mel, length=length, peak=peak)
