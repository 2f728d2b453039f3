"""What the documents tell people to type works: run on tiny sounds, or at least accepted by its
parser."""

import importlib
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from documented import blocks, commands, examples, inline, parse_only, words
from preparing import write_inline
from tiny import OVERRIDES, ROOT

from atst_jax.util import config as configs
from data_pipeline.synth import write_wav

DOCUMENTS = (
  "README.md",
  "CONTRIBUTING.md",
  "data_pipeline/README.md",
  "launch/README.md",
  "docs/configuration.md",
  "docs/troubleshooting.md",
)
# What is not run here, and where it is; its flags are parsed all the same.
ELSEWHERE = {
  r"python -m atst_jax\.benchmark ": "minutes of measuring: tests/test_benchmark.py",
  r"python -m atst_jax\.convert ": "needs PyTorch and released weights: tests/test_convert.py",
  r"python -m atst_jax\.plan ": "compiles for a pod: tests/test_plan.py",
  r"python -m data_pipeline\.bgknown ": "needs ESC-50 and FSD50K: tests/test_bgknown.py",
  r"python -m data_pipeline\.pairs ": "needs ESC-50 and FSD50K: tests/test_pairs.py",
  r"python -m data_pipeline\.prepare .*--layout=(?!esc10|fsdd)": "needs the data set: tests/test_layouts.py",
  r"python -m data_pipeline\.prepare (verify|stats|merge|repair|.*--tfds|.*(gs|s3)://)": "tests/test_prepare.py",
  r"python -m atst_jax\.main .*configs/(?!real_small|linear|demo)": "hours: tests/test_config.py builds every config",
  r"python -m atst_jax\.\w+ .*atst_small": "after hours: the same commands run on a tiny run above",
  r"python -m atst_jax\.downstream\.": "tests/test_report.py, tests/test_suites.py",
  r"python -m atst_jax\.(report|attention|plots) ": "draws for a while: tests of their own",
}
# What is no command of ours.
FOREIGN = {
  r"make \S+$": "make -n",
  r"pip install ": "its extra is in setup.py",
  r"(python )?launch/|ATST_PLATFORM=|sbatch |docker ": "tests/test_launch.py",
  r"python launch/": "tests/test_launch.py",
  r"(git clone|cd|tensorboard|pre-commit) ?": "not ours",
}
# what such a line leaves out may be needed
PLACEHOLDER = re.compile(r"…|\b(NAME|DIR|FILE|KEY|RUNS?)\b")
TINY = {
  key: value
  for key, value in OVERRIDES.items()
  if not key.startswith(("data.source", "views.normalization"))
}
TINY |= {
  "total_steps": "2",
  "warmup_steps": "1",
  "seeds": "1",
  "blocks": "last",
  "probe.epochs": "2",
  "probe.learning_rates": "0.01,0.1,1.0",
  "probe.batch_size": "32",
}


def _is(line: str, table: dict[str, str]) -> bool:
  return any(re.match(pattern, line) for pattern in table)


def _tone(path: pathlib.Path, number: int, seconds: float) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  time = np.arange(int(16000 * seconds)) / 16000
  write_wav(str(path), (8000 * np.sin(2 * np.pi * (200 + 37 * number) * time)).astype("<i2"))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
  """A folder with recordings named as the README says, and the configs."""
  root = tmp_path_factory.mktemp("readme")
  os.symlink(ROOT / "configs", root / "configs")
  for number, (label, fold, take) in enumerate(
    (c, f, t) for c in ("dog", "rain") for f in range(1, 6) for t in "AB"
  ):
    _tone(root / f"recordings/esc10/{label}/{fold}-{100 + number}-{take}.wav", number, 0.7)
  for number, (digit, speaker) in enumerate(
    (d, s) for d in (0, 1) for s in ("ann", "ben", "cy", "dee", "eve", "flo")
  ):
    _tone(root / f"recordings/fsdd/{digit}_{speaker}_0.wav", number, 0.5)
  for number in range(20):
    _tone(root / f"labelled/{'ab'[number % 2]}/{number}.wav", number, 0.6)
  return root


def _run(argv: list[str], monkeypatch) -> None:
  """Runs `python -m MODULE FLAGS…` in this process, made tiny."""
  module, flags = argv[2], argv[3:]
  if module == "data_pipeline.prepare":
    write_inline(monkeypatch)
    flags = [*flags, "--workers=1"]
  if module == "atst_jax.main":
    path = next(flag for flag in flags if flag.startswith("--config=")).removeprefix("--config=")
    keys, given = configs.flatten(configs.load(path)), " ".join(flags)
    flags += [
      f"--config.{k}={v}" for k, v in TINY.items() if k in keys and f"--config.{k}=" not in given
    ]
  if module == "atst_jax.preview":
    flags += [
      f"--config.{k}={v}"
      for k, v in TINY.items()
      if k in configs.flatten(configs.load("configs/base.py"))
    ]
  assert importlib.import_module(module).main(flags) == 0, argv


def _sections(document: str) -> list[tuple[str, str]]:
  return blocks((ROOT / document).read_text(encoding="utf-8"))


def test_the_commands_and_the_python_of_the_readme(sandbox, monkeypatch):
  """Every block is run in order, in one folder; a command that is neither run nor accounted for
  fails."""
  monkeypatch.chdir(sandbox)
  ran = []
  for language, text in _sections("README.md"):
    if language == "python":
      _run_python(text)
      ran.append("python")
    for line in commands(text) if language == "sh" else ():
      if _is(line, FOREIGN):
        _check_foreign(line)
      elif _is(line, ELSEWHERE) and "--sweep" not in line:
        parse_only(monkeypatch, words(line))
      else:
        assert line.startswith("python -m "), f"{line}: run it, or say in this file why not"
        argv = words(line)
        # the first shows the way
        again = any(argv[:4] == other[:4] and "linear" in argv[3] for other in ran)
        _run([*argv, "--dry_run"] if again else argv, monkeypatch)
        ran.append(argv)
    assert language in ("sh", "python", "text"), language
  assert {"data_pipeline.prepare", "atst_jax.main", "atst_jax.export", "atst_jax.embed"} <= {
    r[2] for r in ran
  }
  assert "python" in ran


def _run_python(text: str) -> None:
  rng = np.random.default_rng(0)
  names = {"waveform": rng.normal(0, 0.1, 44100).astype(np.float32)}
  if (
    "load_model(" in text
    and (found := re.search(r'load_model\("([^"]+)"\)', text))
    and not os.path.isdir(found[1])
  ):
    shutil.copytree(next(pathlib.Path("encoders").iterdir()), found[1])
  exec(compile(text, "README.md", "exec"), names)
  assert "vectors" not in names or np.isfinite(names["vectors"]).all()


def _check_foreign(line: str) -> None:
  if line.startswith("make "):
    subprocess.run(["make", "-n", *line.split()[1:]], cwd=ROOT, check=True, capture_output=True)
  for extra in re.findall(r"\.\[([\w,]+)\]", line):
    known = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert all(f'"{name}": ' in known for name in extra.split(",")), line
  for path in re.findall(r"launch/[\w.]+", line):
    assert (ROOT / path).exists(), line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_running_text_are_accepted(document, monkeypatch):
  monkeypatch.chdir(ROOT)
  text = (ROOT / document).read_text(encoding="utf-8")
  lines = inline(text)
  if document != "README.md":
    lines += [
      line for language, block in blocks(text) if language == "sh" for line in commands(block)
    ]
  for line in lines:
    argv = words(line)
    if len(argv) > 3 and not _is(line, FOREIGN) and not PLACEHOLDER.search(line):
      parse_only(monkeypatch, argv)


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
