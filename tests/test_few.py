"""Few labels: what is drawn, what chooses the penalty, and the table and curve of an evaluation."""

import dataclasses
import json
import re

import numpy as np
import pytest

from atst_jax import main
from atst_jax.downstream import ridge
from atst_jax.downstream.linear.drawing import choose_penalty, draw
from atst_jax.downstream.metrics import accuracy
from atst_jax.downstream.tables import table
from atst_jax.figures.pictures import Pictures
from atst_jax.figures.run_page import evaluation
from tests.evaluation import make_clips, write_clips, write_encoder
from tests.tiny import ROOT

score = lambda scores, targets: accuracy(scores, targets.argmax(-1))


def test_a_class_takes_its_clips_from_as_many_groups_as_it_can():
  """Class 0: four clips of each of three groups; class 1: two clips, of one group."""
  sources = np.array([*np.repeat([0, 1, 2], 4), 3, 3])
  targets = np.eye(2, dtype=np.uint8)[[0] * 12 + [1] * 2]
  pool, seen = np.delete(np.arange(14), 0), set()
  for seed in range(20):
    rows = draw(targets, pool, sources, 3, np.random.default_rng(seed))
    assert sorted(sources[rows]) == [0, 1, 2, 3, 3] and 0 not in rows
    six = draw(targets, pool, sources, 6, np.random.default_rng(seed))
    assert sorted(sources[six]) == [0, 0, 1, 1, 2, 2, 3, 3] and set(rows) <= set(six)
    seen |= {*rows.tolist()}
  assert seen == {*pool.tolist()}


def test_of_several_labels_a_clip_counts_for_each():
  targets = np.array([[1, 1, 0]] * 4 + [[1, 0, 1]] * 3 + [[1, 0, 0]] * 9, np.uint8)
  rows = draw(targets, np.arange(16), np.arange(16), 2, np.random.default_rng(0))
  assert targets[rows].sum(0).tolist() == [4, 2, 2]  # the rare ones bring the first along
  rows = draw(targets, np.arange(16), np.arange(16), 8, np.random.default_rng(0))
  assert targets[rows].sum(0).tolist() == [8, 4, 3]


@pytest.mark.parametrize("features", [6, 50])
def test_groups_left_out_in_closed_form_are_those_of_scikit_learn(features):
  from sklearn.linear_model import Ridge
  from sklearn.preprocessing import StandardScaler

  rng = np.random.default_rng(0)
  x, targets = rng.normal(size=(20, features)) + 3, np.eye(4)[np.arange(20) % 4]
  groups = np.array([0, 0, 0, 1, 1, 2, 2, 3, *range(4, 16)])
  z = StandardScaler().fit_transform(x)
  for penalty, scores in zip(
    (1e-3, 0.1), ridge.leave_out(x, targets, groups, (1e-3, 0.1)), strict=True
  ):
    for group in range(16):
      out = groups == group
      model = Ridge(alpha=penalty * 20).fit(z[~out], targets[~out])
      np.testing.assert_allclose(scores[out], model.predict(z[out]).reshape(-1, 4), atol=1e-7)


def test_drawn_clips_choose_the_penalty_where_a_class_has_two_groups():
  """Many features tell the group, one the class: within a group every penalty looks perfect."""
  rng = np.random.default_rng(1)
  classes, sources = np.arange(24) % 2, np.arange(24) // 4
  x = np.concatenate([rng.normal(size=(6, 40))[sources], rng.normal(size=(24, 40))], 1)
  x[:, 0] = classes + 0.05 * rng.normal(size=24)
  targets, grid = np.eye(2)[classes], (1e-4, 1e-2, 1.0, 100.0)
  found = choose_penalty(x, targets, sources, grid, score, default=7.0)
  expected = [score(s, targets) for s in ridge.leave_out(x, targets, sources, grid)]
  assert found == grid[ridge.last_best(expected)] and len(set(expected)) > 1
  assert choose_penalty(x[:2], targets[:2], sources[:2], grid, score, default=7.0) == 7.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """An encoder, a set of 36 clips in three folds, and the same with nine groups of four clips."""
  root = tmp_path_factory.mktemp("few")
  write_encoder(root / "encoder")
  clips = make_clips(loud=6.0)
  write_clips(root / "data", clips)
  grouped = [dataclasses.replace(c, group=f"g{i // 4}", fold=i // 12) for i, c in enumerate(clips)]
  write_clips(root / "grouped", grouped)
  return root


def run(folders, data, workdir, *flags):
  return main.main(
    [
      f"--config={ROOT / 'configs' / 'linear.py'}:few",
      f"--workdir={workdir}",
      f"--config.encoder={folders}/encoder",
      f"--config.data.path={folders}/{data}",
      "--config.seeds=2",
      "--config.blocks='last',",
      *flags,
    ]
  )


def test_the_curve_of_an_evaluation(folders, tmp_path, capsys):
  assert run(folders, "data", tmp_path, "--config.few.clips=1,4,16", "--config.few.draws=3") == 0
  results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
  assert [row["name"] for row in results["rows"]] == ["1 clip", "4 clips"] * 3
  for row in results["rows"]:
    seeds = 2 if row["features"].startswith("random") else 1
    assert len(row["runs"]) == seeds * 3 * 3 and len(row["per_draw"]) == 3
    scores = [np.mean([r["score"] for r in row["runs"] if r["draw"] == d]) for d in range(3)]
    np.testing.assert_allclose(row["per_draw"], scores)
    assert row["mean"] == pytest.approx(np.mean(scores)) and row["ci95"] >= 0
    assert row["clips"] == 3 * row["clips_per_class"]
    assert {r["penalty"] for r in row["runs"]} == {1.0} or row["clips_per_class"] > 1
  mel = [row["mean"] for row in results["rows"] if row["features"].startswith("mel")]
  assert mel[1] > mel[0] > results["chance"]
  head = table(results).splitlines()
  assert "mean ± 95 % confidence interval over 3 draws; protocol few labels, exact" in head[0]
  assert head[2].split() == ["features", "size", "1", "clip", "4", "clips"]
  assert "16 clips: no class has more than 8; left out." in results["notes"]
  assert "mel mean and std, 1-NN" in capsys.readouterr().out
  pictures = Pictures(str(tmp_path))
  page = evaluation(str(tmp_path), pictures)
  assert "4 clips: mel mean and std" in page and "score over labelled clips" in page
  assert pictures.paths == [str(tmp_path / "few_labels_0.png")]
  assert {d["column"] for d in results["differences"]} == {"1 clip", "4 clips"}


@pytest.mark.slow
def test_what_a_papers_protocol_knows_besides_is_said(folders, tmp_path):
  flags = ["--config.protocol=atst", "--config.probe.learning_rates=0.1,1", "--config.seeds=1"]
  flags += ["--config.few.clips=2,", "--config.few.draws=2", "--config.probe.epochs=20"]
  assert run(folders, "grouped", tmp_path, *flags) == 0
  results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
  assert {r["learning_rate"] for row in results["rows"] for r in row["runs"]} <= {0.1, 1.0}
  assert results["notes"] == ["Besides the drawn clips, 12 validation clips choose the rate."]


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.few.clips=50,60", "no class has more than 8 clips to draw from"),
    ("--config.few.clips=4,2", "few.clips=.*ascending"),
    ("--config.few.clips=1.5,4", "whole number"),
    ("--config.few.draws=0", "few.draws=0: must be positive"),
    ("--config.probe.refit=true", "probe.refit=True: few labels"),
    ("--config.protocol=atst --config.few.penalty=5", "few.penalty=5.0 plays no part"),
  ],
)
def test_what_cannot_be_drawn_is_refused(folders, tmp_path, flag, message, capsys):
  assert run(folders, "data", tmp_path / "run", *flag.split()) == 2
  assert re.search(message, capsys.readouterr().err)


def test_dry_run_names_classes_with_fewer_clips(folders, tmp_path, capsys):
  """Of each class eight clips lie in two folds of three."""
  assert run(folders, "grouped", tmp_path / "run", "--dry_run") == 0
  out = capsys.readouterr().out
  assert "10 of 1, 2, 4, 8 clips per class in each division, protocol exact" in out
  assert "16 clips: no class has more than 8; left out." in out
