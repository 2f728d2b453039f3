"""How the step is computed does not change what it computes: accumulation, rematerialisation,
resizing, dtype."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.method import augment
from atst_jax.method import train_step as method
from atst_jax.method.losses import cross_loss
from atst_jax.method.subtraction import Subtraction
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check
from atst_jax.runtime.devices import compiler_options
from atst_jax.runtime.mesh import make_mesh, put_batch
from atst_jax.util.errors import UserError
from tests.tiny import tiny_config

CNN = {
  "file": "byola.py",
  "encoder__width": "1040",
  "encoder__hidden": "8",
  "difference__weight": "0",
  "views__normalization__mean": "-6",
  "views__normalization__std": "7",
}


def _lowered(devices=1, **changes):
  config = recipe.resolve(tiny_config(**changes), None)
  mesh = make_mesh(data=-1, fsdp=1, devices=jax.devices()[:devices])
  program = recipe.compile_for(config, mesh, ragged=False)
  return program.step.lower(program.state, program.batch)


@functools.cache
def _program(**changes):
  """(program, batch) on one device with no randomness inside the encoder."""
  small = {"encoder__width": "32", "encoder__depth": "1", "encoder__drop_path": "0"}
  config = recipe.resolve(tiny_config(**{**small, **changes}), None)
  mesh = make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  check(config, None, 1, 1)
  batch = put_batch(mesh, next(recipe.batches(config, None, start_step=0, rows=None)))
  return recipe.compile_for(config, mesh, ragged=False), batch


@functools.cache
def _fresh():
  """The state that all of them begin with."""
  return jax.device_get(_program()[0].init(jax.random.key(0)))


@functools.cache
def _run(**changes):
  """(compiled step, state and metrics after one update)."""
  program, batch = _program(**changes)
  state = jax.device_put(_fresh(), jax.tree.map(lambda x: x.sharding, program.state))
  step = program.step.lower(state, batch).compile()
  return step, *jax.device_get(step(state, batch))


def _close(a, b, **tolerances):
  jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerances), a, b)


def test_the_update_is_the_same():
  """In parts, with blocks computed again, and resized by matrices: metrics, gradients by Adam's
  first moment, BatchNorm's statistics. Seen red with the loss of the parts averaged."""
  _, expected, metrics = _run()
  changes = {"compute__accumulation": "4", "compute__remat": "true", "compute__resize": "matrix"}
  _, state, other = _run(**changes)
  _close(other, metrics, rtol=2e-5, atol=1e-6)
  _close(state.opt_state[0].mu, expected.opt_state[0].mu, rtol=1e-3, atol=1e-5)
  _close(
    (state.batch_stats, state.teacher.batch_stats),
    (expected.batch_stats, expected.teacher.batch_stats),
    rtol=1e-4,
    atol=1e-6,
  )


def test_accumulation_with_batch_norm_in_the_encoder():
  """Each part is normalised by itself, so the loss differs a little; the running statistics see
  every part."""
  config = recipe.resolve(tiny_config(**CNN, encoder__dropout="0"), None)
  views = jax.random.normal(jax.random.key(0), (8, 2, config.views.crop_frames, 64))
  variables, losses, means = None, [], []
  for parts in (1, 2):
    network = method.make_network(
      encoder=config.encoder,
      heads=config.heads,
      joint_views=config.joint_views,
      dtype=jnp.float32,
      subtraction=Subtraction(),
      accumulation=parts,
    )
    if variables is None:
      variables = jax.jit(network.init, static_argnums=(2, 3, 4, 5))(
        jax.random.key(0), views, None, None, 2, None
      )
    forward = functools.partial(network.apply, mutable=["batch_stats"])
    (p, _), new = jax.jit(lambda v, f=forward: f(v, views, None, None, 2, None))(variables)
    losses.append(float(cross_loss(p, p)))
    means.append([new["batch_stats"]["encoder"][f"norm_{i}"]["mean"] for i in (0, 1)])
  assert 0 < abs(losses[1] - losses[0]) < 0.1
  for whole, parts in zip(*means, strict=True):
    assert np.abs(parts).max() > np.abs(whole).max()  # more updates away from zero


def test_a_part_has_all_views_of_its_clips():
  """Of BatchNorm over both views: parts of equal clips have the statistics of the whole."""
  config = recipe.resolve(tiny_config(**CNN, encoder__dropout="0"), None)
  clips = jax.random.normal(jax.random.key(0), (4, 2, config.views.crop_frames, 64))
  views = jnp.repeat(clips, 2, 0) * jnp.array([1.0, 5.0])[None, :, None, None]
  variables, encoded = None, []
  for parts in (1, 2):
    network = method.make_network(
      encoder=config.encoder,
      heads=config.heads,
      joint_views=True,
      dtype=jnp.float32,
      subtraction=Subtraction(),
      accumulation=parts,
    )
    if variables is None:
      variables = network.init(jax.random.key(0), views, None, None, 2, None)
    encode = functools.partial(network.apply, method="encode", mutable=["batch_stats"])
    encoded.append(encode(variables, views, None)[0])
  np.testing.assert_allclose(encoded[1], encoded[0], atol=1e-4)


def test_accumulation_divides_memory_and_communicates_nothing_more():
  options = {
    "encoder__width": "128",
    "encoder__heads": "4",
    "views__crop_frames": "64",
    "batch_size": "128",
    "difference__weight": "0",
  }
  whole, parts = (_lowered(8, **options, compute__accumulation=n).compile() for n in ("1", "4"))
  temporary = lambda step: step.memory_analysis().temp_size_in_bytes
  assert temporary(parts) < 0.6 * temporary(whole)
  collectives = r"\b(all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)\b"
  assert set(re.findall(collectives, parts.as_text())) == {"all-reduce"}


def test_remat_computes_the_blocks_again():
  """A third forward pass in the program, which a CPU's compiler may take out again
  (`tests/test_plan.py`: memory)."""
  options = {"encoder__width": "64", "encoder__depth": "4", "views__crop_frames": "64"}
  options["difference__weight"] = "0"
  kept, again = (
    _lowered(**options, compute__remat=value).cost_analysis()["flops"]
    for value in ("false", "true")
  )
  assert 1.15 < again / kept < 1.35


def test_what_the_program_resizes_with_follows_from_its_platform():
  """Rows are gathered on a CPU, multiplied on a TPU: seen in the program that is lowered for
  each."""
  x, box = jnp.zeros((4, 100, 64)), jnp.tile(jnp.array([5, 40, 50, 80]), (4, 1))
  crop = jax.jit(jax.vmap(lambda x, box: augment.resize_crop(x, tuple(box), 100, canvas_time=1.5)))
  products = lambda platform: (
    crop.trace(x, box).lower(lowering_platforms=(platform,)).as_text().count("dot_general")
  )
  assert products("cpu") == 1 and products("tpu") == 2


# jaxlib 0.12.0 cannot write a program with calls of oneDNN into the persistent cache
@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache entry:UserWarning")
def test_bfloat16_keeps_statistics_and_state_in_float32():
  """Compute in bfloat16: the loss is near that of float32, and everything that lasts is float32
  (fault 28)."""
  _, expected, metrics = _run()
  step, state, other = _run(dtype="bfloat16")
  assert 0 < abs(other["loss"] - metrics["loss"]) < 0.02
  floats = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert set(floats) == {np.dtype("float32")} and "bf16" in step.as_text()
  assert jax.tree.structure(state) == jax.tree.structure(expected)


def test_transposed_products_in_bfloat16_are_onednns_where_jaxlib_has_it():
  """Of products large enough; XLA's own have no kernel for them (jaxlib 0.12)."""
  x, options = jnp.ones((256, 256), "bfloat16"), compiler_options(jax.devices()[0], "bfloat16")
  program = jax.jit(lambda a, b: a.T @ b, compiler_options=options).lower(x, x).compile()
  assert ("__onednn$matmul" in program.as_text()) == (jax.__version_info__ >= (0, 12))


def test_products_of_float32_are_not_left_to_the_device():
  """GPUs would take TF32 and TPUs bfloat16; the released codes' are float32."""
  for changes in ({}, CNN):
    products = re.findall(r"(?:dot_general|convolution).*", _lowered(**changes).as_text())
    assert len(products) > 20 and all(line.count("HIGHEST") == 2 for line in products)
  products = re.findall(r"dot_general.*bf16.*", _lowered(dtype="bfloat16").as_text())
  assert products and not any("HIGHEST" in line for line in products)


def test_the_program_of_an_accelerator_and_of_float32_has_no_options():
  device = lambda platform: types.SimpleNamespace(platform=platform)
  assert compiler_options(device("cpu"), "bfloat16")
  for platform, dtype in (("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")):
    assert compiler_options(device(platform), dtype) is None


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"compute__accumulation": "3"}, "compute.accumulation=3 does not divide the 16 clips"),
    ({"compute__attention": "cudnn"}, "compute.attention=cudnn needs --config.dtype=bfloat16"),
    ({"compute__attention": "flash"}, "choose one of auto, xla, cudnn"),
    ({**CNN, "compute__remat": "true"}, "needs? --config.encoder.kind=transformer"),
    ({"compute__accumulation": "0"}, "must be at least 1"),
  ],
)
def test_what_cannot_be_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    check(recipe.resolve(tiny_config(**changes), None), None, 1, 1)
