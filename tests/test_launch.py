"""Launch scripts: what they would run."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.launching import LAUNCH, MAIN, TPU, fake, run_script
from tests.tiny import ROOT

SCRIPTS = sorted(LAUNCH.glob("*.sh"))
GKE = ["--name=atst", "--image=i", "--accelerator=tpu-v5-lite-podslice", "--topology=16x16"]


def test_scripts_are_clean():
  shellcheck = shutil.which(
    "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  )
  if not shellcheck:
    pytest.skip("shellcheck is not installed")
  checked = subprocess.run([shellcheck, *SCRIPTS, ROOT / ".ci/run"], capture_output=True, text=True)
  assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
  ("script", "arguments", "message"),
  [
    ("slurm.sh", [], "give the flags of atst_jax.main"),
    ("tpu.sh", TPU, "--name, --zone and --type are needed"),
    ("tpu.sh", ["--nmae=x"], "--nmae=x: unknown flag"),
    ("gke.sh", [*GKE, "--chips=7", "--", "x"], "256 chips"),
    ("tpu.sh", ["--name=a", "--zone=z", "--type=v9-8", "--", "x"], "name its software"),
    ("dataflow.sh", ["--project=p"], "are needed"),
  ],
)
def test_mistakes_are_named(script, arguments, message):
  ran = run_script(script, *arguments)
  assert ran.returncode == 2 and message in ran.stderr


def test_the_manifest_is_filled_in():
  """64 hosts of 4 chips; flags reach the process as they are."""
  odd = '--config.data.path=gs://b/it\'s "x" $HOME'
  ran = run_script("gke.sh", *GKE, "--slices=2", "--dry_run", "--", *MAIN, odd)
  job = yaml.safe_load(ran.stdout)
  (slice_,) = job["spec"]["replicatedJobs"]
  spec = slice_["template"]["spec"]
  (container,) = spec["template"]["spec"]["containers"]
  assert (job["kind"], job["metadata"]["name"], slice_["replicas"]) == ("JobSet", "atst", 2)
  assert spec["parallelism"] == spec["completions"] == 64 and container["resources"]["limits"] == {
    "google.com/tpu": 4
  }
  assert container["args"] == ["atst_jax.main", "--distributed", *MAIN, odd]
  (rule,) = spec["podFailurePolicy"]["rules"]
  assert (
    rule["onExitCodes"]["containerName"] == container["name"]
    and 75 not in rule["onExitCodes"]["values"]
  )
  assert spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"


@pytest.mark.parametrize(
  ("answer", "code", "told"),
  [
    ("jobset.jobset.x-k8s.io/atst created", 0, ""),
    ('Error from server (AlreadyExists): jobsets "atst" already exists', 2, "delete jobset atst"),
    ("error: You must be logged in to the server", 1, ""),
  ],
)
def test_a_job_set_that_is_there_is_not_taken_for_a_new_one(tmp_path, answer, code, told):
  fake(
    tmp_path / "bin",
    "kubectl",
    f"""
import sys
if sys.argv[1] == "apply":  # says so of one that has ended, too
  sys.exit(print("jobset.jobset.x-k8s.io/atst unchanged"))
sys.exit(print({answer!r}) or "created" not in {answer!r})
""",
  )
  path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
  ran = run_script("gke.sh", *GKE, "--", *MAIN, PATH=path)
  assert ran.returncode == code and answer in ran.stdout and told in ran.stderr
  assert bool(told) == bool(ran.stderr)


def test_dataflow_command():
  flags = [
    "--project=p",
    "--region=r",
    "--image=i",
    "--temp=gs://t",
    "--dry_run",
    "--",
    "--input=gs://a",
    "--output=gs://b",
  ]
  command = shlex.split(run_script("dataflow.sh", *flags).stdout)
  assert command[1:5] == ["-m", "data_pipeline.prepare", "--input=gs://a", "--output=gs://b"]
  assert "--runner=DataflowRunner" in command and "--sdk_container_image=i" in command[-1]


def test_sweep(tmp_path):
  """Every run once more after 75; a failure keeps no other from running."""
  fake(
    tmp_path,
    "launcher",
    f"""
import pathlib, sys
workdir = next(a for a in sys.argv if a.startswith("--workdir="))
log = pathlib.Path({str(tmp_path / "log")!r})
seen = log.read_text().split() if log.exists() else []
log.write_text(" ".join([*seen, workdir.rpartition("=")[2]]))
sys.exit(75 if workdir.endswith("=0.1") and len(seen) == 1 else workdir.endswith("=0.2"))
""",
  )
  command = [
    sys.executable,
    LAUNCH / "sweep.py",
    "--config=configs/difference.py",
    "--workdir=w",
    "--sweep=lambda",
  ]
  ran = subprocess.run(
    [*command, f"--with={tmp_path / 'launcher'}"], cwd=ROOT, capture_output=True, text=True
  )
  assert ran.returncode == 1 and (tmp_path / "log").read_text().split() == [
    "0.0",
    "0.1",
    "0.1",
    "0.2",
    "0.5",
    "0.8",
  ]
  dry = subprocess.run([*command, "--dry_run"], cwd=ROOT, capture_output=True, text=True)
  assert len(dry.stdout.splitlines()) == 5 and "--config.difference.weight=0.8" in dry.stdout
  command[-1] = "--sweep=nothing"
  assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 2


def test_the_image_holds_what_it_copies():
  lines = [line.split() for line in (LAUNCH / "Dockerfile").read_text().splitlines()]
  copied = [
    path
    for line in lines
    if line[:1] == ["COPY"] and "--from" not in line[1]
    for path in line[1:-1]
  ]
  assert copied and all((ROOT / path).exists() for path in copied)
  assert {line[3] for line in lines if line[:1] == ["FROM"]} >= {"cpu", "cuda", "tpu", "beam"}
