"""A graph of ONNX, written node by node, and the file that holds it.

Opset 17, float32, for every runtime of ONNX. (jax2onnx, which translates functions of JAX, asks for
an orbax-checkpoint older than this project's.) Needs pip install -e .[onnx].
"""

import itertools
import json
from collections.abc import Callable, Sequence

import numpy as np

from atst_jax.artifacts.model import Model
from atst_jax.method.normalization import LOG_EPS, NEPERS_PER_DB
from atst_jax.util.errors import UserError

OPSET = 17  # the first with LayerNormalization
LIMIT = 2 << 30  # bytes of a protocol buffer
NEEDED = "--artifacts=…,onnx needs pip install -e .[onnx]"


def import_onnx():
  """The module onnx. Raises UserError if it is not installed."""
  try:
    import onnx
  except ImportError as error:
    raise UserError(NEEDED) from error
  return onnx


class Graph:
  """Nodes and constants of a graph; every value is a name."""

  def __init__(self):
    self.nodes, self.constants, self._count = [], [], itertools.count()

  def const(self, array, dtype=np.float32) -> str:
    """An initializer of the array as `dtype`."""
    from onnx import numpy_helper

    name = f"c{next(self._count)}"
    self.constants.append(
      numpy_helper.from_array(np.ascontiguousarray(np.asarray(array, dtype)), name)
    )
    return name

  def ints(self, *values) -> str:
    """(n,) int64 constant, n values."""
    return self.const(values, np.int64)

  def op(self, kind: str, *inputs: str, outputs=1, **attributes):
    """Adds a node; returns the name of its output, or their names if there are several."""
    from onnx import helper

    names = [f"v{next(self._count)}" for _ in range(outputs)]
    self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
    return names[0] if outputs == 1 else names

  def name(self, value: str, name: str) -> None:
    """Gives a value a name of its own, as outputs of the graph have."""
    from onnx import helper

    self.nodes.append(helper.make_node("Identity", [value], [name]))

  def size(self, x: str, axis: int) -> str:
    """(1,) int64: the length of an axis."""
    return self.op("Gather", self.op("Shape", x), self.ints(axis))

  def range(self, count: str) -> str:
    """(count,) int64: 0, 1, …; `count` is (1,)."""
    zero, one = self.const(0, np.int64), self.const(1, np.int64)
    return self.op("Range", zero, self.op("Squeeze", count), one)

  def ceil(self, x: str, divisor: str) -> str:
    """Whole quotient of positive int64, rounded up."""
    return self.op("Div", self.op("Sub", self.op("Add", x, divisor), self.ints(1)), divisor)

  def mask(self, x: str, axis: int, length: str, axes: list[int]) -> str:
    """Whether a position of an axis lies before `length` (B,); `axes` are added to (B,
    positions)."""
    valid = self.op(
      "Less",
      self.op("Unsqueeze", self.range(self.size(x, axis)), self.ints(0)),
      self.op("Unsqueeze", length, self.ints(1)),
    )
    return self.op("Unsqueeze", valid, self.ints(*axes)) if axes else valid

  def dense(self, x: str, weights: dict) -> str:
    """(..., D) -> (..., D'): x @ kernel + bias."""
    return self.op(
      "Add", self.op("MatMul", x, self.const(weights["kernel"])), self.const(weights["bias"])
    )

  def norm(self, x: str, weights: dict, epsilon: float = 1e-6) -> str:
    """LayerNorm over the last axis; flax's epsilon by default."""
    scale, bias = self.const(weights["scale"]), self.const(weights["bias"])
    return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

  def gelu(self, x: str) -> str:
    """Exact GELU, x/2 · (1 + erf(x / √2))."""
    erf = self.op("Erf", self.op("Mul", x, self.const(0.5**0.5)))
    return self.op("Mul", self.op("Mul", x, self.const(0.5)), self.op("Add", erf, self.const(1)))

  def mean(self, x: str, valid: str, count: str) -> str:
    """The sum over axis 1 of (B, N, D) where `valid` (B, N, 1), divided by `count` (B,)."""
    kept = self.op("Where", valid, x, self.const(0))
    total = self.op("ReduceSum", kept, self.ints(1), keepdims=0)
    return self.op("Div", total, self.op("Unsqueeze", count, self.ints(1)))

  def pool(self, tokens: str, length: str, mean_over: str) -> tuple[str, str, str]:
    """(CLS (B, D), mean over the valid patches, all patches (B, N, D)) of tokens (B, 1 + N, D),
    whose sum is divided by `mean_over` (B,) int64: the nodes of `pool_blocks`."""
    first = self.op("Slice", tokens, self.ints(0), self.ints(1), self.ints(1))
    end = self.ints(np.iinfo(np.int64).max)
    patches = self.op("Slice", tokens, self.ints(1), end, self.ints(1))
    count = self.op("Add", self.op("Cast", mean_over, to=1), self.const(1e-6))
    mean = self.mean(patches, self.mask(patches, 1, length, [2]), count)
    return self.op("Squeeze", first, self.ints(1)), mean, patches

  def body(self, states: int = 0) -> "Body":
    """The nodes that a loop repeats, to be filled and given to `loop`. They see every value that
    the graph has so far."""
    return Body(self, states)

  def loop(
    self,
    times: str,
    body: "Body",
    initial: Sequence[str] = (),
    states: Sequence[str] = (),
    stacked: Sequence[str] = (),
  ):
    """Repeats a body.

    Args:
      times: (1,) int64.
      body: of `body`.
      initial: float values that `body.states` begin with.
      states: the body's values that they have next.
      stacked: float values of the body whose every repetition is kept; of one shape.

    Returns:
      The name of the last state or of the (repetitions, …) stack, or their names if there are
      several.
    """
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    go_on = body.op("Identity", body.go_on)
    inputs = [info(body.index, TensorProto.INT64, []), info(body.go_on, TensorProto.BOOL, [])]
    inputs += [info(name, TensorProto.FLOAT, None) for name in body.states]
    outputs = [info(go_on, TensorProto.BOOL, [])]
    outputs += [info(name, TensorProto.FLOAT, None) for name in (*states, *stacked)]
    graph = helper.make_graph(body.nodes, body.index, inputs, outputs, body.constants)
    times = self.op("Squeeze", times)
    return self.op("Loop", times, "", *initial, outputs=len(states) + len(stacked), body=graph)


class Body(Graph):
  """What a loop repeats. It shares no name with the graph that it is a part of, and has constants
  of its own: onnxruntime infers shapes from them.

  Attributes:
    index: int64, how often the loop was run before.
    states: values that the repetition before gave.
  """

  def __init__(self, graph: Graph, states: int):
    self.nodes, self.constants, self._count = [], [], graph._count
    self.index, self.go_on, *self.states = (f"v{next(self._count)}" for _ in range(2 + states))


def normalize(g: Graph, normalization: dict, mel: str, length: str, peak: str) -> str:
  """`normalization.normalize` of mel (B, T, F) whose clips have the maximum `peak` (B,), dB; 0
  behind `length` (B,) int64."""
  if normalization["kind"] == "min_max":
    low, high = normalization["low"], normalization["high"]
    floor = g.op("Sub", g.op("Unsqueeze", peak, g.ints(1, 2)), g.const(normalization["top_db"]))
    x = g.op("Sub", g.op("Max", mel, floor), g.const(low))
    x = g.op("Sub", g.op("Mul", x, g.const(2 / (high - low))), g.const(1))
  elif normalization["kind"] == "log_magnitude":
    magnitude = g.op("Exp", g.op("Mul", mel, g.const(NEPERS_PER_DB / 2)))
    magnitude = g.op("Max", magnitude, g.const(normalization["floor"]))
    x = g.op("Log", g.op("Add", magnitude, g.const(normalization["offset"])))
  elif normalization["kind"] == "half_standard":
    nepers = g.op("Max", g.op("Mul", mel, g.const(NEPERS_PER_DB)), g.const(np.log(LOG_EPS)))
    nepers = g.op("Sub", nepers, g.const(normalization["mean"]))
    x = g.op("Div", nepers, g.const(2 * normalization["std"]))
  else:
    power = g.op("Exp", g.op("Mul", mel, g.const(NEPERS_PER_DB)))
    x = g.op("Log", g.op("Add", power, g.const(LOG_EPS)))
    x = g.op("Div", g.op("Sub", x, g.const(normalization["mean"])), g.const(normalization["std"]))
  return g.op("Where", g.mask(mel, 1, length, [2]), x, g.const(0))


def encode(
  g: Graph,
  model: Model,
  mel: str,
  length: str,
  peak: str,
  mean_over: str | None = None,
  num_blocks: int = 1,
) -> tuple[str, str]:
  """(vectors, vectors over time) of chunks: the nodes of `Model.outputs`.

  Args:
    g: that they are added to.
    model: whose encoder it is.
    mel, length, peak: (B, T, F) dB, (B,) int64 and (B,) dB.
    mean_over: (B,) int64 frames that a sum over patches is divided by; `length` by default.
    num_blocks: as of `Model.embed`.

  Raises:
    UserError: the kind of encoder brings no nodes.
  """
  x = normalize(g, model.config["normalization"], mel, length, peak)
  n_mels = model.frontend.n_mels
  try:
    return model.encoder.onnx(g, x, length, model.variables, n_mels, mean_over, num_blocks)
  except NotImplementedError:
    raise UserError(
      f"encoder.kind={model.config['encoder']['kind']} has no ONNX nodes; leave out onnx"
    ) from None


def serialized(g: Graph, inputs: list, outputs: list, metadata: dict) -> bytes:
  """The file of a graph, checked.

  Args:
    g: whose nodes name every output.
    inputs, outputs: (name, numpy type, shape) each.
    metadata: name -> JSON.

  Raises:
    UserError: the weights are too many for one file.
  """
  onnx = import_onnx()
  helper = onnx.helper
  value = lambda name, dtype, shape: helper.make_tensor_value_info(
    name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
  )
  graph = helper.make_graph(
    g.nodes, "encoder", [value(*x) for x in inputs], [value(*x) for x in outputs], g.constants
  )
  file = helper.make_model(
    graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="atst_jax"
  )
  helper.set_model_props(file, {key: json.dumps(x) for key, x in metadata.items()})
  if (size := file.ByteSize()) >= LIMIT:
    raise UserError(
      f"an ONNX file holds at most {LIMIT} bytes, this encoder would take {size}; leave out onnx"
    )
  onnx.checker.check_model(file, full_check=True)
  return file.SerializeToString()


def session(path: str) -> Callable:
  """The function of a file, arguments by name -> {output: array}, run by onnxruntime on the CPU.

  Raises UserError if onnxruntime is not installed.
  """
  try:
    import onnxruntime
  except ImportError as error:
    raise UserError(NEEDED) from error
  opened = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  names = [output.name for output in opened.get_outputs()]
  return lambda **inputs: dict(zip(names, opened.run(names, inputs), strict=True))
