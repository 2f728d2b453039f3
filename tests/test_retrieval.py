"""Retrieval with auxiliary information: the adapters learn what needs both sound and text; the job
end to end."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest

from atst_jax import main
from atst_jax.data.dataset import Clip, Dataset
from atst_jax.downstream.features import read_labels
from atst_jax.downstream.papers.comparison import compare, read_runs
from atst_jax.downstream.papers.published import RECALLS
from atst_jax.downstream.retrieval import pair_set, text
from atst_jax.downstream.tables import cells, intervals
from atst_jax.util.errors import UserError
from tests.evaluation import write_clips, write_encoder
from tests.tiny import ROOT

WORDS = ["add", "remove", "louder", "quieter", "low", "high", "the", "a"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  """A tiny DistilBERT with random parameters, as `save_pretrained` writes it."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[text]")
  transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install -e .[text]"
  )
  root = tmp_path_factory.mktemp("bert")
  vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
  (root / "words.txt").write_text("\n".join(vocabulary))
  torch.manual_seed(0)
  config = transformers.DistilBertConfig(
    vocab_size=len(vocabulary), dim=16, n_layers=2, n_heads=2, hidden_dim=32
  )
  transformers.DistilBertModel(config).save_pretrained(root)
  transformers.DistilBertTokenizerFast(str(root / "words.txt")).save_pretrained(root)
  return str(root)


def test_text_vectors_are_those_of_each_sentence_alone(bert, tmp_path):
  import torch

  encoder, texts = text.load_text_encoder(bert), ["add low", "remove the high", "louder"]
  for pooling in text.POOLINGS:
    got = text.embed_texts(texts, encoder, pooling=pooling, folder=str(tmp_path))
    assert got.shape == (3, 16) and got.dtype == np.float32
    for row, sentence in zip(got, texts, strict=True):
      ids = [2, *(5 + WORDS.index(word) for word in sentence.split()), 3]  # CLS … SEP
      with torch.no_grad():
        states = encoder.network(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
      np.testing.assert_allclose(
        row, states[0] if pooling == "first" else states.mean(0), atol=1e-5
      )


def test_text_vectors_are_computed_once(bert, tmp_path, monkeypatch):
  encoder = text.load_text_encoder(bert)
  first = text.embed_texts(["add low"], encoder, pooling="first", folder=str(tmp_path))
  with monkeypatch.context() as patch:
    patch.setattr(text, "_embed", lambda *args: pytest.fail("computed again"))
    again = text.embed_texts(
      ["add low"], text.load_text_encoder(bert), pooling="first", folder=str(tmp_path)
    )
  assert np.array_equal(first, again)
  text.embed_texts(["add high"], encoder, pooling="first", folder=str(tmp_path))
  text.embed_texts(["add low"], encoder, pooling="mean", folder=str(tmp_path))
  encoder.network.embeddings.word_embeddings.weight.data[7] += 1
  assert len(list(tmp_path.iterdir())) == 3


def test_text_models_that_will_not_do(bert, tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"is not a folder; name one that holds config\.json"):
    text.load_text_encoder(str(tmp_path / "none"))
  with pytest.raises(UserError, match="cannot be opened"):
    text.load_text_encoder(str(tmp_path))
  part = tmp_path / "part"
  shutil.copytree(bert, part)
  settings = json.loads((part / "config.json").read_text())
  (part / "config.json").write_text(json.dumps({**settings, "n_layers": 3}))
  with pytest.raises(
    UserError, match=r"lacks \d+ of the encoder's arrays, the first is transformer\.layer\.2\."
  ):
    text.load_text_encoder(str(part))
  encoder = text.load_text_encoder(bert)
  with pytest.raises(UserError, match="pooling=max: choose one of first, mean"):
    text.embed_texts(["add"], encoder, pooling="max", folder=str(tmp_path))
  encoder.network.embeddings.word_embeddings.weight.data[5] = float("nan")
  with pytest.raises(
    UserError, match="NaN or infinity for 1 of 2 sentences, the first is 'add low'"
  ):
    text.embed_texts(["louder", "add low"], encoder, pooling="first", folder=str(tmp_path))
  monkeypatch.setitem(sys.modules, "transformers", None)
  with pytest.raises(UserError, match=r"pip install -e .\[text\]"):
    text.load_text_encoder(bert)


# The job.


def write_pairs(root, *, sizes=(("train", 20), ("test", 6)), frontend="atst", seed=0):
  """A prepared set of pairs in two scenes; the answer's event is a band of the spectrum."""
  rng, clips, table = np.random.default_rng(seed), [], []
  for scene, split, i in (
    (scene, split, i) for scene in ("rain", "wind") for split, n in sizes for i in range(n)
  ):
    event = int(rng.integers(2))
    for suffix, loud in (("s1", False), ("s2", True)):
      mel = rng.normal(-60, 5, (40, 64)) + (20 if scene == "wind" else 0)
      mel[:, 32 * event : 32 * event + 32] += 30 * loud
      clips.append(
        Clip(
          f"{scene}_{split}_{i}_{suffix}",
          mel.astype(np.float16),
          (event,) if loud else (),
          multi_label=True,
          split=split,
        )
      )
    name = f"{scene}_{split}_{i}"
    table.append(
      (
        name,
        f"{name}_s1",
        f"{name}_s2",
        f"add {('low', 'high')[event]}",
        "add",
        "low",
        scene,
        split,
      )
    )
  write_clips(root, clips, names=("low", "high"), name="pairs", frontend=frontend)
  write_table(
    root / "pairs.csv", ("id", "id1", "id2", "text", "kind", "event", "scene", "split"), table
  )
  write_table(
    root / "mixtures.csv",
    ("clip", "split", "role", "source"),
    [(clip.id, clip.split, "background", f"{clip.split}.wav") for clip in clips],
  )
  return root


def write_table(path, columns, rows):
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(rows)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder")


@pytest.fixture
def data(tmp_path):
  return write_pairs(tmp_path / "data")


def flags(encoder, data, bert, workdir, **values):
  values = {
    "encoder": encoder,
    "data.path": data,
    "text.model": bert,
    "adapter.hidden": 8,
    "adapter.width": 8,
    "train.epochs": 3,
    "train.batch_size": 8,
    "seeds": 2,
    "recall_at": "1,5",
    **{key.replace("__", "."): value for key, value in values.items()},
  }
  return [
    f"--config={ROOT / 'configs' / 'retrieval.py'}",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in values.items()),
  ]


def test_job(encoder, data, bert, tmp_path, capsys):
  assert main.main(flags(encoder, data, bert, tmp_path / "run")) == 0
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert results["job"] == results["protocol"] == "retrieval" and results["metric"] == "recall"
  assert results["data"]["pairs"] == {
    s: {"train": 18, "valid": 2, "test": 6} for s in ("rain", "wind")
  }
  assert results["chance"] is None and results["published"] == []
  rows = {(r["features"], r["system"], r["scene"], r["name"]): r for r in results["rows"]}
  assert len(rows) == len(results["rows"])
  systems = [
    ("", "chance"),
    *(("pre-trained", s) for s in ("audio + text", "audio", "text")),
    ("random", "audio + text"),
    ("mel", "audio + text"),
  ]
  assert rows.keys() == {
    (*s, scene, f"R@{k}") for s in systems for scene in ("rain", "wind") for k in (1, 5)
  }
  for (_, system, _, name), row in rows.items():
    if system == "chance":
      assert row["mean"] == pytest.approx(int(name[2:]) / 6)
      continue
    assert len(row["per_seed"]) == 2 and row["mean"] == pytest.approx(np.mean(row["per_seed"]))
    assert [run["seed"] for run in row["runs"]] == [0, 1] and 0 <= row["mean"] <= 1
  printed = capsys.readouterr().out
  assert (
    "rain R@1" in printed
    and (tmp_path / "run" / "results.md").read_text().count("\n|")
    == len(cells(results)) + 1 + len(intervals(results)) + 1
  )
  (comparison,) = compare(read_runs([str(tmp_path / "run")]))
  lines = {line.name: line for line in comparison.lines if line.kind != "published"}
  assert lines["encoder"].cells["pairs rain R@5"].score == pytest.approx(
    100 * rows["pre-trained", "audio + text", "rain", "R@5"]["mean"]
  )
  assert lines["chance"].cells["pairs wind R@5"].score == pytest.approx(500 / 6)
  # other pairs than the paper's
  assert not any(column in line.cells for line in lines.values() for column in RECALLS)
  # A second time features come from their files, and the numbers are the same; another config needs
  # another folder.
  before, files = results["rows"], set((tmp_path / "run" / "features").iterdir())
  assert main.main(flags(encoder, data, bert, tmp_path / "run")) == 0
  assert json.loads((tmp_path / "run" / "results.json").read_text())["rows"] == before
  assert set((tmp_path / "run" / "features").iterdir()) == files and len(files) == 5
  assert main.main(flags(encoder, data, bert, tmp_path / "run", train__epochs=4)) == 2
  assert "train.epochs: 3 -> 4" in capsys.readouterr().err


def test_joint_training_and_the_gallery_of_all_scenes(encoder, data, bert, tmp_path):
  values = {
    "scenes": "joint",
    "gallery": "all",
    "features": "mel",
    "systems": "audio + text",
    "seeds": 1,
  }
  assert (
    main.main(
      flags(
        encoder, data, bert, tmp_path / "run", train__epochs=40, train__learning_rate=3e-3, **values
      )
    )
    == 0
  )
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert {row["gallery"] for row in results["rows"]} == {12}
  found = {
    row["scene"]: row["mean"]
    for row in results["rows"]
    if row["features"] == "mel" and row["name"] == "R@5"
  }
  assert np.mean(list(found.values())) > 0.75  # 5 / 12 by chance: the scene and the event are found


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      {"recall_at": "1,7"},
      "has a gallery of 6 answers; make more test pairs, or leave out K above 6",
    ),
    ({"text__model": "/nowhere/bert"}, "--config.text.model=/nowhere/bert is not a folder"),
    ({"text__pooling": "max"}, "--config.text.pooling=max: choose one of first, mean"),
    (
      {"systems": "audio,video"},
      "--config.systems=audio,video: choose from audio + text, audio, text",
    ),
    ({"gallery": "none"}, "--config.gallery=none"),
    ({"train__batch_size": 1}, "a pair needs another as its negative"),
    ({"adapter__temperature": 0}, "--config.adapter.temperature=0.0: must be positive"),
    ({"text__hash": "0123"}, "--config.text.hash=0123, but what --config.text.model names has"),
  ],
)
def test_mistakes_of_the_config(encoder, data, bert, tmp_path, capsys, values, message):
  assert main.main(flags(encoder, data, bert, tmp_path / "run", **values)) == 2
  assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_another_front_end_is_refused(encoder, bert, tmp_path, capsys):
  data = write_pairs(tmp_path / "data", frontend="difference")
  assert main.main(flags(encoder, data, bert, tmp_path / "run")) == 2
  assert "prepare the data with --frontend=atst" in capsys.readouterr().err


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
