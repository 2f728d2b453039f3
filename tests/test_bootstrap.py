"""Intervals over test clips: they cover what they say, groups are drawn together, and rows of the
same clips are compared draw by draw."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from atst_jax.downstream import bootstrap, metrics
from atst_jax.downstream.papers.comparison import Cell, Comparison, Line, Run, differences
from atst_jax.downstream.papers.published import TABLES


def design(n, groups=None, parts=1):
  """All of n clips are tested, in so many divisions."""
  tests = np.array_split(np.arange(n), parts)
  return bootstrap.design(tests, [f"{i}.wav" for i in range(n)], groups or [""] * n)


def test_the_interval_of_accuracy_is_that_of_a_share():
  """Of 400 clips with 280 right: ± 1.96 standard errors of a binomial share."""
  hits = np.arange(400)[None] < 280
  low, high = bootstrap.interval(bootstrap.of_hits(design(400), [hits]).resampled)
  error = 1.96 * np.sqrt(0.7 * 0.3 / 400)
  assert (low, high) == pytest.approx((0.7 - error, 0.7 + error), abs=0.005)


def test_clips_of_a_group_are_drawn_together():
  """Ten groups whose clips are all right or all wrong hold ten answers, not 400."""
  groups = [f"speaker {i // 40}" for i in range(400)]
  hits = (np.arange(400)[None] // 40) < 7
  width = lambda design: np.ptp(bootstrap.interval(bootstrap.of_hits(design, [hits]).resampled))
  together = design(400, groups)
  assert together.by == "groups" and design(400).by == "clips"
  assert width(together) == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 10), rel=0.1)
  assert width(together) > 5 * width(design(400))
  assert together.digest != design(400).digest


def test_draws_stay_inside_their_division():
  (counts,) = design(30, parts=3).draws(1, 50)
  assert counts.shape == (50, 10) and set(counts.sum(-1)) == {10.0}
  again = next(design(30, parts=3).draws(1, 50))
  np.testing.assert_array_equal(counts, again)


@pytest.mark.parametrize("levels", [3, 10**9])
def test_average_precision_of_weighted_clips_is_scikit_learns(levels):
  """With ties and without; clips that are not drawn have weight 0."""
  rng = np.random.default_rng(0)
  scores, targets = rng.integers(levels, size=40) / levels, (rng.random(40) < 0.3).astype(int)
  counts = rng.integers(0, 3, size=(5, 40)).astype(float)
  expected = [average_precision_score(targets, scores, sample_weight=row) for row in counts]
  found = metrics.average_precision(scores, targets, counts)
  np.testing.assert_allclose(found, expected, atol=1e-12)
  assert np.isnan(metrics.average_precision(scores, targets, counts * (targets == 0))).all()


def test_map_of_every_draw_is_that_of_the_clips_drawn():
  """A label that is not drawn is left out of the mean, as one that no clip has."""
  rng = np.random.default_rng(1)
  logits, targets = rng.normal(size=(2, 12, 3)), (rng.random((12, 3)) < [0.5, 0.2, 0]).astype(int)
  plan = design(12)
  tested = bootstrap.of_logits(plan, [logits], [targets], multi_label=True)
  for number in (0, 7, 99):
    rows = np.repeat(np.arange(12), next(plan.draws(0, 1000))[number].astype(int))
    expected = [metrics.mean_average_precision(part[rows], targets[rows])[0] for part in logits]
    assert tested.resampled[number] == pytest.approx(np.mean(expected), abs=1e-6)
  assert tested.kept["scores"].shape == (2, 12, 3)


def rows_of(tmp_path, *scores):
  """Rows of results for hits of one seed each, kept in a workdir."""
  plan = design(len(scores[0]))
  rows = [
    {"name": f"row {i}", "mean": np.mean(hits), "tested": bootstrap.of_hits(plan, [hits[None]])}
    for i, hits in enumerate(scores)
  ]
  return [bootstrap.keep(str(tmp_path), row, f"{i}.npz") for i, row in enumerate(rows)]


def test_rows_of_the_same_clips_are_compared_draw_by_draw(tmp_path):
  """Two rows that err on the same clips differ, though their intervals overlap widely; two that err
  alike on others do not."""
  rng = np.random.default_rng(2)
  one = rng.random(300) < 0.7
  worse, other = one & (rng.random(300) < 0.95), rng.random(300) < 0.7
  rows = rows_of(tmp_path, one, worse, other)
  first, second, _ = bootstrap.differences(str(tmp_path), rows)
  assert rows[1]["test"]["interval"][1] > rows[0]["test"]["interval"][0]
  assert first["is_difference"] and first["mean"] == pytest.approx(np.mean(one) - np.mean(worse))
  assert first["interval"][0] > 0 and not second["is_difference"]
  assert second["interval"][0] < 0 < second["interval"][1]


def test_a_report_compares_runs_of_the_same_test_clips(tmp_path):
  rng = np.random.default_rng(3)
  one = rng.random(300) < 0.8
  lines = []
  for name, hits in (("ours", one), ("theirs", one & (np.arange(300) % 5 > 0)), ("few", one[:200])):
    (row,) = rows_of(tmp_path / name, hits)
    cell = Cell(100 * row["mean"], None, "", Run(str(tmp_path / name), {}), "", row)
    lines.append(Line(name, "ours", {"esc50": cell}))
  comparison = Comparison("difference-3", TABLES["difference-3"], {"esc50": "ESC-50"}, lines)
  (found,) = differences(comparison)
  assert (found.of, found.less, found.is_difference) == ("ours", "theirs", True)
  assert found.interval[0] > 0 and found.mean == pytest.approx(
    lines[0].cells["esc50"].score - lines[1].cells["esc50"].score
  )
  (tmp_path / "theirs" / "predictions" / "0.npz").unlink()
  assert differences(comparison) == []


def test_a_division_of_a_single_group_draws_its_clips():
  """Draws of one speaker would all be the same, and every two rows would differ."""
  tests, ids = [np.arange(20), np.arange(20, 40)], [f"{i}" for i in range(40)]
  groups = ["a"] * 20 + ["b"] * 20
  design = bootstrap.design(tests, ids, groups)
  assert design.by == "clips of a single group"
  times = np.concatenate(list(design.draws(0, 50)))
  assert (times.sum(1) == 20).all() and times.std(0).min() > 0
