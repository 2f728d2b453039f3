"""The files of habits say what they should: workflows, hooks, citation, changelog, constraints."""

import re
import subprocess
import sys

import pytest
import yaml
from tiny import ROOT

import atst_jax


def _yaml(path: str):
  return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_workflow():
  """3.11 to 3.13, with pinned and with the newest versions, on changes and every week."""
  workflow = _yaml(".github/workflows/ci.yml")
  triggers = workflow[True]  # YAML 1.1 reads the key `on` so
  assert {"push", "pull_request", "schedule"} <= set(triggers)
  (cron,) = triggers["schedule"]
  assert re.fullmatch(r"\d+ \d+ \* \* \d", cron["cron"])  # weekly
  test = workflow["jobs"]["test"]
  assert test["strategy"]["matrix"] == {
    "python": ["3.11", "3.12", "3.13"],
    "versions": ["pinned", "newest"],
  }
  assert any(step.get("run") == ".ci/run" for step in test["steps"])
  assert any("make lint" in step.get("run", "") for step in workflow["jobs"]["lint"]["steps"])
  constraint = test["env"]["PIP_CONSTRAINT"]
  assert "/requirements/constraints-{1}.txt" in constraint
  for version in re.findall(r"'(3\.\d+)'", constraint):
    assert (ROOT / "requirements" / f"constraints-{version}.txt").is_file()
  for job in workflow["jobs"].values():
    for step in job["steps"]:
      for command in re.findall(r"make ([\w-]+)", step.get("run", "")):
        assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M), (
          command
        )


def test_hooks_run_what_lint_runs():
  entries = " ".join(
    hook["entry"] for repo in _yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
  )
  recipe = re.search(
    r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M
  )[1]
  for tool in ("ruff check", "ruff format", "mypy"):
    assert tool in entries and tool in recipe


def test_citation_and_changelog_name_the_version():
  citation = _yaml("CITATION.cff")
  assert {"cff-version", "message", "title", "authors"} <= set(citation)
  assert citation["version"] == atst_jax.__version__
  changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
  assert f"## [{atst_jax.__version__}]" in changelog and "## [Unreleased]" in changelog
  assert set(re.findall(r"^### (.*)$", changelog, re.M)) <= {
    "Added",
    "Changed",
    "Deprecated",
    "Removed",
    "Fixed",
    "Security",
  }


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_constraints_name_every_requirement(python):
  """One version of each; those of this interpreter are written again by the script alike in
  form."""
  lines = (
    (ROOT / "requirements" / f"constraints-{python}.txt").read_text(encoding="utf-8").splitlines()
  )
  pins = [line for line in lines if not line.startswith("#")]
  assert all(re.fullmatch(r"[a-z0-9-]+==[\w.!+]+", pin) for pin in pins)
  names = [pin.partition("==")[0] for pin in pins]
  assert names == sorted(set(names))
  wanted = re.search(
    r"install_requires=\[(.*?)\]", (ROOT / "setup.py").read_text(encoding="utf-8"), re.S
  )[1]
  for name in re.findall(r'"([A-Za-z0-9_-]+)[><=]', wanted):
    assert name.lower().replace("_", "-") in names, name


@pytest.mark.slow
def test_types():
  """mypy finds nothing."""
  run = subprocess.run(
    [sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert run.returncode == 0, run.stdout
