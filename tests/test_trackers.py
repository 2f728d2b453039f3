"""Trackers: a continued run goes on in the same one, and no failure of theirs reaches the training.

Stand-ins take the place of both libraries: they keep what they are given in files, as the libraries
do without a network. Where the libraries are installed, the last test runs them in a process of its
own.
"""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import threading
import types

import pytest

from atst_jax import main
from atst_jax.runtime import trackers
from atst_jax.runtime.metric_writer import MetricWriter, read_metrics
from atst_jax.runtime.session import Session
from atst_jax.runtime.workdir import read_starts
from atst_jax.util.errors import UserError
from tests.tiny import ROOT, tiny_flags

NAMES = {"wandb": "project", "mlflow": "an experiment"}


def module(name, **content):
  made = types.ModuleType(name)
  made.__spec__ = importlib.machinery.ModuleSpec(name, None)
  vars(made).update(content)
  return made


class Wandb:
  """`wandb` offline: every `init` writes a folder of its own, whose name ends with the run's id."""

  def __init__(self, root):
    self.root, self.inits = root, []

  def init(self, *, project, id, resume, name, dir, config, allow_val_change, settings):
    assert resume == "allow" and allow_val_change and settings["init_timeout"] <= 60
    self.inits.append({"project": project, "id": id, "name": name, "dir": dir, "config": config})
    rows, finished = [], []

    class Run:
      define_metric = staticmethod(
        lambda name, *, hidden=False, step_metric=None: rows.append((name, step_metric))
      )
      log = staticmethod(lambda data: rows.append(dict(data)))
      finish = staticmethod(lambda: finished.append(True))

    self.inits[-1].update(rows=rows, finished=finished)
    return Run

  def module(self):
    return module("wandb", init=self.init, Settings=lambda **options: options)


class Mlflow:
  """`mlflow`'s client: experiments and runs by id, kept for as long as the store is."""

  def __init__(self):
    self.uris, self.experiments, self.runs = [], {}, {}

  def client(self, uri):
    store = self
    store.uris.append(uri)

    class Client:
      def get_experiment_by_name(self, name):
        id = store.experiments.get(name)
        return None if id is None else types.SimpleNamespace(experiment_id=id)

      def create_experiment(self, name):
        return store.experiments.setdefault(name, str(len(store.experiments)))

      def get_experiment(self, id):
        return types.SimpleNamespace(name=list(store.experiments)[int(id)])

      def get_run(self, id):
        return module("run", info=module("info", experiment_id=store.runs[id]["experiment"]))

      def create_run(self, experiment_id, *, run_name):
        id = f"run{len(store.runs)}"
        empty = {"params": {}, "metrics": [], "status": ["RUNNING"]}
        store.runs[id] = {"experiment": experiment_id, "name": run_name, **empty}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=id))

      def update_run(self, id, *, status):
        store.runs[id]["status"].append(status)

      def set_terminated(self, id):
        store.runs[id]["status"].append("FINISHED")

      def log_batch(self, id, *, metrics=(), params=()):
        assert len(params) <= 100 and all(len(value) <= 500 for _, value in params)
        store.runs[id]["metrics"] += metrics
        store.runs[id]["params"].update(params)

    return Client()

  def modules(self):
    entities = module("mlflow.entities", Metric=lambda *values: values, Param=lambda *pair: pair)
    return {
      "mlflow": module("mlflow", MlflowClient=self.client, entities=entities),
      "mlflow.entities": entities,
    }


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  wandb, mlflow = Wandb(tmp_path), Mlflow()
  for name, made in {"wandb": wandb.module(), **mlflow.modules()}.items():
    monkeypatch.setitem(sys.modules, name, made)
  return wandb, mlflow


def write(workdir, start, steps, names=NAMES, config=None):
  workdir.mkdir(exist_ok=True)
  writer = MetricWriter(
    str(workdir), start_step=start, trackers=trackers.chosen(names, str(workdir), config or {})
  )
  for step in steps:
    writer.write(step, {"loss": 1.0 / step})
  writer.close()


def test_a_continued_run_goes_on_in_the_same_run(stand_ins, tmp_path):
  wandb, mlflow = stand_ins
  write(
    tmp_path / "run",
    0,
    (1, 2, 3),
    config={"a": {"b": 1}, "long": "x" * 900, **{f"k{i}": i for i in range(150)}},
  )
  write(tmp_path / "run", 2, (3, 4))
  first, second = wandb.inits
  assert first["id"] == second["id"] and first["project"] == "project" and first["name"] == "run"
  assert first["dir"] == str(tmp_path / "run") and first["finished"] and second["finished"]
  assert first["rows"] == [
    ("step", None),
    ("*", "step"),
    *({"step": s, "loss": 1 / s} for s in (1, 2, 3)),
  ]
  assert second["rows"][2:] == [{"step": s, "loss": 1 / s} for s in (3, 4)]
  (run,) = mlflow.runs.values()
  assert [(name, value, step) for name, value, _, step in run["metrics"]] == [
    ("loss", 1 / s, s) for s in (1, 2, 3, 3, 4)
  ]
  assert all(time > 1.7e12 for _, _, time, _ in run["metrics"])  # milliseconds
  assert run["status"] == ["RUNNING", "RUNNING", "FINISHED", "RUNNING", "FINISHED"]
  assert run["name"] == "run"
  params = run["params"]
  assert params["a.b"] == "1" and len(params) == 152 and len(params["long"]) == 500
  assert mlflow.experiments == {"an experiment": "0"}
  assert mlflow.uris == [f"sqlite:///{tmp_path}/run/mlflow.db"] * 2
  write(tmp_path / "other", 0, (1,))
  assert wandb.inits[2]["id"] != first["id"]
  assert len(mlflow.runs) == 2 and len(mlflow.experiments) == 1


def test_another_experiment_is_not_taken_in_silence(stand_ins, tmp_path, warnings):
  for name, step in (("a", 1), ("a", 2), ("b", 3)):
    write(tmp_path / "run", step - 1, (step,), {"wandb": None, "mlflow": name})
  assert len(warnings) == 1 and "log.mlflow=b: the run goes on in 'a'" in warnings[0]
  assert len(stand_ins[1].runs) == 1 and list(stand_ins[1].experiments) == ["a"]


def test_the_environment_names_another_store(stand_ins, tmp_path, monkeypatch):
  monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
  write(tmp_path / "run", 0, (1,), {"wandb": None, "mlflow": "e"})
  assert stand_ins[1].uris == ["http://server:5000"] and not stand_ins[0].inits


@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_one_warning(stand_ins, tmp_path, monkeypatch, warnings, when):
  wandb, mlflow = stand_ins
  real = wandb.init

  def fail(*_, **__):
    raise ConnectionError("no route to host")

  def init(**options):
    if when == "init":
      fail()
    run = real(**options)
    setattr(run, when, staticmethod(fail))
    return run

  monkeypatch.setattr(sys.modules["wandb"], "init", init)
  write(tmp_path / "run", 0, range(1, 60))
  assert warnings == [
    "logging to Weights & Biases failed (ConnectionError: no route to host); training goes on "
    "without it"
  ]
  assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 59
  (run,) = mlflow.runs.values()
  assert len(run["metrics"]) == 59


def test_training_never_waits_for_a_tracker(stand_ins, tmp_path, monkeypatch, warnings):
  """One that never answers: records pile up to a limit, and the end waits for a limited time."""
  release = threading.Event()
  monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: release.wait(60))
  monkeypatch.setattr(trackers, "WAITING", 3)
  monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
  write(tmp_path / "run", 0, range(1, 9), {"wandb": "p", "mlflow": None})
  assert [text[:34] for text in warnings] == ["logging to Weights & Biases failed"]
  assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 8
  release.set()


@pytest.mark.parametrize(
  "names, message",
  [
    (
      {"wandb": "a/b", "mlflow": None},
      "--config.log.wandb='a/b': must be 1 to 128 characters, none of",
    ),
    ({"wandb": None, "mlflow": ""}, "--config.log.mlflow='': must be"),
    (
      {"wandb": "p", "mlflow": None},
      r"wandb=p: Weights & Biases is not installed; pip install -e .\[wandb\]",
    ),
  ],
)
def test_mistakes_are_refused(names, message, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=message):
    trackers.check(names)


def test_a_session_opens_what_its_config_names(stand_ins, tmp_path):
  session = Session(
    str(tmp_path), folder="", config={}, places=(), changes=[], stop=None, watchdog=None
  )
  session.note_start(3)
  config = {"a": 1}
  writer = session.writer(3, tracked={"names": {**NAMES, "mlflow": None}, "config": config})
  writer.write(4, {"loss": 1.0})
  writer.close()
  (init,) = stand_ins[0].inits
  assert init["config"] == config and init["rows"][2:] == [{"step": 4, "loss": 1.0}]
  assert init["finished"] and not stand_ins[1].uris
  assert [start["step"] for start in read_starts(str(tmp_path))] == [3]


def test_a_tracker_that_is_not_there_is_refused_at_the_start(tmp_path, capsys):
  if importlib.util.find_spec("wandb"):
    pytest.skip("wandb is installed")
  assert main.main([*tiny_flags(log__wandb="project"), f"--workdir={tmp_path}/run"]) == 2
  assert "Weights & Biases is not installed" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


REAL = """
import json, os, sys
from atst_jax.runtime import trackers
from atst_jax.runtime.metric_writer import MetricWriter
workdir = sys.argv[1]
for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
  chosen = trackers.chosen(json.loads(sys.argv[2]), workdir, {"a": {"b": 1}})
  writer = MetricWriter(workdir, start_step=start, trackers=chosen)
  for step in steps:
    writer.write(step, {"loss": 1 / step, "bad": float("nan")})
  writer.close()
"""

HISTORY = """
import sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
run = client.get_run(sys.argv[2])
history = client.get_metric_history(sys.argv[2], "loss")
print(run.info.status, run.data.params, [(m.step, m.value) for m in history])
"""


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_real_library_without_a_network(name, tmp_path, monkeypatch):
  if importlib.util.find_spec(name) is None:
    pytest.skip(f"{name} is not installed: pip install -e .[{name}]")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  names = json.dumps({"wandb": None, "mlflow": None, name: "project"})
  options = {"capture_output": True, "text": True, "timeout": 240, "check": True}
  run = subprocess.run([sys.executable, "-c", REAL, str(tmp_path), names], cwd=ROOT, **options)
  assert "failed" not in run.stderr
  id = (tmp_path / f"{name}_run_id").read_text().strip()
  if name == "wandb":
    found = [path.name for path in (tmp_path / "wandb").iterdir()]
    folders = [name for name in found if name.startswith("offline-run")]
    assert len(folders) == 2 and all(folder.endswith(f"-{id}") for folder in folders)
    return
  command = [sys.executable, "-c", HISTORY, f"sqlite:///{tmp_path}/mlflow.db", id]
  found = subprocess.run(command, **options).stdout
  assert found.strip() == f"FINISHED {{'a.b': '1'}} {[(s, 1 / s) for s in (1, 2, 3, 3, 4)]}"
