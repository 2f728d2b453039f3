"""launch/gpu_check: its files and its rows; what it measures needs a GPU."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.launching import LAUNCH, fake


@pytest.fixture
def check(tmp_path, monkeypatch):
  """launch/gpu_check.py, whose commands do nothing but write what they are to write."""
  monkeypatch.setenv("OUT", str(tmp_path))
  spec = importlib.util.spec_from_file_location("gpu_check", LAUNCH / "gpu_check.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  module.CLOCK.until = float("inf")

  def run(*command):
    flags = dict(word.partition("=")[::2] for word in command)
    if "atst_jax.main" in command:
      folder = pathlib.Path(flags["--workdir"]) / "checkpoints" / str(module.STEPS)
      folder.mkdir(parents=True)  # a run that is there already is an error
      (folder / "config.json").write_text("{}")
      (folder / "manifest.json").write_text(json.dumps({"state": {"x": 1}}))
    elif "atst_jax.embed" not in command:
      pathlib.Path(flags["--output"]).mkdir()  # and so is an export
    return ""

  monkeypatch.setattr(module, "run", run)
  return module


def test_a_second_check_begins_anew(check, tmp_path, monkeypatch):
  """And removes nothing that is not its own."""
  (tmp_path / "sounds").mkdir()
  monkeypatch.setattr(check, "stopped", lambda command, metrics: 75)
  for _ in range(2):
    assert "all 1 arrays equal" in check.whole_run(True)
  assert (tmp_path / "sounds").is_dir()


def test_what_does_not_stop_is_said_in_a_few_words(check, tmp_path, monkeypatch):
  sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
  check.CLOCK.until = check.time.monotonic() + 0.2
  with pytest.raises(RuntimeError, match=r"^not stopped after 0 s$"):
    check.stopped(sleeps, tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("out", ["results", "/absolute", None])
def test_its_folder_is_the_callers(tmp_path, out):
  """A relative one is taken from where the command is given; the default is of the checkout."""
  (tmp_path / "launch").mkdir()
  (tmp_path / "here").mkdir()
  shutil.copy(LAUNCH / "gpu_check.sh", tmp_path / "launch")
  fake(tmp_path, "python", "import os; print(os.environ['OUT'])")
  env = {"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "python")}
  given = {"OUT": out.replace("/absolute", str(tmp_path / "absolute"))} if out else {}
  command = [tmp_path / "launch" / "gpu_check.sh"]
  options = {"cwd": tmp_path / "here", "env": env | given, "capture_output": True, "text": True}
  ran = subprocess.run(command, check=True, **options)
  folder = {"results": "here/results", "/absolute": "absolute", None: "runs/gpu_check"}[out]
  assert (tmp_path / folder / "gpu_check.log").read_text() == ran.stdout
  assert (tmp_path / ran.stdout.strip()).resolve() == tmp_path / folder


def test_an_unknown_flag_starts_nothing(check, capsys):
  """--help began eight minutes of work."""
  assert check.main(["--help"]) == 2 and "the only flag is --small" in capsys.readouterr().out
