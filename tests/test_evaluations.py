"""What the evaluations share: who may read a config, and what values are refused."""

import ast
import pathlib

import pytest
from ml_collections import ConfigDict

from atst_jax.downstream import evaluation
from atst_jax.util.errors import UserError

ROOT = pathlib.Path(__file__).parents[1] / "atst_jax" / "downstream"

# A job's entrances, which hand it on; `resolve`, and what that asks to fill and check.
READERS = {"resolve", "fill", "check_values", "schedule_settings", "program_settings"}
ENTRANCES = {"run", "describe"}


def test_only_resolve_reads_a_config():
  """Everything else takes values by name. A function whose name begins with "_" belongs to those
  beside it that read."""
  readers = set()
  for path in ROOT.rglob("*.py"):
    functions = [
      node
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
      if isinstance(node, ast.FunctionDef)
    ]
    for node in functions:
      arguments = [*node.args.args, *node.args.kwonlyargs]
      taken = {a.arg for a in arguments if "ConfigDict" in ast.unparse(a.annotation or a)}
      if not taken:
        continue
      reads = any(
        isinstance(part, ast.Attribute | ast.Subscript) and ast.unparse(part.value) in taken
        for part in ast.walk(node)
      )
      place = f"{path.name}: {node.name}"
      assert node.name in READERS | ENTRANCES or node.name in ("_check", "_section"), place
      assert not (reads and node.name in ENTRANCES), f"{place} reads the config itself"
      readers.add(node.name)
  assert readers >= {"resolve", "run", "describe"}


@pytest.mark.parametrize(
  ("check", "message"),
  [
    ({"one_of": {"part.kind": ("a", "b")}}, "--config.part.kind=c: choose one of a, b"),
    ({"some_of": {"kinds": ("a", "b")}}, "--config.kinds=a,c: choose from a, b"),
    ({"positive": ("sizes",)}, r"--config.sizes=\(1, 0\): must be positive and finite"),
    ({"ascending": ("rates",)}, r"--config.rates=\(0.1, 0.1\): must be positive and ascending"),
  ],
)
def test_values_that_cannot_work_name_key_and_choices(check, message):
  config = ConfigDict({"part": {"kind": "c"}, "kinds": ("a", "c"), "sizes": (1, 0)})
  config.rates = (0.1, 0.1)
  with pytest.raises(UserError, match=message):
    evaluation.check_values(config, **check)
