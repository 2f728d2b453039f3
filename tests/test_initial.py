"""Pre-training that goes on from an export's weights."""

import json
import os

import jax
import numpy as np
import pytest

from atst_jax.artifacts import folder
from atst_jax.pretraining import initial, job, recipe
from atst_jax.runtime.mesh import make_mesh
from atst_jax.util.errors import UserError
from tests.checkpoints import MIN_MAX, SMALL, parent
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def export(tmp_path_factory):
  return parent(tmp_path_factory.mktemp("initial") / "encoder")


def going_on(path, file="base.py", **overrides):
  """A config whose normalisation is not set."""
  config = tiny_config(file, **overrides)
  for key in {"low", "high", "mean", "std"} & set(config.views.normalization):
    config.views.normalization[key] = None
  config.initial = path
  return config


@pytest.mark.parametrize("file", ["base.py", "byola.py"])
def test_student_and_teacher_begin_with_the_export(tmp_path, file):
  normalization = MIN_MAX
  if file == "byola.py":
    normalization = {"kind": "standard", "mean": -5.0, "std": 4.0}
  path = parent(tmp_path / "encoder", file, normalization)
  changed = {"encoder__dropout": "0.25"} if file == "byola.py" else {"encoder__drop_path": "0.25"}
  config = recipe.resolve(going_on(path, file, **SMALL.get(file, {}), **changed), None)
  assert {key: config.views.normalization[key] for key in normalization} == normalization
  mesh = make_mesh(**config.mesh)
  program = recipe.compile_for(config, mesh, ragged=False)
  random = program.init(jax.random.fold_in(jax.random.key(config.seed), job.INIT_STREAM))
  state = job.fresh_state(config, program)
  _, variables, _ = folder.read(path)
  equal = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  for params in (state.params, state.teacher.params):
    equal(params["encoder"], variables["params"])
    equal(params["projector"], random.params["projector"])
  if file == "byola.py":
    for statistics in (state.batch_stats, state.teacher.batch_stats):
      equal(statistics["encoder"], variables["batch_stats"])
  shardings = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
  assert shardings(state) == shardings(random)
  assert config.initial_hash == folder.params_hash(variables)


def test_a_longer_crop_interpolates_the_positions_that_were_trained():
  """CLS's row stays; ends meet ends; the middle lies between its neighbours."""
  table = np.concatenate([[[-1.0]], np.arange(8.0)[:, None], np.full((4, 1), 99.0)])[None]
  same = initial.fit_positions(table, trained=8, crop=8, size=10)
  np.testing.assert_array_equal(same[0, :9], table[0, :9])
  longer = initial.fit_positions(table, trained=8, crop=15, size=16)[0, :, 0]
  np.testing.assert_allclose(longer, [-1, *np.arange(15) / 2, 7])


def test_the_run_takes_positions_for_its_crop(export, monkeypatch):
  said = []
  monkeypatch.setattr(initial.log, "info", lambda message, *args: said.append(message % args))
  config = recipe.resolve(going_on(export, views__crop_frames="64"), None)
  table = initial.load(config)["params"]["pos_embed"]
  assert table.shape == (1, 17, 16) and "trained on 8 positions; the 16" in said[-1]
  _, variables, _ = folder.read(export)
  np.testing.assert_allclose(table[0, 16], variables["params"]["pos_embed"][0, 8], rtol=1e-6)


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"encoder__width": "32"}, "encoder.width is 16 there, 32 here"),
    ({"data__frontend": "difference"}, "front-end is 'atst' there"),
    ({"initial_hash": "0" * 16}, "give the encoder it began with"),
  ],
)
def test_what_does_not_fit_is_named(export, overrides, message):
  with pytest.raises(UserError, match=message):
    recipe.resolve(going_on(export, **overrides), None)


def test_constants_that_are_set_must_be_the_parents(export):
  config = going_on(export)
  config.views.normalization.low = -100.0
  with pytest.raises(UserError, match=r"normalization.low is -90.0 there, -100.0 here"):
    recipe.resolve(config, None)


def test_no_export_and_a_damaged_one(tmp_path, export):
  with pytest.raises(UserError, match="not an exported encoder"):
    recipe.resolve(going_on(str(tmp_path)), None)
  config = recipe.resolve(going_on(export), None)
  path = os.path.join(export, folder.CONFIG)
  with open(path, encoding="utf-8") as file:
    content = json.load(file)
  config.initial_hash = "0" * 16
  assert content["params_hash"] != config.initial_hash
  with pytest.raises(UserError, match="its weights are not those"):
    initial.load(config)
