"""A prepared set of pairs: what is read of it, and what will not do."""

import csv
import types

import numpy as np
import pytest

from atst_jax.data.dataset import Dataset
from atst_jax.downstream import bootstrap
from atst_jax.downstream.features import read_labels
from atst_jax.downstream.retrieval import job, pair_set
from atst_jax.util.errors import UserError
from tests.pair_sets import write_pairs, write_table


@pytest.fixture
def data(tmp_path):
  return write_pairs(tmp_path / "data")


def change(path, function):
  with open(path, newline="") as file:
    head, *rows = list(csv.reader(file))
  write_table(path, head, function(rows))


def moved(rows):
  return [[*row[:-1], "test"] if row[0] == "rain_train_0" else row for row in rows]


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (
      lambda d: (d / "pairs.csv").unlink(),
      "holds no pairs; make them with `python -m data_pipeline.pairs`",
    ),
    (lambda d: (d / "pairs.csv").write_text("id,id1,id2,scene,split\n"), "no column text"),
    (lambda d: change(d / "pairs.csv", lambda rows: []), "is empty or cut short"),
    (
      lambda d: change(d / "pairs.csv", moved),
      "'rain_train_0' is in the split 'test', its clip 'rain_train_0_s1' in",
    ),
    (
      lambda d: change(d / "pairs.csv", lambda rows: [[*rows[0][:2], "gone", *rows[0][3:]]]),
      "the clip 'gone'",
    ),
    (
      lambda d: change(d / "pairs.csv", lambda rows: [[*rows[0][:2], rows[0][1], *rows[0][3:]]]),
      "one clip with itself",
    ),
    (
      lambda d: change(d / "pairs.csv", lambda rows: [[*rows[0][:3], "", *rows[0][4:]], *rows[1:]]),
      "has no text",
    ),
    (
      lambda d: change(d / "pairs.csv", lambda rows: [row for row in rows if row[-1] == "train"]),
      "0 test pairs",
    ),
    (
      lambda d: change(d / "mixtures.csv", lambda rows: [[*row[:3], "train.wav"] for row in rows]),
      "leaks: 1 recordings are mixed into test clips and into others, the first is 'train.wav'",
    ),
  ],
)
def test_pairs_that_will_not_do(data, spoil, message):
  spoil(data)
  dataset = Dataset.load(str(data))
  with pytest.raises(UserError) as error:
    pair_set.read_pairs(dataset, read_labels(dataset), seed=0)
  assert message in str(error.value)


def test_pairs_that_share_a_clip_are_held_out_together(data):
  def share(rows):
    # two and two ask with the same clip
    for one, other in zip(rows[:20:2], rows[1:20:2], strict=True):
      other[1] = one[1]
    return rows

  change(data / "pairs.csv", share)
  dataset = Dataset.load(str(data))
  labels = read_labels(dataset)
  pairs = pair_set.read_pairs(dataset, labels, seed=0)
  assert {split: len(pairs.rows(split, "rain")) for split in ("train", "valid", "test")} == {
    "train": 18,
    "valid": 2,
    "test": 6,
  }
  assert not set(pairs.query[pairs.splits == "valid"]) & set(pairs.query[pairs.splits == "train"])
  draws = {tuple(pair_set.read_pairs(dataset, labels, seed=seed).splits) for seed in range(8)}
  assert len(draws) > 1


def test_intervals_draw_the_recordings_that_queries_share(data):
  """Two and two of the six tested pairs have a background in common: they hold three answers."""
  names = {f"rain_test_{i}": f"background {i // 2}.wav" for i in range(6)}
  change(
    data / "mixtures.csv", lambda rows: [[*row[:3], names.get(row[0][:-3], row[3])] for row in rows]
  )
  dataset = Dataset.load(str(data))
  pairs = pair_set.read_pairs(dataset, read_labels(dataset), seed=0)
  galleries = {scene: (pairs.rows("test", scene),) * 2 for scene in ("rain", "wind")}
  retrieval = types.SimpleNamespace(pairs=pairs, galleries=galleries)
  shared, apart = (job._design(retrieval, scene) for scene in galleries)
  assert (shared.by, apart.by) == (
    "background recordings",
    "clips",
  )  # "wind": one recording is in all
  hits = [np.array([[1, 1, 0, 0, 1, 1]])]
  spread = lambda design: bootstrap.of_hits(design, hits).resampled.std()
  assert spread(shared) == pytest.approx(2**0.5 * spread(apart), rel=0.1)
