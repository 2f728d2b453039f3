"""Configs: loading `FILE.py[:variant]`, overrides, comparison with a stored one. Every message
names key and remedy."""

import difflib
import importlib.util
import json
import os
import pathlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict

from atst_jax.util.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The configs of a checkout lie beside the package; those of a wheel inside it.
FOLDERS = (ROOT / "configs", ROOT / "atst_jax" / "configs")
EXAMPLES = {bool: "true", int: "10", float: "0.5", tuple: "0.6,1.5", list: "0.6,1.5"}
Sections = Mapping[str, Any]  # of a config: {"difference": Subtraction}, a NamedTuple
NO_SECTIONS: Sections = types.MappingProxyType({})
BOOLS = {"true": True, "false": False, "1": True, "0": False}


def find(path: str) -> str:
  """The config file of a path: as given, or among the configs of this package, where `base`,
  `base.py` and `configs/base.py` are the same. Raises UserError with the searched places."""
  if os.path.isfile(path):
    return path
  name = path.removeprefix("configs/").removesuffix(".py") + ".py"
  if not os.path.isabs(path):
    for folder in FOLDERS:
      if (folder / name).is_file():
        return str(folder / name)
  raise UserError(
    f"--config={path}: no such file here, and no {name} in {FOLDERS[0]} or {FOLDERS[1]}; "
    "take for example --config=configs/base.py"
  )


def _module(path: str) -> types.ModuleType:
  """Runs the config file of `FILE.py:variant`. Its `from configs import base` finds a base.py
  beside it, else the one of this package, whatever the current folder."""
  path = find(path.partition(":")[0])
  if "configs" not in sys.modules:
    package = types.ModuleType("configs")
    package.__path__ = [os.path.dirname(os.path.abspath(path)), *map(str, FOLDERS)]
    sys.modules["configs"] = package
  name = os.path.basename(path).removesuffix(".py")
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None  # it is a file
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def load(path: str, sections: Sections = NO_SECTIONS) -> ConfigDict:
  """Runs get_config(variant) of `FILE.py:variant` (the variant is optional).

  Args:
    sections: classes of those sections of which a config sets only some keys. The others get the
      defaults of the class.

  Raises UserError, also for a key of such a section that its class does not have.
  """
  module = _module(path)
  path, _, variant = path.partition(":")
  if variant and variant not in module.VARIANTS:
    raise UserError(f"{path} has no variant {variant!r}; there are {', '.join(module.VARIANTS)}")
  config = module.get_config(variant) if variant else module.get_config()
  for name, settings in sections.items():
    if name in config:
      _complete(config, name, settings)
  config.lock()
  return config


def _complete(config: ConfigDict, name: str, settings: Any) -> None:
  for key in config[name]:
    if key not in settings._fields:
      near = difflib.get_close_matches(key, settings._fields, n=1, cutoff=0)[0]
      raise UserError(f"the config sets {name}.{key}: no such key; did you mean {name}.{near}?")
  hints, section = typing.get_type_hints(settings), config[name]
  for key, default in settings._field_defaults.items():
    chosen = section.get(key)
    if chosen is None or key not in section:
      section[key] = _field(hints[key], default)
      continue
    del section[key]
    section[key] = _field(hints[key], default)  # sets the type of the class
    try:
      section[key] = chosen
    except (TypeError, ValueError) as error:
      raise UserError(f"the config sets {name}.{key}={chosen!r}: {error}") from error


def _field(hint: Any, default: Any) -> Any:
  """A setting's default, or a placeholder of its type if that is None."""
  return config_dict.placeholder(typing.get_args(hint)[0]) if default is None else default


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


def _number(text: str) -> int | float:
  try:
    return int(text)
  except ValueError:
    return float(text)


def _parse_tuple(text: str, old: tuple) -> tuple:
  """Values between commas, with brackets or without, of the type of the `old` ones."""
  parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
  if any(isinstance(value, str) for value in old):
    return tuple(part.strip("'\"") for part in parts)
  if not text.strip():
    raise ValueError("no number")
  number = float if any(isinstance(value, float) for value in old) else _number
  return tuple(number(part) for part in parts)


def _parse(text: str, kind: type, old):
  """`text` as a value of type `kind`. Raises KeyError or ValueError."""
  if kind is bool:
    return BOOLS[text.lower()]
  if kind in (tuple, list):
    return _parse_tuple(text, old or ())
  return kind(text) if kind in (int, float) else text


def _refuse_unknown(key: str, keys: list[str]) -> None:
  """Raises UserError for a key that is a section, or with the nearest key."""
  if key in keys:
    return
  below = [k for k in keys if k.startswith(key + ".")]
  if below:
    raise UserError(f"--config.{key} is a section; set one of its keys: {', '.join(below)}")
  same_name = [k for k in keys if k.rpartition(".")[2] == key.rpartition(".")[2]]
  near = same_name or difflib.get_close_matches(key, keys, n=1, cutoff=0)
  raise UserError(f"--config.{key}: no such key; did you mean --config.{near[0]}?")


def override(config: ConfigDict, key: str, text: str) -> None:
  """Sets a dotted key from the text of a flag; "none" unsets an optional key. Raises UserError with
  the nearest key, or the expected type."""
  _refuse_unknown(key, list(flatten(config)))
  section, _, name = key.rpartition(".")
  for part in filter(None, section.split(".")):
    config = config[part]
  # Optional keys are placeholders, or `FieldReference(VALUE)` with a value.
  fields = dict(config.iteritems(preserve_field_references=True))
  if text.lower() == "none" and isinstance(fields[name], FieldReference):
    config[name] = None
    return
  kind = config.get_type(name)
  try:
    config[name] = _parse(text, kind, config[name])
  except (KeyError, ValueError):
    raise UserError(
      f"--config.{key}={text}: expected {kind.__name__}, for example {EXAMPLES[kind]}"
    ) from None


def load_with_overrides(
  path: str, flags: list[str], sections: Sections = NO_SECTIONS
) -> ConfigDict:
  """`load`, then every `--config.KEY=VALUE` of the flags. Raises UserError, also for other
  flags."""
  config = load(path, sections)
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


def changes(old: dict, new: dict) -> list[str]:
  """Lines "key: old -> new" for all keys that differ."""
  old, new = flatten(old), flatten(new)
  show = lambda values, key: repr(values[key]) if key in values else "(absent)"
  absent = object()
  return [
    f"{key}: {show(old, key)} -> {show(new, key)}"
    for key in sorted({*old, *new})
    if old.get(key, absent) != new.get(key, absent)
  ]
