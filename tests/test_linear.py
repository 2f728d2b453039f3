"""The linear evaluation from an export and a prepared set to its table."""

import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest

from atst_jax import main
from atst_jax.artifacts.model import Model, load_model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import features
from atst_jax.downstream.linear import job
from atst_jax.downstream.papers.published import evaluated_by
from atst_jax.downstream.tables import notes, table
from atst_jax.util.errors import UserError
from tests.evaluation import OVERRIDES, evaluate, make_clips, refused, write_clips
from tests.tiny import job_flags

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
ROWS = [
  "pre-trained, all blocks",
  "pre-trained, last block",
  "random, all blocks",
  "random, last block",
  "mel mean and std",
]


@pytest.fixture(scope="module")
def done(encoder, tmp_path_factory):
  """(results, workdir, data) of one evaluation with folds."""
  folder = tmp_path_factory.mktemp("linear")
  data = write_clips(folder / "data", make_clips(loud=2.0))
  return evaluate(encoder, data, folder / "run"), folder / "run", data


def test_rows_scores_and_provenance(done, encoder):
  results, _, data = done
  assert [row["name"] for row in results["rows"]] == ROWS
  assert [row["dimensions"] for row in results["rows"]] == [32, 16, 32, 16, 128]
  mel = results["rows"][-1]
  assert mel["mean"] == mel["knn"] == 1.0 and mel["std"] == 0.0  # the class is the spectrum
  for row in results["rows"]:
    assert len(row["runs"]) == 2 * 3 and {run["seed"] for run in row["runs"]} == {0, 1}
    assert all(len(run["valid_scores"]) == 3 for run in row["runs"])
    assert {run["learning_rate"] for run in row["runs"]} <= {0.01, 0.1, 1.0}
    per_seed = [
      np.mean([run["score"] for run in row["runs"] if run["seed"] == seed]) for seed in (0, 1)
    ]
    np.testing.assert_allclose(row["per_seed"], per_seed)
    np.testing.assert_allclose(
      [row["mean"], row["std"]], [np.mean(per_seed), np.std(per_seed, ddof=1)]
    )
    assert 1 <= row["effective_rank"] <= min(35, row["dimensions"])
  assert any(row["std"] > 0 for row in results["rows"])
  assert results["metric"] == "accuracy" and results["chance"] == pytest.approx(1 / 3)
  assert results["encoder"]["params_hash"] == load_model(encoder).config["params_hash"]
  assert results["encoder"]["provenance"] == {"step": 123}
  fingerprint = features.fingerprint(Dataset.load(data))
  assert results["data"]["fingerprint"] == results["config"]["data"]["fingerprint"] == fingerprint
  assert results["data"]["divisions"] == [{"train": 12, "valid": 12, "test": 12}] * 3


def test_every_row_has_the_exact_score_the_distance_from_the_optimum_and_the_spectrum(done):
  """24 clips in 32 dimensions can be told apart without error: the optimum of the loss is 0."""
  for row in done[0]["rows"]:
    assert (row["exact"]["std"] is not None) == (row["features"] == "random")
    assert row["above_optimum"] == row["train_loss"] - row["optimum"] > 0
    assert row["train_loss"] < np.log(3) and (row["optimum"] == 0) >= (row["dimensions"] > 24)
    losses = [run["train_loss"] for run in row["runs"]]
    assert row["train_loss"] == pytest.approx(np.mean(losses)) and np.std(losses) > 0
    assert row["directions_90"] <= row["directions_99"] <= 35
    assert 1 <= row["participation_ratio"] <= row["effective_rank"] and len(row["shares"]) == 5


def test_the_exact_protocol_is_the_default_where_no_paper_has_the_task(done, encoder, tmp_path):
  _, workdir, data = done
  shutil.copytree(workdir / "features", tmp_path / "run" / "features")
  values = {"protocol": "none", "blocks": "'last',"}
  results = evaluate(encoder, data, tmp_path / "run", exact__chosen_on="valid", **values)
  assert results["protocol"] == results["config"]["protocol"] == "exact"
  assert [*map(evaluated_by, ("tones", "esc50", "nsynth"))] == [[], ["evar"], ["atst", "evar"]]
  for row, other in zip(results["rows"], done[0]["rows"][1::2] + done[0]["rows"][-1:], strict=True):
    assert len(row["runs"]) == (6 if row["features"] == "random" else 3)
    assert row["mean"] == pytest.approx(other["exact"]["mean"])
    assert row["std"] == other["exact"]["std"]
    assert row["knn_whitened"] == pytest.approx(other["knn_whitened"])
    assert "exact" not in row and "above_optimum" not in row
  assert "of random encoders mean ± standard deviation over 2; protocol exact" in table(results)
  runs = results["rows"][0]["runs"]
  assert all(run["score"] == run["exact"] and run["penalty"] in PENALTIES for run in runs)
  refused("exact.penalties=.*ascending", encoder, data, tmp_path / "x", exact__penalties="1,0.1")
  shutil.copytree(workdir / "features", tmp_path / "folds" / "features")
  by_folds = evaluate(encoder, data, tmp_path / "folds", **values)
  chosen = [one["config"]["exact"]["chosen_on"] for one in (by_folds, results, done[0])]
  assert chosen == ["folds", "valid", "valid"]
  assert any("by leaving out the known folds in turn; then" in note for note in notes(by_folds))
  scores = [one["rows"][0]["runs"][0]["penalty_valid_scores"] for one in (by_folds, results)]
  assert scores[0] != scores[1]  # of twice as many clips


def test_random_encoders_differ_between_seeds(done):
  folder = done[1] / "features"
  found = [np.load(folder / name) for name in os.listdir(folder)]
  encoded = [x for x in found if x.shape == (36, 32)]
  assert len(found) == 4 and len(encoded) == 3  # pre-trained, two random ones, mel statistics
  assert all(np.abs(a - b).max() > 0.1 for a, b in itertools.combinations(encoded, 2))


def test_table_is_aligned_and_markdown_holds_the_same(done):
  results, workdir, _ = done
  head, empty, *lines = table(results).splitlines()
  for text in ("tones: 36 clips, 3 classes, 3 folds", "after 123 steps", "2 seeds"):
    assert text in head
  assert not empty
  columns = "linear accuracy  exact probe  loss above optimum  3-NN  3-NN whitened  effective rank"
  assert lines[0].split() == f"features size {columns} 90 % in 99 % in".split()
  assert [line.split("  ")[0] for line in lines[2:]] == [*ROWS, "chance"]
  assert len({len(line) for line in lines[:-1]}) == 1
  assert "100.0 ± 0.0" in lines[-2] and lines[-1].split() == ["chance", "33.3"]
  text = (workdir / "results.md").read_text(encoding="utf-8")
  assert text.count("|\n") == 8 + 7 and "| mel mean and std | 128 | 100.0 ± 0.0 | 100.0 |" in text
  assert sorted(os.listdir(workdir)) == [
    ".lock",
    "config.json",
    "features",
    "predictions",
    "results.json",
    "results.md",
    "rows",
  ]


def test_every_test_clip_is_kept_and_rows_are_compared(done):
  """What is kept gives the scores again, of which an interval says what other clips would give."""
  results, workdir, _ = done
  for row in results["rows"]:
    kept = np.load(workdir / row["test"]["file"])
    assert kept["predicted"].shape == kept["hits"].shape == (2, 36)
    np.testing.assert_allclose(kept["hits"].mean(-1), row["per_seed"], atol=1e-6)
    low, high = row["test"]["interval"]
    assert low <= row["mean"] <= high and row["test"]["by"] == "clips"
  mel = [d for d in results["differences"] if d["less"] == ROWS[-1]]
  assert len(results["differences"]) == 10 and [d["of"] for d in mel] == ROWS[:-1]
  assert all(d["is_difference"] == (not d["interval"][0] <= 0 <= d["interval"][1]) for d in mel)
  text = (workdir / "results.md").read_text(encoding="utf-8")
  assert (
    "±: standard deviation over seeds of the probe on the same vectors; of random encoders" in text
  )
  assert "| mel mean and std | 100.0 | 100.0 to 100.0 |" in text
  assert (
    "it and the nearest neighbours know the validation clips as well as the training clips.\n"
    in text
  )
  assert "95 % of 1000 draws of the test clips with replacement (bootstrap)" in text


def test_rerun_reads_the_features_and_gives_the_same(done, encoder, monkeypatch, capsys):
  results, workdir, data = done

  def fail(*args, **kwargs):
    raise AssertionError("features were computed again")

  with monkeypatch.context() as patch:
    patch.setattr(Model, "embed", fail)
    patch.setattr(features, "mel_statistics", fail)
    again = evaluate(encoder, data, workdir)
  assert again == {**results, "rows": again["rows"]} and again["rows"] == results["rows"]
  assert capsys.readouterr().out.startswith(table(results) + "\n")


class Ended(BaseException):
  """The process ends here, as a signal ends it (test_preemption)."""


def test_fault_01_a_stopped_evaluation_keeps_what_is_finished(done, encoder, tmp_path, monkeypatch):
  """The process ends in the third row; the same command computes that row and those after it."""
  results, workdir, data = done
  shutil.copytree(workdir / "features", tmp_path / "run" / "features")
  run_row, titles = job.run_row, []

  def count(title, *args):
    titles.append(title)
    if len(titles) == 3:
      raise Ended
    return run_row(title, *args)

  monkeypatch.setattr(job, "run_row", count)
  flags = job_flags(
    "linear", tmp_path / "run", **{"encoder": encoder, "data.path": data, **OVERRIDES}
  )
  with pytest.raises(Ended):
    main.main(flags)
  assert titles == ROWS[:3]
  assert not (tmp_path / "run" / "results.json").exists()
  assert main.main(flags) == 0 and titles == ROWS[:3] + ROWS[2:]
  assert json.loads((tmp_path / "run" / "results.json").read_text())["rows"] == results["rows"]


def test_a_damaged_cache_is_computed_again(done, encoder, tmp_path):
  results, workdir, data = done
  folder = tmp_path / "run" / "features"
  os.makedirs(folder)
  for name in os.listdir(workdir / "features"):
    (folder / name).write_bytes((workdir / "features" / name).read_bytes()[:-100])
  assert evaluate(encoder, data, tmp_path / "run")["rows"] == results["rows"]


def test_damaged_predictions_are_computed_again(done, encoder, tmp_path):
  """They ended every later start of the command with a traceback."""
  results, workdir, data = done
  shutil.copytree(workdir, tmp_path / "run")
  folder = tmp_path / "run" / "predictions"
  for name in os.listdir(folder):
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])
  assert evaluate(encoder, data, tmp_path / "run")["rows"] == results["rows"]


def test_an_encoder_of_another_normalisation_is_another_encoder(done, encoder, tmp_path, capsys):
  """Its parameters are the same; rows of the one before were read as its own."""
  _, workdir, data = done
  shutil.copytree(workdir, tmp_path / "run")
  shutil.copytree(encoder, tmp_path / "encoder")
  config = json.loads((tmp_path / "encoder" / "config.json").read_text())
  config["normalization"]["low"] -= 10
  (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
  flags = {"encoder": str(tmp_path / "encoder"), "data.path": data, **OVERRIDES}
  assert main.main(job_flags("linear", tmp_path / "run", **flags)) == 2
  assert re.search("embedding_hash: .* -> .*normalisation", capsys.readouterr().err)


def test_selection_on_test_clips_says_so(encoder, done, tmp_path):
  """The rate that the test clips prefer, the probe of all other clips; the table shouts."""
  results = evaluate(encoder, done[2], tmp_path / "run", select_on_test="True", blocks="'last',")
  assert results["data"]["divisions"] == [{"train": 24, "valid": 12, "test": 12}] * 3
  assert all(
    run["score"] == max(run["valid_scores"]) for row in results["rows"] for run in row["runs"]
  )
  assert "CHOSEN ON THE TEST CLIPS" in table(results) and "CHOSEN" not in table(done[0])


def test_a_workdir_of_another_evaluation_is_refused(done, encoder, tmp_path):
  with pytest.raises(UserError, match=r"belongs to a run with another config:\n  knn: 3 -> 4"):
    evaluate(encoder, done[2], done[1], knn="4")
