"""JAX's own settings change no number: programs set them, and encoders state their types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.embed import get_scene_embeddings, load_model
from atst_jax.models.encoders import make_encoder
from atst_jax.pretraining import recipe
from atst_jax.runtime import workdir
from atst_jax.util import numbers
from atst_jax.util.cli import Parser
from tests.evaluation import write_encoder
from tests.tiny import tiny_config

OTHERS = {
  "jax_enable_x64": True,
  "jax_numpy_dtype_promotion": "strict",
  "jax_default_prng_impl": "rbg",
  "jax_threefry_partitionable": False,
  "jax_disable_jit": True,
}


@pytest.fixture(params=OTHERS)
def other(request):
  """One of JAX's settings with another value."""
  name, before = request.param, getattr(jax.config, request.param)
  jax.config.update(name, OTHERS[name])
  yield name
  jax.config.update(name, before)


def test_every_command_sets_what_changes_numbers(other, monkeypatch):
  """Whatever the environment says, for the processes that it starts too; a run that goes on draws
  what it would have drawn."""
  variable = other.upper()
  monkeypatch.setenv(variable, str(OTHERS[other]))
  said = []
  monkeypatch.setattr(numbers.log, "info", lambda message, *args: said.append(message % args))
  Parser("x", "").parse([])
  assert getattr(jax.config, other) == numbers.SETTINGS[other]
  assert f"{variable}={OTHERS[other]}: not used here" in said[0]
  Parser("x", "").parse([])
  assert len(said) == 1


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
  """(folder, vectors) of each kind, under JAX's defaults."""
  sound, found = _sound(), {}
  for kind in ("transformer", "cnn"):
    folder = write_encoder(tmp_path_factory.mktemp("numbers") / kind, kind=kind)
    found[folder] = get_scene_embeddings([sound], load_model(folder), 16000)
  return found


def _sound():
  return np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)


@pytest.mark.parametrize("other", ["jax_enable_x64", "jax_numpy_dtype_promotion"], indirect=True)
def test_an_encoder_gives_the_same_vectors_in_any_process(other, encoders):
  """In a notebook, whose settings are not ours."""
  for folder, expected in encoders.items():
    found = get_scene_embeddings([_sound()], load_model(folder), 16000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("file", "sizes"),
  [("base.py", {}), ("byola.py", {"encoder__width": "1040", "encoder__hidden": "8"})],
)
def test_parameters_and_state_have_stated_types(file, sizes):
  config = recipe.resolve(tiny_config(file, **sizes), None)
  init, _ = recipe.build(config, ragged=False)
  before = jax.eval_shape(init, jax.random.key(0))
  with jax.enable_x64(True):
    encoder = make_encoder(config.encoder)
    noise = jax.ShapeDtypeStruct((1, 32, 64), jnp.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), noise)
    after = jax.eval_shape(init, jax.random.key(0))
  assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype("float32")}
  assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, before)


def test_a_setting_that_cannot_be_stated_is_compared_when_a_run_goes_on(tmp_path, warnings):
  workdir.record_start(str(tmp_path), 0)
  workdir.record_start(str(tmp_path), 2)
  assert not warnings
  with jax.default_matmul_precision("bfloat16"):
    workdir.record_start(str(tmp_path), 4)
  assert len(warnings) == 1
  assert "jax_default_matmul_precision was None and is 'bfloat16'" in warnings[0]
