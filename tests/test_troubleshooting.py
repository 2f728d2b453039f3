"""docs/troubleshooting.md quotes what the program prints."""

import ast
import re

from atst_jax.runtime.preemption import EXIT_DIVERGED, EXIT_RESUME
from atst_jax.runtime.watchdog import EXIT_STALLED
from atst_jax.util.cli import EXIT_PIPE
from tests.tiny import ROOT

TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `([^`]*)` \|", TEXT, re.M)


def _source_text() -> str:
  """Every string of the sources; what is inserted into it is left out."""
  found = []
  for package in ("atst_jax", "data_pipeline"):
    for path in sorted((ROOT / package).rglob("*.py")):
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
          found.append(re.sub(r"%[-.\d]*[sdfg]", "\n", node.value))
  return "\n".join(found)


def test_quoted_messages_are_printed():
  """The longest part of each between two values; the rest may be worded anew."""
  sources = _source_text()
  longest = [max(message.split("…"), key=len).strip() for message in MESSAGES]
  assert len(MESSAGES) >= 40 and min(map(len, longest)) > 6
  assert not [part for part in longest if part not in sources]


def test_every_exit_code_is_explained():
  codes = {0, 1, 2, EXIT_DIVERGED, EXIT_STALLED, EXIT_RESUME, EXIT_PIPE}
  assert {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.M)} == codes
