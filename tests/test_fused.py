"""What stands between the transformer's products: derivatives of our own against autodiff, kernels
against their twins, and every config's step traced and lowered for a GPU that is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from atst_jax.models import fused, pallas_kernels
from atst_jax.models.transformer import Transformer
from atst_jax.performance import speed
from atst_jax.pretraining import recipe
from atst_jax.util import config as configs

B, N, D, E = 4, 16, 192, 256  # 192 is three tiles of 64
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


def test_padding_for_the_kernels_changes_nothing(monkeypatch):
  """With attention that wants whole tiles, tokens are padded once, masked and cut off again."""
  monkeypatch.setattr(pallas_kernels, "INTERPRET", True)
  from atst_jax.models import transformer

  sizes = {
    "width": 64,
    "depth": 2,
    "heads": 2,
    "drop_path": 0.0,
    "patch_frames": 4,
    "max_frames": 48,
  }
  mel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 48, 64)), jnp.float32)
  plain, length = Transformer(**sizes), jnp.array([48, 33, 7])
  variables = plain.init(jax.random.key(0), mel)
  xla = transformer.attend
  monkeypatch.setattr(transformer, "attend", lambda q, k, v, n, _: xla(q, k, v, n, "xla"))
  padded = Transformer(**sizes, attention="cudnn", kernels="pallas")
  for frames in (None, length):
    (y, before), (wanted, expected) = (m.apply(variables, mel, frames) for m in (padded, plain))
    np.testing.assert_allclose(y, wanted, atol=2e-5)
    valid = (
      np.ones((3, 13), bool) if frames is None else np.arange(13) <= np.array(frames)[:, None] // 4
    )
    difference = np.abs(np.asarray(before["blocks"]) - np.asarray(expected["blocks"]))
    assert before["blocks"].shape == expected["blocks"].shape and difference[:, valid].max() < 2e-5

    def gradient(model, frames=frames):
      of_cls = lambda v: jnp.square(model.apply(v, mel, frames, train=True)[0]).sum()
      return jax.grad(of_cls)(variables)

    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)
    jax.tree.map(close, gradient(padded), gradient(plain))


@pytest.mark.parametrize(
  "path",
  [
    "atst_small.py",
    "atst_base.py",
    "base.py",
    "base.py:released",
    "real_small.py",
    "demo.py",
    "difference.py",
    "byola.py",
  ],
)
def test_every_step_is_traced_and_lowered_for_a_gpu(path, monkeypatch):
  """Forward and gradient, cuDNN's rules and Pallas's among them: neither needs a GPU, nor its
  plugin, up to XLA."""
  from jax._src.cudnn import fused_attention_stablehlo

  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91001)
  config = configs.load_with_overrides(f"configs/{path}", ["--config.dtype=bfloat16"])
  config.data.source = "synthetic"
  config = speed.resolved(config, None)
  if "depth" in config.encoder:
    config.encoder.depth = 2
  transformer = config.encoder.kind == "transformer"
  fused_choice = ("cudnn", "pallas") if transformer else ("xla", "xla")
  config.batch_size = 2 * config.views.group
  init, step = recipe.build(config, ragged=False, fused=fused_choice)
  state = jax.eval_shape(init, jax.random.key(0))
  batch = {
    "mel": jax.ShapeDtypeStruct((config.batch_size, config.data.clip_frames, 64), jnp.float16),
    "length": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
  }
  chip = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
  mesh = AbstractMesh((1, 1), ("data", "fsdp"), (AxisType.Auto,) * 2, abstract_device=chip)
  with jax.sharding.use_abstract_mesh(mesh):
    text = jax.jit(step).trace(state, batch).lower(lowering_platforms=("cuda",)).as_text()
  assert ("__cudnn$fmha" in text) == transformer
  assert ("triton" in text) == transformer
