"""The files of habits say what they should: workflows, hooks, citation, changelog, constraints."""

import re
import subprocess
import sys

import pytest
import yaml

import atst_jax
from tests.tiny import ROOT


def _yaml(path: str):
  return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_workflow_tests_every_python_as_the_makefile_does():
  """Weekly too, so that a library's new release is noticed; with files and targets that exist."""
  workflow = _yaml(".github/workflows/ci.yml")
  assert "schedule" in workflow[True]  # YAML 1.1 reads the key `on` so
  matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
  assert matrix["python"] == ["3.11", "3.12", "3.13"]
  text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
  for path in (".ci/run", *(f"requirements/constraints-{p}.txt" for p in matrix["python"])):
    assert (ROOT / path).is_file()
  assert "run: .ci/run" in text and "/requirements/constraints-{1}.txt" in text
  for target in re.findall(r"run: make ([\w-]+)", text):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M), target


def test_hooks_run_what_lint_runs():
  hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
  lint = (
    (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
  )
  for tool in ("ruff check", "ruff format", "mypy"):
    assert tool in hooks and tool in lint


def test_citation_and_changelog_name_the_version():
  citation = _yaml("CITATION.cff")
  assert {"cff-version", "message", "title", "authors"} <= set(citation)
  assert citation["version"] == atst_jax.__version__
  changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
  assert f"## [{atst_jax.__version__}]" in changelog and "## [Unreleased]" in changelog


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
