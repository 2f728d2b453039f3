"""A prepared set of pairs: what is read of it, and what will not do."""

import csv
import json
import types

import numpy as np
import pytest

from atst_jax import main
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import bootstrap
from atst_jax.downstream.features import read_labels
from atst_jax.downstream.retrieval import job, pair_set, settings, text
from atst_jax.util.errors import UserError
from tests.pair_sets import write_pairs, write_table
from tests.tiny import job_flags


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


def test_other_sentences_are_another_set(data):
  """Rows of the sentences before were read as those of today's."""
  names = ("pairs.csv", "mixtures.csv")
  before = pair_set.fingerprint(Dataset.load(str(data)))
  for name, place in zip(names, (-2, 3), strict=True):
    text = (data / name).read_bytes()
    change(data / name, lambda rows, at=place: [[*r[:at], "other", *r[at:][1:]] for r in rows])
    assert pair_set.fingerprint(Dataset.load(str(data))) != before
    (data / name).write_bytes(text)
  assert pair_set.fingerprint(Dataset.load(str(data))) == before


def share_answers(rows):
  """Two and two of rain's six tested pairs have an answer in common."""
  answers = {f"rain_test_{i}": f"rain_test_{i // 2 * 2}_s2" for i in range(6)}
  return [[*row[:2], answers.get(row[0], row[2]), *row[3:]] for row in rows]


def test_an_answer_that_queries_share_is_in_the_gallery_once(data):
  """Twice there it was as near as itself, and R@1 of a system without a mistake 0.5."""
  change(data / "pairs.csv", share_answers)
  dataset = Dataset.load(str(data))
  pairs = pair_set.read_pairs(dataset, read_labels(dataset), seed=0)
  found = settings.galleries(pairs, of_all=False, recall_at=(1, 3))
  assert {scene: (len(asked), len(clips)) for scene, (asked, clips) in found.items()} == {
    "rain": (6, 3),
    "wind": (6, 6),
  }
  asked, clips = found["rain"]
  assert set(clips) == set(pairs.target[asked])
  with pytest.raises(UserError, match="'rain' has a gallery of 3 answers"):
    settings.galleries(pairs, of_all=False, recall_at=(1, 5))
  together = settings.galleries(pairs, of_all=True, recall_at=(1,))
  assert len(together["rain"][1]) == len(together["wind"][1]) == 9


@pytest.fixture
def run(encoder, data, tmp_path, monkeypatch):
  """Runs the job on statistics of the mel, with an indicator of each sentence as its vector."""
  words = lambda texts, *_, **options: np.eye(len(texts), dtype=np.float32)
  monkeypatch.setattr(text, "load_text_encoder", lambda name: text.TextEncoder(None, None, "0"))
  monkeypatch.setattr(text, "embed_texts", words)

  def run(**values):
    values = {"encoder": encoder, "data__path": data, "features": "mel", "seeds": 2} | values
    code = main.main(job_flags("retrieval", tmp_path / "run", **values))
    path = tmp_path / "run" / "results.json"
    return code, json.loads(path.read_text())["rows"] if path.exists() else None

  return run


def test_all_answers_of_a_gallery_hold_every_query_s(run, data):
  """As many answers as there are hold the wanted one, and chance is 1 too; those of two queries
  count once."""
  change(data / "pairs.csv", share_answers)
  options = {"adapter__hidden": 4, "adapter__width": 4, "train__epochs": 1}
  code, rows = run(recall_at="1,3", systems="audio + text", **options)
  found = {(row["scene"], row["system"], row["name"]): row["mean"] for row in rows}
  assert code == 0 and {row["gallery"] for row in rows if row["scene"] == "rain"} == {3}
  assert found["rain", "audio + text", "R@3"] == found["rain", "chance", "R@3"] == 1
  assert found["wind", "chance", "R@3"] == 0.5 and found["rain", "audio + text", "R@1"] < 1


@pytest.mark.parametrize("values", ["1,1", "5,1", "0,1"])
def test_numbers_of_answers_are_told_apart(run, capsys, values):
  """Twice the same K counted every seed twice, and its interval was too narrow."""
  assert run(recall_at=values) == (2, None)
  assert "--config.recall_at=(" in (error := capsys.readouterr().err)
  assert "must be positive and ascending" in error
