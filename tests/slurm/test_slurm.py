"""launch/slurm.sh on a Slurm of two nodes on this machine (cluster.sh)."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest

from atst_jax.runtime.metric_writer import read_metrics
from tests.tiny import ONE_DEVICE, ROOT, tiny_flags

pytestmark = pytest.mark.slow
CLUSTER = pathlib.Path(__file__).parent / "cluster.sh"
NEEDED = ("slurmctld", "slurmd", "munged", "ip", "nsenter", "unshare")
# a job on it: one CPU device for each task
ENVIRONMENT = {
  **os.environ,
  **ONE_DEVICE,
  "ATST_PLATFORM": "cpu",
  "JAX_NUM_CPU_DEVICES": "1",
  "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
  "SLURM_WAIT": "5",
}
ENDLESS = {
  "total_steps": "1000000",
  "checkpoint__every_steps": "20",
  "log__every_steps": "5",
  "encoder__depth": "1",
  "difference__weight": "0",
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
  """The environment of a job on the cluster."""
  if os.geteuid() != 0:
    pytest.skip("a Slurm on this machine needs root")
  if missing := [name for name in NEEDED if not shutil.which(name)]:
    pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge iproute2")
  folder = tmp_path_factory.mktemp("slurm")
  up = subprocess.run([CLUSTER, "up", folder], capture_output=True, text=True)
  try:
    if up.returncode:
      pytest.skip(f"Slurm does not start here: {up.stderr[-2000:]}")
    yield {**ENVIRONMENT, "SLURM_CONF": str(folder / "slurm.conf")}
  finally:
    subprocess.run([CLUSTER, "down", folder], check=True)


class Job:
  """A job that was submitted; `log` is its file."""

  def __init__(self, env, folder, *options, **overrides):
    self.env, self.log, self.workdir = env, folder / "log", folder / "a run"
    flags = [*tiny_flags(**ENDLESS | overrides), f"--workdir={self.workdir}"]
    self.id = self._command(
      "sbatch", "--parsable", f"--output={self.log}", *options, "launch/slurm.sh", *flags
    )

  def _command(self, *words) -> str:
    ran = subprocess.run(words, cwd=ROOT, env=self.env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()

  def state(self) -> dict[str, str]:
    """What `scontrol show job` tells."""
    return dict(re.findall(r"(\w+)=(\S+)", self._command("scontrol", "show", "job", self.id)))

  def text(self) -> str:
    return self.log.read_text() if self.log.exists() else ""

  def wait(self, until, seconds=180) -> None:
    deadline = time.time() + seconds
    while not until():
      assert time.time() < deadline, f"{self.state()}\n{self.text()[-4000:]}"
      time.sleep(0.3)

  def wait_for_steps(self, number) -> None:
    """Until a start has made so many more steps."""
    last = lambda: max((r["step"] for r in read_metrics(self.workdir / "metrics.jsonl")), default=0)
    before = last()
    self.wait(lambda: last() >= before + number)

  def wait_for_restart(self, number, code) -> None:
    """Until the job is queued for the n-th time; then it need not wait for its two minutes."""
    self.wait(lambda: self.text().count("queued again, SLURM starts it in two minutes") >= number)
    assert f"exit code {code}: queued again" in self.text(), self.text()[-3000:]
    self.wait(lambda: self.state()["JobState"] == "PENDING")
    time.sleep(5)  # the nodes still clean up: they would refuse the job that they have
    self._command("scontrol", "update", f"JobId={self.id}", "StartTime=now")
    self.wait(lambda: self.state()["JobState"] in ("RUNNING", "FAILED", "COMPLETED"))

  def signal(self, name) -> None:
    """To every task."""
    self._command("scancel", f"--signal={name}", self.id)

  def tasks(self) -> list[int]:
    """Numbers of the processes of its tasks, on this machine."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
      with contextlib.suppress(OSError):
        words = (folder / "cmdline").read_bytes().split(b"\0")
        if b"python" in words[0] and f"--workdir={self.workdir}".encode() in words:
          found.append(int(folder.name))
    return sorted(found)


def test_restarts_after_what_happens_to_a_job(slurm, tmp_path):
  """A task is killed, one is frozen, the job is asked to stop while it compiles and while it
  trains: each time it is queued again and goes on; `scancel` ends it for good. The log has the
  task before every line, and what all tasks would say once."""
  job = Job(slurm, tmp_path, "--nodes=2", guard__step_seconds="8")
  job.wait_for_steps(45)
  os.kill(job.tasks()[-1], 9)
  job.wait_for_restart(1, 137)
  job.wait_for_steps(25)
  os.kill(job.tasks()[0], 19)
  job.wait(lambda: "stalled: nothing has moved for 8 s" in job.text())
  job.wait_for_restart(2, 137)
  job.wait(lambda: job.text().count("steps ") > job.text().count("stopped") and job.tasks())
  time.sleep(3)
  job.signal("USR1")
  job.wait_for_restart(3, 75)
  job.wait_for_steps(25)
  job.signal("TERM")
  job.wait_for_restart(4, 75)
  job.wait_for_steps(5)
  job._command("scancel", job.id)
  job.wait(lambda: job.state()["JobState"] == "CANCELLED")
  lines = job.text().splitlines()
  starts = [line for line in lines if " parameters on 2 cpu device(s)" in line]
  assert len(starts) >= 4 and all(line.startswith("0: ") for line in starts), starts
  assert all(re.search(r"steps [1-9]\d* to", line) for line in starts[1:]), starts
  assert "(restart 1 of 10 without a new checkpoint)" in job.text()


def test_a_limit_that_is_too_short_is_named_and_ends_the_job(slurm, tmp_path):
  """`--time=2`: the signal comes at once. After three starts without a step the job ends."""
  job = Job(slurm, tmp_path, "--nodes=2", "--time=2", encoder__depth="24")
  job.wait(lambda: "warning: the job's limit is 2:00 and the signal to save comes" in job.text())
  for number in (1, 2):
    job.wait(job.tasks)
    job.signal("USR1")
    job.wait_for_restart(number, 75)
  job.wait(job.tasks)
  job.signal("USR1")
  job.wait(lambda: job.state()["JobState"] == "FAILED")
  assert job.state()["ExitCode"] == "75:0" and job.state()["Restarts"] == "2"
  assert (
    "error: 3 starts in a row were asked to stop before they had a new checkpoint" in job.text()
  )


def test_several_tasks_on_a_node_and_their_gpus(slurm, tmp_path):
  """They share the node's CPUs and GPUs; the numbers are those of the step, not of the node."""
  job = Job(slurm, tmp_path, "--nodes=1", "--ntasks-per-node=2", total_steps="10")
  job.wait(lambda: job.state()["JobState"] in ("COMPLETED", "FAILED"))
  assert job.state()["JobState"] == "COMPLETED" and "done: 10 steps" in job.text(), job.text()
  ask = f"srun --label {ROOT}/launch/run.sh atst_jax.util.environment gpu"
  for options, expected in (
    (["--ntasks-per-node=1", "--gpus-per-node=1"], ["0: 0", "1: 0"]),
    (["--ntasks-per-node=1", "--gpus-per-node=2"], ["0: 0,1", "1: 0,1"]),
    (["--ntasks-per-node=2", "--gpus-per-node=2"], ["0: 0", "1: 1", "2: 0", "3: 1"]),
    (["--ntasks-per-node=2", "--gpus-per-task=1"], ["0: 0", "1: 0", "2: 0", "3: 0"]),
  ):
    log = tmp_path / "gpus"
    log.unlink(missing_ok=True)
    job._command(
      *["sbatch", "--wait", "--exclusive", "--nodes=2", f"--output={log}", *options],
      f"--wrap=ATST_PLATFORM=gpu {ask}",
    )
    told = re.findall(r'^(\d: ).*LOCAL_DEVICE_IDS="\$\{\w+:-([\d,]+)', log.read_text(), re.M)
    assert sorted("".join(found) for found in told) == expected, (options, log.read_text())
