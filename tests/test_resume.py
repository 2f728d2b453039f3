"""A run that is stopped or killed ends bit for bit like one that never was (real processes, real
signals)."""

import contextlib
import os
import re
import signal

import jax
import numpy as np
import pytest
from checkpoints import read_tree
from tiny import ONE_DEVICE, running, tiny_flags, wait_for_step, write_dataset

from atst_jax import main
from atst_jax.pretraining import job
from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.runtime.workdir import agree, continuation
from atst_jax.util.errors import UserError

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


@pytest.fixture(scope="module")
def start(tmp_path_factory, flags):
  """Starts a run on one device; all of them share one compilation, and none outlives its test."""
  env = {
    **os.environ,
    **ONE_DEVICE,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
  }
  with contextlib.ExitStack() as stack:
    yield lambda workdir, *more: stack.enter_context(
      running([f"--workdir={workdir}", *flags, *more], env=env)
    )


def _finish(process, code):
  output, _ = process.communicate(timeout=240)
  assert process.returncode == code, output
  return output


def _losses(workdir):
  return [(r["step"], r["loss"]) for r in read_metrics(workdir / "metrics.jsonl")]


def test_fault_01_03_08_10_a_disturbed_run_ends_as_an_undisturbed_one(
  tmp_path, flags, start, capsys, one_device
):
  """Stopped by SIGTERM, then killed by SIGKILL in the middle of an epoch, then ended by the same
  command. While it runs, another job is refused, and later one with another config."""
  alone, workdir = start(tmp_path / "alone"), tmp_path / "run"
  _finish(alone, 0)

  process = start(workdir, "--config.data.reader=tf.data")  # the same batches
  wait_for_step(workdir, 5, process)
  assert main.main([*flags, f"--workdir={workdir}"]) == 2
  error = capsys.readouterr().err
  assert f"is in use by process {process.pid}" in error and "Traceback" not in error
  process.send_signal(signal.SIGTERM)
  told = rf"stopped after step (\d+) of {STEPS}; the same command continues it"
  stopped = re.search(told, _finish(process, 75))
  assert stopped[1] in os.listdir(workdir / "checkpoints")

  changes = ["--config.seed=1", "--config.optimizer.b1=0.8", "--config.log.every_steps=2"]
  assert main.main([*flags, *changes, f"--workdir={workdir}"]) == 2
  error = capsys.readouterr().err
  assert "seed: 0 -> 1" in error and "optimizer.b1: 0.9 -> 0.8" in error
  assert "log.every_steps" not in error and "--allow_changed_config" in error
  assert "Traceback" not in error

  process = start(workdir)
  wait_for_step(workdir, 25, process)
  process.kill()
  _finish(process, -signal.SIGKILL)
  # what a killed save leaves
  (workdir / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir(exist_ok=True)
  _finish(start(workdir), 0)

  state = lambda folder: read_tree(folder / "checkpoints" / str(STEPS) / "default")
  ours, expected = state(workdir), state(tmp_path / "alone")
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, ours, expected)
  assert _losses(workdir) == _losses(tmp_path / "alone") and len(_losses(workdir)) == STEPS
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
    ("checkpoint", {"keep_every": 20}, "refused"),
  ],
)
def test_fault_08_only_what_changes_no_result_may_change(
  tmp_path, warnings, section, changed, expected
):
  """Rounding, and when a run ends, may change with a warning; everything else is refused."""
  keys = {"ignore": job.FREE_KEYS, "named": job.NAMED_KEYS}
  agree(str(tmp_path), CONFIG, **keys, allow_changes=False)
  new = {**CONFIG, section: {**CONFIG[section], **changed}}
  ((key, value),) = changed.items()
  line = f"{section}.{key}: {CONFIG[section][key]!r} -> {value!r}"
  if expected == "refused":
    with pytest.raises(UserError, match=re.escape(line)):
      agree(str(tmp_path), new, **keys, allow_changes=False)
    with pytest.raises(UserError, match=re.escape(line)):
      continuation(new, str(tmp_path), *keys.values())
  agree(str(tmp_path), new, **keys, allow_changes=expected == "refused")
  assert warnings == (
    [] if expected == "free" else [f"{tmp_path}: the run goes on with other values: {line}"]
  )
