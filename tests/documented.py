"""Commands as documents and docstrings show them, and how to check one without running it."""

import importlib
import re
import shlex

import pytest

from atst_jax.method.subtraction import SECTIONS
from atst_jax.util import cli
from atst_jax.util import config as configs


def blocks(text: str) -> list[tuple[str, str]]:
  """(language, contents) of the fenced blocks of a Markdown text that name a language."""
  return re.findall(r"^```(\w+)\n(.*?)^```", text, re.S | re.M)


def commands(text: str) -> list[str]:
  """The commands of a shell block: continued lines joined, comments left out."""
  lines = [re.sub(r"\s+#.*", "", line).strip() for line in text.replace("\\\n", " ").splitlines()]
  return [line for line in lines if line and not line.startswith("#")]


def inline(text: str) -> list[str]:
  """The commands between backticks in running text."""
  return re.findall(
    r"`(python -m [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M).replace("\n", " ")
  )


def examples(docstring: str) -> list[str]:
  """The commands of a docstring: indented lines that begin with python."""
  lines = docstring.replace("\\\n", " ").splitlines()
  return [
    re.sub(r"\s{2,}[^-\s].*$", "", line.strip())
    for line in lines
    if re.match(r"  python -m ", line)
  ]


def words(line: str) -> list[str]:
  """A command's words without what only hints at more: `…` and the brackets of what may be left
  out."""
  line = re.sub(r"\s+>\s+\S+$", "", line)
  return [word for word in shlex.split(line.replace("[", " ").replace("]", " ")) if "…" not in word]


class Parsed(Exception):
  """Raised instead of running a command whose flags were accepted."""


def parse_only(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
  """Gives `python -m MODULE FLAGS…` to its parser, and its overrides to its config.

  Raises UserError or fails.
  """
  assert argv[:2] == ["python", "-m"]
  parse, parse_with_overrides = cli.Parser.parse, cli.Parser.parse_with_overrides

  def stop(parser, flags=None):
    parse(parser, flags)
    raise Parsed

  def stop_with_overrides(parser, flags=None):
    parsed, rest = parse_with_overrides(parser, flags)
    if getattr(parsed, "config", None):
      configs.load_with_overrides(parsed.config, rest, SECTIONS)
    raise Parsed

  with monkeypatch.context() as patch:
    patch.setattr(cli.Parser, "parse", stop)
    patch.setattr(cli.Parser, "parse_with_overrides", stop_with_overrides)
    with pytest.raises(Parsed):
      code = importlib.import_module(argv[2]).main(argv[3:])
      pytest.fail(f"{shlex.join(argv)} ended with {code}")
