"""Command lines whose mistakes are one clear line."""

import argparse
import difflib
from collections.abc import Iterable

from atst_jax.errors import UserError


def nearest(value: str, choices: Iterable[str]) -> str:
  """The end of a message: "; did you mean 'x'?", or nothing if no choice is near."""
  near = difflib.get_close_matches(value, list(choices), n=1)
  return f"; did you mean {near[0]!r}?" if near else ""


class Parser(argparse.ArgumentParser):
  """Raises UserError for a mistake, with the nearest flag."""

  def __init__(self, command: str, description: str):
    super().__init__(
      f"python -m {command}", description=description, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip

  def error(self, message: str):
    raise UserError(f"{message}; see `{self.prog} --help`")

  def parse(self, argv: list[str]) -> argparse.Namespace:
    # Unknown flags first: a mistyped required flag would otherwise be reported as missing.
    flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
    for argument in argv:
      flag = argument.split("=")[0]
      if flag.startswith("--") and flag not in flags:
        self.error(f"unknown flag {flag}{nearest(flag, flags)}")
    return self.parse_args(argv)
