"""Launch scripts: what they would run."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.launching import LAUNCH, MAIN, fake, run_script
from tests.tiny import ROOT

SCRIPTS = sorted(LAUNCH.glob("*.sh"))
TPU = ["--name=atst", "--zone=z", "--type=v5litepod-256"]
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


def test_tpu_commands():
  lines = [
    shlex.split(line)
    for line in run_script("tpu.sh", *TPU, "--spot", "--dry_run", "--", *MAIN).stdout.splitlines()
  ]
  create, copy, set_up, train, delete = lines
  assert create[3:6] == ["queued-resources", "create", "atst"] and {
    "--spot",
    "--node-id=atst",
  } <= set(create)
  assert (
    "--runtime-version=v2-alpha-tpuv5-lite" in create
    and "--worker=all" in copy
    and "delete" in delete
  )
  assert set_up[-1].endswith("-e .[tpu,gcs]")
  words = shlex.split(train[-1].removeprefix("--command="))
  assert words[-2:] == MAIN and "launch/run.sh" in words and "--distributed" in words
  two = run_script("tpu.sh", *TPU, "--slices=2", "--keep", "--dry_run", "--", *MAIN).stdout
  assert "--node-count=2 --node-prefix=atst" in two and "ssh atst-0" in two and "ssh atst-1" in two
  assert " delete " not in two


def test_tpu_restarts(tmp_path):
  """Created; stopped with 75 and started again; taken back and asked for anew; done; deleted."""
  fake(
    tmp_path / "bin",
    "gcloud",
    f"""
import pathlib, sys
log = pathlib.Path({str(tmp_path / "log")!r})
done = log.read_text().split() if log.exists() else []
word = next((w for w in ("describe", "create", "delete", "scp", "ssh") if w in sys.argv), "?")
if word == "describe":
  state = "ABSENT" if "create" not in done or done[-1] == "delete" else "ACTIVE"
  if state == "ABSENT":
    sys.exit("NOT_FOUND: it")
  print("SUSPENDED" if done and done[-1] == "lost" else state)
elif word == "ssh" and "launch/run.sh" in sys.argv[-1]:
  code = [75, 255, 0][sum(w in ("75", "lost", "0") for w in done)]
  log.write_text(" ".join([*done, "lost" if code == 255 else str(code)]))
  sys.exit(code)
elif word in ("create", "delete"):
  log.write_text(" ".join([*done, word]))
""",
  )
  ran = run_script(
    "tpu.sh", *TPU, "--", *MAIN, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", PAUSE="0"
  )
  assert ran.returncode == 0, ran.stderr
  assert (tmp_path / "log").read_text().split() == [
    "create",
    "75",
    "lost",
    "delete",
    "create",
    "0",
    "delete",
  ]


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
