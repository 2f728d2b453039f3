"""Launch scripts run with commands in the place of sbatch, gcloud and others."""

import os
import pathlib
import subprocess
import sys

from tests.tiny import ROOT

LAUNCH = ROOT / "launch"
TPU = ["--name=atst", "--zone=z", "--type=v5litepod-256"]
MAIN = ["--config=configs/base.py", "--workdir=/tmp/a run"]


def run_script(script, *arguments, **env):
  return subprocess.run(
    [LAUNCH / script, *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, **env},
    timeout=120,
  )


def fake(folder: pathlib.Path, name: str, body: str) -> None:
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f"#!{sys.executable}\n{body}")
  (folder / name).chmod(0o755)
