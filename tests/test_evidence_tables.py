"""The arithmetic of the tables of the evidence."""

import json
import sys

import numpy as np
import pytest

from tests.tiny import ROOT

SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def tables():
  sys.path.insert(0, str(ROOT / "launch"))
  try:
    import evidence_tables

    yield evidence_tables
  finally:
    sys.path.remove(str(ROOT / "launch"))


def write_results(folder, scores, draws):
  """results.json of a task with the scores of rows, and `draws` numbers for each."""
  (folder / "predictions").mkdir(parents=True)
  rows = []
  for number, (name, score) in enumerate(scores.items()):
    file = f"predictions/{number}.npz"
    np.savez(folder / file, resampled=score + np.asarray(draws))
    about = {"directions_90": 4.0, "directions_99": 18.0, "effective_rank": 5.7}
    about |= {"dimensions": 256, "knn": 0.2, "knn_whitened": 0.4}
    about["runs"] = [{"penalty": 1e-6, "penalty_at_edge": number == 0}]
    about["runs"][0]["penalty_valid_scores"] = [score - 0.1, score - 0.05, score - 0.2]
    test = {"file": file, "clips": "same", "draws": len(draws)}
    name, *condition = name.split(" under ")
    where = {"features": name, "vector": "y", "name": condition[0]} if condition else {"name": name}
    rows.append({"mean": score, "test": test, **where, **about})
  results = {"rows": [*rows, {"name": "chance", "mean": 0.1}], "encoder": {"params_hash": "one"}}
  (folder / "results.json").write_text(json.dumps(results))


def heard(folder, clips=()):
  (folder / "heard.json").write_text(json.dumps({"params_hash": "one", "heard": [*clips]}))


def test_tables_give_spreads_and_paired_differences(tables, tmp_path):
  draws = np.linspace(-0.1, 0.1, 201)
  for variant, shift in (("base", 0.0), ("lambda05", 0.05)):
    for seed in SEEDS:
      for task in tables.TASKS[: 3 if seed == 2 else 4]:
        scores = {"pre-trained, all blocks": 0.5 + 0.01 * seed + shift, "random, all blocks": 0.3}
        # the same draws: only the difference of the scores is left
        write_results(tmp_path / variant / f"seed{seed}" / task, scores, draws)
      heard(tmp_path / variant / f"seed{seed}")
  heard(tmp_path / "base" / "seed1", ["a.flac"])
  text = tables.tables(tmp_path, ["base", "lambda05"], SEEDS, "base", {})
  row = lambda *cells: "| " + " | ".join([*cells[:-2], *[cells[-2]] * 3, cells[-1]]) + " |"
  lines = text.splitlines()
  assert row("pre-trained, all blocks", "3/3/3/2", "51.0 ± 1.0", "50.5 ± 0.7") in lines
  # of seeds 20, 21 and 22 points: 21 ± 4.303 · 1 / √3; of two 20.5 ± 12.706 · 0.707 / √2
  added = ["+21.0 [+21.0, +21.0] (+18.5, +23.5)", "+20.5 [+20.5, +20.5] (+14.1, +26.9)"]
  less = ["+5.0 [+5.0, +5.0] (+5.0, +5.0)"] * 2
  assert row("pre-trained, all blocks, less random, all blocks", "3/3/3/2", *added) in lines
  assert row("lambda05", "18 to 18", "3/3/3/2", "56.0 ± 1.0", "55.5 ± 0.7") in lines
  # the penalty's choice, five points lower; the head does not name the tested speaker
  assert row("lambda05", "3/3/3/2", "51.0 ± 1.0", "50.5 ± 0.7") in lines
  assert row("random, all blocks", "25.0 ± 0.0", "25.0 ± 0.0") in lines
  assert f"| {tables.KNOWN} | digits | instrument family | pitch | ESC-10 |" in lines
  assert row("lambda05", "3/3/3/2", *less) in lines
  assert row("random, all blocks", "4, 18; 5.7", "4, 18; 5.7") in lines
  near = ["20.0 ± 0.0; 40.0 ± 0.0"] * 2
  assert row("pre-trained, all blocks", *near) in lines
  assert row("pre-trained, all blocks", "1e-06*, 1e-06*, 1e-06*", "1e-06*, 1e-06*") in lines
  assert row("random, all blocks", "1e-06, 1e-06, 1e-06", "1e-06, 1e-06") in lines
  # a table of what was heard never stands without its mark
  assert text.count("heard in pre-training** (base, seed 1: 1 clips, one is a.flac)") == 2
  trials = tables.tables(
    tmp_path, ["base", "lambda05"], [0], "base", {"base": "", "lambda05": "`x=1`"}
  )
  assert "| lambda05 | `x=1` | 18 to 18 | 1 | 55.0 |" in trials and "`yweweler`" in trials


def test_other_objectives_stand_beside_their_encoders_and_the_base(tables, tmp_path):
  draws = np.linspace(-0.1, 0.1, 201)
  for seed in SEEDS:
    for variant, kind, score in (("base", ", all blocks", 0.5), ("cola", "", 0.45)):
      scores = {f"pre-trained{kind}": score, f"random{kind}": 0.3, tables.MEL: 0.2}
      for task in tables.TASKS:
        write_results(tmp_path / variant / f"seed{seed}" / task, scores, draws)
      heard(tmp_path / variant / f"seed{seed}")
  text = tables.tables(tmp_path, ["base", "cola"], SEEDS, "base", {}, ["cola"])
  assert "One change at a time" not in text
  row = lambda *cells: "| " + " | ".join([*cells[:-1], *[cells[-1]] * 4]) + " |"
  for cells in (
    ("cola", "pre-trained", "256", "18 to 18", "3", "45.0 ± 0.0 [35.5, 54.5]"),
    ("cola", "random", "256", "18 to 18", "3", "30.0 ± 0.0 [20.5, 39.5]"),
    ("cola", "pre-trained", "3", "40.0 ± 0.0"),
    ("cola", "less random", "3", "+15.0 [+15.0, +15.0] (+15.0, +15.0)"),
    ("cola", "less base, pre-trained, all blocks", "3", "-5.0 [-5.0, -5.0] (-5.0, -5.0)"),
    ("base", f"less {tables.MEL}", "3", "+30.0 [+30.0, +30.0] (+30.0, +30.0)"),
  ):
    assert row(*cells) in text.splitlines()


def test_tables_of_mixtures_give_intervals(tables, tmp_path):
  """Over other test clips, and over other pre-trainings."""
  draws = np.linspace(-0.1, 0.1, 201)
  for seed in SEEDS:
    for variant, gain in (("base", 0.0), ("lambda05", 0.01 * (1 + seed))):
      scores = {f"{kind} under Mix": at for kind, at in (("pre-trained", 0.5), ("random", 0.4))}
      scores = scores if variant == "base" else {"pre-trained under Mix": 0.5}
      scores["pre-trained under (a)"] = 0.6 + gain
      write_results(tmp_path / variant / f"seed{seed}" / "bgknown", scores, draws)
  lines = tables.mixtures(tmp_path, ["base", "lambda05"], SEEDS, "base", "bgknown")
  assert "| base | random | 3/0 | 40.0 ± 0.0 [30.5, 49.5] |  |" in lines
  assert (
    "| base | pre-trained, less random | 3/0 | +10.0 [+10.0, +10.0] (+10.0, +10.0) |  |" in lines
  )
  less = "+2.0 [+2.0, +2.0] (-0.5, +4.5)"  # 4.303 / sqrt(3)
  assert f"| lambda05 | pre-trained | 3 | +0.0 [+0.0, +0.0] (+0.0, +0.0) | {less} |" in lines
