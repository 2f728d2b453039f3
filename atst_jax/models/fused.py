"""What stands between a transformer's matrix products, each as one pass over memory with a
derivative of its own: residual + bias + stochastic depth + LayerNorm, and bias + exact GELU.

Autodiff keeps float32 intermediates of these, and XLA reads them again for every mean, variance and
bias gradient. Here the derivatives keep what the products keep anyway, in the type of the
computation, and compute the rest again. `kernels="pallas"` runs them as Pallas kernels (NVIDIA
GPUs), "xla" as the same formulas for XLA; both are compared by tests, and both with autodiff.
"""

import functools

import jax
import jax.numpy as jnp

from atst_jax.models import pallas_kernels


def _wide(x):
  """At least float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _per_clip(scale, x):
  return scale.reshape(-1, *[1] * (x.ndim - 1))


def _row(parameter, x):
  """(D,) that goes with (..., D)."""
  return parameter.reshape((1,) * (x.ndim - 1) + parameter.shape)


def _sum_rows(x):
  return x.sum(tuple(range(x.ndim - 1)))


def add(x, branch, scale, bias):
  """x + (branch + bias)·scale of the type of `x`; shapes as of `add_norm`."""
  return (_wide(x) + (_wide(branch) + _row(bias, x)) * _per_clip(scale, x)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def add_norm(x, branch, scale, bias, gamma, beta, kernels):
  """The residual sum x + (branch + bias)·scale and its LayerNorm.

  Args:
    x, branch: (B, N, D) of the type of the computation; `branch` is a product without its bias.
    scale: (B,) float32 of stochastic depth: 0 or 1 / (1 - rate); it gets no gradient.
    bias, gamma, beta: (D,) float32.
    kernels: "xla" or "pallas".

  Returns:
    Sum and norm, both like `x`.
  """
  return _add_norm(x, branch, scale, bias, gamma, beta, kernels)[0]


def _add_norm(x, branch, scale, bias, gamma, beta, kernels):
  if kernels == "pallas" and pallas_kernels.fits(x):
    total, normed, mean, rstd = pallas_kernels.add_norm(x, branch, scale, bias, gamma, beta)
  else:
    total = add(x, branch, scale, bias)
    normed, mean, rstd = _norm(total, gamma, beta)
  return (total, normed), (total, mean, rstd, scale, gamma)


def _norm(x, gamma, beta):
  """LayerNorm of (..., D), with what its derivative needs: mean and 1 / deviation, (..., 1)."""
  wide = _wide(x)
  mean = wide.mean(-1, keepdims=True)
  rstd = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + pallas_kernels.EPSILON)
  normed = (wide - mean) * rstd * _row(gamma, x) + _row(beta, x)
  return normed.astype(x.dtype), mean, rstd


def _norm_gradients(dnormed, x, mean, rstd, gamma):
  """(of the input in wide, of gamma, of beta)."""
  h, dn = (_wide(x) - mean) * rstd, _wide(dnormed)
  dy = dn * _row(gamma, x)
  dx = (dy - dy.mean(-1, keepdims=True) - h * (dy * h).mean(-1, keepdims=True)) * rstd
  return dx, _sum_rows(dn * h), _sum_rows(dn)


def _add_norm_transposed(kernels, kept, gradients):
  total, mean, rstd, scale, gamma = kept
  dtotal, dnormed = gradients
  if kernels == "pallas" and pallas_kernels.fits(total):
    dx, dbranch, dgamma, dbeta, dbias = pallas_kernels.add_norm_gradients(
      dnormed, dtotal, total, mean, rstd, scale, gamma
    )
  else:
    dx, dgamma, dbeta = _norm_gradients(dnormed, total, mean, rstd, gamma)
    dx = dx + _wide(dtotal)
    dbranch = dx * _per_clip(scale, total)
    dbias = _sum_rows(dbranch)
    dx, dbranch = dx.astype(total.dtype), dbranch.astype(total.dtype)
  return dx, dbranch, jnp.zeros_like(scale), dbias, dgamma, dbeta


add_norm.defvjp(_add_norm, _add_norm_transposed)


@jax.custom_vjp
def norm(x, gamma, beta):
  """LayerNorm of (..., D) with (D,) float32 parameters, of the type of `x`."""
  return _norm(x, gamma, beta)[0]


def _norm_forward(x, gamma, beta):
  normed, mean, rstd = _norm(x, gamma, beta)
  return normed, (x, mean, rstd, gamma)


def _norm_transposed(kept, dnormed):
  x, mean, rstd, gamma = kept
  dx, dgamma, dbeta = _norm_gradients(dnormed, x, mean, rstd, gamma)
  return dx.astype(x.dtype), dgamma, dbeta


norm.defvjp(_norm_forward, _norm_transposed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def gelu_product(h, bias, kernel, kernels):
  """gelu(h + bias) @ kernel, with the exact GELU: (B, N, E), (E,) float32, (E, D) -> (B, N, D).

  Keeps h alone: the derivative needs erf of it anyway, and computes gelu(h + bias) again beside it.
  By erf, which XLA computes in one pass; jax.nn.gelu's erfc takes three on a CPU.
  """
  return _gelu_product(h, bias, kernel, kernels)[0]


def product(x, kernel):
  """(B, N, D) @ (D, E). As a product of two matrices, which is faster to differentiate on a CPU."""
  B, N, D = x.shape
  return (x.reshape(B * N, D) @ kernel).reshape(B, N, -1)


def _gelu_product(h, bias, kernel, kernels):
  if kernels == "pallas" and pallas_kernels.fits(h):
    y = pallas_kernels.bias_gelu(h, bias)
  else:
    wide = _wide(h) + _row(bias, h)
    y = (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(h.dtype)
  return product(y, kernel), (h, bias, kernel)


def _gelu_product_transposed(kernels, kept, dout):
  h, bias, kernel = kept
  dy = product(dout, kernel.T)
  if kernels == "pallas" and pallas_kernels.fits(h):
    y, dh, dbias = pallas_kernels.bias_gelu_gradients(dy, h, bias)
  else:
    wide = _wide(h) + _row(bias, h)
    share = 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))
    dh = _wide(dy) * (share + wide * (2 * jnp.pi) ** -0.5 * jnp.exp(-0.5 * wide * wide))
    y, dh, dbias = (wide * share).astype(h.dtype), dh.astype(h.dtype), _sum_rows(dh)
  rows = lambda x: x.reshape(-1, x.shape[-1])
  return dh, dbias, rows(y).T @ rows(dout)


gelu_product.defvjp(_gelu_product, _gelu_product_transposed)
