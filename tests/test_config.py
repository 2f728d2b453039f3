"""Configs: their resolved text, overrides, and that every one builds."""

import importlib
import json
import os
import shutil
import subprocess
import sys

import jax
import pytest

from atst_jax.audio.frontend import get_frontend
from atst_jax.method.subtraction import SECTIONS, Subtraction
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from docs import configuration
from tests.tiny import ROOT, make_shallow, tiny_config

BASE = str(ROOT / "configs" / "base.py")
GOLDEN = ROOT / "tests" / "golden"
FILES = sorted(p for p in (ROOT / "configs").glob("*.py") if p.name != "__init__.py")
ALL = [
  f"{p}:{v}" for p in FILES for v in __import__(f"configs.{p.stem}", fromlist=["VARIANTS"]).VARIANTS
]


def _compare(name, text, folder=GOLDEN):
  """Against tests/golden/NAME; UPDATE_GOLDEN=1 rewrites it."""
  path = folder / name
  if os.environ.get("UPDATE_GOLDEN"):
    folder.mkdir(exist_ok=True)
    path.write_text(text)
  assert text == path.read_text(), (
    f"{path} differs; if that is meant, run UPDATE_GOLDEN=1 pytest {__file__}"
  )


@pytest.fixture
def inherited(monkeypatch):
  """The configs that are called while another is loaded, the nearest first: ["byola:paper", …]."""
  called = []

  def record(path):
    module = importlib.import_module(f"configs.{path.stem}")
    get_config = module.get_config

    def recorded(variant=module.VARIANTS[0]):
      called.append(f"{path.stem}:{variant}")
      return get_config(variant)

    monkeypatch.setattr(module, "get_config", recorded)

  for path in FILES:
    record(path)
  return called


def _differences(new, old):
  lines = [
    f"  {key} = {json.dumps(new[key])}" for key in new if key not in old or new[key] != old[key]
  ]
  return lines + [f"  {key} is absent" for key in old if key not in new]


def test_resolved_configs(inherited):
  """Each config as its differences to the one it inherits from, or to the first variant of its
  file, whichever is nearer; a file that inherits from none as a whole."""
  values, parents = {}, {}
  for path in ALL:
    inherited.clear()
    name = os.path.basename(path).replace(".py", "")
    values[name] = configs.flatten(configs.to_json(configs.load(path)))
    first = next(other for other in values if other.partition(":")[0] == name.partition(":")[0])
    parents[name] = [*inherited[:1], *([first] if first != name else [])]
  lines = []
  for name, flat in values.items():
    near = min(parents[name], key=lambda p: len(_differences(flat, values[p])), default=None)
    lines.append(f"{name} differs from {near}" if near else name)
    lines += _differences(flat, values[near] if near else {})
  _compare("configs.txt", "\n".join(lines) + "\n")


def test_configuration_reference():
  """docs/configuration.md is what the configs say."""
  _compare("configuration.md", configuration.render(str(ROOT / "configs")), ROOT / "docs")


def test_every_key_is_explained():
  """By a comment where it is set first."""
  rows = [
    line.split(" | ")
    for line in configuration.render(str(ROOT / "configs")).splitlines()
    if line.startswith("| `")
  ]
  assert len(rows) > 150 and not [row[0] for row in rows if not row[3].strip()]


def test_what_a_key_may_be_is_read_from_the_checks():
  text = configuration.render(str(ROOT / "configs"))
  for row in (
    "| `difference.weight` | 0.2 | 0 to 1 | λ | ",
    "| `views.padding` | mask | mask, silence, silence_around | of short clips; ",
    "| `encoder.dropout` | 0.3 (`byola:paper`) | 0 to 0.99 | ",
    "| `total_steps` | not set | 1 or more | ",
  ):
    assert row in text, row
  assert "How it is computed, not what: these may change" in text  # above its section


def _pretraining(path):
  config = configs.load(path)
  return config if config.job == "pretrain" else None


@pytest.mark.parametrize("path", [p for p in ALL if _pretraining(p)], ids=os.path.basename)
def test_every_pretraining_config_builds(path):
  """Shapes of a whole step at full width."""
  config = _pretraining(path)
  make_shallow(config.encoder)
  config.data.source = "synthetic"
  config.total_steps, config.warmup_steps = config.total_steps or 1000, config.warmup_steps or 10
  config = recipe.resolve(config, None)
  check(config, None, devices=8, processes=1)
  init, step = recipe.build(config, ragged=True)
  state = jax.eval_shape(init, jax.random.key(0))
  B, T = config.batch_size, config.data.clip_frames
  n_mels = get_frontend(config.data.frontend).n_mels
  batch = {
    "mel": jax.ShapeDtypeStruct((B, T, n_mels), "float16"),
    "length": jax.ShapeDtypeStruct((B,), "int32"),
  }
  after, metrics = jax.eval_shape(step, state, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert metrics["loss"].shape == ()


def test_parameter_table():
  """Names, shapes and weight decay of the default model."""
  from atst_jax.method.optimizer import decay_mask

  config = _pretraining(str(ROOT / "configs" / "base.py"))
  config.data.source, config.total_steps, config.warmup_steps = "synthetic", 10, 1
  init, _ = recipe.build(recipe.resolve(config, None), ragged=False)
  params = jax.eval_shape(init, jax.random.key(0)).params
  rows = zip(
    jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(decay_mask(params)), strict=True
  )
  text = "".join(
    f"{'/'.join(k.key for k in path)} {x.shape} {'decay' if d else '-'}\n" for (path, x), d in rows
  )
  _compare("parameters_base.txt", text + f"total {sum(x.size for x in jax.tree.leaves(params))}\n")


PUBLISHED = {  # of the released code: encoder, projector, predictor, student, teacher
  "atst_small.py": (21_476_352, 2_629_632, 2_105_344, 26_211_328, 24_105_984),
  "atst_base.py": (85_420_032, 4_202_496, 2_105_344, 91_727_872, 89_622_528),
  "byola.py": (6_333_376, 13_644_032, 2_109_696, 22_087_104, 19_977_408),
}


def test_parameter_counts():
  """The released numbers, exactly, with the `mask_embed` (one token) that ATST's released encoder
  carries unused."""
  lines = []
  for file, published in PUBLISHED.items():
    config = _pretraining(str(ROOT / "configs" / file))
    config.data.source, config.total_steps, config.warmup_steps = "synthetic", 10, 1
    init, _ = recipe.build(recipe.resolve(config, None), ragged=False)
    state = jax.eval_shape(init, jax.random.key(0))
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    parts = [count(state.params[part]) for part in ("encoder", "projector", "predictor")]
    parts += [count(state.params), count(state.teacher.params)]
    mask = config.encoder.width if config.encoder.kind == "transformer" else 0
    assert tuple(n + m for n, m in zip(parts, (mask, 0, 0, mask, mask), strict=True)) == published
    names = ("encoder", "projector", "predictor", "student", "teacher")
    lines += [
      f"{file} {name} {n}, released {p}" for name, n, p in zip(names, parts, published, strict=True)
    ]
  _compare("parameter_counts.txt", "\n".join(lines) + "\n")


def test_a_config_may_leave_settings_to_their_class_but_not_invent_any(tmp_path):
  """What is not set is stored with the run all the same."""
  config = configs.load(BASE)
  assert set(config.difference) == {"weight", "mix_domain"}
  stored = recipe.resolve(tiny_config(), None).to_dict()["difference"]
  assert stored == Subtraction(weight=0.2, mix_domain="energy")._asdict()
  path = tmp_path / "mine.py"

  def load(line, *flags):
    path.write_text(
      "from configs import base\nVARIANTS = ('paper',)\n\ndef get_config(variant='paper'):\n"
      f"  config = base.get_config()\n  config.difference.{line}\n  return config\n"
    )
    return configs.load_with_overrides(str(path), flags, SECTIONS).difference

  with pytest.raises(UserError, match=r"gama_per: no such key; did you mean difference\.gamma_per"):
    load("gama_per = 'batch'")
  # what a file sets has the type that the class gives
  with pytest.raises(UserError, match=r"difference\.symmetric='false'"):
    load("symmetric = 'false'")
  assert load("mix_k = 1", "--config.difference.mix_k=none").mix_k is None
  assert load("gamma_min = 0", "--config.difference.gamma_min=0.3").gamma_min == 0.3


@pytest.mark.parametrize(
  "key, text, value",
  [
    ("batch_size", "64", 64),
    ("optimizer.base_lr", "1e-3", 1e-3),
    ("joint_views", "false", False),
    ("views.freq_scale", "0.5,1", (0.5, 1.0)),
    ("views.freq_scale", "(0.5, 1.25)", (0.5, 1.25)),
    ("views.normalization.low", "-79.5", -79.5),
    ("views.normalization.low", "none", None),
    ("total_steps", "39_000", 39000),
    ("total_epochs", "none", None),
    ("data.path", "a b=c", "a b=c"),
    # settings that the config leaves to their class
    ("difference.renormalize", "none", "none"),
    ("difference.rescale", "true", True),
    ("difference.mix_k", "3", 3.0),
    ("difference.mix_k", "none", None),
    ("views.first_frames", "8,32", (8, 32)),
    ("online.ridge", "[1, 1e-2]", (1.0, 0.01)),
  ],
)
def test_overrides(key, text, value):
  config = configs.load(BASE, SECTIONS)
  configs.override(config, key, text)
  assert configs.flatten(config)[key] == value and type(configs.flatten(config)[key]) is type(value)


@pytest.mark.parametrize("name", ["base", "base.py", "configs/base.py", "configs/base"])
def test_configs_of_the_package_are_found_from_any_folder(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert configs.find(name) == BASE
  assert configs.load(f"{name}:released").total_steps == 318_000
  (tmp_path / "base.py").write_text("")
  assert configs.find("base.py") == "base.py"  # a file as given comes first


def test_a_config_that_is_nowhere_is_refused_with_the_places_looked_in(monkeypatch, tmp_path):
  monkeypatch.setattr(configs, "FOLDERS", (tmp_path / "beside", tmp_path / "inside"))
  with pytest.raises(UserError, match=f"mine.py in {tmp_path}/beside or {tmp_path}/inside"):
    configs.find("configs/mine")


def test_configs_of_a_wheel_inherit_from_each_other_in_any_folder(tmp_path):
  """There `configs` is no package of its own, but a folder inside atst_jax."""
  package = tmp_path / "site" / "atst_jax"
  for name in ("__init__.py", "util/__init__.py", "util/config.py", "util/errors.py"):
    (package / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "atst_jax" / name, package / name)
  shutil.copytree(ROOT / "configs", package / "configs")
  base = package / "configs" / "base.py"
  base.write_text(base.read_text().replace("config.seed = 0", "config.seed = 7"))
  run = subprocess.run(
    [sys.executable, "-c", "from atst_jax.util import config; print(config.load('byola').seed)"],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(package.parent)},
    capture_output=True,
    text=True,
  )
  assert run.stdout == "7\n", run.stderr


@pytest.mark.parametrize(
  "key, text, message",
  [
    ("batchsize", "1", "no such key; did you mean --config.batch_size"),
    ("views.topdb", "1", "did you mean --config.views"),
    ("base_lr", "1", "did you mean --config.optimizer.base_lr"),
    ("difference.gama_per", "batch", "no such key; did you mean --config.difference.gamma_per"),
    ("difference.mix_k", "much", "expected float"),
    ("views", "1", "is a section; set one of its keys: views.canvas_time"),
    ("batch_size", "12.5", "expected int, for example 10"),
    ("optimizer.base_lr", "fast", "expected float"),
    ("joint_views", "maybe", "expected bool, for example true"),
    ("views.freq_scale", "wide", "expected tuple"),
    ("views.freq_scale", "", "expected tuple"),
    ("batch_size", "none", "expected int"),  # no placeholder: it cannot be unset
    ("teacher.decay_end", "none", "expected float"),
  ],
)
def test_fault_11_wrong_overrides_name_the_remedy(key, text, message):
  with pytest.raises(UserError, match=message):
    configs.override(configs.load(BASE, SECTIONS), key, text)
