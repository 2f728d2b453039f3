"""The reference of all configs, from the files in configs/ themselves.

  python -m docs.configuration --output=docs/configuration.md

What a key means is the comment beside or above it, what it may be comes from the checks, its values
from the configs.
"""

import ast
import glob
import inspect
import io
import os
import sys
import tokenize

from atst_jax.downstream.finetune import recipe
from atst_jax.method.subtraction import SECTIONS
from atst_jax.pretraining import checks
from atst_jax.runtime.devices import DTYPES
from atst_jax.util import config as configs
from atst_jax.util import storage
from atst_jax.util.cli import Parser, guard
from atst_jax.util.markdown import table_line

PLATFORMS = ("auto", "cpu", "gpu", "tpu")
LIMITS = {"pretrain": checks, "finetune": recipe}  # modules with POSITIVE, CHOICES and RANGES


def read_comments(path: str, fields_of: str | None = None) -> dict[str, str]:
  """{dotted key, or section: the comment beside its assignment, else the lines above it}; of a
  class's fields, if they are the keys of the section `fields_of`."""
  with open(path, encoding="utf-8") as file:
    source = file.read()
  comments = {
    t.start[0]: t.string.lstrip("# ")
    for t in tokenize.generate_tokens(io.StringIO(source).readline)
    if t.type == tokenize.COMMENT
  }
  lines, found = source.splitlines(), {}
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.AnnAssign) and fields_of:
      keys = [f"{fields_of}.{ast.unparse(node.target)}"]
    elif isinstance(node, ast.Assign):
      names = [
        ast.unparse(part) for target in node.targets for part in getattr(target, "elts", [target])
      ]
      keys = [name.removeprefix("config.") for name in names if name.startswith("config.")]
    else:
      continue
    last = node.end_lineno or node.lineno
    words = [comments[line] for line in range(node.lineno, last + 1) if line in comments]
    above = node.lineno - 1
    while not words and lines[above - 1].lstrip().startswith("#"):
      above -= 1
    words = words or [comments[line] for line in range(above + 1, node.lineno)]
    found |= {key: " ".join(words) for key in keys if words and key not in found}
  return found


def load_all(folder: str) -> dict[str, dict[str, dict]]:
  """{job: {"base:paper": {key: (value, type)}, "base:released": …}}, the file that others inherit
  from first."""
  found: dict[str, dict[str, dict]] = {}
  for path in sorted(
    glob.glob(os.path.join(folder, "*.py")), key=lambda path: (not _defines(path), path)
  ):
    if os.path.basename(path) == "__init__.py":
      continue
    for variant in configs.variants(path):
      config = configs.load(f"{path}:{variant}", SECTIONS)
      name = f"{os.path.basename(path).removesuffix('.py')}:{variant}"
      found.setdefault(config.job, {})[name] = {
        key: (value, config_type(config, key)) for key, value in configs.flatten(config).items()
      }
  return found


def _defines(path: str) -> bool:
  with open(path, encoding="utf-8") as file:
    return "config.job = " in file.read()


def config_type(config, key: str) -> type:
  """The type that a value of a dotted key must have."""
  *path, name = key.split(".")
  for part in path:
    config = config[part]
  return config.get_type(name)


def allowed(job: str, key: str, kind: type, value=None) -> str:
  """What a key may be, as the checks have it. `value`: the default."""
  limits = LIMITS.get(job)
  choices = {"dtype": tuple(DTYPES), "platform": PLATFORMS} | (limits.CHOICES if limits else {})
  if kind is bool:
    return "true, false"
  if key in choices:
    return ", ".join(choices[key])
  if limits and key in limits.POSITIVE:
    return "1 or more"
  if limits and key in limits.RANGES:
    low, high = limits.RANGES[key]
    return f"{show(low)} to {show(high)}"
  if kind is tuple and value and all(isinstance(part, str) for part in value):
    return "words"
  return {int: "whole number", float: "number", str: "text", tuple: "numbers"}.get(
    kind, kind.__name__
  )


def show(value) -> str:
  """A value as a flag takes it."""
  if value is None:
    return "not set"
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, list | tuple):
    return ", ".join(map(show, value))
  return f"{value:g}" if isinstance(value, float) else str(value)


INTRODUCTION = """# Configuration

Written by `python -m docs.configuration --output=docs/configuration.md` from the files in
`configs/`; a test compares. `--config.KEY=VALUE` sets a key, `none` unsets one that may be unset.
The default is that of a job's first config, or of the one named beside it; the last column says
where others differ (a file without a variant: all its variants).
"""


def render(folder: str) -> str:
  """The reference in Markdown of the configs of a folder."""
  lines = [INTRODUCTION]
  for job, found in load_all(folder).items():
    words: dict[str, str] = {}
    for path in dict.fromkeys(
      os.path.join(folder, f"{name.partition(':')[0]}.py") for name in found
    ):
      with open(path, encoding="utf-8") as file:
        # it brings keys of its own
        words = (read_comments(path) if "ConfigDict()" in file.read() else {}) | words
    for section, settings in SECTIONS.items():
      words = read_comments(inspect.getfile(settings), fields_of=section) | words
    lines += [f"## `job = {job}`", "", f"Configs: {', '.join(f'`{name}`' for name in found)}.", ""]
    keys = [
      key for key in dict.fromkeys(key for flat in found.values() for key in flat) if key != "job"
    ]
    for section in dict.fromkeys(key.rpartition(".")[0] for key in keys):
      lines += [f"### `{section}`" if section else "### Top level", ""]
      lines += [words[section], ""] if section in words else []
      lines += ["| key | default | may be | what | elsewhere |", "|---|---|---|---|---|"]
      lines += [_row(job, key, found, words) for key in keys if key.rpartition(".")[0] == section]
      lines.append("")
  return "\n".join(lines)


def _names(names: list[str], every: list[str]) -> str:
  """Configs in words; a file alone stands for all its variants."""
  variants = lambda file, among: [name for name in among if name.partition(":")[0] == file]
  short = []
  for file in dict.fromkeys(name.partition(":")[0] for name in names):
    mine = variants(file, names)
    short += [file] if mine == variants(file, every) else mine
  return ", ".join(f"`{name}`" for name in short)


def _row(job: str, key: str, found: dict[str, dict], words: dict[str, str]) -> str:
  homes = {name: flat[key] for name, flat in found.items() if key in flat}
  home, (default, kind) = next(iter(homes.items()))
  elsewhere: dict[str, list[str]] = {}
  for name, (value, _) in homes.items():
    if value != default:
      elsewhere.setdefault(show(value), []).append(name)
  shown = show(default) + (f" (`{home}`)" if home != next(iter(found)) else "")
  others = "; ".join(f"{value}: {_names(names, list(found))}" for value, names in elsewhere.items())
  return table_line(
    (f"`{key}`", shown, allowed(job, key, kind, default), words.get(key, ""), others)
  )


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("docs.configuration", __doc__)
  parser.add_argument(
    "--configs", default="configs", help="folder of the configs (default configs)"
  )
  parser.add_argument("--output", required=True, help="Markdown file to write")
  return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  storage.write_text(flags.output, render(flags.configs))
  print(flags.output)


if __name__ == "__main__":
  sys.exit(main())
