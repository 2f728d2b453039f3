"""The ONNX nodes of `parts`; arrays are (B, C, T, F) there.

`g` is a `programs.graph.Graph`, `length` the name of the valid frames (B,) int64 of its value.
"""

import numpy as np

from atst_jax.models.layers import BatchNorm


def halved(g, length: str) -> str:
  """`parts.halved`."""
  return g.op("Div", g.op("Add", length, g.const(1, np.int64)), g.const(2, np.int64))


def within(g, x: str, length: str) -> str:
  """`parts.within`."""
  return g.op("Where", g.mask(x, 2, length, [1, 3]), x, g.const(0))


def conv(g, x: str, length: str, weights: dict, *, stride=1, later=False, depthwise=False) -> str:
  """`parts.Conv` with its kernel and, where there is one, its bias. `stride`, `later`, `depthwise`:
  as of `Conv`."""
  kernel = np.asarray(weights["kernel"]).transpose(3, 2, 0, 1)
  size, half = kernel.shape[-1], kernel.shape[-1] // 2
  if size > 1:
    x = within(g, x, length)
  bias = [g.const(weights["bias"])] if "bias" in weights else []
  before = half - int(later and stride == 2)
  return g.op(
    "Conv",
    x,
    g.const(kernel),
    *bias,
    pads=[before, before, half, half],
    strides=[stride, stride],
    group=kernel.shape[0] if depthwise else 1,
  )


def norm(g, x: str, weights: dict, statistics: dict, epsilon: float = BatchNorm.epsilon) -> str:
  """`layers.BatchNorm` with its running statistics."""
  arrays = (weights["scale"], weights["bias"], statistics["mean"], statistics["var"])
  return g.op("BatchNormalization", x, *map(g.const, arrays), epsilon=epsilon)


def silu(g, x: str) -> str:
  """x · sigmoid(x)."""
  return g.op("Mul", x, g.op("Sigmoid", x))
