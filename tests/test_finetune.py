"""Fine-tuning from an export and a prepared set to its table: every kind of task, resuming, and
what is refused."""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from atst_jax import export, main
from atst_jax.artifacts.classifiers import scoring
from atst_jax.artifacts.classifiers.scoring import head_of
from atst_jax.artifacts.model import load_model
from atst_jax.data.dataset import Clip, Dataset
from atst_jax.downstream.finetune import job, program, recipe
from atst_jax.downstream.tables import table
from atst_jax.runtime import mesh, session
from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.evaluation import make_clips, write_clips, write_encoder
from tests.tiny import ROOT

OVERRIDES = {
  "batch_size": "16",
  "mixup.group": "2",
  "epochs": "6",
  "warmup_epochs": "1",
  "optimizer.base_lr": "4",
  "log.every_steps": "1",
}


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


class Stop:
  """Asks to stop when it was asked for the n-th time."""

  def __init__(self, asked):
    self.left = asked

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def begin(self):
    pass

  def agreed(self):
    self.left -= 1
    return self.left == 0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  return write_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


def split_clips(n=60, **options):
  """Clips with splits of their own: every fifth is tested, every fifth validates."""
  names = ("test", "valid", "train", "train", "train")
  return [
    Clip(c.id, c.mel, c.labels, False, -1, names[i % 5])
    for i, c in enumerate(make_clips(n, folds=0, **options))
  ]


def run(encoder, data, workdir, variant="as20k", devices=1, **overrides):
  """The exit code, and results.json if it is there."""
  config = configs.load(f"{ROOT / 'configs' / 'finetune.py'}:{variant}")
  values = {**OVERRIDES, **{k.replace("__", "."): v for k, v in overrides.items()}}
  for key, value in {"encoder": encoder, "data.path": data, **values}.items():
    configs.override(config, key, value)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      recipe, "make_mesh", functools.partial(mesh.make_mesh, devices=jax.devices()[:devices])
    )
    code = job.run(config, str(workdir), allow_changed_config=False)
  path = pathlib.Path(workdir, "results.json")
  return code, json.loads(path.read_text()) if path.exists() else None


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
  assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))


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
      patch.setattr(session, "StopRequest", lambda number=number, **_: Stop(number))
      assert run(encoder, data, tmp_path / "run", devices=8)[0] == 75
  code, again = run(encoder, data, tmp_path / "run", devices=8)
  assert code == 0 and again["rows"] == results["rows"]
  losses = lambda folder: [
    (r["step"], r["loss"])
    for r in read_metrics(folder / "seed0-division1" / "metrics.jsonl")
    if "loss" in r
  ]
  assert losses(tmp_path / "run") == losses(workdir)


def probabilities_of_test_clips(folder, data, test):
  """What an exported classifier says of clips, by the function behind `predict`."""
  model = load_model(str(folder))
  mels = [clip.mel.astype(np.float32) for clip in Dataset.load(data).clips("test")]
  assert len(mels) == test
  return head_of(model), head_of(model).probabilities(scoring.score(model, mels))


def test_several_labels_give_map_and_d_prime(encoder, tmp_path, capsys):
  clips = []
  for i, clip in enumerate(make_clips(60)):
    second = (i % 3 + i // 3 % 3) % 3
    clip.mel[:, 21 * second : 21 * second + 21] += 40 * (second != i % 3)
    labels = tuple(sorted({i % 3, second}))
    clips.append(Clip(clip.id, clip.mel, labels, True, -1, "test" if i % 4 == 0 else "train"))
  data = write_clips(tmp_path / "data", clips, name="audioset")
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
  first = read_metrics(tmp_path / "run" / "seed0-division0" / "metrics.jsonl")[0]["loss"]
  assert first == pytest.approx(np.log(3), abs=0.1)
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
    with pytest.raises(UserError, match=f"{key.replace('__', '.')}={value} is for transformers"):
      run(cnn, data, tmp_path / "no", **{key: value})


def test_fresh_parameters_are_a_baseline_of_their_own(encoder, tmp_path):
  data = write_clips(tmp_path / "data", split_clips())
  _, results = run(encoder, data, tmp_path / "run", initial="random", epochs="2")
  found = [(row["name"], row["features"]) for row in results["rows"]]
  assert found == [("random, best", "random"), ("random, last", "random")]


def refused(pattern, encoder, data, workdir, **overrides):
  with pytest.raises(UserError, match=pattern):
    run(encoder, data, workdir, **overrides)
  assert not os.path.exists(os.path.join(workdir, "results.json"))


def test_fault_24_38_39_data_that_cannot_be_used_is_refused_before_anything_is_computed(
  encoder, tmp_path, monkeypatch
):
  monkeypatch.setattr(job, "compile_for", None)
  other = write_clips(tmp_path / "front-end", make_clips(), frontend="audiossl")
  refused(
    "'audiossl' .* expects 'atst' .* prepare the data with --frontend=atst",
    encoder,
    other,
    tmp_path / "run",
  )
  clips = make_clips()
  clips[3] = Clip("0.wav#0000", clips[3].mel, clips[3].labels, fold=clips[3].fold)
  clips[7] = Clip("0.wav#0001", clips[7].mel, clips[7].labels, fold=clips[7].fold)
  refused(
    "leaks: 1 source file .* '0.wav'",
    encoder,
    write_clips(tmp_path / "leak", clips),
    tmp_path / "run",
  )
  clips = make_clips()
  clips[4] = Clip("bare.wav", clips[4].mel, fold=0)
  refused(
    "1 of 36 clips have no label", encoder, write_clips(tmp_path / "bare", clips), tmp_path / "run"
  )
  one = [Clip(c.id, c.mel, (0,), False, -1, c.split) for c in split_clips()]
  refused("hold 1 class of 3", encoder, write_clips(tmp_path / "one", one), tmp_path / "run")
  new = [
    Clip(c.id, c.mel, (2,) if c.split == "test" and i % 2 else (i // 5 % 2,), False, -1, c.split)
    for i, c in enumerate(split_clips())
  ]
  refused(
    "1 of 2 tested classes have no training clip: high",
    encoder,
    write_clips(tmp_path / "new", new),
    tmp_path / "run",
  )
  few = write_clips(tmp_path / "few", split_clips(20))
  refused(
    "12 clips to train on are less than one batch of 16; lower", encoder, few, tmp_path / "run"
  )


@pytest.mark.parametrize(
  ("overrides", "pattern"),
  [
    ({"batch_size": "12", "devices": 8}, "batch_size 12 is not divisible by 8 devices"),
    ({"mixup__group": "3"}, "mixup.group 3 must be at least 2 and divide the 16 clips of a device"),
    ({"epochs": "0"}, "epochs=0: must lie between 1"),
    ({"warmup_epochs": "7"}, "warmup_epochs=7.0: must lie between 0"),
    ({"tail": "cut"}, "tail=cut: choose one of released"),
    ({"initial": "best"}, "choose one of pre-trained, random"),
    ({"crop__freq_scale": "1.5,0.6"}, "crop.freq_scale=.* the smaller first"),
    ({"seeds": "0"}, "seeds=0: must be at"),
    ({"optimizer__layer_decay": "2"}, "layer_decay=2.0: must lie"),
    ({"params_hash": "abc"}, "params_hash=abc, but what"),
    ({"compute__attention": "cudnn"}, "compute.attention=cudnn needs"),
    ({"platform": "tpu"}, "JAX found 'cpu'"),
  ],
)
def test_values_that_cannot_work_are_refused(done, encoder, tmp_path, overrides, pattern):
  refused(pattern, encoder, done[2], tmp_path / "run", **overrides)


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


def test_the_command_ends_with_2_and_one_message(done, tmp_path, capsys):
  flags = [
    f"--config={ROOT / 'configs' / 'finetune.py'}",
    f"--workdir={tmp_path / 'run'}",
    "--config.encoder=nowhere",
    f"--config.data.path={done[2]}",
  ]
  assert main.main(flags) == 2
  assert capsys.readouterr().err.startswith("error: ")


def test_fault_8_a_workdir_of_another_run_is_refused(done, encoder):
  _, workdir, data = done
  with pytest.raises(UserError, match=r"belongs to a run with another config:\n  epochs: 6 -> 7"):
    run(encoder, data, workdir, epochs="7")


def test_one_device_computes_what_eight_compute(done, encoder, tmp_path, monkeypatch):
  """Batch normalisation takes the statistics of the global batch."""
  _, workdir, data = done
  monkeypatch.setattr(session, "StopRequest", lambda **_: Stop(5))
  assert run(encoder, data, tmp_path / "run")[0] == 75
  read = lambda folder: {
    r["step"]: r["loss"]
    for r in read_metrics(folder / "seed0-division0" / "metrics.jsonl")
    if "loss" in r
  }
  there, here = read(workdir), read(tmp_path / "run")
  np.testing.assert_allclose(
    [here[i] for i in range(1, 5)], [there[i] for i in range(1, 5)], rtol=2e-4
  )


@pytest.mark.slow
def test_two_processes_equal_one(encoder, tmp_path):
  """Two processes of one device on localhost, each reading its rows, against one process."""
  data = write_clips(tmp_path / "data", split_clips())
  values = OVERRIDES | {"encoder": encoder, "data.path": data, "epochs": "3"}
  flags = [
    f"--config={ROOT / 'configs' / 'finetune.py'}",
    *[f"--config.{k}={v}" for k, v in values.items()],
  ]
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  env = {
    **os.environ,
    "XLA_FLAGS": "",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
  }

  def start(name, *more):
    command = [sys.executable, "-m", "atst_jax.main", *flags, f"--workdir={tmp_path / name}", *more]
    return subprocess.Popen(
      command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

  together = [
    f"--coordinator=localhost:{port}",
    "--num_processes=2",
    f"--config.checkpoint.folder={tmp_path / 'saved'}",
  ]
  runs = [start("alone"), *(start(f"two{i}", *together, f"--process_id={i}") for i in (0, 1))]
  for process in runs:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
  rows = [
    json.loads((tmp_path / name / "results.json").read_text())["rows"] for name in ("alone", "two0")
  ]
  assert [row["per_seed"] for row in rows[0]] == [row["per_seed"] for row in rows[1]]
  losses = [
    [
      r["loss"]
      for r in read_metrics(tmp_path / name / "seed0-division0" / "metrics.jsonl")
      if "loss" in r
    ]
    for name in ("alone", "two0")
  ]
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
  assert not os.path.exists(tmp_path / "two1" / "results.json")
