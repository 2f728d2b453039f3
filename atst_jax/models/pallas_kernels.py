"""The kernels of `fused` for NVIDIA GPUs, in Pallas with its Triton lowering.

Each reads its operands once and writes its results once. Sums over rows (gradients of biases and of
LayerNorm's parameters) leave a kernel as one partial sum for each clip, so clips may lie on any
device. Triton's tiles are powers of two, so a width of 384 is three tiles of 128.

Pallas's Triton lowering has no erf (jax 0.12): `_erf` is the rational approximation 7.1.26 of
Abramowitz and Stegun, whose error is below 1.5e-7.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

ROWS = 8  # of a tile
NARROWEST = 64  # columns of a tile, at least
COLUMNS = 512  # of a tile of bias_gelu, at most
EPSILON = 1e-6  # of LayerNorm (released code)
INTERPRET = False  # tests run the kernels without a GPU
F32 = jnp.float32


def fits_width(width: int) -> bool:
  """Whether the kernels take rows of that width."""
  return width % NARROWEST == 0


def fits(x) -> bool:
  """Whether the kernels take (B, N, D): whole tiles of rows and columns, in 16 or 32 bits."""
  _, N, D = x.shape
  return N % ROWS == 0 and fits_width(D) and x.dtype.itemsize <= 4


def _pieces(width, most=1 << 30):
  """Tiles of the largest power of two that divides the width."""
  size = min(width & -width, most)
  return [pl.ds(start, size) for start in range(0, width, size)]


def _rows(tile):
  return pl.ds(tile * ROWS, ROWS)


def _call(kernel, grid, outs, *args):
  from jax.experimental.pallas import triton

  spec = pl.BlockSpec(memory_space=pl.ANY)
  return pl.pallas_call(
    kernel,
    grid=grid,
    out_shape=outs,
    in_specs=[spec] * len(args),
    out_specs=[spec] * len(outs),
    compiler_params=triton.CompilerParams(num_warps=4),
    interpret=INTERPRET,
  )(*args)


def _by_clip(rule):
  """A kernel's call as an operation whose clips ("b" of the rule, first) may lie anywhere."""
  operands = [operand.split() for operand in rule.split("->")[0].split(",")]

  def wrap(call):
    def partition(mesh, arguments, results):
      clips = NamedSharding(mesh, PartitionSpec(arguments[0].sharding.spec[0]))
      everywhere = NamedSharding(mesh, PartitionSpec())
      placed = tuple(clips if "b" in operand else everywhere for operand in operands)
      return mesh, call, jax.tree.map(lambda _: clips, results), placed

    operation = custom_partitioning(call)
    operation.def_partition(partition=partition, sharding_rule=rule)
    # compiled once for all blocks of a network
    once = jax.jit(lambda interpret, *args: operation(*args), static_argnums=0)
    return lambda *args: once(INTERPRET, *args)

  return wrap


def _erf(x):
  size = jnp.abs(x)
  t = 1 / (1 + 0.3275911 * size)
  series = 1.061405429 * t - 1.453152027
  for coefficient in (1.421413741, -0.284496736, 0.254829592):
    series = series * t + coefficient
  y = 1 - series * t * jnp.exp(-size * size)
  return jnp.where(x < 0, -y, y)


def _add_norm_kernel(x, branch, scale, bias, gamma, beta, total, normed, mean, rstd):
  """One tile of rows; (B, N, D) each, `scale` (B,), parameters (D,), mean and rstd (B, N)."""
  clip, rows, width = pl.program_id(0), _rows(pl.program_id(1)), x.shape[-1]
  sums = []
  for p in _pieces(width):
    added = (branch[clip, rows, p].astype(F32) + bias[p][None]) * scale[clip]
    value = (x[clip, rows, p].astype(F32) + added).astype(total.dtype)
    total[clip, rows, p] = value
    sums.append(value.astype(F32))
  centre = sum(value.sum(1) for value in sums) / width
  squares = sum(((value - centre[:, None]) ** 2).sum(1) for value in sums)
  inverse = jax.lax.rsqrt(squares / width + EPSILON)
  mean[clip, rows], rstd[clip, rows] = centre, inverse
  for value, p in zip(sums, _pieces(width), strict=True):
    h = (value - centre[:, None]) * inverse[:, None]
    normed[clip, rows, p] = (h * gamma[p][None] + beta[p][None]).astype(normed.dtype)


def _add_norm_gradients_kernel(
  dnormed, dtotal, total, mean, rstd, scale, gamma, dx, dbranch, dgamma, dbeta, dbias
):
  """All rows of one clip; gradients of parameters (B, D)."""
  clip, (_, N, width) = pl.program_id(0), total.shape
  pieces, s = _pieces(width), scale[clip]

  def tile(i, sums):
    rows = _rows(i)
    m, r = mean[clip, rows][:, None], rstd[clip, rows][:, None]
    h = [(total[clip, rows, p].astype(F32) - m) * r for p in pieces]
    dn = [dnormed[clip, rows, p].astype(F32) for p in pieces]
    dy = [d * gamma[p][None] for d, p in zip(dn, pieces, strict=True)]
    first = sum(d.sum(1) for d in dy)[:, None] / width
    second = sum((d * x).sum(1) for d, x in zip(dy, h, strict=True))[:, None] / width
    new = []
    for p, d, x, n, (g, b, c) in zip(pieces, dy, h, dn, sums, strict=True):
      d = (d - first - x * second) * r + dtotal[clip, rows, p].astype(F32)
      dx[clip, rows, p] = d.astype(dx.dtype)
      dbranch[clip, rows, p] = (d * s).astype(dbranch.dtype)
      new.append((g + (n * x).sum(0), b + n.sum(0), c + (d * s).sum(0)))
    return new

  zero = [tuple(jnp.zeros((p.size,), F32) for _ in range(3)) for p in pieces]
  for p, (g, b, c) in zip(pieces, jax.lax.fori_loop(0, N // ROWS, tile, zero), strict=True):
    dgamma[clip, p], dbeta[clip, p], dbias[clip, p] = g, b, c


@_by_clip("b n d, b n d, b, d, d, d -> b n d, b n d, b n, b n")
def _add_norm(x, branch, scale, bias, gamma, beta):
  B, N, D = x.shape
  outs = [jax.ShapeDtypeStruct((B, N, D), x.dtype)] * 2 + [jax.ShapeDtypeStruct((B, N), F32)] * 2
  return tuple(_call(_add_norm_kernel, (B, N // ROWS), outs, x, branch, scale, bias, gamma, beta))


def add_norm(x, branch, scale, bias, gamma, beta):
  """As `fused.add_norm`, with mean and 1 / deviation (B, N)."""
  return _add_norm(x, branch, scale, bias, gamma, beta)


@_by_clip("b n d, b n d, b n d, b n, b n, b, d -> b n d, b n d, b d, b d, b d")
def _add_norm_gradients(dnormed, dtotal, total, mean, rstd, scale, gamma):
  B, N, D = total.shape
  outs = [jax.ShapeDtypeStruct((B, N, D), total.dtype)] * 2 + [
    jax.ShapeDtypeStruct((B, D), F32)
  ] * 3
  args = (dnormed, dtotal, total, mean, rstd, scale, gamma)
  return tuple(_call(_add_norm_gradients_kernel, (B,), outs, *args))


def add_norm_gradients(dnormed, dtotal, total, mean, rstd, scale, gamma):
  """Gradients of x and branch (B, N, D), and of gamma, beta and bias (D,)."""
  dx, dbranch, *sums = _add_norm_gradients(dnormed, dtotal, total, mean, rstd, scale, gamma)
  return dx, dbranch, *(x.sum(0) for x in sums)


def _gelu_kernel(h, bias, y):
  clip, rows = pl.program_id(0), _rows(pl.program_id(1))
  for p in _pieces(h.shape[-1], COLUMNS):
    x = h[clip, rows, p].astype(F32) + bias[p][None]
    y[clip, rows, p] = (0.5 * x * (1 + _erf(x * 0.5**0.5))).astype(y.dtype)


def _gelu_gradients_kernel(dy, h, bias, y, dh, dbias):
  """All rows of one clip and some of its columns."""
  clip, (_, N, width) = pl.program_id(0), h.shape
  size = _pieces(width, COLUMNS)[0].size
  p = pl.ds(pl.program_id(1) * size, size)

  def tile(i, total):
    rows = _rows(i)
    x = h[clip, rows, p].astype(F32) + bias[p][None]
    share = 0.5 * (1 + _erf(x * 0.5**0.5))
    slope = share + x * 0.3989422804014327 * jnp.exp(-0.5 * x * x)
    d = dy[clip, rows, p].astype(F32) * slope
    y[clip, rows, p] = (x * share).astype(y.dtype)
    dh[clip, rows, p] = d.astype(dh.dtype)
    return total + d.sum(0)

  dbias[clip, p] = jax.lax.fori_loop(0, N // ROWS, tile, jnp.zeros((size,), F32))


@_by_clip("b n d, d -> b n d")
def _bias_gelu(h, bias):
  B, N, _ = h.shape
  return _call(_gelu_kernel, (B, N // ROWS), [jax.ShapeDtypeStruct(h.shape, h.dtype)], h, bias)[0]


def bias_gelu(h, bias):
  """gelu(h + bias) of (B, N, D) and (D,)."""
  return _bias_gelu(h, bias)


@_by_clip("b n d, b n d, d -> b n d, b n d, b d")
def _bias_gelu_gradients(dy, h, bias):
  B, _, D = h.shape
  outs = [jax.ShapeDtypeStruct(h.shape, h.dtype)] * 2 + [jax.ShapeDtypeStruct((B, D), F32)]
  return tuple(_call(_gelu_gradients_kernel, (B, len(_pieces(D, COLUMNS))), outs, dy, h, bias))


def bias_gelu_gradients(dy, h, bias):
  """GELU of h + bias again, and the gradients of h (B, N, D) and of the bias (D,)."""
  y, dh, dbias = _bias_gelu_gradients(dy, h, bias)
  return y, dh, dbias.sum(0)
