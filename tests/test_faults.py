"""The index of faults that are survived: every row of the list has tests, which carry its number in
their names."""

import ast
import pathlib
import re

ROWS = {
  1: "a signal between or inside steps",
  2: "a signal during a save",
  3: "killed during a save",
  4: "killed while an old checkpoint is deleted",
  5: "a damaged newest checkpoint",
  6: "a copied checkpoint folder",
  7: "other devices and processes",
  8: "a changed config",
  9: "a full disk",
  10: "a workdir read-only or in use",
  11: "mistakes in a config",
  12: "missing and empty shards",
  13: "a shard cut on a record boundary",
  14: "a damaged record",
  15: "a foreign shard",
  16: "audio of every kind, and what is none",
  17: "another sample rate",
  18: "NaN, silence, clipping, offset",
  19: "very short and very long clips",
  20: "duplicate ids and strange names",
  21: "preparation that is killed",
  22: "one worker or many",
  23: "files of a list that are missing",
  24: "statistics missing, another front-end",
  25: "a gradient that is not finite",
  26: "many of them, or a loss spike",
  27: "collapse",
  28: "statistics in bfloat16",
  29: "resumption within an epoch",
  30: "partial batches",
  31: "two identical runs",
  32: "a stall",
  33: "memory that grows",
  34: "a logger that fails",
  35: "no accelerator, no memory",
  36: "a dead process",
  37: "recompilation",
  38: "evaluation of odd scores",
  39: "clips in two parts of a division",
  40: "an export that differs",
  41: "an old checkpoint",
  42: "a pickle in a foreign checkpoint",
  43: "paths that lead out of their root",
}


def _tests() -> dict[int, list[str]]:
  """Row -> its tests, by their names: `test_fault_NN_…`, or `test_fault_NN_NN_…` where one shows
  several."""
  found = {}
  for path in sorted(pathlib.Path(__file__).parent.glob("test_*.py")):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.FunctionDef) and (
        match := re.match(r"test_fault_((?:\d\d_)+)", node.name)
      ):
        for number in re.findall(r"\d\d", match[1]):
          found.setdefault(int(number), []).append(f"{path.name}::{node.name}")
  return found


def test_every_row_has_a_test():
  found = _tests()
  missing = {row: text for row, text in ROWS.items() if row not in found}
  assert not missing, missing
  assert set(found) <= set(ROWS), f"no such row: {sorted(set(found) - set(ROWS))}"


def test_the_rows_are_those_of_the_list(shared):
  rows = re.findall(
    r"^\| (\d+) \|", (shared / "FAULTS.md").read_text(encoding="utf-8"), re.MULTILINE
  )
  assert sorted(map(int, rows)) == sorted(ROWS)
