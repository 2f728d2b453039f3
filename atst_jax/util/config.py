"""Configs: loading `FILE.py[:variant]`, overrides, comparison with a stored one. Every message
names key and remedy."""

import ast
import difflib
import importlib.util
import json
import os
import pathlib

from ml_collections import ConfigDict, FieldReference

from atst_jax.util.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The configs of a checkout (and of a wheel with them beside the package), and of a wheel with them
# inside it.
FOLDERS = (ROOT / "configs", ROOT / "atst_jax" / "configs")


def find(path: str) -> str:
  """The file that `path` names: as given, or among the configs of this package, where `base`,
  `base.py` and `configs/base.py` are the same. Raises UserError with the places looked in."""
  if os.path.isfile(path):
    return path
  name = path.removeprefix("configs/").removesuffix(".py") + ".py"
  for folder in FOLDERS:
    if not os.path.isabs(path) and (folder / name).is_file():
      return str(folder / name)
  raise UserError(
    f"--config={path}: no such file, here or in {FOLDERS[0]}; configs lie in configs/, for example "
    "configs/base.py"
  )


def _module(path: str):
  path = find(path.partition(":")[0])
  spec = importlib.util.spec_from_file_location(os.path.basename(path).removesuffix(".py"), path)
  assert spec is not None and spec.loader is not None  # it is a file
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def load(path: str) -> ConfigDict:
  """Runs get_config(variant) of `FILE.py:variant` (the variant is optional). Raises UserError."""
  module = _module(path)
  path, _, variant = path.partition(":")
  if variant and variant not in module.VARIANTS:
    raise UserError(f"{path} has no variant {variant!r}; there are {', '.join(module.VARIANTS)}")
  config = module.get_config(variant) if variant else module.get_config()
  config.lock()
  return config


def variants(path: str) -> tuple[str, ...]:
  """The variants of a config file, the default first."""
  return _module(path).VARIANTS


def flatten(config, prefix="") -> dict:
  """{"views.top_db": 80.0, …} in the order of the config."""
  out = {}
  for key in config:
    value = config[key]
    if isinstance(value, ConfigDict | dict):
      out.update(flatten(value, f"{prefix}{key}."))
    else:
      out[prefix + key] = value
  return out


def _parse(key, text, kind, old, optional):
  """`text` as a value of type `kind`; `optional` ones accept "none"."""
  if text.lower() == "none" and optional:
    return None
  try:
    if kind is bool:
      return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
    if kind is int:
      return int(text.replace("_", ""))
    if kind is float:
      return float(text)
    if kind in (tuple, list):
      if any(isinstance(v, str) for v in old or ()):
        return tuple(part.strip(" '\"") for part in text.strip("()[] ").split(",") if part.strip())
      value = ast.literal_eval(text if text.strip()[:1] in ("(", "[") else f"({text},)")
      if not isinstance(value, (tuple, list)) or any(
        isinstance(v, bool) or not isinstance(v, int | float) for v in value
      ):
        raise ValueError
      return tuple(float(v) if any(isinstance(o, float) for o in old or ()) else v for v in value)
    return text
  # the last two: of brackets
  except (KeyError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
    example = {bool: "true", int: "10", float: "0.5", tuple: "0.6,1.5", list: "0.6,1.5"}[kind]
    raise UserError(
      f"--config.{key}={text}: expected {kind.__name__}, for example {example}"
    ) from None


def override(config: ConfigDict, key: str, text: str) -> None:
  """Sets a dotted key from the text of a flag. Raises UserError with the nearest key, or the
  expected type."""
  keys = flatten(config)
  if key not in keys:
    below = [k for k in keys if k.startswith(key + ".")]
    if below:
      raise UserError(f"--config.{key} is a section; set one of its keys: {', '.join(below)}")
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0) or difflib.get_close_matches(
      key, list(keys), n=1
    )
    last = [k for k in keys if k.rpartition(".")[2] == key.rpartition(".")[2]]
    raise UserError(f"--config.{key}: no such key; did you mean --config.{(last or near)[0]}?")
  *path, name = key.split(".")
  section = config
  for part in path:
    section = section[part]
  # Placeholders, and `FieldReference(VALUE)`: what a config sets but may be unset.
  field = dict(section.iteritems(preserve_field_references=True))[name]
  optional = field is None or isinstance(field, FieldReference)
  section[name] = _parse(key, text, section.get_type(name), keys[key], optional)


def load_with_overrides(path: str, flags: list[str]) -> ConfigDict:
  """`load`, then every `--config.KEY=VALUE` of the flags. Raises UserError, also for any other
  flag."""
  config = load(path)
  for flag in flags:
    key, equals, value = flag.removeprefix("--config.").partition("=")
    if not flag.startswith("--config.") or not equals:
      raise UserError(f"{flag}: unknown flag; overrides read --config.KEY=VALUE")
    override(config, key, value)
  return config


def sweeps(path: str) -> dict[str, list[dict]]:
  """The sweeps that a config file offers: name -> overrides of every run."""
  return getattr(_module(path), "SWEEPS", {})


def to_json(config: ConfigDict) -> dict:
  """The config as JSON values (tuples become lists)."""
  return json.loads(json.dumps(config.to_dict()))


def changes(old: dict, new: dict, ignore: tuple[str, ...] = ()) -> list[str]:
  """Lines "key: old -> new" for all keys that differ, but for those that start with one of
  `ignore`."""
  old, new = flatten(old), flatten(new)
  keys = (
    [k for k in sorted({*old, *new}) if not k.startswith(ignore)]
    if ignore
    else sorted({*old, *new})
  )
  show = lambda values, key: repr(values[key]) if key in values else "(absent)"
  return [
    f"{k}: {show(old, k)} -> {show(new, k)}"
    for k in keys
    if k not in old or k not in new or old[k] != new[k]
  ]
