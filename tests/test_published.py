"""The papers' tables as data: complete, and right where they can be checked against themselves."""

import re

import numpy as np
import pytest

from atst_jax.downstream.metrics import confidence, summary
from atst_jax.downstream.papers.published import TABLES, published
from atst_jax.downstream.papers.tasks import TASKS, known_rates
from data_pipeline.sources.layouts import LAYOUTS

AVERAGES = {
  "atst-1": (71.4, 74.9, 73.1, 76.5, 78.2),
  "difference-3": (71.95, 71.93, 71.79, 71.49, 71.18),
}


def test_averages_are_those_that_the_papers_print():
  for key, printed in AVERAGES.items():
    table = TABLES[key]
    means = [np.mean([row.scores[c] for c in table.averaged]) for row in table.rows]
    np.testing.assert_allclose(means, printed, atol=0.051)  # the papers round


@pytest.mark.parametrize(
  "file, keys",
  [
    ("atst", ("atst-1", "atst-2", "atst-3")),
    ("difference_aware", ("difference-1", "difference-2", "difference-3")),
  ],
)
def test_every_score_stands_in_its_paper(shared, file, keys):
  """Every number of a table is in the paper's text, as often as in the table at least."""
  text = (shared / "papers" / f"{file}.txt").read_text()
  found = re.findall(r"\d+\.\d+", text)
  for key in keys:
    for row in TABLES[key].rows:
      for value in (*row.scores.values(), *row.spreads.values()):
        forms = {f"{value:.1f}": value, f"{value:.2f}": value, f"{value / 100:.3f}": value / 100}
        exact = [form for form, meant in forms.items() if abs(float(form) - meant) < 1e-9]
        assert any(form in found for form in exact), (key, row.name, value)


def test_every_task_of_the_issue_is_there_with_a_layout_and_its_columns():
  assert set(TASKS) <= set(LAYOUTS)
  counts = {
    "audioset": 527,
    "urbansound8k": 10,
    "speech_commands": 35,
    "voxceleb1": 1251,
    "nsynth": 11,
    "esc50": 50,
    "esc10": 10,
    "surge": 88,
    "fsd50k": 200,
    "fsdd": 10,
    "gtzan": 10,
    "crema_d": 6,
    "voxforge": 6,
  }
  assert {name: task.classes for name, task in TASKS.items()} == counts
  for key in ("atst-1", "atst-2", "atst-3", "difference-3"):
    assert set(TABLES[key].columns) <= set(TASKS)
  assert all(set(row.scores) <= set(t.columns) for t in TABLES.values() for row in t.rows)


def test_published_rows_are_found_by_protocol_and_column():
  assert [row.name for row in published("finetune", "voxceleb1")][-2:] == [
    "ATST Small",
    "ATST Base",
  ]
  assert len(published("atst", "audioset")) == 2  # Table 2's; the ablation is no other method
  assert published("difference")[3].scores["(a) 100%"] == 58.96 and not published("atst", "esc50")


def test_known_rates():
  assert known_rates("atst", "audioset") == (0.5, 1.0, 2.0, 4.0)
  assert known_rates("evar", "voxceleb1") == (4e-5,)
  assert (
    known_rates("atst", "tones")
    == known_rates("atst", "esc50")
    == known_rates("evar", "audioset")
    == ()
  )


def test_summary_of_seeds():
  one = summary([0.5])
  assert one == {"mean": 0.5, "std": None, "ci95": None, "per_seed": [0.5]}
  three = summary([0.1, 0.2, 0.3])
  assert three["mean"] == pytest.approx(0.2) and three["std"] == pytest.approx(0.1)
  assert three["ci95"] == pytest.approx(4.302653 * 0.1 / 3**0.5) and confidence([1.0]) is None
