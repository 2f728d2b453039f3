"""A run that is stopped or killed ends bit for bit like one that never was (real processes, real
signals)."""

import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from checkpoints import read_tree
from tiny import ROOT, tiny_flags, write_dataset

from atst_jax.runtime.metric_writer import read_metrics

STEPS = 60


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
  data = write_dataset(tmp_path_factory.mktemp("resume") / "data", frames=(40, 90))
  return tiny_flags(
    data__source="records",
    data__path=data,
    total_steps=str(STEPS),
    warmup_steps="4",
    checkpoint__every_steps="20",
    encoder__width="32",
  )


@pytest.fixture(scope="module")
def env(tmp_path_factory):
  """One device, and one compilation for all runs."""
  return {
    **os.environ,
    "XLA_FLAGS": "",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
  }


def _start(workdir, flags, env):
  command = [sys.executable, "-m", "atst_jax.main", f"--workdir={workdir}", *flags]
  return subprocess.Popen(
    command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def _finish(process, code):
  output, _ = process.communicate(timeout=240)
  assert process.returncode == code, output
  return output


def _wait_for_step(workdir, step, process):
  deadline = time.time() + 240
  while time.time() < deadline and process.poll() is None:
    records = read_metrics(workdir / "metrics.jsonl")
    if records and records[-1]["step"] >= step:
      return
    time.sleep(0.02)
  raise AssertionError(f"step {step} was not reached: {process.communicate()[0]}")


def _state(workdir):
  return read_tree(workdir / "checkpoints" / str(STEPS) / "default")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, flags, env):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  _finish(_start(workdir, flags, env), 0)
  return workdir


def _assert_same(workdir, uninterrupted):
  ours, expected = _state(workdir), _state(uninterrupted)
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, ours, expected)
  losses = lambda folder: [(r["step"], r["loss"]) for r in read_metrics(folder / "metrics.jsonl")]
  assert losses(workdir) == losses(uninterrupted) and len(losses(workdir)) == STEPS


def test_fault_01_sigterm_saves_and_the_same_command_continues(tmp_path, flags, env, uninterrupted):
  process = _start(tmp_path, flags, env)
  _wait_for_step(tmp_path, 5, process)
  process.send_signal(signal.SIGTERM)
  stopped = re.search(
    r"stopped after step (\d+) of 60; the same command continues it", _finish(process, 75)
  )
  assert stopped[1] in os.listdir(tmp_path / "checkpoints")
  _finish(_start(tmp_path, flags, env), 0)
  _assert_same(tmp_path, uninterrupted)


def test_fault_03_kill_9_goes_on_from_the_last_checkpoint(tmp_path, flags, env, uninterrupted):
  process = _start(tmp_path, flags, env)
  _wait_for_step(tmp_path, 29, process)
  process.kill()
  _finish(process, -signal.SIGKILL)
  # what a killed save leaves
  (tmp_path / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir(exist_ok=True)
  _finish(_start(tmp_path, flags, env), 0)
  _assert_same(tmp_path, uninterrupted)


def test_a_finished_run_has_nothing_to_do(flags, env, uninterrupted):
  assert f"done: {STEPS} steps" in _finish(_start(uninterrupted, flags, env), 0)


def test_fault_08_another_config_is_refused_with_the_keys(flags, env, uninterrupted):
  changed = [*flags, "--config.seed=1", "--config.optimizer.b1=0.8", "--config.log.every_steps=2"]
  output = _finish(_start(uninterrupted, changed, env), 2)
  assert (
    "seed: 0 -> 1" in output
    and "optimizer.b1: 0.9 -> 0.8" in output
    and "log.every_steps" not in output
  )
  assert "--allow_changed_config" in output and "Traceback" not in output


def test_fault_10_a_workdir_has_one_owner(tmp_path, flags, env):
  flags = [*flags, "--config.total_steps=1000000"]
  first = _start(tmp_path, flags, env)
  _wait_for_step(tmp_path, 1, first)
  output = _finish(_start(tmp_path, flags, env), 2)
  assert f"is in use by process {first.pid}" in output and "Traceback" not in output
  first.send_signal(signal.SIGINT)
  _finish(first, 75)
