"""The plan of the house: what each package may import, and heavy libraries where they are used."""

import ast
import collections
import functools
import pathlib
import subprocess
import sys

import pytest

from tests.tiny import ROOT

# What an evaluation may use, and all that stands on evaluations.
EVALUATION = ("util", "models", "method", "objectives", "audio", "data", "runtime", "artifacts")

# Package -> the packages it may use besides itself. From the ground up: a row names earlier rows
# only.
PACKAGES = {
  "atst_jax.util": (),
  "atst_jax.models": ("util",),
  "atst_jax.method": ("util", "models"),
  "atst_jax.audio": ("util",),
  "atst_jax.data": ("util", "audio"),
  "atst_jax.objectives": ("util", "models", "method", "audio"),
  "atst_jax.runtime": ("util", "audio", "data"),
  "atst_jax.artifacts": ("util", "models", "method", "audio", "data", "runtime"),
  "atst_jax.prediction": ("util", "audio", "runtime", "artifacts"),
  "atst_jax.downstream": EVALUATION,
  "atst_jax.figures": (*EVALUATION, "downstream"),
  "atst_jax.pretraining": (*EVALUATION, "downstream"),
  "atst_jax.performance": (*EVALUATION, "downstream", "pretraining"),
  "data_pipeline.sources": ("util", "audio", "data"),
  "data_pipeline.shards": ("util", "audio", "data", "sources"),
  "data_pipeline.mixing": ("util", "audio", "data", "sources", "shards"),
  "data_pipeline": ("util", "audio", "data", "sources", "shards", "mixing"),  # its commands
  "configs": (),
}
MOST_MODULES, MOST_FLOORS = 12, 8

# Inside functions only: the model trains, exports and embeds on hosts that have none of these.
LAZY = {
  *("apache_beam", "librosa", "matplotlib", "mlflow", "onnx", "onnxruntime", "pyarrow"),
  *("pyloudnorm", "safetensors", "sklearn", "soundfile", "soxr", "tensorboardX", "tensorflow"),
  *("tensorflow_datasets", "torch", "transformers", "usearch", "wandb"),
}
EAGER = {("atst_jax.audio.decode", "soundfile"), ("atst_jax.audio.decode", "soxr")}

Import = collections.namedtuple("Import", "target top_level line")


def _modules() -> dict[str, pathlib.Path]:
  """Dotted name -> file of every module of the three packages."""
  files = [
    f
    for package in ("atst_jax", "configs", "data_pipeline")
    for f in sorted((ROOT / package).rglob("*.py"))
  ]
  return {
    ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files
  }


MODULES = _modules()


def _called(function) -> str:
  """The last part of the name of what is called, or ""."""
  return getattr(function, "attr", getattr(function, "id", ""))


@functools.cache
def _imports(module: str) -> list[Import]:
  """Every import of a module with its absolute target, wherever it stands; `top_level` means run by
  importing."""
  path = MODULES[module]
  package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
  found = []

  def visit(node, top_level):
    targets = []
    if isinstance(node, ast.Import):
      targets = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else []
      source = ".".join(base + ([node.module] if node.module else []))
      submodules = [f"{source}.{alias.name}" for alias in node.names]
      targets = [name if name in MODULES else source for name in submodules]
    elif isinstance(node, ast.Call) and _called(node.func) == "import_module":
      targets = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    found.extend(Import(target, top_level, node.lineno) for target in targets)
    inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
      visit(child, top_level and not inside)

  visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)
  return found


def _package(module: str) -> str:
  """The package of PACKAGES that a module belongs to; "" for a command of atst_jax and for the
  package itself."""
  room = ".".join(module.split(".")[:2])
  return next((name for name in (room, module.split(".")[0]) if name in PACKAGES), "")


def _ours(module: str) -> list[Import]:
  return [
    i
    for i in _imports(module)
    if i.target.split(".")[0] in ("atst_jax", "configs", "data_pipeline")
  ]


def test_a_package_uses_only_those_below_it():
  earlier = set()
  for name, uses in PACKAGES.items():
    assert set(uses) <= earlier, name
    earlier.add(name.rpartition(".")[2])
  wrong = []
  for module in MODULES:
    if not (package := _package(module)):
      continue  # a command of atst_jax may use everything
    allowed = {
      package,
      "",
      *(name for name in PACKAGES if name.rpartition(".")[2] in PACKAGES[package]),
    }
    for target, _, line in _ours(module):
      # the package itself, "atst_jax", is its version
      of_a_command = target.count(".") == 1 and not _package(target)
      if _package(target) not in allowed or of_a_command:
        wrong.append(f"{MODULES[module]}:{line}: {package} must not import {target}")
  assert not wrong, "\n".join(wrong)


def test_no_package_is_crowded_and_no_floor_is_high():
  """At most so many modules in a room, no circle among them, and at most so many floors between
  packages and modules."""
  rooms = collections.defaultdict(list)
  for module, path in MODULES.items():
    if path.name != "__init__.py" and not module.startswith("configs"):
      rooms[module.rpartition(".")[0]].append(module)
  crowded = {room: len(modules) for room, modules in rooms.items() if len(modules) > MOST_MODULES}
  assert not crowded
  for room, modules in rooms.items():
    below = {
      m: {i.target for i in _ours(m) if i.target in modules and i.target != m} for m in modules
    }
    floors = 0
    while below:
      ground = {m for m, targets in below.items() if not targets & set(below)}
      assert ground, f"a circle in {room}: {sorted(below)}"
      below = {m: targets for m, targets in below.items() if m not in ground}
      floors += 1
    assert floors <= MOST_FLOORS, (room, floors)


def test_every_package_says_what_it_is_for():
  """What it is for, what goes in and what comes out."""
  for module, path in MODULES.items():
    if path.name == "__init__.py" and module not in ("atst_jax", "configs"):
      text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
      assert "In:" in text and "Out:" in text, module


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_inside_functions(module):
  wrong = [
    f"{MODULES[module]}:{line}: import {target} inside the function that uses it"
    for target, top_level, line in _imports(module)
    if top_level and target.split(".")[0] in LAZY and (module, target) not in EAGER
  ]
  assert not wrong, "\n".join(wrong)


def test_the_method_and_the_models_see_no_config_object():
  for module in MODULES:
    if _package(module) in ("atst_jax.method", "atst_jax.models"):
      targets = {i.target for i in _imports(module)}
      assert not {
        t for t in targets if t == "atst_jax.util.config" or t.startswith("ml_collections")
      }, module


def test_importing_everything_loads_neither_tensorflow_nor_librosa():
  modules = [name for name in MODULES if name.startswith("atst_jax")]
  code = (
    "import importlib, sys\n"
    f"for name in {modules}: importlib.import_module(name)\n"
    "loaded = sorted({name.split('.')[0] for name in sys.modules})\n"
    "sys.exit(f'loaded: {loaded}' if {'tensorflow', 'librosa'} & set(loaded) else 0)\n"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert run.returncode == 0, run.stderr
