"""Intervals over test clips: they cover what they say, groups are drawn together, and rows of the
same clips are compared draw by draw."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from atst_jax.downstream import bootstrap, metrics, tables
from atst_jax.downstream.papers.comparison import Cell, Comparison, Line, differences
from atst_jax.downstream.papers.published import TABLES
from atst_jax.downstream.papers.runs import Run


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
  notes = [{f"note {i}"} for i in range(400)]
  found = bootstrap.of_recordings(ids, {"background": background, "event": notes})
  assert found.by == "background recordings" and found.digest != design(400).digest
  assert width(found) == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 10), rel=0.1)
  assert width(found) > 5 * width(design(400))
  assert bootstrap.of_recordings(ids, {"background": [{"hum"}] * 400, "event": notes}) is None


def test_a_mixture_counts_as_often_as_all_its_recordings():
  """Backgrounds and events are drawn apart; a clip that shares none is drawn among them."""
  background = [{"a", "b"}, {"b", "c"}, {"a", "c"}, {"a"}, {"z"}, {"y"}]
  event = [{"1"}, {"2", "3"}, {"2"}, {"2"}, {"5"}, set()]
  ids = [*"pqrstu"]
  found = bootstrap.of_recordings(ids, {"background": background, "event": event})
  (counts,) = found.draws(0, 2000)
  assert found.by == "background and event recordings"
  # a, b, c and the two clips that share none; note 2 and three clips; one that fills
  assert found.numbers == ((5, 4, 1),)
  of_background, of_event = counts_of(found, 2000)
  a, b, c, z, y = of_background.T
  note, first, fifth, none = of_event.T
  expected = [a * b * first, b * c * note, a * c * note, a * note, z * fifth, y * none]
  np.testing.assert_array_equal(counts, np.stack(expected, 1))
  few = bootstrap.of_recordings(["p", "q"], {"background": [{"a", "b"}, {"b", "c"}]})
  assert few is None  # "b" is in all, the others in one
  # of events that hardly any clips share nothing is drawn beside those backgrounds
  lightly = [{"1"}, {"2"}, {"2"}, {"4"}, {"5"}, set()]
  both = bootstrap.of_recordings(ids, {"background": background, "event": lightly})
  assert both.by == "background recordings" and both.numbers == ((5, 1),)
  assert bootstrap.of_recordings(ids, {"event": lightly}).numbers == ((5, 1),)
  nothing = bootstrap.of_hits(found, [np.ones((1, 6))]).resampled  # a draw without any clip
  assert np.isnan(nothing).any() and bootstrap.interval(nothing) == [1.0, 1.0]


def counts_of(found, number):
  """How often each unit of every kind is drawn."""
  rng = np.random.default_rng(0)
  return [bootstrap._times(rng, number, count) for count in found.numbers[0][:-1]]


@pytest.mark.parametrize("shared", [199, 100])
def test_the_only_shared_recording_is_drawn_among_the_others(shared):
  """One recording under most clips, or half of them, does not fix any clip's count."""
  background = [{"rain"} if i < shared else {f"rain {i}"} for i in range(200)]
  event = [{f"note {i // 2 if i < 4 else i}"} for i in range(200)]
  ids = [f"{i}" for i in range(200)]
  found = bootstrap.of_recordings(ids, {"background": background, "event": event})
  times = np.concatenate(list(found.draws(0, 200)))
  assert found.by == "background recordings" and times.std(0).min() > 0.3
  low, high = bootstrap.interval(
    bootstrap.of_hits(found, [np.arange(200)[None] < shared]).resampled
  )
  assert high - low > 0.3


def test_roles_that_clips_hardly_share_are_not_both_drawn():
  """Two pairs share a background and two others an event: the interval is that of 400 clips."""
  background = [{f"rain {max(i, 1)}"} for i in range(400)]
  event = [{f"note {min(i, 398)}"} for i in range(400)]
  found = bootstrap.of_recordings(
    [f"{i}" for i in range(400)], {"background": background, "event": event}
  )
  hits = [np.arange(400)[None] % 10 < 7]
  width = lambda design: np.ptp(bootstrap.interval(bootstrap.of_hits(design, hits).resampled))
  assert width(found) == pytest.approx(width(design(400)), rel=0.1)


def test_the_note_says_for_every_scene_what_is_drawn():
  row = lambda scene, by, draws=1000: {
    "scene": scene,
    "name": "R@1",
    "test": {"by": by, "draws": draws},
  }
  rows = [{"scene": "rain", "name": "R@1"}, *[row("rain", "background recordings")] * 2]
  results = {"job": "retrieval", "protocol": "", "data": {}, "config": {"seeds": 1}, "rows": rows}
  (same,) = tables.notes(results)
  said = "1000 draws of the test clips with replacement"
  assert f"95 % of {said}, by the background recordings that they are mixed from (boot" in same
  more = [row("sea", "clips", 990), row("wind", "groups")]
  (differ,) = tables.notes({**results, "rows": rows + more})
  assert f"rain: {said}, by the background recordings that they are mixed from; " in differ
  assert "sea: 990 draws of the test clips with replacement; " in differ
  assert f"wind: {said}, by pairs that share a clip (bootstrap)" in differ


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


def test_a_draw_without_the_groups_of_a_division_keeps_the_other_divisions():
  """Of three folds with two of four parted speakers each, a draw may leave one out."""
  speakers = [np.repeat(pair, 10) for pair in ([0, 1], [1, 2], [2, 3])]
  tests = np.split(np.arange(60), 3)
  groups = [f"speaker {i}" for i in np.concatenate(speakers)]
  parted = bootstrap.design(tests, [f"{i}" for i in range(60)], groups)
  hits = [(part >= 2)[None] for part in speakers]
  resampled = bootstrap.of_hits(parted, hits).resampled
  times = np.stack([next(parted.draws(division, 1000)) for division in range(3)])
  left_out = (times.sum(-1) == 0).any(0)
  assert 0.1 < left_out.mean() < 0.25 and np.isfinite(resampled).all()
  only_first = (times.sum(-1) == 0)[2] & ~(times.sum(-1) == 0)[1] & (times[1, :, 10:].sum(-1) == 0)
  assert only_first.any() and (resampled[only_first] == 0).all()
  labels = np.eye(2)[np.concatenate([part >= 2 for part in speakers]).astype(int)]
  logits = [labels[None, test] for test in tests]
  for multi_label in (False, True):
    targets = [labels[test] for test in tests]
    right = bootstrap.of_logits(parted, logits, targets, multi_label).resampled
    np.testing.assert_allclose(right, 1)


def test_draws_without_a_score_are_not_counted(tmp_path):
  background = [{"a", "b"}, {"b", "c"}, {"a", "c"}]
  found = bootstrap.of_recordings([*"pqr"], {"background": background})
  tested = bootstrap.of_hits(found, [np.array([[1, 0, 1]])])
  row = bootstrap.keep(str(tmp_path), {"name": "", "tested": tested}, "0.npz")
  assert row["test"]["draws"] == np.isfinite(tested.resampled).sum() < 1000


def test_a_division_of_a_single_group_draws_its_clips():
  """Draws of one speaker would all be the same, and every two rows would differ."""
  tests, ids = [np.arange(20), np.arange(20, 40)], [f"{i}" for i in range(40)]
  groups = ["a"] * 20 + ["b"] * 20
  design = bootstrap.design(tests, ids, groups)
  assert design.by == "clips of a single group"
  times = np.concatenate(list(design.draws(0, 50)))
  assert (times.sum(1) == 20).all() and times.std(0).min() > 0
