"""The papers' tables with our rows: what goes where, what is chosen, and that every score leads to
its run."""

import copy
import csv
import json
import os

import pytest

from atst_jax.downstream import report
from atst_jax.downstream.papers.comparison import average, compare
from atst_jax.downstream.papers.published import TABLES
from atst_jax.downstream.papers.runs import choose_rates, read_runs
from atst_jax.util.logs import log
from tests.report_runs import CONDITIONS, PRETRAINING, finetuned, row, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A run for each of the papers' tables, and for a set that no paper has."""
  root = tmp_path_factory.mktemp("runs")
  linear = [
    row("pre-trained, all blocks"),
    row("pre-trained, last block", (0.4, 0.4, 0.5)),
    row("random, all blocks", (0.1, 0.1, 0.2)),
    row("mel mean and std", (0.2, 0.2, 0.2)),
  ]
  single = {**PRETRAINING, "views": {"segments": "single", "crop_frames": 101}}
  names = ("audioset", "speech_commands", "voxceleb1", "nsynth", "urbansound8k")
  out = [write_run(root / f"atst-{name}", "atst", name, linear) for name in names]
  out.append(
    write_run(
      root / "single", "atst", "nsynth", linear, encoder="encoders/single", pretraining=single
    )
  )
  out.append(write_run(root / "esc10", "evar", "esc10", [row("pre-trained")]))
  out.append(
    write_run(
      root / "esc50",
      "evar",
      "esc50",
      [row("pre-trained")],
      encoder="encoders/other",
      pretraining=None,
    )
  )
  out.append(write_run(root / "mine", "exact", "mine", linear, job="linear"))
  out += [
    finetuned(root / f"rate{rate}", rate, valid)
    for rate, valid in ((0.5, 0.1), (1.0, 0.3), (2.0, 0.2))
  ]
  # as BgKnown's job writes them: nothing is subtracted from a mixture
  known = [
    {**row(name), "features": kind, "weight": None if name == "Mix" else 1.0}
    for kind in ("pre-trained", "pre-trained, last block", "random")
    for name in CONDITIONS
  ]
  out.append(write_run(root / "known", "difference", "bgknown_esc50", known))
  pairs = [
    row(f"R@{k}", (0.1 * k**0.5,) * 3, scene=scene, system=system) | {"features": "pre-trained"}
    for system in ("audio + text", "audio")
    for scene in ("rain", "traffic")
    for k in (1, 5, 10)
  ]
  out.append(
    write_run(root / "pairs", "retrieval", "apwd", pairs, metric="recall", selected_on_test=True)
  )
  return out


@pytest.fixture(scope="module")
def output(runs, tmp_path_factory):
  folder = tmp_path_factory.mktemp("report")
  assert report.main([*runs, f"--output={folder}"]) == 0
  return folder


def test_every_table_is_there_with_published_and_own_rows(runs):
  found = {c.key: c for c in compare(read_runs(runs))}
  assert set(found) == set(TABLES)
  lines = {key: [line.name for line in c.lines if line.kind == "ours"] for key, c in found.items()}
  small = "ours: ATST Small, λ = 0.2, 39000 steps"
  assert lines["atst-2"][:2] == [f"{small}, all blocks", f"{small}, last block"]
  assert lines["atst-1"][0] == "ours: ATST Small, two segments, 6 s, all blocks"
  assert "single: ATST Small, single segment, 1 s, all blocks" in lines["atst-1"]
  assert lines["atst-3"] == [f"{small}, best", f"{small}, last"]
  assert lines["difference-1"] == [small, f"{small}, last block"]
  assert lines["difference-2"] == [small] and lines["exact"] == lines["atst-2"][:2]
  assert found["exact"].columns == {"mine": "mine"}
  assert lines["difference-3"] == [small, "other"]
  for key, comparison in found.items():
    published = [line for line in comparison.lines if line.kind == "published"]
    assert [line.name for line in published] == [r.name for r in TABLES[key].rows]
    assert all(cell.run is None for line in published for cell in line.cells.values())
    assert all(
      c.run is not None
      for line in comparison.lines
      if line.kind != "published"
      for c in line.cells.values()
    )


def test_scores_stand_in_their_columns(runs):
  found = {c.key: c for c in compare(read_runs(runs))}
  line = next(line for line in found["difference-1"].lines if line.kind == "ours")
  assert set(line.cells) == set(CONDITIONS) and line.cells["Mix"].score == pytest.approx(60)
  line = next(line for line in found["difference-2"].lines if line.kind == "ours")
  assert line.cells["traffic R@10"].score == pytest.approx(10 * 10**0.5)
  assert any(
    line.name.endswith("audio") and line.kind == "baseline" for line in found["difference-2"].lines
  )
  third = found["difference-3"]
  assert third.columns["esc10"] == "ESC-10" and "esc10" not in TABLES["difference-3"].columns
  line = next(line for line in third.lines if line.kind == "ours")
  assert (
    line.cells["esc10"].spread == pytest.approx(24.84, abs=0.01)
    and line.cells["esc10"].spread_kind == "ci95"
  )
  line = next(line for line in found["atst-2"].lines if line.kind == "ours")
  assert (
    line.cells["nsynth"].spread == pytest.approx(10) and line.cells["nsynth"].spread_kind == "std"
  )


def test_averages_only_where_all_columns_are_there(runs):
  found = {c.key: c for c in compare(read_runs(runs))}
  by_name = {line.name: line for line in found["atst-1"].lines}
  assert average(
    found["atst-1"], by_name["ours: ATST Small, two segments, 6 s, all blocks"]
  ) == pytest.approx(60)
  assert (
    average(found["atst-1"], by_name["single: ATST Small, single segment, 1 s, all blocks"]) is None
  )
  assert average(found["atst-2"], found["atst-2"].lines[0]) is None


def test_of_several_rates_validation_chooses(runs, tmp_path):
  chosen = [(run.path, note) for run, note in choose_rates(read_runs(runs)) if note]
  assert [(os.path.basename(path), note) for path, note in chosen] == [
    ("rate1.0", "rate 1 of 0.5, 1, 2, by validation")
  ]
  more = [
    finetuned(tmp_path / "seed1", 1.0, 0.4, seed=1),
    finetuned(tmp_path / "a", 1.0, 0.2),
    finetuned(tmp_path / "c", 4.0, 0.3),
    finetuned(tmp_path / "b", 2.0, 0.3, guard={"step_seconds": 0.0}, compute={"remat": True}),
  ]
  assert [os.path.basename(run.path) for run, _ in choose_rates(read_runs(more))] == ["seed1", "b"]
  more.append(
    finetuned(tmp_path / "again", 2.0, 0.1)
  )  # of the chosen rate: none replaces the other
  names = [os.path.basename(run.path) for run, _ in choose_rates(read_runs(more))]
  assert names == ["seed1", "b", "again"]
  twice = [finetuned(tmp_path / "once", 1.0, 0.2), finetuned(tmp_path / "twice", 1.0, 0.3)]
  assert [note for _, note in choose_rates(read_runs(twice))] == ["", ""]


def test_markdown_traces_every_score_to_its_run(runs, output):
  text = (output / "report.md").read_text()
  for path in runs:
    if os.path.basename(path) not in ("rate0.5", "rate2.0"):
      assert f"| {path}" in text, path
  assert "| 60.00 ± 10.00 [1] |" in text and "0123456789abcdef" in text and "### " not in text
  assert "rate 1 of 0.5, 1, 2, by validation" in text
  assert "† [" in text and "† chosen on the test clips" in text
  assert "| ATST Small, two segments, 6 s | 27.90 | 93.60 | 61.90 | 75.30 | 82.00 | 78.20 |" in text
  assert all(f"![]({key}.png)" in text for key in TABLES)


def test_csv_has_a_line_for_every_score(runs, output):
  with open(output / "report.csv", encoding="utf-8") as file:
    lines = list(csv.DictReader(file))
  assert {line["table"] for line in lines} == set(TABLES)
  published = sum(len(r.scores) for t in TABLES.values() for r in t.rows)
  assert sum(line["kind"] == "published" for line in lines) == published
  ours = [line for line in lines if line["kind"] == "ours"]
  assert all(
    line["run"] in runs and line["params_hash"] and len(line["config_hash"]) == 8 for line in ours
  )
  assert {line["selected_on_test"] for line in ours} == {"True", "False"}


def test_pictures(output):
  for key in TABLES:
    data = (output / f"{key}.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 10_000


def test_a_set_evaluated_twice_has_two_lines(tmp_path):
  paths = [write_run(tmp_path / name, "evar", "esc50", [row("pre-trained")]) for name in ("a", "b")]
  (comparison,) = compare(read_runs(paths))
  names = [line.name for line in comparison.lines if line.kind == "ours"]
  assert names == [
    "ours: ATST Small, λ = 0.2, 39000 steps",
    f"ours: ATST Small, λ = 0.2, 39000 steps ({paths[1]})",
  ]


def test_what_is_no_run_is_refused(runs, tmp_path, capsys):
  def refused(message, *paths):
    assert report.main([*paths, f"--output={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "out")

  refused("is not the workdir of a finished evaluation", str(tmp_path))
  refused("is given 2 times; name every run once", runs[0], os.path.join(runs[0], "results.json"))
  old = write_run(tmp_path / "old", "atst", "esc50", [])
  results = json.loads((tmp_path / "old" / "results.json").read_text())
  broken = copy.deepcopy(results)
  del broken["protocol"]
  (tmp_path / "old" / "results.json").write_text(json.dumps(broken))
  refused("it lacks protocol; run the evaluation again", old)
  (tmp_path / "old" / "results.json").write_text("{")
  refused("cannot be read", old)
  (tmp_path / "old" / "results.json").write_text(json.dumps({**results, "protocol": "other"}))
  refused("none of the 1 runs belongs to a table; their protocols must be of atst, difference", old)


def test_runs_of_no_table_are_named(runs, tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(log, "warning", lambda text, *values: said.append(text % values))
  few = write_run(tmp_path / "few", "exact", "mine", [row("pre-trained")], job="few")
  (comparison,) = compare(read_runs([runs[0], few]))[1:]
  assert comparison.key == "atst-2" and said == [f"in no table, and left out: {few}"]
