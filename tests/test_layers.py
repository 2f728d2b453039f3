"""The layering of the code: imports point downwards, and heavy libraries are imported where they are used."""

import ast
import collections
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# layer -> module of atst_jax -> the modules of its own layer that it may import. It may import every lower layer and
# no higher one. Place a new module here, as low as its imports allow.
LAYERS = {
  0: {
    "chips": (),
    "collectives": (),
    "environment": ("command",),
    "errors": (),
    "html_page": (),
    "remote": ("errors",),
    "storage": ("remote",),
    "augment": (),
    "batch_norm": (),
    "command": ("errors", "logs"),
    "config": ("errors",),
    "frontend": ("errors",),
    "groups": (),
    "guard": (),
    "initializers": (),
    "fingerprint": (),
    "logs": ("errors", "storage"),
    "losses": ("errors",),
    "mesh": ("errors",),
    "manifest": ("errors", "storage"),
    "markdown": (),
    "metrics": ("errors",),
    "mixtures": ("groups", "normalization"),
    "normalization": ("groups",),
    "peer": ("errors", "frontend"),
    "pictures": ("storage",),
    "preemption": ("errors",),
    "shelf": ("errors", "logs", "manifest", "storage"),
    "tfrecord": ("errors", "storage"),
    "torch_files": ("errors",),
    "trackers": ("config", "errors", "storage"),
    "views": ("augment", "groups", "normalization"),
    "watchdog": ("logs",),
    "schema": (),
    "records": ("errors", "frontend", "schema", "storage", "tfrecord"),
    "vectors": ("errors", "storage"),
    "waveforms": ("errors", "frontend"),
  },
  1: {
    "checkpoint": (),
    "cnn": (),
    "ema": (),
    "encoders": ("cnn", "transformer"),
    "exported": ("checkpoint", "encoders"),
    "flops": ("cnn", "encoders"),
    "heads": (),
    "optimizer": (),
    "ridge": (),
    "transformer": (),
    "workdir": (),
  },
  2: {
    "export": ("model", "model_card", "onnx_graph", "program"),
    "checks": ("input_pipeline", "model"),
    "convert": ("export",),
    "embed": ("embed_files", "model"),
    "embed_files": ("model",),
    "model": (),
    "model_card": (),
    "onnx_graph": (),
    "program": ("model",),
    "shard_reader": (),
    "input_pipeline": ("shard_reader",),
    "view_sheet": ("input_pipeline",),
    "attention": ("model", "view_sheet"),
    "maps": ("model",),
    "map_page": ("maps",),
    "plots": ("maps", "model", "view_sheet"),
    "train_step": (),
  },
  3: {
    "online": ("downstream",),  # its labels and divisions
    "recipe": (),
    "pod": ("recipe",),
    "recovery": ("recipe",),
    "speed": ("recipe",),
    "train": ("online", "recipe", "recovery"),
    "downstream": ("downstream", "recipe"),
  },  # downstream: every module of the sub-package
  4: {
    "main": ("dry_run",),
    "dry_run": (),
    "benchmark": (),
    "plan": (),
    "preview": (),
    "reference": (),
    "report": (),
  },  # commands, which nothing imports
}
# What the other packages may import of atst_jax ("" is the package itself, its version), besides their own modules.
OUTSIDE = {
  "data_pipeline": ("", "command", "errors", "frontend", "html_page", "logs", "records", "schema", "storage",
                    "tfrecord"), "configs": (),
}  # fmt: skip
EXCEPTIONS = {  # inside functions: the lister and the decoder, for audio files; the job, to time it; its page
  ("atst_jax.embed_files", "data_pipeline.audio"), ("atst_jax.embed_files", "data_pipeline.progress"),
  ("atst_jax.embed_files", "data_pipeline.sources"), ("atst_jax.benchmark", "data_pipeline.speed"),
  ("atst_jax.attention", "data_pipeline.audio"), ("atst_jax.report", "data_pipeline.audio"),
  ("atst_jax.report", "data_pipeline.sources"), ("atst_jax.report", "data_pipeline.report_page"),
}  # fmt: skip

# Inside functions only: the model trains, exports and embeds on hosts that have none of these.
LAZY = {
  "apache_beam", "librosa", "matplotlib", "mlflow", "onnx", "onnxruntime", "pyarrow", "pyloudnorm", "safetensors",
  "sklearn", "soundfile", "soxr", "tensorboardX", "tensorflow", "tensorflow_datasets", "torch", "transformers",
  "wandb",
}  # fmt: skip
EAGER = {("data_pipeline.audio", "soundfile"), ("data_pipeline.audio", "soxr")}
CONFIG_FREE = (
  "augment",
  "cnn",
  "encoders",
  "groups",
  "heads",
  "losses",
  "mixtures",
  "normalization",
  "transformer",
  "views",
)  # arrays, keys and plain keyword arguments

Import = collections.namedtuple("Import", "target top_level line")


def _modules() -> dict[str, pathlib.Path]:
  """Dotted name -> file of every module of the three packages."""
  files = [f for package in ("atst_jax", "configs", "data_pipeline") for f in sorted((ROOT / package).rglob("*.py"))]
  return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


MODULES = _modules()


def _imports(module: str) -> list[Import]:
  """Every import of a module with its absolute target, wherever it stands; `top_level` means run by importing."""
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
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
      targets = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    found.extend(Import(target, top_level, node.lineno) for target in targets)
    inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
      visit(child, top_level and not inside)

  visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)
  return found


def _place(module: str) -> tuple[int, str]:
  """(layer, name in LAYERS) of a module of atst_jax; the package itself lies below everything."""
  name = module.split(".")[1] if "." in module else ""
  if not name:
    return -1, ""
  layers = [layer for layer, names in LAYERS.items() if name in names]
  assert len(layers) == 1, f"{module} is in {len(layers)} layers: place it once in LAYERS at the top of {__file__}"
  return layers[0], name


def _allowed(module: str, target: str, top_level: bool) -> bool:
  """Whether a module of the project may import another."""
  package, target_package = module.split(".")[0], target.split(".")[0]
  if package != "atst_jax":
    return target_package == package or (target_package == "atst_jax" and _place(target)[1] in OUTSIDE[package])
  if target_package != "atst_jax":
    return (module, target) in EXCEPTIONS and not top_level
  (layer, name), (target_layer, target_name) = _place(module), _place(target)
  return target_layer < layer or (target_layer == layer and target_name in LAYERS.get(layer, {}).get(name, ()))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
  if module.startswith("atst_jax"):
    _place(module)
  packages = {name.split(".")[0] for name in MODULES} | {"tests", "launch"}
  wrong = [
    f"{MODULES[module]}:{line}: {module} must not import {target}{' at top level' if top_level else ''}"
    for target, top_level, line in _imports(module)
    if target.split(".")[0] in packages and not _allowed(module, target, top_level)
  ]
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_inside_functions(module):
  wrong = [
    f"{MODULES[module]}:{line}: import {target} inside the function that uses it"
    for target, top_level, line in _imports(module)
    if top_level and target.split(".")[0] in LAZY and (module, target) not in EAGER
  ]
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", CONFIG_FREE)
def test_the_method_sees_no_config_object(name):
  module = f"atst_jax.{name}"
  assert module in MODULES
  targets = {i.target for i in _imports(module)}
  assert not {t for t in targets if t == "atst_jax.config" or t.startswith("ml_collections")}


def test_importing_everything_loads_neither_tensorflow_nor_librosa():
  modules = [name for name in MODULES if name.startswith("atst_jax")]
  code = (
    "import importlib, sys\n"
    f"for name in {modules}: importlib.import_module(name)\n"
    "loaded = sorted({name.split('.')[0] for name in sys.modules})\n"
    "sys.exit(f'loaded: {loaded}' if {'tensorflow', 'librosa'} & set(loaded) else 0)\n"
  )
  run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stderr
