"""Fine-tuning from an export and a prepared set to its table: every kind of task, resuming, and
what is refused."""

import dataclasses
import json
import os

import numpy as np
import pytest

from atst_jax import export
from atst_jax.artifacts.classifiers import scoring
from atst_jax.artifacts.classifiers.scoring import head_of
from atst_jax.artifacts.model import load_model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream.finetune import job, program
from atst_jax.downstream.tables import table
from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.runtime.preemption import StopRequest
from atst_jax.util.errors import UserError
from tests.evaluation import make_clips, several_labels, write_clips, write_encoder
from tests.finetuning import OVERRIDES, refused, run, split_clips
from tests.tiny import ONE_DEVICE, job_flags, running, two_processes


@pytest.fixture(scope="module", autouse=True)
def programs():
  """Runs of the same network, recipe and devices share what is compiled."""
  found = {}

  def compile_for(exported, encoder, mesh, **settings):
    network = {k: exported[k] for k in ("encoder", "chunk_frames", "normalization")}
    key = repr((network, [device.id for device in mesh.devices.flat], settings))
    if key not in found:
      found[key] = program.compile_for(exported, encoder, mesh, **settings)
    return found[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(job, "compile_for", compile_for)
    yield


def _export(workdir, output, *flags):
  assert export.main([f"--workdir={workdir}", f"--output={output}", *flags]) == 0


def stop_at(patch, number):
  """Asks to stop after so many steps."""
  asked = iter([False] * (number - 1) + [True])
  patch.setattr(StopRequest, "agreed", lambda self: next(asked))


def losses(workdir, division):
  """The losses of the first seed, from the first step on."""
  records = read_metrics(workdir / f"seed0-division{division}" / "metrics.jsonl")
  records = [record for record in records if "loss" in record]
  assert [record["step"] for record in records] == list(range(1, len(records) + 1))
  return [record["loss"] for record in records]


@pytest.fixture(scope="module")
def done(encoder, tmp_path_factory):
  """(results, workdir, data) of one run with three folds, on eight devices."""
  folder = tmp_path_factory.mktemp("finetune")
  data = write_clips(folder / "data", make_clips(60))
  code, results = run(encoder, data, folder / "run", devices=8)
  assert code == 0
  return results, folder / "run", data


def test_folds_give_rows_scores_and_provenance(done, encoder):
  results, workdir, _ = done
  assert [row["name"] for row in results["rows"]] == ["pre-trained, best", "pre-trained, last"]
  best, last = results["rows"]
  for row in results["rows"]:
    assert [(r["seed"], r["fold"]) for r in row["runs"]] == [(0, 0), (0, 1), (0, 2)]
    assert (
      row["mean"] == pytest.approx(np.mean([r["score"] for r in row["runs"]]))
      and row["std"] is None
    )
  # the class is the spectrum: an untrained head is at chance
  assert best["mean"] > 0.8 > results["chance"]
  assert all(b["valid"] >= v["valid"] for b, v in zip(best["runs"], last["runs"], strict=True))
  assert last["epoch"] == 6 and all(1 <= r["epoch"] <= 6 for r in best["runs"])
  assert (results["job"], results["protocol"], results["metric"]) == (
    "finetune",
    "finetune",
    "accuracy",
  )
  assert results["encoder"]["path"] == encoder and results["encoder"]["provenance"] == {"step": 123}
  assert results["config"]["padding"] == "mask" and results["config"]["drop_path"] == 0.1
  assert results["config"]["tail"] == "weighted"
  text = table(results)
  assert (
    "finetune accuracy" in text
    and "protocol finetune" in text
    and "CHOSEN" not in text
    and "3 folds" in text
  )
  assert "| pre-trained, best |" in (workdir / "results.md").read_text()
  records = read_metrics(workdir / "seed0-division1" / "metrics.jsonl")
  assert [r["step"] for r in records if "valid" in r] == [2, 4, 6, 8, 10, 12]
  assert len(losses(workdir, 1)) == 12


def test_a_finished_run_is_only_tested_again(done, encoder, monkeypatch):
  results, workdir, data = done
  monkeypatch.setattr(job.Runner, "validate", lambda self, state, split: 0.25)
  code, again = run(encoder, data, workdir, devices=8)
  assert code == 0
  for new, old in zip(again["rows"][0]["runs"], results["rows"][0]["runs"], strict=True):
    assert new == old
  assert [r["score"] for r in again["rows"][1]["runs"]] == [
    r["score"] for r in results["rows"][1]["runs"]
  ]


def test_fault_1_29_stopped_and_continued_is_the_uninterrupted_run_bit_for_bit(
  done, encoder, tmp_path, monkeypatch
):
  """Stopped inside an epoch of the second division, and after an epoch; then to the end."""
  results, workdir, data = done
  with monkeypatch.context() as patch:
    for number in (17, 3):  # 12 steps of the first division and 5 of the second; then 3 more
      stop_at(patch, number)
      assert run(encoder, data, tmp_path / "run", devices=8)[0] == 75
  code, again = run(encoder, data, tmp_path / "run", devices=8)
  assert code == 0 and again["rows"] == results["rows"]
  assert losses(tmp_path / "run", 1) == losses(workdir, 1)


def probabilities_of_test_clips(folder, data, test):
  """What an exported classifier says of clips, by the function behind `predict`."""
  model = load_model(str(folder))
  mels = [clip.mel.astype(np.float32) for clip in Dataset.load(data).clips("test")]
  assert len(mels) == test
  return head_of(model), head_of(model).probabilities(scoring.score(model, mels))


def test_several_labels_give_map_and_d_prime(encoder, tmp_path, capsys):
  data = write_clips(tmp_path / "data", several_labels(60), name="audioset")
  _, results = run(encoder, data, tmp_path / "run", epochs="8")
  best = results["rows"][0]
  assert (
    results["metric"] == "mAP" and best["mean"] > results["chance"] + 0.1 and best["d_prime"] > 0.5
  )
  assert [row["name"] for row in results["published"]][-2:] == ["ATST Small", "ATST Base"]
  text = table(results)
  assert "finetune mAP" in text and "d′" in text and "one division" in text and "37.4" in text
  for number, epoch in enumerate(("best", "last")):
    _export(tmp_path / "run", tmp_path / epoch, f"--epoch={epoch}", "--precision=0.8")
    head, found = probabilities_of_test_clips(tmp_path / epoch, data, 15)
    with np.load(tmp_path / "run" / results["rows"][number]["test"]["file"]) as arrays:
      expected = 1 / (1 + np.exp(-arrays["scores"][0]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert head.multi_label and head.about["thresholds"]["rule"] == "precision 0.8"
    assert head.about["scores"]["test"] == results["rows"][number]["runs"][0]["score"]
    assert f"{epoch} epoch" in capsys.readouterr().out


def test_labels_that_do_not_divide_the_tested_clips_have_no_d_prime(encoder, tmp_path):
  """One tested clip, of two labels. It ended in a traceback, after the whole training."""
  clips = several_labels(60)
  tested = next(clip for clip in clips if len(clip.labels) == 2)
  clips = [dataclasses.replace(c, split="test" if c is tested else "train") for c in clips]
  _, results = run(encoder, write_clips(tmp_path / "data", clips), tmp_path / "run", epochs="1")
  assert all("d_prime" not in row and 0 < row["mean"] <= 1 for row in results["rows"])


def test_of_several_runs_the_one_that_validation_likes_best_is_exported(done, tmp_path, capsys):
  results, workdir, _ = done
  best = max(results["rows"][0]["runs"], key=lambda run: run["valid"])
  _export(workdir, tmp_path / "best")
  about = load_model(str(tmp_path / "best")).config["head"]["about"]
  assert (about["fold"], about["epoch"], about["number"]) == (best["fold"], "best", best["epoch"])
  assert about["scores"] == {"metric": "accuracy", "valid": best["valid"], "test": best["score"]}
  card = (tmp_path / "best" / "README.md").read_text()
  assert "## Fine-tuning" in card and f"fold {best['fold']}, epoch best" in card
  for flags, message in (
    (["--seed=7"], "has the runs seed0-division0, seed0-division1, seed0-division2"),
    (["--data=nowhere"], "nowhere, which the run was made with, does not exist: --data says where"),
    ([f"--base={tmp_path / 'best'}"], "the run was made with"),
    (["--step=3"], "--step does not go with a fine-tuning run"),
    (["--precision=1.5"], "--precision=1.5: must lie above 0"),
  ):
    assert export.main([f"--workdir={workdir}", f"--output={tmp_path / 'no'}", *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_splits_without_mixup_use_cross_entropy(encoder, tmp_path):
  """The VoxCeleb1 recipe: a first loss of about ln 3, where the binary one is about ln 2."""
  data = write_clips(tmp_path / "data", split_clips())
  _, results = run(
    encoder, data, tmp_path / "run", variant="vox1", epochs="4", optimizer__base_lr="0.5"
  )
  assert losses(tmp_path / "run", 0)[0] == pytest.approx(np.log(3), abs=0.1)
  assert results["rows"][0]["mean"] > 0.6 and results["data"]["divisions"] == [
    {"train": 36, "valid": 12, "test": 12}
  ]


def test_selection_on_test_clips_says_so(encoder, tmp_path):
  data = write_clips(tmp_path / "data", split_clips())
  _, results = run(encoder, data, tmp_path / "run", select_on_test="True", epochs="3")
  best = results["rows"][0]["runs"][0]
  assert results["selected_on_test"] and best["score"] == best["valid"]
  assert results["data"]["divisions"] == [{"train": 48, "valid": 12, "test": 12}]
  assert "CHOSEN ON THE TEST CLIPS" in table(results)


def test_a_convolutional_encoder_is_trained_on_clips_filled_with_silence(tmp_path, monkeypatch):
  cnn, logits, predict = write_encoder(tmp_path / "cnn", kind="cnn"), [], job.Runner.predict
  monkeypatch.setattr(
    job.Runner, "predict", lambda *args: logits.append(predict(*args)) or logits[-1]
  )
  data = write_clips(tmp_path / "data", split_clips())
  _, results = run(cnn, data, tmp_path / "run", epochs="2", optimizer__base_lr="0.1")
  assert results["config"]["padding"] == "silence" and results["config"]["drop_path"] is None
  _export(tmp_path / "run", tmp_path / "classifier", "--artifacts=safetensors,params,card")
  head, found = probabilities_of_test_clips(tmp_path / "classifier", data, 12)
  np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits[-3])), atol=1e-5)
  assert head.fill_frames == head.max_frames and head.activation == "sigmoid"
  assert results["rows"][0]["mean"] > 0.5
  for key, value in {
    "drop_path": "0.1",
    "padding": "mask",
    "optimizer__layer_decay": "0.75",
  }.items():
    with pytest.raises(UserError, match=f"{key.replace('__', '.')}={value} is for ATST"):
      run(cnn, data, tmp_path / "no", **{key: value})


def test_fresh_parameters_are_a_baseline_of_their_own(encoder, tmp_path):
  data = write_clips(tmp_path / "data", split_clips())
  _, results = run(encoder, data, tmp_path / "run", initial="random", epochs="2")
  found = [(row["name"], row["features"]) for row in results["rows"]]
  assert found == [("random, best", "random"), ("random, last", "random")]


def test_fault_38_clips_that_are_not_numbers_are_named_or_stop_the_training(encoder, tmp_path):
  clips = split_clips()
  clips[5].mel[3, 7] = np.nan  # a test clip
  data = write_clips(tmp_path / "test", clips)
  refused(
    "the logits of 1 of 12 clips are NaN or infinite, the first is of '5.wav'",
    encoder,
    data,
    tmp_path / "run",
    epochs="1",
  )
  clips = split_clips()
  for clip in clips[2:5]:
    clip.mel[3, 7] = np.nan
  data = write_clips(tmp_path / "train", clips)
  with pytest.raises(FloatingPointError, match=r"step 1: {'loss': nan.* finds damaged clips"):
    run(encoder, data, tmp_path / "nan", epochs="1", mixup__probability="0", crop__enabled="False")


def test_fault_8_a_workdir_of_another_run_is_refused(done, encoder):
  _, workdir, data = done
  with pytest.raises(UserError, match=r"belongs to a run with another config:\n  epochs: 6 -> 7"):
    run(encoder, data, workdir, epochs="7")


def test_one_device_computes_what_eight_compute(done, encoder, tmp_path, monkeypatch):
  """Batch normalisation takes the statistics of the global batch."""
  _, workdir, data = done
  stop_at(monkeypatch, 5)
  assert run(encoder, data, tmp_path / "run")[0] == 75
  here, there = (losses(folder, 0)[:4] for folder in (tmp_path / "run", workdir))
  np.testing.assert_allclose(here, there, rtol=2e-4)


@pytest.mark.slow
def test_two_processes_equal_one(encoder, tmp_path):
  """Two processes of one device on localhost, each reading its rows, against one process."""
  data = write_clips(tmp_path / "data", split_clips())
  values = OVERRIDES | {"encoder": encoder, "data.path": data, "epochs": "3"}
  flags = job_flags("finetune", tmp_path / "alone", **values)
  together = job_flags(
    "finetune", tmp_path / "two0", **values, checkpoint__folder=tmp_path / "saved"
  )
  with (
    running(flags, env={**os.environ, **ONE_DEVICE}) as alone,
    two_processes(together, second=[f"--workdir={tmp_path / 'two1'}"]) as ranks,
  ):
    for process in (alone, *ranks):
      output, _ = process.communicate(timeout=500)
      assert process.returncode == 0, output
  rows = [
    json.loads((tmp_path / name / "results.json").read_text())["rows"] for name in ("alone", "two0")
  ]
  assert [row["per_seed"] for row in rows[0]] == [row["per_seed"] for row in rows[1]]
  alone, together = (losses(tmp_path / name, 0) for name in ("alone", "two0"))
  np.testing.assert_allclose(together, alone, rtol=1e-4)
  assert not os.path.exists(tmp_path / "two1" / "results.json")
