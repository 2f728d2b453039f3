"""What is taken for the result of a run of the evidence, and what is not."""

import json

import numpy as np
import pytest

from atst_jax.data.dataset import Clip, Dataset
from atst_jax.method.subtraction import SECTIONS
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.evaluation import write_clips
from tests.tiny import ROOT


def test_what_was_trained_otherwise_is_not_taken_for_the_result(evidence, tmp_path, monkeypatch):
  """By any key but places, what nothing depends on, and what a run that goes on may change."""
  monkeypatch.chdir(ROOT)
  flags = ["--config=configs/evidence.py:cnn", f"--workdir={tmp_path}"]
  evidence.check_trained(tmp_path, flags)  # nothing there yet
  asked = configs.load_with_overrides("configs/evidence.py:cnn", [], SECTIONS)
  filled = {"data.fingerprint": "one", "views.normalization.mean": -9.0, "dtype": "float32"}
  asked.update_from_flattened_dict(filled | {"data.path": "/mine", "guard.step_seconds": 900.0})
  path = tmp_path / "config.json"
  path.write_text(json.dumps(asked.to_dict()))
  evidence.check_trained(tmp_path, flags)
  evidence.check_trained(tmp_path, [*flags, "--config.encoder.hidden=256"])
  evidence.check_trained(tmp_path, [*flags, "--config.checkpoint.every_steps=7"])
  evidence.check_trained(tmp_path, [*flags, "--config.compute.remat=true"])
  for change, message in (
    ("data.clip_frames=77", r"trained with another config \(data\.clip_frames: 501 -> 77\)"),
    ("total_steps=77", "total_steps: 200 -> 77"),
    ("data.order=1", r"data.order: \d -> 1"),
    ("dtype=bfloat16", "dtype: 'float32' -> 'bfloat16'"),
  ):
    with pytest.raises(UserError, match=message):
      evidence.check_trained(tmp_path, [*flags, f"--config.{change}"])
  path.write_text(json.dumps(asked.to_dict() | {"total_steps": 77, "seed": 3}))  # a trial
  with pytest.raises(UserError, match="seed: 3 -> 0; total_steps: 77 -> 200"):
    evidence.check_trained(tmp_path, flags)


@pytest.fixture
def trained(evidence, tmp_path):
  """A call for the flags of a run whose stored config has other values: (flags, file)."""
  workdir = tmp_path / "cnn" / "seed0"
  workdir.mkdir(parents=True)

  def stored(overrides=(), **values):
    config = "configs/evidence.py:cnn"
    asked = configs.load_with_overrides(config, list(overrides), SECTIONS)
    asked.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    (workdir / "config.json").write_text(json.dumps(asked.to_dict()))
    return lambda *more: evidence.check_trained(
      workdir, [f"--config={config}", f"--workdir={workdir}", *overrides, *more]
    )

  stored.workdir = workdir
  return stored


def test_what_was_trained_on_another_set_is_not_taken(trained, tmp_path):
  mel = np.full((24, 64), -40, np.float16)
  path = write_clips(tmp_path / "pretrain", [Clip("a.flac", mel, (0,), split="train")])
  there = f"--config.data.path={path}"
  trained([there], data__fingerprint=Dataset.load(path).fingerprint("train"))()
  with pytest.raises(UserError, match=r"data\.fingerprint: 'other' -> '[0-9a-f]{16}'"):
    trained([there], data__fingerprint="other")()
  trained(data__fingerprint="other")()  # a set that is not there


def test_a_run_from_an_encoder_is_known_by_its_hash(trained, tmp_path):
  """And by its place where it is gone."""
  place = tmp_path / "x"
  begins = [f"--config.initial={place}"]
  place.mkdir()
  (place / "config.json").write_text(json.dumps({"format": 6, "params_hash": "one"}))
  trained(begins, initial_hash="one")()
  trained(begins, initial_hash="one", initial="/of/another/place")()
  with pytest.raises(UserError, match=r"initial_hash: 'two' -> 'one'"):
    trained(begins, initial_hash="two")()
  with pytest.raises(UserError, match=r"initial_hash: 'one' -> None"):
    trained(initial="/gone", initial_hash="one")()
  (place / "config.json").unlink()
  place.rmdir()
  trained(begins, initial_hash="one")()
  with pytest.raises(UserError, match=r"initial: '/of/another/place' -> "):
    trained(begins, initial_hash="one", initial="/of/another/place")()


def test_without_its_config_a_run_is_known_by_its_export(trained):
  check, config = trained(), trained.workdir / "config.json"
  encoder = trained.workdir / "encoder"
  encoder.mkdir()
  export = {"provenance": {"config": json.loads(config.read_text())}}
  config.unlink()
  with pytest.raises(UserError, match="encoder does not say what it was trained with: delete it"):
    check()
  (encoder / "config.json").write_text(json.dumps(export))
  check()
  with pytest.raises(UserError, match="total_steps: 200 -> 77"):
    check("--config.total_steps=77")


def test_what_was_measured_otherwise_is_not_taken_for_the_result(evidence, tmp_path, monkeypatch):
  """Of another encoder, set or text model, by another config, or by an earlier version's."""
  run = evidence.Run("base", 0, tmp_path / "base" / "seed0", tmp_path / "encoder", subtracts=True)
  for name in ("family", "pairs"):
    (run.workdir / name).mkdir(parents=True)
  run.encoder.mkdir()
  (run.encoder / "config.json").write_text(json.dumps({"params_hash": "one"}))
  evaluations = {
    path.parent.name: command[2:]
    for path, command in evidence.evaluations(run, tmp_path, str(tmp_path / "words"))
  }

  def measured(task, *, without="", **values):
    """A call for results of what is asked now with other values."""
    file, _, *overrides = evaluations[task]
    config = configs.load_with_overrides(file.removeprefix("--config="), overrides)
    config.statistics, config.params_hash = "encoder", "one"
    config.data.fingerprint = "set"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    stored = configs.flatten(config.to_dict())
    stored.pop(without, None)
    results = {"encoder": {"params_hash": config.params_hash}, "config": stored}
    (run.workdir / task / "results.json").write_text(json.dumps(results))
    return lambda: evidence.evaluations(run, tmp_path, str(tmp_path / "words"))

  assert len(measured("family", crop="center", exact__chosen_on="folds")()) == 6
  assert len(measured("family", crop="center", data__path="/mine", encoder="/it")()) == 6
  for values, message in (
    ({"params_hash": "two"}, r"measured with another encoder \(two\) than there is now \(one\)"),
    ({"knn": 3}, "measured with another config .*knn: 3 -> 10"),
    ({"statistics": "data"}, "statistics: 'data' -> 'encoder'"),
    ({"without": "exact.chosen_on"}, r"exact\.chosen_on: \(absent\) -> None"),
  ):
    with pytest.raises(UserError, match=message):
      measured("family", crop="center", **values)()
  again = measured("family", crop="center")
  monkeypatch.setattr(evidence.sets, "fingerprint", lambda output, name: f"{name} of today")
  with pytest.raises(UserError, match=r"data\.fingerprint: 'set' -> 'family of today'"):
    again()
  monkeypatch.undo()
  words = tmp_path / "words"
  # a name, or a folder that is not there: nothing but the name tells models apart
  assert len(measured("pairs", text__hash="any")()) == 6
  with pytest.raises(UserError, match=rf"text\.model: 'distilbert' -> '{words}'"):
    measured("pairs", text__hash="any", text__model="distilbert")()
  words.mkdir()
  monkeypatch.setattr(evidence.done, "_text_hash", lambda model: f"hash of {model}")
  measured("pairs", text__hash=f"hash of {words}", text__model="/of/another/place")()
  with pytest.raises(UserError, match=rf"text\.hash: 'other' -> 'hash of {words}'"):
    measured("pairs", text__hash="other")()
  measured("pairs", text__hash=f"hash of {words}")
  (run.encoder / "config.json").unlink()  # a dry run: it will be trained or exported first
  assert len(evidence.evaluations(run, tmp_path, str(words))) == 6
