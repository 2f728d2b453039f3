"""The linear evaluation of sets that have splits: several labels, rates of the task, published
scores."""

import shutil

import numpy as np
import scipy.special

from atst_jax.artifacts.classifiers import scoring
from atst_jax.artifacts.classifiers.scoring import head_of
from atst_jax.artifacts.model import load_model
from atst_jax.data.dataset import Clip, Dataset
from atst_jax.downstream import features, ridge
from atst_jax.downstream.tables import notes, table
from tests.evaluation import evaluate, make_clips, several_labels, write_clips


def test_fixed_splits_and_multi_label_give_map(encoder, tmp_path):
  data = write_clips(tmp_path / "data", several_labels(36))
  workdir = tmp_path / "run"
  exported = {"export_clips": "division", "seeds": "1"}
  results = evaluate(encoder, data, workdir, export=str(tmp_path / "atst"), **exported)
  assert "export" not in results["config"]
  assert results["metric"] == "mAP" and len(results["data"]["divisions"]) == 1
  assert results["rows"][-1]["mean"] > 0.9 > results["chance"] and results["rows"][0]["std"] is None
  (over,) = [line for line in notes(results) if "classes" in line]
  assert over == "In each division means are over 3 of 3 classes."
  assert all(text in table(results) for text in ("one division", "linear mAP", "one seed"))
  scores = scores_of_division(workdir, results, tmp_path / "atst", data)
  np.testing.assert_allclose(scores[0], scipy.special.expit(scores[1]), atol=1e-5)
  shutil.copytree(workdir / "features", tmp_path / "exact_run" / "features")
  for clips in ("division", "all"):
    exported = {"protocol": "exact", "seeds": "1", "export_clips": clips}
    folder = tmp_path / clips
    results = evaluate(encoder, data, tmp_path / "exact_run", export=str(folder), **exported)
    scores = scores_of_division(tmp_path / "exact_run", results, folder, data)
    close = np.allclose(scores[0], scores[1].clip(0, 1), atol=1e-5)
    assert close == (clips == "division")
  model = load_model(str(folder))
  head, labels = head_of(model), features.read_labels(Dataset.load(data))
  mels = [clip.mel.astype(np.float32) for clip in features.clips(Dataset.load(data))]
  x = model.embed(mels, num_blocks=head.blocks)
  (layer,) = ridge.fit(x, labels.targets, [head.about["penalty"]])
  np.testing.assert_allclose(scoring.score(model, mels), layer(x), atol=1e-5)
  assert model.config["params_hash"] == load_model(encoder).config["params_hash"]
  assert head.about["fitted"] == "on all 36 labelled clips"


def scores_of_division(workdir, results, folder, data):
  """Probabilities of the test clips by an exported classifier, and the scores of its evaluation."""
  model = load_model(str(folder))
  name = head_of(model).about["features"]
  (row,) = [row for row in results["rows"] if row["name"] == name]
  mels = [clip.mel.astype(np.float32) for clip in Dataset.load(data).clips("test")]
  with np.load(workdir / row["test"]["file"]) as arrays:
    return head_of(model).probabilities(scoring.score(model, mels)), arrays["scores"][0]


def test_splits_with_one_label_give_accuracy_and_take_the_rates_of_the_task(encoder, tmp_path):
  """The validation split chooses; the rates that the protocol's authors name stand beside the
  ladder's."""
  names = ("test", "valid", "train", "train")
  clips = [
    Clip(c.id, c.mel, c.labels, False, -1, names[i // 3 % 4])
    for i, c in enumerate(make_clips(36, folds=0))
  ]
  data = write_clips(tmp_path / "data", clips, name="speech_commands")
  few = {"seeds": "1", "probe__epochs": "3", "blocks": "'last',"}
  results = evaluate(encoder, data, tmp_path / "run", **few)
  assert (
    results["data"]["divisions"] == [{"train": 18, "valid": 9, "test": 9}]
    and results["metric"] == "accuracy"
  )
  assert results["config"]["probe"]["learning_rates"] == [0.002, 0.01, 0.1, 1.0]
  found = (results["job"], results["protocol"], results["selected_on_test"])
  assert found == ("linear", "atst", False)
  kinds = [row["features"] for row in results["rows"]]
  assert kinds == ["pre-trained", "random", "mel mean and std"]
  alone = evaluate(encoder, data, tmp_path / "alone", **few, probe__task_rates="False")
  assert alone["config"]["probe"]["learning_rates"] == [0.01, 0.1, 1.0]


def test_published_scores_stand_beside_ours(encoder, tmp_path):
  """By the name that a layout gives a prepared set."""
  data = write_clips(tmp_path / "data", make_clips(), name="urbansound8k")
  results = evaluate(encoder, data, tmp_path / "run", seeds="1", blocks="'last',")
  assert [row["name"] for row in results["published"]] == ["BYOL-A", "ATST Small", "ATST Base"]
  assert table(results).splitlines()[-1].split()[-3:] == ["Table", "2)", "84.1"]
