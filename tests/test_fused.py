"""What stands between the transformer's products: derivatives of our own against autodiff, and
kernels against their twins."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from atst_jax.models import blocks, fused, pallas_kernels
from atst_jax.models.transformer import Transformer
from atst_jax.pretraining import recipe
from atst_jax.runtime.mesh import make_mesh, put_batch
from tests.drawn import drawn_encoder
from tests.tiny import tiny_config

B, N, D, E = 4, 16, 192, 256  # 192 is three tiles of 64
PLAIN = Transformer(width=64, depth=2, heads=2, drop_path=0.0, patch_frames=4, max_frames=48)
TOLERANCE = {"float64": 1e-14, "float32": 1e-6, "bfloat16": 8e-3}  # bfloat16 keeps 8 bits
KINDS = [
  ("float64", "xla"),
  ("float32", "xla"),
  ("float32", "pallas"),
  ("bfloat16", "xla"),
  ("bfloat16", "pallas"),
]


def add_norm_by_autodiff(x, branch, scale, bias, gamma, beta):
  total = x + (branch + bias) * scale[:, None, None]
  centred = total - total.mean(-1, keepdims=True)
  return total, centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * gamma + beta


def gelu_product_by_autodiff(h, bias, kernel):
  return jax.nn.gelu(h + bias, approximate=False) @ kernel


def norm_by_autodiff(x, gamma, beta):
  zero = jnp.zeros_like(gamma)
  return add_norm_by_autodiff(x, jnp.zeros_like(x), jnp.zeros(B), zero, gamma, beta)[1]


def case(name, kernels):
  """(ours, by autodiff, which arguments are of the computation's type, arguments)."""
  draw = np.random.default_rng(0).normal
  rows = lambda width: 2 * draw(size=(B, N, width)) + 1
  column = lambda width: draw(size=width)
  if name == "add_norm":
    arguments = (rows(D), rows(D), np.array([0, 1.25, 1.25, 1]), *(column(D) for _ in range(3)))
    return lambda *a: fused.add_norm(*a, kernels), add_norm_by_autodiff, (0, 1), arguments
  if name == "norm":
    return fused.norm, norm_by_autodiff, (0,), (rows(D), column(D), column(D))
  ours = lambda *a: fused.gelu_product(*a, kernels)
  return ours, gelu_product_by_autodiff, (0, 2), (rows(D), column(D), draw(size=(D, E)))


@pytest.mark.parametrize("name", ["add_norm", "norm", "gelu_product"])
@pytest.mark.parametrize(("dtype", "kernels"), KINDS)
def test_values_and_derivatives_are_autodiffs(dtype, kernels, name, monkeypatch):
  monkeypatch.setattr(pallas_kernels, "INTERPRET", True)
  with jax.enable_x64(), jax.numpy_rank_promotion("allow"):
    ours, reference, computed, arguments = case(name, kernels)
    parameters = "float64" if dtype == "float64" else "float32"
    arguments = [
      jnp.asarray(a, dtype if i in computed else parameters) for i, a in enumerate(arguments)
    ]
    exact = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)
    found, pull = jax.vjp(ours, *arguments)
    draw = np.random.default_rng(1).normal
    cotangents = jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape), x.dtype), found)
    wanted, exact_pull = jax.vjp(reference, *exact(arguments))
    gradients, exact_gradients = list(pull(cotangents)), list(exact_pull(exact(cotangents)))
    if name == "add_norm":  # stochastic depth's scale is drawn, and gets no gradient
      assert not gradients.pop(2).any() and exact_gradients.pop(2).any()
    pairs = zip(
      jax.tree.leaves((found, gradients)), jax.tree.leaves((wanted, exact_gradients)), strict=True
    )
    for ours, theirs in pairs:
      assert float(jnp.abs(ours - theirs).max() / jnp.abs(theirs).max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(2, 15, 128), (2, 16, 96)])
def test_what_does_not_fit_the_tiles_is_left_to_xla(shape):
  assert not pallas_kernels.fits(jnp.zeros(shape)) and pallas_kernels.fits(jnp.zeros((2, 16, 384)))


def test_the_kernels_divide_clips_among_devices(monkeypatch):
  """The same on eight devices, and nothing but sums of parameters' gradients between them."""
  monkeypatch.setattr(pallas_kernels, "INTERPRET", True)
  _, _, _, arguments = case("add_norm", "pallas")
  arguments = [
    jnp.tile(jnp.asarray(a, jnp.float32), (2,) + (1,) * (a.ndim - 1))
    if i < 3
    else jnp.asarray(a, jnp.float32)
    for i, a in enumerate(arguments)
  ]
  loss = lambda *a: sum(jnp.square(x).sum() for x in fused.add_norm(*a, "pallas"))
  gradient = jax.grad(loss, (0, 1, 3, 4, 5))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  places = [
    NamedSharding(mesh, PartitionSpec("data") if i < 3 else PartitionSpec()) for i in range(6)
  ]
  compiled = jax.jit(gradient, in_shardings=places).lower(*arguments).compile()
  text = compiled.as_text()
  assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
  for one, eight in zip(
    gradient(*arguments), compiled(*map(jax.device_put, arguments, places)), strict=True
  ):
    np.testing.assert_allclose(one, eight, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("attention", ["cudnn", "xla"])
def test_padding_for_the_kernels_changes_nothing(attention, monkeypatch):
  """Tokens are padded to whole tiles once, masked and cut off again, whoever computes attention."""
  monkeypatch.setattr(pallas_kernels, "INTERPRET", True)
  xla = blocks.attend
  monkeypatch.setattr(blocks, "attend", lambda q, k, v, n, _: xla(q, k, v, n, "xla"))
  mel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 48, 64)), jnp.float32)
  length = jnp.array([48, 33, 7]) if attention == "cudnn" else None  # or all of 13 tokens
  variables = drawn_encoder(PLAIN, 64, 48)
  padded = PLAIN.clone(attention=attention, kernels="pallas")
  pads = str(jax.make_jaxpr(padded.apply)(variables, mel))
  assert "3,16,64" in pads and "3,16,64" not in str(jax.make_jaxpr(PLAIN.apply)(variables, mel))

  @functools.partial(jax.jit, static_argnums=0)
  def both(model, variables):
    cls = lambda variables: jnp.square(model.apply(variables, mel, length, train=True)[0]).sum()
    return model.apply(variables, mel, length), jax.grad(cls)(variables)

  ((y, before), gradients), ((wanted, expected), others) = (
    both(model, variables) for model in (padded, PLAIN)
  )
  np.testing.assert_allclose(y, wanted, atol=2e-5)
  valid = np.ones((3, 13), bool)
  if length is not None:
    valid = np.arange(13) <= np.array(length)[:, None] // 4
  difference = np.abs(np.asarray(before["blocks"]) - np.asarray(expected["blocks"]))
  assert before["blocks"].shape == expected["blocks"].shape and difference[:, valid].max() < 2e-5
  close = functools.partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-3)
  jax.tree.map(close, gradients, others)


@pytest.mark.slow
def test_a_step_of_the_kernels_is_the_step_by_xla(monkeypatch):
  """On eight devices that share batch and state, in parts, with blocks computed again. Takes half a
  minute."""
  monkeypatch.setattr(pallas_kernels, "INTERPRET", True)
  changes = {"encoder__width": "64", "views__crop_frames": "28", "batch_size": "32"}
  changes |= {"compute__accumulation": "2", "compute__remat": "true"}
  config = recipe.resolve(tiny_config(**changes), None)
  mesh = make_mesh(data=4, fsdp=2)
  batch = put_batch(mesh, next(recipe.batches(config, None, start_step=0, rows=None)))
  found = []
  for kernels in ("xla", "pallas"):
    program = recipe.compile_for(config, mesh, ragged=True, fused=("xla", kernels))
    state, metrics = program.step(program.init(jax.random.key(0)), batch)
    found.append((state.opt_state[0].mu, metrics))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *found)
