"""Markdown tables: nothing in a cell ends it."""

from atst_jax.util.markdown import table_lines


def test_cells_stay_cells():
  rows = [["a", "n"], ["x|y", 1], ["two\n lines", 2.5]]
  assert table_lines(rows, numbers=1) == [
    "| a | n |",
    "|---|---:|",
    r"| x\|y | 1 |",
    "| two lines | 2.5 |",
  ]
