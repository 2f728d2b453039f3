"""Mistakes that the user can mend, whose message is printed alone, and names in messages."""

import re

# Characters that move a cursor, end a line or change the direction of writing, except "\n" and tab.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
  """Text for a terminal or a log: control characters escaped, lines after the first indented.

  So the name of a file or of a class can neither look like one of our lines nor hide text.
  """
  text = CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
  return re.sub(r"\n(?!  )", "\n  ", text)


def printable(text: str) -> str:
  """Text that names a file, as valid unicode: bytes that are not UTF-8 become `\\xff` escapes."""
  return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class UserError(ValueError):
  """A mistake in a config, a path, a file or a flag. The message names the thing, its value and the
  remedy."""

  exit_code = 2  # of every command it ends

  def __str__(self) -> str:
    return plain(super().__str__())


class StoreError(UserError):
  """A store or a disk that cannot be reached or refuses. It is not a fault of one file, and may
  pass."""

  exit_code = 74
