"""The installed package: one name in site-packages, and everything it needs inside."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.tiny import ROOT

LEFT_OUT = shutil.ignore_patterns(
  ".venv*", ".git", "build", "*.egg-info", "runs", "tests", ".*cache"
)


@pytest.mark.slow
def test_a_wheel_has_one_name_and_runs_from_another_folder(tmp_path):
  source, folder = tmp_path / "source", tmp_path / "elsewhere"
  shutil.copytree(ROOT, source, ignore=LEFT_OUT)
  build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
  subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True)
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"atst_jax"}
    for path in [*ROOT.glob("configs/*.py"), *ROOT.glob("data_pipeline/**/*.py")]:
      assert f"atst_jax/{path.relative_to(ROOT)}" in names
    for path in ROOT.glob("atst_jax/*/*.html"):
      assert str(path.relative_to(ROOT)) in names
    archive.extractall(folder)

  def run(module, *flags):
    command = [sys.executable, "-m", f"atst_jax.{module}", *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

  run("data_pipeline.synth", "--output=sounds", "--clips_per_class=8")
  run("data_pipeline.prepare", "--input=sounds", "--output=data", "--frontend=atst")
  keys = (
    "data.path=data",
    "batch_size=64",  # of eight devices
    "data.streams=4",
    "total_steps=2",
    "warmup_steps=1",
    "online.path=none",
  )
  flags = [f"--config.{key}" for key in keys]
  run("main", "--config=demo", "--workdir=run", *flags)
  run("export", "--workdir=run", "--output=encoder")
  run("embed", "--encoder=encoder", "--input=sounds", "--output=vectors.npz")
  assert (folder / "vectors.npz").is_file()
