"""Retrieval with auxiliary information: the adapters learn what needs both sound and text; the job
end to end."""

import json
import os
import shutil
import sys

import numpy as np
import pytest

from atst_jax import main
from atst_jax.downstream.papers.comparison import compare
from atst_jax.downstream.papers.published import RECALLS
from atst_jax.downstream.papers.runs import read_runs
from atst_jax.downstream.retrieval import text
from atst_jax.downstream.tables import cells, intervals
from atst_jax.util.errors import UserError
from tests.pair_sets import write_pairs
from tests.test_vggish import write_vggish
from tests.tiny import job_flags

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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_pairs(tmp_path_factory.mktemp("pairs") / "data")


def flags(encoder, data, bert, workdir, **values):
  values = {
    "encoder": encoder,
    "data__path": data,
    "text__model": bert,
    "adapter__hidden": 8,
    "adapter__width": 8,
    "train__epochs": 3,
    "train__batch_size": 8,
    "seeds": 2,
    "recall_at": "1,5",
    **values,
  }
  return job_flags("retrieval", workdir, **values)


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
  assert lines[os.path.basename(encoder)].cells["pairs rain R@5"].score == pytest.approx(
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


def test_vggish_is_an_audio_model(bert, tmp_path):
  """Of the paper's Table 2, on pairs of its front-end."""
  data = write_pairs(tmp_path / "pairs", frontend="vggish", frames=96)
  options = {"seeds": 1, "features": "'pre-trained',", "systems": "'audio',"}
  encoder = write_vggish(tmp_path / "vggish")
  assert main.main(flags(encoder, data, bert, tmp_path / "run", **options)) == 0
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert results["encoder"]["frontend"]["name"] == "vggish"
  assert {row["features"] for row in results["rows"]} == {"", "pre-trained"}
