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


def test_mixtures_of_a_recording_are_drawn_together():
  """Ten backgrounds under 40 clips each hold ten answers. Recordings of one clip, or of all, change
  nothing."""
  ids = [f"{i}" for i in range(400)]
  hits = (np.arange(400)[None] // 40) < 7
  background = [{f"rain {i // 40}", "hum"} for i in range(400)]
  width = lambda design: np.ptp(bootstrap.interval(bootstrap.of_hits(design, [hits]).resampled))
  found = bootstrap.of_recordings(ids, [background, [{f"note {i}"} for i in range(400)]])
  assert found.by == "recordings" and found.digest != design(400).digest
  assert width(found) == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 10), rel=0.1)
  assert width(found) > 5 * width(design(400))
  single = [{"hum"}] * 400, [{f"note {i}"} for i in range(400)]
  assert bootstrap.of_recordings(ids, list(single)) is None


def test_a_mixture_counts_as_often_as_all_its_recordings():
  """Backgrounds and events are drawn apart; a clip that shares nothing is drawn by itself."""
  background = [{"a", "b"}, {"b", "c"}, {"a", "c"}, {"a"}, {"z"}, {"y"}]
  event = [{"1"}, {"2", "3"}, {"2"}, {"2"}, {"5"}, set()]
  found = bootstrap.of_recordings([*"pqrstu"], [background, event])
  (counts,) = found.draws(0, 2000)
  assert found.numbers == ((3, 1, 2, 1),)  # a, b, c; note 2; two alone; one that fills
  assert np.array_equal(counts[:, 4] + counts[:, 5], np.full(2000, 2.0))
  # of the counts of a, b, c, which add up to 3, the products of two and one of them
  triples = {(a, b, 3 - a - b) for a in range(4) for b in range(4 - a)}
  expected = {(a * b, b * c, a * c, a) for a, b, c in triples}
  assert {tuple(map(int, row)) for row in counts[:, :4]} == expected
  few = bootstrap.of_recordings(["p", "q"], [[{"a", "b"}, {"b", "c"}]])
  assert few is None  # "b" is in all, the others in one
  # of events that hardly any clips share nothing is drawn beside those backgrounds
  lightly = [{"1"}, {"2"}, {"2"}, {"4"}, {"5"}, set()]
  assert bootstrap.of_recordings([*"pqrstu"], [background, lightly]).numbers == ((3, 2, 1),)
  assert bootstrap.of_recordings([*"pqrstu"], [lightly]).numbers == ((1, 4, 1),)
  nothing = bootstrap.of_hits(found, [np.ones((1, 6))]).resampled  # a draw without any clip
  assert bootstrap.interval(nothing) == [1.0, 1.0]


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


def test_a_group_in_several_divisions_is_drawn_for_all_of_them():
  """Ten speakers with 20 clips in each of two divisions: the mean over both varies as that of ten
  answers."""
  tests, ids = [np.arange(200), np.arange(200, 400)], [f"{i}" for i in range(400)]
  speakers = np.arange(200) // 20
  hits = [(speakers < 7)[None]] * 2
  width = lambda design: np.ptp(bootstrap.interval(bootstrap.of_hits(design, hits).resampled))
  parted = bootstrap.design(tests, ids, [f"speaker {i}" for i in (*speakers, *speakers)])
  assert parted.joint and parted.by == "groups"
  one, two = (next(parted.draws(division, 30)) for division in range(2))
  np.testing.assert_array_equal(one, two)
  apart = [f"{division} {i}" for division in range(2) for i in speakers]
  assert not bootstrap.design(tests, ids, apart).joint
  assert width(parted) == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 10), rel=0.1)
  assert width(parted) == pytest.approx(
    2**0.5 * width(bootstrap.design(tests, ids, apart)), rel=0.1
  )


def test_a_division_of_a_single_group_draws_its_clips():
  """Draws of one speaker would all be the same, and every two rows would differ."""
  tests, ids = [np.arange(20), np.arange(20, 40)], [f"{i}" for i in range(40)]
  groups = ["a"] * 20 + ["b"] * 20
  design = bootstrap.design(tests, ids, groups)
  assert design.by == "clips of a single group"
  times = np.concatenate(list(design.draws(0, 50)))
  assert (times.sum(1) == 20).all() and times.std(0).min() > 0
