"""An encoder as an ONNX graph, written node by node: log-mel in, vectors out, any batch and length.

Inputs and outputs are those of `atst_jax.artifacts.jax_program`. Opset 17, float32, for every
runtime of ONNX. (jax2onnx, which translates functions of JAX, asks for an orbax-checkpoint older
than this project's.) Needs pip install -e .[onnx].
"""

from collections.abc import Callable

import numpy as np

from atst_jax.method.normalization import LOG_EPS, NEPERS_PER_DB
from atst_jax.models.audiontt import BLOCKS
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


def transformer(g: Graph, x: str, encoder: dict, params: dict) -> tuple[str, str]:
  """`transformer.Transformer`: names of the scene vectors and of the last block's patch tokens."""
  F, P, D, H = encoder["n_mels"], encoder["patch_frames"], encoder["width"], encoder["heads"]
  length = g.op("Div", g.op("Cast", "length", to=7), g.const(P, np.int64))  # whole patches
  whole = g.op("Mul", g.op("Div", g.size(x, 1), g.ints(P)), g.ints(P))
  x = g.op("Reshape", g.op("Slice", x, g.ints(0), whole, g.ints(1)), g.ints(0, -1, P, F))
  x = g.op("Reshape", g.op("Transpose", x, perm=[0, 1, 3, 2]), g.ints(0, 0, F * P))
  x = g.dense(x, params["patch_embed"])
  shape = g.op("Concat", g.size(x, 0), g.ints(1, D), axis=0)
  x = g.op("Concat", g.op("Expand", g.const(params["cls_token"]), shape), x, axis=1)
  positions = g.op("Slice", g.const(params["pos_embed"]), g.ints(0), g.size(x, 1), g.ints(1))
  x = g.op("Add", x, positions)
  tokens = g.op("Add", length, g.const(1, np.int64))
  valid = g.mask(x, 1, tokens, [1, 2])
  heads = lambda y, perm: g.op("Transpose", g.op("Reshape", y, g.ints(0, 0, H, D // H)), perm=perm)
  for i in range(encoder["depth"]):
    block = params[f"block_{i:02d}"]
    qkv = g.op("MatMul", g.norm(x, block["norm1"]), g.const(block["qkv"]["kernel"]))
    q, k, v = g.op("Split", qkv, g.ints(D, D, D), outputs=3, axis=-1)
    scores = g.op("MatMul", heads(q, [0, 2, 1, 3]), heads(k, [0, 2, 3, 1]))
    scores = g.op("Mul", scores, g.const((D // H) ** -0.5))
    scores = g.op("Where", valid, scores, g.const(np.finfo(np.float32).min))
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), heads(v, [0, 2, 1, 3]))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, D))
    x = g.op("Add", x, g.dense(y, block["proj"]))
    x = g.op(
      "Add", x, g.dense(g.gelu(g.dense(g.norm(x, block["norm2"]), block["fc1"])), block["fc2"])
    )
  x = g.norm(x, params["norm"])
  cls = g.op("Squeeze", g.op("Slice", x, g.ints(0), g.ints(1), g.ints(1)), g.ints(1))
  frames = g.op("Slice", x, g.ints(1), g.ints(np.iinfo(np.int64).max), g.ints(1))
  count = g.op("Add", g.op("Cast", length, to=1), g.const(1e-6))
  mean = g.mean(frames, g.mask(frames, 1, length, [2]), count)
  return g.op("Concat", cls, mean, axis=1), frames


def cnn(g: Graph, x: str, encoder: dict, params: dict, statistics: dict) -> tuple[str, str]:
  """`cnn.AudioNTT`: names of the scene vectors and of the frames."""
  length = g.op("Cast", "length", to=7)
  x = g.op("Unsqueeze", x, g.ints(1))  # (B, C, T, F)
  for i in range(BLOCKS[encoder["version"]]):
    conv, norm, running = params[f"conv_{i}"], params[f"norm_{i}"], statistics[f"norm_{i}"]
    kernel = g.const(np.transpose(conv["kernel"], (3, 2, 0, 1)))
    x = g.op("Conv", x, kernel, g.const(conv["bias"]), pads=[1, 1, 1, 1])
    constants = [g.const(a) for a in (norm["scale"], norm["bias"], running["mean"], running["var"])]
    x = g.op("Relu", g.op("BatchNormalization", x, *constants, epsilon=1e-5))
    x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    length = g.op("Div", length, g.const(2, np.int64))
    x = g.op("Where", g.mask(x, 2, length, [1, 3]), x, g.const(0))
  x = g.op("Transpose", x, perm=[0, 2, 3, 1])
  features = params["fc1"]["kernel"].shape[0]
  x = g.op("Reshape", x, g.ints(0, 0, features))
  frames = g.op("Relu", g.dense(g.op("Relu", g.dense(x, params["fc1"])), params["fc2"]))
  if encoder["version"] == "AudioNTT2022":
    frames = g.op("Concat", x, frames, axis=2)
  valid = g.mask(frames, 1, length, [2])
  count = g.op("Max", g.op("Cast", length, to=1), g.const(1))
  peak = g.op("ReduceMax", g.op("Where", valid, frames, g.const(-np.inf)), axes=[1], keepdims=0)
  return g.op("Add", peak, g.mean(frames, valid, count)), frames


def build(config: dict, variables: dict) -> bytes:
  """The serialised ONNX model of an export, checked.

  Args:
    config: the export's config.json.
    variables: its arrays.

  Raises:
    UserError: onnx is not installed, or the weights are too many for one file.
  """
  try:
    import onnx
    from onnx import TensorProto, helper
  except ImportError as error:
    raise UserError("--artifacts=…,onnx needs pip install -e .[onnx]") from error
  encoder, g = {**config["encoder"], "n_mels": config["frontend"]["n_mels"]}, Graph(helper)
  x = normalize(g, config["normalization"])
  if encoder["kind"] == "transformer":
    named = transformer(g, x, encoder, variables["params"])
  else:
    named = cnn(g, x, encoder, variables["params"], variables["batch_stats"])
  for name, value in zip(("scene", "frames"), named, strict=True):
    g.nodes.append(helper.make_node("Identity", [value], [name]))
  info = helper.make_tensor_value_info
  width, scene = encoder["width"], encoder["width"] * (2 if encoder["kind"] == "transformer" else 1)
  inputs = [
    info("mel", TensorProto.FLOAT, ["B", "T", encoder["n_mels"]]),
    info("length", TensorProto.INT32, ["B"]),
    info("peak", TensorProto.FLOAT, ["B"]),
  ]
  outputs = [
    info("scene", TensorProto.FLOAT, ["B", scene]),
    info("frames", TensorProto.FLOAT, ["B", "N", width]),
  ]
  graph = helper.make_graph(g.nodes, "encoder", inputs, outputs, g.constants)
  model = helper.make_model(
    graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="atst_jax"
  )
  if (size := model.ByteSize()) >= LIMIT:
    raise UserError(
      f"an ONNX file holds at most {LIMIT} bytes, this encoder would take {size}; leave out onnx"
    )
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString()


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
