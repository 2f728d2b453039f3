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


def conv(
  g, x: str, length: str, weights: dict, *, bins: int, stride=1, same=True, depthwise=False
) -> str:
  """`parts.Conv` with its kernel and, where there is one, its bias.

  Args:
    bins: F of x.
    stride, same, depthwise: as of `Conv`.
  """
  kernel = np.asarray(weights["kernel"]).transpose(3, 2, 0, 1)
  size, half = kernel.shape[-1], kernel.shape[-1] // 2
  shifted = same and stride == 2 and size > 1
  if size > 1:
    x = within(g, x, length)
  if shifted:
    odd = g.op("Equal", g.op("Mod", length, g.const(2, np.int64)), g.const(1, np.int64))
    later = g.op("Pad", x, g.ints(0, 0, 1, 0, 0, 0, 0, 0))
    x = g.op("Pad", x, g.ints(0, 0, 0, 0, 0, 0, 1, 0))
    x = g.op("Where", g.op("Unsqueeze", odd, g.ints(1, 2, 3)), later, x)
  bias = [g.const(weights["bias"])] if "bias" in weights else []
  before = (half - int(shifted), half - int(shifted and bins % 2 == 0))
  return g.op(
    "Conv",
    x,
    g.const(kernel),
    *bias,
    pads=[*before, half, half],
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
