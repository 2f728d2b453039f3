"""Online evaluation: it measures what an export would give, on any mesh, and changes nothing of the
training."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from atst_jax import main
from atst_jax.artifacts import export
from atst_jax.artifacts.model import load_model
from atst_jax.downstream.metrics import accuracy, knn_scores, spectrum
from atst_jax.downstream.splits import Split
from atst_jax.pretraining import recipe
from atst_jax.pretraining.job import make_online
from atst_jax.pretraining.online import choose, restrict
from atst_jax.runtime.mesh import make_mesh
from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.runtime.preemption import StopRequest
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.checkpoints import read_tree
from tests.evaluation import make_clips, write_clips
from tests.tiny import tiny_config, tiny_flags

TINY = {"online__clips": "24", "online__max_seconds": "0.7", "online__knn": "3"}


@pytest.fixture(scope="module")
def clips():
  return make_clips(36)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, clips):
  return write_clips(tmp_path_factory.mktemp("labelled") / "data", clips)


@functools.cache
def program(fsdp, network="none", file="base.py"):
  """(config, mesh, state) of a tiny network whose teacher differs from its student."""
  cnn = (
    {"data__frontend": "atst", "encoder__width": "1032"}
    if file == "byola.py"
    else {"encoder__width": "128"}
  )
  config = recipe.resolve(tiny_config(file, online__network=network, **TINY, **cnn), None)
  mesh = make_mesh(data=-1, fsdp=fsdp)
  state = recipe.compile_for(config, mesh, ragged=False).init(jax.random.key(1))
  params = jax.tree.map(lambda x: 1.5 * x, state.teacher.params)
  return config, mesh, state._replace(teacher=state.teacher._replace(params=params))


def measure(labelled, fsdp, network="none", file="base.py"):
  config, mesh, state = program(fsdp, network, file)
  config.online.path = labelled
  return make_online(config, mesh), state


@pytest.mark.parametrize(
  "network, file", [("none", "base.py"), ("student", "base.py"), ("student", "byola.py")]
)
def test_vectors_are_those_of_an_export(tmp_path, labelled, clips, network, file):
  """From a state that is sharded over the mesh, in batches over all devices, long clips cropped and
  cut into chunks."""
  online, state = measure(labelled, 4 if file == "base.py" else 1, network, file)
  if file == "base.py":
    kernel = state.teacher.params["encoder"]["block_00"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
  source = state.teacher if network == "none" else state
  variables = {"params": source.params["encoder"]}
  if file == "byola.py":
    variables["batch_stats"] = source.batch_stats["encoder"]
  config = configs.to_json(program(4 if file == "base.py" else 1, network, file)[0])
  export.write(
    str(tmp_path / "encoder"),
    jax.tree.map(np.asarray, variables),
    provenance={},
    **export.settings(config),
  )
  most = 71  # frames of 0.7 s
  mels = [clips[row].mel.astype(np.float32) for row in online.rows]
  assert any(len(mel) > most for mel in mels) and len(mels) == 24
  # a convolutional encoder takes longer chunks
  assert (len(online.chunks.clip) > 24) == (file == "base.py")
  expected = load_model(str(tmp_path / "encoder")).embed(mels, num_blocks=1, max_frames=most)
  np.testing.assert_allclose(online.embed(state), expected, atol=2e-5)


def test_scores_are_of_the_test_clips_of_every_division(labelled, clips):
  """The class is the third of the spectrum that is loud: read off the mel statistics, and off
  random encoders."""
  online, state = measure(labelled, 4)
  values = online(0, state)
  assert set(values) == {
    "online_ridge_accuracy",
    "online_knn_accuracy",
    "online_mel_accuracy",
    "online_effective_rank",
    "online_participation_ratio",
    "online_directions_99",
    "online_seconds",
  }
  assert values["online_mel_accuracy"] == 1 and values["online_ridge_accuracy"] > 0.6
  x, y = online.embed(state), np.array([clips[row].labels[0] for row in online.rows])
  found = [values[f"online_{key}"] for key in ("directions_99", "participation_ratio")]
  assert [*found, values["online_effective_rank"]] == pytest.approx(spectrum(x)[2:])
  tested = np.concatenate([split.test for split in online.splits])
  assert sorted(tested) == list(range(24))
  for split in online.splits:
    folds = [{clips[online.rows[i]].fold for i in part} for part in split]
    assert [len(f) for f in folds] == [1, 1, 1] and len(set.union(*folds)) == 3
  found = [
    accuracy(knn_scores(x[known], np.eye(y.max() + 1)[y[known]], x[split.test], k=3), y[split.test])
    for split in online.splits
    for known in [np.concatenate([split.train, split.valid])]
  ]
  assert values["online_knn_accuracy"] == pytest.approx(np.mean(found))
  assert online(0, state) | {"online_seconds": 0} == values | {"online_seconds": 0}
  # total_steps is 6
  assert [step for step in range(7) if online.due(step)] == [0, 6] and online.due(5000)


def test_vectors_that_are_not_finite_are_reported(labelled):
  online, state = measure(labelled, 4)
  broken = jax.tree.map(lambda x: x * np.nan, state.teacher.params)
  values = online(0, state._replace(teacher=state.teacher._replace(params=broken)))
  assert np.isnan([values["online_ridge_accuracy"], values["online_effective_rank"]]).all()
  assert values["online_mel_accuracy"] == 1


def test_clips_are_chosen_in_equal_shares():
  """A rare class and a common one, a validation part of one clip; the same for the same seed."""
  labels = np.array([0] * 90 + [1] * 10)
  order = np.arange(100)
  split = Split(order[order % 10 < 8], order[order % 10 == 8], order[order % 10 == 9])
  rows = choose(np.eye(2)[labels], [split], 12, seed=0)
  # 3 of the 8 to train on, and 1 of each part of 1
  assert (np.diff(rows) > 0).all() and (labels[rows] == 1).sum() == 5
  found = restrict(split, rows, np.eye(2)[labels[rows]])
  assert [len(part) for part in found] == [6, 3, 3]
  assert rows[found.test].tolist() == sorted(set(rows.tolist()) & set(split.test.tolist()))
  np.testing.assert_array_equal(rows, choose(np.eye(2)[labels], [split], 12, seed=0))
  assert choose(np.eye(2)[labels], [split], None, seed=0).tolist() == list(range(100))
  with pytest.raises(UserError, match=r"online.clips=2 are too few.*1 train, 1 valid, 0 test"):
    restrict(split, np.array([0, 8]), np.ones((2, 2)))


def test_labels_of_clips_with_several_are_ranked(tmp_path):
  """mAP, for a set with several labels for each clip."""
  several = [
    dataclasses.replace(
      clip, labels=(clip.labels[0], (clip.labels[0] + i % 2) % 3), multi_label=True
    )
    for i, clip in enumerate(make_clips(36))
  ]
  online, state = measure(write_clips(tmp_path / "data", several), 4)
  values = online(0, state)
  assert values["online_mel_map"] > 0.8 and 0.4 < values["online_ridge_map"] <= 1


@pytest.mark.parametrize(
  "overrides, message",
  [
    (
      {"data__frontend": "audiossl"},
      r"prepared with the front-end 'atst' .* data.frontend is 'audiossl'",
    ),
    ({"online__path": "/nowhere"}, "/nowhere/dataset.json does not exist"),
    ({"online__splits__way": "split"}, "set --config.online.splits.way=random"),
    ({"online__clips": "2"}, "online.clips=2 are too few"),
    ({"online__ridge": "1,0.1"}, r"online.ridge=\(1.0, 0.1\): must be positive and ascending"),
    ({"online__network": "tutor"}, "online.network=tutor: choose one of teacher, student"),
    ({"online__every_steps": "0"}, "online.every_steps=0: must be at least 1"),
    ({"encoder__patch_frames": "30"}, "has 2[0-9] frames, this encoder needs at least 30"),
  ],
)
def test_mistakes_are_refused_before_anything_is_compiled(
  labelled, overrides, message, capsys, tmp_path, monkeypatch
):
  monkeypatch.setattr(recipe, "compile_for", None)
  flags = tiny_flags(**{"online__path": labelled, **TINY, **overrides})
  assert main.main([*flags, f"--workdir={tmp_path}/run"]) == 2
  error = capsys.readouterr().err
  assert re.search(message, error) and "Traceback" not in error, error


def test_a_run_ends_bit_for_bit_as_without_it(labelled, tmp_path, one_device):
  small = {
    "total_steps": "5",
    "checkpoint__every_steps": "5",
    "difference__weight": "0",
    "encoder__depth": "1",
  }
  flags = tiny_flags(**small)
  online = tiny_flags(**small, **TINY, online__path=labelled, online__every_steps="2")
  assert main.main([*flags, f"--workdir={tmp_path}/without"]) == 0
  assert main.main([*online, f"--workdir={tmp_path}/with"]) == 0
  state = lambda name: read_tree(tmp_path / name / "checkpoints" / "5" / "default")
  jax.tree.map(np.testing.assert_array_equal, state("with"), state("without"))
  records = read_metrics(tmp_path / "with" / "metrics.jsonl")
  found = [r for r in records if "online_ridge_accuracy" in r]
  assert [r["step"] for r in found] == [0, 2, 4, 5] and all("loss" not in r for r in found)
  trained = [(r["step"], r["loss"]) for r in records if "loss" in r]
  expected = [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "without" / "metrics.jsonl")]
  assert trained == expected and len(trained) == 5
  # A continued run may change it, and need not have it; what is there stays, and is not made again.
  assert main.main([*flags, f"--workdir={tmp_path}/with"]) == 0
  assert main.main([*online, f"--workdir={tmp_path}/with"]) == 0
  assert read_metrics(tmp_path / "with" / "metrics.jsonl") == records


def test_a_stop_at_a_step_of_the_evaluation_does_not_lose_it(
  labelled, tmp_path, monkeypatch, one_device
):
  """The next start makes up for it, and writes nothing twice; in the last step there is no next
  start."""
  small = {
    "total_steps": "5",
    "checkpoint__every_steps": "5",
    "difference__weight": "0",
    "encoder__depth": "1",
  }
  command = [
    *tiny_flags(**small, **TINY, online__path=labelled, online__every_steps="2"),
    f"--workdir={tmp_path}/run",
  ]
  steps = lambda: [
    r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "online_seconds" in r
  ]
  with monkeypatch.context() as patch:
    asked = iter((False, True))
    patch.setattr(StopRequest, "agreed", lambda self: next(asked))
    assert main.main(command) == 75 and steps() == [0]
  with monkeypatch.context() as patch:
    asked = iter((False, False, True))
    patch.setattr(StopRequest, "agreed", lambda self: next(asked))
    assert main.main(command) == 0 and steps() == [0, 2, 4, 5]
