"""launch/slurm.sh and launch/restarts.py: what is queued again, and two processes as SLURM starts,
signals and requeues them. `tests/slurm` has a Slurm of its own."""

import json
import os
import shlex
import subprocess
import sys
import time

import pytest

from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.util import environment
from atst_jax.util.errors import UserError
from launch import restarts
from tests.launching import LAUNCH, MAIN, fake, run_script
from tests.tiny import ROOT, tiny_flags


def _after(capsys, workdir, code, *, steps=()):
  """(queued again, what is told) of a start that left checkpoints of `steps`, ended by `code`."""
  for step in steps:
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)
  words = ["after", f"--code={code}", "--limit=2:00", f"--started={time.time()}"]
  ended = restarts.main([*words, "--", "--config=base", f"--workdir={workdir}"])
  assert ended in (0, 4)
  return ended == 0, capsys.readouterr().err


def test_a_job_of_slurm_is_queued_again_while_it_gets_on(tmp_path, capsys):
  """Ten failures in a row without a new checkpoint, or three stops; a checkpoint starts the count
  anew, and stops are not among the failures. Mistakes and divergence are final."""
  for code in (0, 2, 3):
    assert restarts.verdict(restarts.Starts(), code, "1:00:00") == (False, "")
  assert _after(capsys, tmp_path, 137, steps=(4,)) == (
    True,
    "exit code 137: queued again, SLURM starts it in two minutes (restart 1 of 10 without a new "
    "checkpoint)\n",
  )
  assert _after(capsys, tmp_path, 75)[0] and _after(capsys, tmp_path, 75)[0]
  again, told = _after(capsys, tmp_path, 75)
  assert not again and "error: 3 starts in a row were asked to stop" in told and "--time=" in told
  (tmp_path / "restarts.json").write_text('{"checkpoints": ["4"], "failed": 10, "early": 2}')
  assert _after(capsys, tmp_path, 1, steps=(8,))[0]
  (tmp_path / "restarts.json").write_text('{"checkpoints": ["4", "8"], "failed": 10}')
  assert _after(capsys, tmp_path, 75)[0]
  again, told = _after(capsys, tmp_path, 74)
  assert not again and "error: 11 starts in a row failed without a new checkpoint" in told
  assert _after(capsys, tmp_path, 74)[0]  # submitted anew


def test_starts_that_were_stopped_before_they_had_a_workdir_count(tmp_path, capsys, monkeypatch):
  """Of every workdir that the program knows: the config's, and one below the home."""
  home = tmp_path / "home"
  home.mkdir()
  monkeypatch.setenv("HOME", str(home))
  monkeypatch.chdir(tmp_path)
  words = ["after", "--code=75", "--limit=2:00", f"--started={time.time()}", "--"]
  for workdir, flags in (
    (tmp_path / "runs" / "base", ["--config=base"]),
    (home / "a", ["--config=base", "--workdir=~/a"]),
  ):
    assert [restarts.main([*words, *flags]) for _ in range(3)] == [0, 0, 4]
    assert os.listdir(workdir) == ["restarts.json"]
  assert restarts.main([*words, "--config=none"]) == 2
  (tmp_path / "file").write_text("")
  assert restarts.main([*words, "--config=base", "--workdir=file/a"]) == 1
  assert "file/a: restarts cannot be counted (Not a directory)" in capsys.readouterr().err


def test_a_limit_is_measured_by_the_last_start(tmp_path):
  limits = {"2:00": 120, "1:30:00": 5400, "2-00:00:10": 172810, "UNLIMITED": float("inf")}
  assert {limit: restarts.seconds(limit) for limit in limits} == limits
  now = time.time()
  beat = {"first_time": now - 10, "step_time": now - 4}
  (tmp_path / "heartbeat.json").write_text(json.dumps(beat))
  known = restarts.update(
    restarts.Starts(), code=75, saved=["seed0/3"], workdir=str(tmp_path), started=now - 60
  )
  assert known.reached and 49 < known.starting < 51 and 3.9 < known.saving < 6
  assert "took 50 s to its first step and 4 s to save; the job's limit is 3:00" in (
    restarts.warning(known, "3:00")
  )
  assert not restarts.warning(known, "10:00") and not restarts.warning(known, "UNLIMITED")
  assert "so at once; give --time=" in restarts.warning(restarts.Starts(), "2:00")
  for name in ("checkpoints/seed0/3", "checkpoints/seed1/7", "checkpoints/4.orbax-tmp-1"):
    (tmp_path / name).mkdir(parents=True)
  assert restarts.checkpoints(str(tmp_path), None) == ["seed0/3", "seed1/7"]
  elsewhere = ["--config=base", "--workdir=a", "--config.checkpoint.folder=gs://b"]
  assert restarts.run_of(elsewhere) == ("a", "gs://b")
  assert restarts.checkpoints(str(tmp_path), str(tmp_path / "checkpoints" / "seed1")) == ["7"]


@pytest.mark.parametrize(
  ("tasks", "local", "on_node", "visible", "numbers"),
  [
    ("1(x2)", 0, 1, "0", "0"),
    ("1", 0, 8, "0,1,2,3,4,5,6,7", "0,1,2,3,4,5,6,7"),
    ("1,2", 1, 8, "0,1,2,3,4,5,6,7", "4,5,6,7"),  # on the second node
    ("2(x2)", 1, 2, "1", "0"),  # bound to it
    ("2", 0, 0, "", None),
  ],
)
def test_gpus_of_a_task_of_slurm(tasks, local, on_node, visible, numbers):
  environ = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": tasks,
    "SLURM_NODEID": "1" if "," in tasks else "0",
    "SLURM_LOCALID": str(local),
    "SLURM_GPUS_ON_NODE": str(on_node),
    "CUDA_VISIBLE_DEVICES": visible,
  }
  assert environment.slurm_devices(environ).get("JAX_LOCAL_DEVICE_IDS") == numbers
  if numbers and len(numbers) > 3:
    with pytest.raises(UserError, match="3 tasks on this node cannot share 8 GPUs"):
      environment.slurm_devices({**environ, "SLURM_STEP_TASKS_PER_NODE": "3(x2)"})


def test_cpus_of_a_node_are_dealt_to_its_tasks():
  node = {"SLURM_CPUS_ON_NODE": "8", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_NTASKS": "4"}
  words = shlex.split(run_script("slurm.sh", "--dry_run", *MAIN, **node).stdout)
  assert words[0] == "srun" and {"--label", "--cpus-per-task=4", "--wait=300"} <= set(words)
  assert words[-3:] == [*MAIN, "--distributed"]
  elsewhere = run_script("slurm.sh", *MAIN, SLURM_SUBMIT_DIR="/")
  assert elsewhere.returncode == 2 and "submit from the checkout's root" in elsewhere.stderr


@pytest.mark.slow
def test_two_processes_of_slurm(tmp_path):
  """Started by the script as on two nodes, signalled as --signal=USR1@120 does, queued again, and
  finished."""
  fake(
    tmp_path / "bin",
    "srun",
    """
import os, signal, subprocess, sys, time
environment = lambda i: {**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": "0"}
command = sys.argv[next(i for i, word in enumerate(sys.argv) if word.endswith("run.sh")):]
tasks = [subprocess.Popen(command, env=environment(i)) for i in range(2)]
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
""",
  )
  fake(
    tmp_path / "bin",
    "scontrol",
    f"import sys; open({str(tmp_path / 'requeued')!r}, 'w').write(' '.join(sys.argv[1:]))",
  )
  fake(tmp_path / "bin", "squeue", "print('2:01')")
  # run.sh takes it where the checkout has no environment of its own
  (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  (tmp_path / "bin" / "python").chmod(0o755)
  env = {
    **os.environ,
    "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    "SLURM_JOB_ID": str(os.getpid()),
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_SUBMIT_DIR": str(ROOT),
    "ATST_PLATFORM": "cpu",
    "XLA_FLAGS": "",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
  }
  flags = [
    *tiny_flags(
      total_steps="100",
      log__every_steps="2",
      checkpoint__every_steps="100",
      encoder__depth="1",
      difference__weight="0",
    ),
    f"--workdir={tmp_path / 'run'}",
  ]
  job = subprocess.Popen(
    [LAUNCH / "slurm.sh", *flags],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )
  deadline = time.time() + 240
  while (
    time.time() < deadline
    and not read_metrics(tmp_path / "run" / "metrics.jsonl")
    and job.poll() is None
  ):
    time.sleep(0.1)
  while subprocess.run(["pkill", "-USR1", "-s", str(job.pid), "-f", "bin/srun"]).returncode:
    assert time.time() < deadline and job.poll() is None, job.communicate()
    time.sleep(0.1)  # the shell has not become srun yet
  output, _ = job.communicate(timeout=240)
  assert job.returncode == 0 and output.count("stopped after step") == 1, output
  assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}"
  before = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
  again = subprocess.run(
    [LAUNCH / "slurm.sh", *flags], env=env, capture_output=True, text=True, timeout=240
  )
  assert again.returncode == 0, again.stderr
  assert "warning: the last start took" in again.stderr  # the last 2 minutes are for saving
  steps = [record["step"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
  assert before < 100 and set(steps) >= set(range(2, 101, 2))
