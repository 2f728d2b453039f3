"""What every command has: help with examples, the nearest flag, `--verbosity`, exit codes."""

import ast
import importlib
import logging

import pytest

from atst_jax import main
from atst_jax.util import cli, logs
from atst_jax.util.errors import UserError
from tests.evaluation import write_encoder
from tests.tiny import ROOT, tiny_flags, write_dataset


def _commands() -> list[str]:
  """The module of every `python -m …` command."""
  files = [
    f for package in ("atst_jax", "data_pipeline") for f in sorted((ROOT / package).rglob("*.py"))
  ]
  return [
    ".".join(f.relative_to(ROOT).with_suffix("").parts)
    for f in files
    if any(
      isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
      for node in ast.parse(f.read_text()).body
    )
  ]


# which `benchmark` starts itself, with JSON
COMMANDS = [name for name in _commands() if "performance.torch_" not in name]
PARTS = {
  "data_pipeline.prepare": ("verify", "stats", "merge", "repair"),
  "atst_jax.benchmark": ("step", "input", "end_to_end", "prepare"),
}


def test_every_command_is_found():
  assert {"atst_jax.main", "atst_jax.export", "atst_jax.embed", "data_pipeline.prepare"} <= {
    *COMMANDS
  }


@pytest.mark.parametrize(
  "name", [f"{c} {part}".strip() for c in COMMANDS for part in ("", *PARTS.get(c, ()))]
)
def test_help_has_examples(name, capsys):
  module, *part = name.split()
  with pytest.raises(SystemExit) as end:
    importlib.import_module(module).main([*part, "--help"])
  shown = capsys.readouterr().out
  assert end.value.code == 0 and f"python -m {name} " in shown.partition("\n\n")[2], shown
  assert "--verbosity {quiet,info,debug}" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistyped_flag_is_answered_with_the_nearest(name, capsys):
  assert importlib.import_module(name).main(["--verbosty=quiet"]) == 2
  error = capsys.readouterr().err
  assert "unknown flag --verbosty; did you mean '--verbosity'?" in error
  assert "Traceback" not in error


@pytest.fixture
def level():
  """The log's level is put back."""
  before = logs.log.level
  yield
  logs.log.setLevel(before)


def test_verbosity(level, capsys):
  parser = cli.Parser("x", None)

  def work(verbosity):
    parser.parse([f"--verbosity={verbosity}"])
    logs.log.info("as it goes")
    logs.log.warning("mind this")
    raise UserError("a mistake")

  shown = {}
  for verbosity in cli.VERBOSITY:
    assert cli.guard(lambda verbosity=verbosity: work(verbosity)) == 2
    shown[verbosity] = capsys.readouterr().err
    assert "mind this" in shown[verbosity] and "error: a mistake" in shown[verbosity]
    assert logs.is_quiet() == (verbosity == "quiet")
  assert ["as it goes" in text for text in shown.values()] == [False, True, True]
  assert ["Traceback" in text for text in shown.values()] == [False, False, True]
  assert logs.log.level == logging.DEBUG


def test_exit_codes():
  def interrupted():
    raise KeyboardInterrupt

  assert cli.guard(lambda: None) == 0 and cli.guard(lambda: 1) == 1
  assert cli.guard(interrupted) == cli.EXIT_AGAIN


def test_overrides_are_passed_on():
  parser = cli.Parser("x", None)
  parser.add_argument("--config", required=True)
  flags, rest = parser.parse_with_overrides(["--config=a.py", "--config.b=1", "--config.c.d=x y"])
  assert flags.config == "a.py" and rest == ["--config.b=1", "--config.c.d=x y"]
  wrong = {
    "did you mean '--config'": ["--confg=a.py"],
    "required: --config; see `python -m x --help": [],
    "--steps=8: unknown flag; overrides read": ["--config=a.py", "--steps=8"],
  }
  for message, argv in wrong.items():
    with pytest.raises(UserError, match=message):
      parser.parse_with_overrides(argv)


def _dry_run(flags, capsys) -> dict[str, str]:
  assert main.main([*flags, "--dry_run"]) == 0
  return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_dry_run_of_pretraining(tmp_path, capsys, monkeypatch):
  """Checks and tells what would run; compiles and writes nothing, and finds what the run itself
  would refuse."""
  root, workdir = write_dataset(tmp_path / "data"), tmp_path / "run"
  flags = [*tiny_flags(data__source="records", data__path=root), f"--workdir={workdir}"]
  shown = _dry_run(flags, capsys)
  assert "a new run" in shown["workdir"] and not workdir.exists()
  assert "26 clips in 4 shards" in shown["data"] and "3.69 epochs" in shown["data"]  # 6 steps of 16
  assert shown["steps"].startswith(
    "6 of 16 clips (2 on a device), warm-up 2; views of 32 frames, some shorter"
  )
  assert "parameters" in shown["network"] and "every 6 steps, 3 kept" in shown["writes"]
  (workdir / "checkpoints" / "4").mkdir(parents=True)
  assert "goes on from step 4" in _dry_run(flags, capsys)["workdir"]
  assert main.main([*flags, "--config.batch_size=12", "--dry_run"]) == 2
  assert "not divisible by 8 devices" in capsys.readouterr().err


def test_dry_run_of_linear_evaluation(tmp_path, capsys):
  root, encoder = write_dataset(tmp_path / "data", labels=2), write_encoder(tmp_path / "encoder")
  flags = [
    f"--config={ROOT / 'configs/linear.py'}",
    f"--config.encoder={encoder}",
    f"--config.data.path={root}",
    f"--workdir={tmp_path / 'run'}",
  ]
  shown = _dry_run(flags, capsys)
  assert "26 clips, 2 classes, one label each" in shown["data"]
  assert shown["divisions"].startswith("3, ")
  assert shown["probes"].startswith("3 divisions x 8 penalties of each kind of features, protocol")
  paper = _dry_run([*flags, "--config.protocol=atst"], capsys)
  assert paper["probes"].startswith(
    "90 of each kind of features: 3 divisions x 3 seeds x 10 rates, 100 epochs"
  )
  assert not (tmp_path / "run").exists()


def test_every_job_has_a_dry_run():
  assert all(callable(importlib.import_module(module).describe) for module in main.JOBS.values())


def test_dry_run_of_fine_tuning(tmp_path, capsys):
  root, encoder = (
    write_dataset(tmp_path / "data", labels=2, shards=8),
    write_encoder(tmp_path / "encoder"),
  )
  flags = [
    f"--config={ROOT / 'configs/finetune.py'}",
    f"--config.encoder={encoder}",
    f"--config.data.path={root}",
    "--config.batch_size=16",
    "--config.mixup.group=2",
    f"--workdir={tmp_path / 'run'}",
  ]
  shown = _dry_run(flags, capsys)
  assert "52 clips, 2 classes, one label each" in shown["data"]
  assert shown["runs"].startswith("3: 3 divisions x 1 seeds")
  assert not (tmp_path / "run").exists()
