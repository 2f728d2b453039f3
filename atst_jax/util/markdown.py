"""Tables in Markdown."""

import re
from collections.abc import Iterable, Sequence


def table_line(cells: Iterable) -> str:
  """A line of a table. Line breaks and "|" in cells are escaped."""
  return (
    "| "
    + " | ".join(re.sub(r"\s*\n\s*", " ", str(cell)).replace("|", r"\|") for cell in cells)
    + " |"
  )


def table_lines(rows: Sequence[Sequence], *, numbers: int = 0) -> list[str]:
  """The lines of a table whose first row is its head and whose last `numbers` columns hold
  numbers."""
  rule = "|---" * (len(rows[0]) - numbers) + "|---:" * numbers + "|"
  return [table_line(rows[0]), rule, *map(table_line, rows[1:])]
