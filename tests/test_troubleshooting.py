"""docs/troubleshooting.md quotes what the program prints."""

import ast
import re

import pytest
from tiny import ROOT

TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `([^`]*)` \|", TEXT, re.M)
HOLE = "\0"  # where a source string takes a value


def _source_strings() -> list[str]:
  """Every string of the sources; what stands between braces or after % is a hole."""
  found = []
  for package in ("atst_jax", "data_pipeline"):
    for path in sorted((ROOT / package).rglob("*.py")):
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
          found.append(
            "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
          )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
          found.append(re.sub(r"%[-.\d]*[sdfg]", HOLE, node.value))
  return found


SOURCES = _source_strings()


def _is_printed(message: str) -> bool:
  """Whether one source string has the message's words in order; `…` stands for anything."""
  words = [re.escape(part.strip()) for part in message.split("…") if len(part.strip()) > 1]
  pattern = re.compile(".*?".join(words), re.S)
  return any(pattern.search(text) for text in SOURCES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_printed(message):
  assert len(message.replace("…", "").strip()) > 8, "too little to recognise"
  assert _is_printed(message), "reword it as the sources have it"


def test_messages_are_found_and_others_are_not():
  assert len(MESSAGES) >= 40
  assert _is_printed("batch_size … is not divisible by … devices") and not _is_printed(
    "batch_size … is divisible by …"
  )


def test_every_exit_code_is_explained():
  """Those of README, and of the code."""
  assert re.findall(r"^\| (\d+) \|", TEXT, re.M) == ["0", "1", "2", "3", "74", "75"]
