"""An encoder as an ONNX graph, written node by node: log-mel in, vectors out, any batch and length.

Inputs and outputs are those of `jax_program`; the file's metadata holds what its caller needs:
front-end, normalisation, chunks, and the length rule (`max_seconds`). Opset 17, float32, for every
runtime of ONNX. (jax2onnx, which translates functions of JAX, asks for an orbax-checkpoint older
than this project's.) Needs pip install -e .[onnx].
"""

import json
from collections.abc import Callable

import numpy as np

from atst_jax.artifacts.model import Model
from atst_jax.method.normalization import LOG_EPS, NEPERS_PER_DB
from atst_jax.util.errors import UserError

OPSET = 17  # the first with LayerNormalization
LIMIT = 2 << 30  # bytes of a protocol buffer


class Graph:
  """Nodes and constants of a graph; every value is a name."""

  def __init__(self, helper):
    self.nodes, self.constants, self._helper = [], [], helper

  def const(self, array, dtype=np.float32) -> str:
    """An initializer of the array as `dtype`."""
    from onnx import numpy_helper

    name = f"c{len(self.constants)}"
    self.constants.append(
      numpy_helper.from_array(np.ascontiguousarray(np.asarray(array, dtype)), name)
    )
    return name

  def ints(self, *values) -> str:
    """(n,) int64 constant, n values."""
    return self.const(values, np.int64)

  def op(self, kind: str, *inputs: str, outputs=1, **attributes):
    """Adds a node; returns the name of its output, or their names if there are several."""
    names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
    self.nodes.append(self._helper.make_node(kind, inputs, names, **attributes))
    return names[0] if outputs == 1 else names

  def size(self, x: str, axis: int) -> str:
    """(1,) int64: the length of an axis."""
    return self.op("Gather", self.op("Shape", x), self.ints(axis))

  def mask(self, x: str, axis: int, length: str, axes: list[int]) -> str:
    """Whether a position of an axis lies before `length` (B,); `axes` are added to (B,
    positions)."""
    positions = self.op(
      "Range",
      self.const(0, np.int64),
      self.op("Squeeze", self.size(x, axis)),
      self.const(1, np.int64),
    )
    valid = self.op(
      "Less",
      self.op("Unsqueeze", positions, self.ints(0)),
      self.op("Unsqueeze", length, self.ints(1)),
    )
    return self.op("Unsqueeze", valid, self.ints(*axes)) if axes else valid

  def dense(self, x: str, weights: dict) -> str:
    """(..., D) -> (..., D'): x @ kernel + bias."""
    return self.op(
      "Add", self.op("MatMul", x, self.const(weights["kernel"])), self.const(weights["bias"])
    )

  def norm(self, x: str, weights: dict) -> str:
    """LayerNorm over the last axis, epsilon 1e-6 as flax has it."""
    scale, bias = self.const(weights["scale"]), self.const(weights["bias"])
    return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-6)

  def gelu(self, x: str) -> str:
    """Exact GELU, x/2 · (1 + erf(x / √2))."""
    erf = self.op("Erf", self.op("Mul", x, self.const(0.5**0.5)))
    return self.op("Mul", self.op("Mul", x, self.const(0.5)), self.op("Add", erf, self.const(1)))

  def mean(self, x: str, valid: str, count: str) -> str:
    """The sum over axis 1 of (B, N, D) where `valid` (B, N, 1), divided by `count` (B,)."""
    kept = self.op("Where", valid, x, self.const(0))
    total = self.op("ReduceSum", kept, self.ints(1), keepdims=0)
    return self.op("Div", total, self.op("Unsqueeze", count, self.ints(1)))


def normalize(g: Graph, normalization: dict) -> str:
  """`normalization.normalize` of the inputs; silence behind the end."""
  if normalization["kind"] == "min_max":
    low, high = normalization["low"], normalization["high"]
    floor = g.op("Sub", g.op("Unsqueeze", "peak", g.ints(1, 2)), g.const(normalization["top_db"]))
    x = g.op("Sub", g.op("Max", "mel", floor), g.const(low))
    x = g.op("Sub", g.op("Mul", x, g.const(2 / (high - low))), g.const(1))
  else:
    power = g.op("Exp", g.op("Mul", "mel", g.const(NEPERS_PER_DB)))
    x = g.op("Log", g.op("Add", power, g.const(LOG_EPS)))
    x = g.op("Div", g.op("Sub", x, g.const(normalization["mean"])), g.const(normalization["std"]))
  return g.op("Where", g.mask("mel", 1, g.op("Cast", "length", to=7), [2]), x, g.const(0))


def build(model: Model) -> bytes:
  """The serialised ONNX model of an export, checked.

  Raises:
    UserError: onnx is not installed, the kind of encoder brings no nodes, or the weights are too
      many for one file.
  """
  try:
    import onnx
    from onnx import TensorProto, helper
  except ImportError as error:
    raise UserError("--artifacts=…,onnx needs pip install -e .[onnx]") from error
  g, n_mels = Graph(helper), model.frontend.n_mels
  x = normalize(g, model.config["normalization"])
  try:
    named = model.encoder.onnx(g, x, model.variables, n_mels)
  except NotImplementedError:
    raise UserError(
      f"encoder.kind={model.config['encoder']['kind']} has no ONNX nodes; leave out onnx"
    ) from None
  for name, value in zip(("scene", "frames"), named, strict=True):
    g.nodes.append(helper.make_node("Identity", [value], [name]))
  info = helper.make_tensor_value_info
  inputs = [
    info("mel", TensorProto.FLOAT, ["B", "T", n_mels]),
    info("length", TensorProto.INT32, ["B"]),
    info("peak", TensorProto.FLOAT, ["B"]),
  ]
  outputs = [
    info("scene", TensorProto.FLOAT, ["B", model.encoder.size(1)]),
    info("frames", TensorProto.FLOAT, ["B", "N", model.encoder.width]),
  ]
  graph = helper.make_graph(g.nodes, "encoder", inputs, outputs, g.constants)
  file = helper.make_model(
    graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="atst_jax"
  )
  # how sounds become mel, and chunks a sound's vector: a program sees one chunk
  told = ("frontend", "normalization", "chunk_frames", "tail", "max_seconds")
  helper.set_model_props(file, {key: json.dumps(model.config[key]) for key in told})
  if (size := file.ByteSize()) >= LIMIT:
    raise UserError(
      f"an ONNX file holds at most {LIMIT} bytes, this encoder would take {size}; leave out onnx"
    )
  onnx.checker.check_model(file, full_check=True)
  return file.SerializeToString()


def load(path: str) -> Callable:
  """The function (mel, length, peak) -> {"scene", "frames"} of a file, run by onnxruntime on the
  CPU."""
  try:
    import onnxruntime
  except ImportError as error:
    raise UserError("--artifacts=…,onnx needs pip install -e .[onnx]") from error
  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  names = ["scene", "frames"]

  def encode(mel, length, peak):
    return dict(
      zip(names, session.run(names, {"mel": mel, "length": length, "peak": peak}), strict=True)
    )

  return encode
