"""Where scores stand in a report: encoders, tasks and mixtures of one name are told apart, and no
score replaces another."""

import numpy as np

from atst_jax.downstream import bootstrap
from atst_jax.downstream.papers.comparison import average, compare, differences
from atst_jax.downstream.papers.published import TABLES
from atst_jax.downstream.papers.runs import read_runs
from tests.report_runs import CONDITIONS, row, write_run


def placed(comparison):
  """{line: {column: percent}} of ours and baselines."""
  lines = [line for line in comparison.lines if line.kind != "published"]
  return {line.name: {c: round(cell.score) for c, cell in line.cells.items()} for line in lines}


def test_mixtures_by_the_exact_probe_stand_beside_other_sets(tmp_path):
  """The pre-trained last block is ours, and no score takes another's place."""
  names = ("pre-trained", "pre-trained, last block", "random", "random, last block", "mel")
  scores = [
    {**row(condition, [0.01 * (10 * place + number)]), "features": name, "weight": None}
    for place, name in enumerate(names)
    for number, condition in enumerate(CONDITIONS)
  ]
  paths = [
    write_run(tmp_path / "mixed", "exact", "bgknown_mine", scores, job="difference"),
    write_run(tmp_path / "mine", "exact", "mine", [row("pre-trained, last block")], job="linear"),
  ]
  (comparison,) = compare(read_runs(paths))
  small = "ours: ATST Small, λ = 0.2, 39000 steps"
  found = placed(comparison)
  assert [line.name for line in comparison.lines if line.kind == "ours"] == [
    small,
    f"{small}, last block",
  ]
  names = (small, f"{small}, last block", "ATST Small, random", "ATST Small, random, last block")
  for place, name in enumerate((*names, "mel")):
    for number, condition in enumerate(CONDITIONS):
      assert found[name][f"bgknown_mine {condition}"] == 10 * place + number
  assert found[f"{small}, last block"]["mine"] == 60
  assert list(found)[-1] == "chance" and len(found) == 6


def test_no_score_takes_the_place_of_another(tmp_path):
  """Rows of one name in one run, other random encoders, other divisions with another chance."""
  rows = [row("pre-trained", [score]) for score in (0.1, 0.2, 0.3)]
  paths = [
    write_run(tmp_path / name, "evar", "esc50", [*rows, row("random", [random])], chance=chance)
    for name, random, chance in (("a", 0.1, 0.02), ("b", 0.2, 0.04), ("c", 0.1, 0.04))
  ]
  (comparison,) = compare(read_runs(paths))
  found = [(name, cells["esc50"]) for name, cells in placed(comparison).items()]
  assert [score for name, score in found if "λ" in name] == [10, 20, 30] * 3
  assert [score for name, score in found if "random" in name] == [10, 20]
  assert found[-2:] == [("chance", 2), (f"chance ({paths[1]})", 4)]


def test_encoders_of_one_name_are_told_apart(tmp_path):
  """As launch/evidence.py names them all `encoder`; their scores have no common average."""
  linear = [row("pre-trained"), row("random", [0.2]), row("mel mean and std", [0.1])]
  sets = [*TABLES["difference-3"].columns]
  hashes = dict.fromkeys(sets[:-1], "0123456789abcdef") | {sets[-1]: "fedcba9876543210"}
  paths = [
    write_run(tmp_path / name, "evar", name, linear, params_hash=digits)
    for name, digits in hashes.items()
  ]
  (comparison,) = compare(read_runs(paths))
  name = "ours: ATST Small, λ = 0.2, 39000 steps"
  lines = {line.name: line for line in comparison.lines if line.kind == "ours"}
  assert [*lines] == [f"{name} (012345)", f"{name} (fedcba)"]
  assert [*lines[f"{name} (fedcba)"].cells] == [sets[-1]]
  assert [average(comparison, line) for line in lines.values()] == [None, None]
  found = placed(comparison)  # of the same architecture and front-end
  assert len(found["ATST Small, random"]) == len(found["mel mean and std"]) == len(sets)


def test_tasks_of_one_name_are_columns_of_their_own(tmp_path, monkeypatch):
  """Each with its chance, and not compared; the same task by another front-end is one column."""
  tested = {"clips": "c0ffee", "draws": 3, "file": "predictions/0.npz", "interval": [0.4, 0.7]}
  paths = []
  for name, fingerprint, chance, task in (
    ("a", "aaaaaa11", 0.25, "7a5c00"),
    ("b", "bbbbbb22", 0.5, None),
    ("c", "cccccc33", 0.25, "7a5c00"),
    ("d", "aaaaaa11", 0.25, None),  # of an earlier version
  ):
    rows = [row("pre-trained", test=tested)]
    data = {"name": "mine", "fingerprint": fingerprint} | ({"task": task} if task else {})
    more = {"encoder": f"encoders/{name}", "chance": chance, "job": "linear"}
    paths.append(write_run(tmp_path / name, "exact", data, rows, **more))
  monkeypatch.setattr(bootstrap, "read_resampled", lambda workdir, row: np.arange(3.0))
  (comparison,) = compare(read_runs(paths))
  assert comparison.columns == {"mine": "mine", "mine (bbbbbb)": "mine (bbbbbb)"}
  found = placed(comparison)
  rest = ": ATST Small, λ = 0.2, 39000 steps"
  assert [[*found[f"{name}{rest}"]] for name in "acd"] == [["mine"]] * 3
  assert [*found[f"b{rest}"]] == ["mine (bbbbbb)"]
  assert found["chance"] == {"mine": 25, "mine (bbbbbb)": 50}
  assert [(d.of[0], d.less[0]) for d in differences(comparison)] == [("a", "c"), ("a", "d")]
