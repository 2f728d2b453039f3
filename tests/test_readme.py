"""What the documents tell people to type works: run on tiny sounds, or accepted by its parser."""

import importlib
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess

import numpy as np
import pytest

from atst_jax.util import config as configs
from data_pipeline.synth import write_wav
from tests.documented import blocks, commands, examples, inline, parse_only, words
from tests.preparing import write_inline
from tests.tiny import OVERRIDES, ROOT

DOCUMENTS = (
  *("README.md", "CONTRIBUTING.md", "SECURITY.md", "data_pipeline/README.md", "launch/README.md"),
  *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
)
# Run here, one after the other in one folder. All other commands are parsed: tests of their own run
# them.
RUN = re.compile(
  r"python -m (data_pipeline\.prepare --input=\w+ --output"
  r"|atst_jax\.main .*(configs/(real_small|linear)|--sweep)"
  r"|atst_jax\.(export|embed|predict|search) )"
)
# but these: tests/test_initial.py goes on from an encoder, and onnx may not be installed
ELSEWHERE = re.compile(
  "runs/more" if importlib.util.find_spec("onnxruntime") else "runs/more|--artifacts=.*onnx"
)
FOREIGN = re.compile(
  r"make |pip install |(python )?launch/|ATST_PLATFORM=|sbatch |docker |git clone|cd |tensorboard"
)
# what such a line leaves out may be needed
PLACEHOLDER = re.compile(r"…|\b(NAME|DIR|FILE|KEY|RUNS?)\b")
TINY = {
  key: value
  for key, value in OVERRIDES.items()
  if not key.startswith(("data.source", "views.normalization"))
}
TINY |= {
  "encoder.depth": "1",
  "total_steps": "2",
  "warmup_steps": "1",
  "seeds": "1",
  "blocks": "last",
  "splits.num_folds": "2",
}


def _tones(folder: pathlib.Path, clips: int) -> None:
  time = np.arange(int(16000 * 0.6)) / 16000
  for number in range(clips):
    path = folder / "ab"[number % 2] / f"{number}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(str(path), (8000 * np.sin(2 * np.pi * (200 + 37 * number) * time)).astype("<i2"))


def _run(argv: list[str]) -> None:
  """Runs `python -m MODULE FLAGS…` in this process, made tiny."""
  module, flags = argv[2], argv[3:]
  if module == "data_pipeline.prepare":
    flags = [*flags, "--workers=1"]
  if module == "atst_jax.main" and "--sweep" not in " ".join(flags):
    path = next(flag for flag in flags if flag.startswith("--config=")).removeprefix("--config=")
    keys, given = configs.flatten(configs.load(path)), " ".join(flags)
    flags += [
      f"--config.{k}={v}" for k, v in TINY.items() if k in keys and f"--config.{k}=" not in given
    ]
  assert importlib.import_module(module).main(flags) == 0, argv


def test_the_commands_and_the_python_of_the_readme(tmp_path, monkeypatch, one_device):
  """README, docs/exports.md, then docs/use.md, from the first line to the last."""
  os.symlink(ROOT / "configs", tmp_path / "configs")
  _tones(tmp_path / "recordings" / "esc10", 24)
  _tones(tmp_path / "labelled", 12)
  monkeypatch.chdir(tmp_path)
  write_inline(monkeypatch)
  names = {"waveform": np.random.default_rng(0).normal(0, 0.1, 44100).astype(np.float32)}
  ran = set()
  for name in ("night.wav", "dog.wav"):
    os.link(tmp_path / "labelled" / "a" / "0.wav", tmp_path / name)
  for document in ("README.md", "docs/exports.md", "docs/use.md"):
    for language, text in blocks((ROOT / document).read_text(encoding="utf-8")):
      if language == "python" and text not in ran:
        ran.add(text)
        exec(compile(text, document, "exec"), names)
        assert np.isfinite(names["vectors"]).all()
        assert np.isfinite(names.get("probabilities", 0)).all()
      for line in commands(text) if language == "sh" else ():
        if RUN.match(line) and line not in ran and not ELSEWHERE.search(line):
          _run(words(line))
          ran.add(line)
        elif line.startswith("python -c "):
          exec(compile(shlex.split(line)[2], document, "exec"), {})
  assert {"prepare", "main", "export", "embed", "predict", "search"} == {
    words(line)[2].rpartition(".")[2] for line in ran if line.startswith("python -m ")
  }


def test_the_exact_probe_of_the_evidence():
  (code,) = [
    text
    for language, text in blocks((ROOT / "docs/evidence.md").read_text(encoding="utf-8"))
    if language == "python"
  ]
  rng = np.random.default_rng(0)
  labels = np.arange(60) % 3
  vectors = rng.normal(size=(60, 4)) + 9 * np.eye(4)[labels]
  names = {"vectors": vectors, "labels": labels, "train": np.arange(30), "test": np.arange(30, 60)}
  exec(compile(code, "docs/evidence.md", "exec"), names)
  assert names["accuracy"] == 1


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_are_accepted(document, monkeypatch):
  """Those of blocks and those in running text."""
  monkeypatch.chdir(ROOT)
  text = (ROOT / document).read_text(encoding="utf-8")
  lines = inline(text)
  lines += [
    line for language, block in blocks(text) if language == "sh" for line in commands(block)
  ]
  for line in lines:
    if FOREIGN.match(line):
      _check_foreign(line)
    elif not PLACEHOLDER.search(line) and " --" in line:
      parse_only(monkeypatch, words(line))


def _check_foreign(line: str) -> None:
  """Targets of make, extras and scripts are there."""
  if line.startswith("make "):
    subprocess.run(["make", "-n", *line.split()[1:]], cwd=ROOT, check=True, capture_output=True)
  for extra in re.findall(r"\.\[([\w,]+)\]", line):
    known = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert all(f'"{name}": ' in known for name in extra.split(",")), line
  for path in re.findall(r"launch/[\w.]+", line):
    assert (ROOT / path).exists(), line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_names_of_files_lead_somewhere(document):
  """Relative links, and files between backticks that name their folder."""
  text = (ROOT / document).read_text(encoding="utf-8")
  for target in re.findall(r"\]\(([^)#:]+)\)", text):
    assert (ROOT / document).parent.joinpath(target).exists(), target
  for path in re.findall(
    r"`((?:atst_jax|data_pipeline|tests|configs|docs|launch)/[\w/]+\.\w+)", text
  ):
    assert (ROOT / path).exists(), path


CONFIGS = sorted(
  path.name for path in (ROOT / "configs").glob("*.py") if path.name != "__init__.py"
)


@pytest.mark.parametrize("file", CONFIGS)
def test_commands_of_configs_are_accepted(file, monkeypatch):
  monkeypatch.chdir(ROOT)
  docstring = importlib.import_module(f"configs.{file.removesuffix('.py')}").__doc__
  for line in examples(docstring):
    if not PLACEHOLDER.search(line):
      parse_only(monkeypatch, words(line))
  assert "python" in docstring or "make" in docstring
