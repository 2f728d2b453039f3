"""A run that is stopped or killed ends bit for bit like one that never was (real signals)."""

import os
import re
import signal

import jax
import numpy as np
import pytest

from atst_jax import main
from atst_jax.pretraining import job, recipe
from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.runtime.workdir import agree, continuation
from atst_jax.util.errors import UserError
from tests.checkpoints import read_tree
from tests.tiny import running, tiny_flags, wait_for_step, write_dataset

STEPS = 40


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
  data = write_dataset(tmp_path_factory.mktemp("resume") / "data", frames=(40, 90))
  return tiny_flags(
    data__source="records",
    data__path=data,
    total_steps=str(STEPS),
    warmup_steps="4",
    checkpoint__every_steps="15",
    encoder__depth="1",
    difference__weight="0",
    data__reader="plain",
  )


# On one device of eight, as in this process: sums are rounded alike. A tenth of a second for every
# batch, so that there is time to look at the run.
SLOWLY = """
import sys, time
import jax
from atst_jax import main
from atst_jax.pretraining import job, recipe
from atst_jax.runtime.mesh import make_mesh
job.make_mesh = lambda **_: make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
original = recipe.batches
def batches(*args, **options):
  for batch in original(*args, **options):
    time.sleep(0.1)
    yield batch
recipe.batches = batches
main.end(main.main(sys.argv[1:]))
"""


def _losses(workdir):
  return [(r["step"], r["loss"]) for r in read_metrics(workdir / "metrics.jsonl")]


def _stop_at(monkeypatch, step):
  """SIGTERM before the batch of this step (counted from 1) is given."""
  original = recipe.batches

  def batches(config, dataset, *, start_step, **options):
    source = original(config, dataset, start_step=start_step, **options)
    for number, batch in enumerate(source, start_step + 1):
      if number == step:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch

  monkeypatch.setattr(recipe, "batches", batches)


def test_fault_01_03_08_10_a_disturbed_run_ends_as_an_undisturbed_one(
  tmp_path, flags, capsys, one_device, monkeypatch
):
  """Stopped by SIGTERM, then, in a process of its own, killed by SIGKILL in the middle of an epoch,
  then ended by the same command. While it runs, another job is refused, and later one with another
  config. The undisturbed run reads by tf.data, the other one by the plain reader."""
  alone, workdir = tmp_path / "alone", tmp_path / "run"
  assert main.main([*flags, "--config.data.reader=auto", f"--workdir={alone}"]) == 0
  with monkeypatch.context() as patch:
    _stop_at(patch, 7)
    assert main.main([*flags, f"--workdir={workdir}"]) == 75
  assert f"stopped after step 7 of {STEPS}; the same command continues" in capsys.readouterr().err
  assert os.listdir(workdir / "checkpoints") == ["7"]

  changes = ["--config.seed=1", "--config.optimizer.b1=0.8", "--config.log.every_steps=2"]
  assert main.main([*flags, *changes, f"--workdir={workdir}"]) == 2
  error = capsys.readouterr().err
  assert "seed: 0 -> 1" in error and "optimizer.b1: 0.9 -> 0.8" in error
  assert "log.every_steps" not in error and "--allow_changed_config" in error
  assert "Traceback" not in error

  with running([*flags, f"--workdir={workdir}"], program=("-c", SLOWLY)) as process:
    wait_for_step(workdir, 8, process)
    assert main.main([*flags, f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err
    assert f"is in use by process {process.pid}" in error and "Traceback" not in error
    wait_for_step(workdir, 25, process)
    process.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, output
  # what a killed save leaves
  (workdir / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir(exist_ok=True)
  assert main.main([*flags, f"--workdir={workdir}"]) == 0
  assert re.search("steps (15|30) to 40", capsys.readouterr().err)

  state = lambda folder: read_tree(folder / "checkpoints" / str(STEPS) / "default")
  ours, expected = state(workdir), state(alone)
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, ours, expected)
  assert _losses(workdir) == _losses(alone) and len(_losses(workdir)) == STEPS
  assert main.main([*flags, f"--workdir={workdir}"]) == 0  # and then there is nothing to do
  assert len(_losses(workdir)) == STEPS


CONFIG = {
  "seed": 0,
  "mesh": {"fsdp": 1},
  "compute": {"accumulation": 1, "remat": False},
  "data": {"path": "a", "max_damaged": 0.0},
  "guard": {"collapse": "warn", "collapse_std": 0.1},
  "checkpoint": {"keep": 1, "keep_every": 10},
}


@pytest.mark.parametrize(
  "section, changed, expected",
  [
    ("data", {"path": "b"}, "free"),
    ("checkpoint", {"keep": 2}, "free"),
    ("mesh", {"fsdp": 4}, "named"),
    ("compute", {"remat": True}, "named"),
    ("data", {"max_damaged": 0.1}, "named"),
    ("guard", {"collapse": "stop"}, "named"),
    ("compute", {"accumulation": 2}, "refused"),
    ("guard", {"collapse_std": 0.2}, "refused"),  # counts in the state
    ("checkpoint", {"keep_every": 20}, "free"),
  ],
)
def test_fault_08_only_what_changes_no_result_may_change(
  tmp_path, warnings, section, changed, expected
):
  """Rounding, and when a run ends, may change with a warning; everything else is refused."""
  keys = {"ignore": job.FREE_KEYS, "named": job.NAMED_KEYS}
  places = [str(tmp_path)]
  assert agree(places, CONFIG, None, **keys, allow_changes=False) == []
  new = {**CONFIG, section: {**CONFIG[section], **changed}}
  ((key, value),) = changed.items()
  line = f"{section}.{key}: {CONFIG[section][key]!r} -> {value!r}"
  if expected == "refused":
    with pytest.raises(UserError, match=re.escape(line)):
      agree(places, new, CONFIG, **keys, allow_changes=False)
    with pytest.raises(UserError, match=re.escape(line)):
      continuation(new, str(tmp_path), *keys.values(), stored=CONFIG)
  agree(places, new, CONFIG, **keys, allow_changes=expected == "refused")
  assert warnings == (
    [] if expected == "free" else [f"{tmp_path}: the run goes on with other values: {line}"]
  )
