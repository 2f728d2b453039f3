"""What bad input gets: one message with the remedy, exit code 2, nothing compiled and nothing
half-written."""

import json
import os
import pstats
import shlex
import subprocess
import sys

import jax
import pytest

from atst_jax import main
from atst_jax.data import labelled_batches, order
from atst_jax.runtime import session, workdir
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.tiny import ROOT, tiny_flags, write_dataset

BASE = str(ROOT / "configs" / "base.py")


@pytest.fixture
def no_compilation(monkeypatch):
  def refuse(*_, **__):
    raise AssertionError("something is compiled")

  monkeypatch.setattr(jax, "jit", refuse)


def _fails(flags, message, capsys, workdir):
  assert main.main([*flags, f"--workdir={workdir}"]) == 2
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error, error
  assert not os.path.exists(workdir) or os.listdir(workdir) in ([], [".lock"])


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--config=configs/bose.py"], "--config=configs/bose.py: no such file"),
    ([f"--config={BASE}:papr"], "has no variant 'papr'; there are paper"),
    ([f"--config={BASE}", "--config.encoder.widht=8"], "did you mean --config.encoder.width?"),
    (
      [f"--config={BASE}", "--steps=8"],
      "--steps=8: unknown flag; overrides read --config.KEY=VALUE",
    ),
    ([f"--config={BASE}", "--config.batch_size=many"], "expected int"),
    (
      [f"--config={BASE}", "--config.job=pretain"],
      "--config.job=pretain: choose one of pretrain, linear",
    ),
    ([f"--config={BASE}", "--config.data.path=/nowhere"], "/nowhere/dataset.json does not exist"),
    (
      tiny_flags(batch_size="12"),
      "batch_size 12 is not divisible by 8 devices; use a multiple of 8",
    ),
    (tiny_flags(mesh__fsdp="3"), "mesh.data=-1 x mesh.fsdp=3 does not use the 8 devices"),
    (tiny_flags(platform="tpu"), "platform 'tpu' is asked for, but JAX found 'cpu'"),
  ],
)
def test_fault_11_mistakes_in_flags(flags, message, capsys, tmp_path, no_compilation):
  _fails(flags, message, capsys, tmp_path / "work")


def _edit(root, change):
  path = root / "dataset.json"
  manifest = json.loads(path.read_text())
  change(manifest, root)
  path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
  "change, overrides, message",
  [
    (lambda m, root: None, {"data__frontend": "byola"}, "was prepared with the front-end 'atst'"),
    (lambda m, root: None, {"data__split": "valid"}, "no split 'valid'; there are train"),
    (lambda m, root: None, {"data__streams": "8"}, "4 shards cannot feed data.streams=8"),
    (lambda m, root: None, {"batch_size": "64"}, "one batch of 64; set --config.batch_size=16"),
    (
      lambda m, root: m.pop("statistics"),
      {"views__low": "none"},
      "holds no statistics; run `python -m data_pipeline.prepare",
    ),
    (lambda m, root: m.update(schema=99), {}, "schema version 99"),
    (
      lambda m, root: (root / "train-00001-of-00004.tfrecord").unlink(),
      {},
      "1 of 4 shards are missing",
    ),
    (lambda m, root: os.truncate(root / "train-00003-of-00004.tfrecord", 4000), {}, "4000 bytes,"),
  ],
)
def test_fault_12_24_30_mistakes_in_data(
  change, overrides, message, capsys, tmp_path, no_compilation
):
  root = tmp_path / "data"
  write_dataset(root)
  flags = tiny_flags(data__source="records", data__path=str(root), **overrides)
  if overrides.get("views__low") == "none":
    flags = [f for f in flags if "views.low" not in f]
  _edit(root, change)
  _fails(flags, message, capsys, tmp_path / "work")


def test_fault_10_a_workdir_that_cannot_be_written(capsys, tmp_path, no_compilation):
  (tmp_path / "file").write_text("")
  assert main.main([*tiny_flags(), f"--workdir={tmp_path}/file/work"]) == 2
  assert "cannot be written" in capsys.readouterr().err


def test_print_config(capsys, tmp_path):
  assert main.main([*tiny_flags(), f"--workdir={tmp_path}/w", "--print_config"]) == 0
  assert (
    json.loads(capsys.readouterr().out)["encoder"]["width"] == 16 and not (tmp_path / "w").exists()
  )


def test_a_profiler_in_front_sees_the_program(tmp_path):
  """The process does not start anew then: the profile would be that of the first one, empty."""
  command = [sys.executable, "-m", "cProfile", "-o", str(tmp_path / "profile"), "-m"]
  command += ["atst_jax.main", *tiny_flags(), f"--workdir={tmp_path}", "--print_config"]
  env = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
  subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
  functions = {name for _, _, name in pstats.Stats(str(tmp_path / "profile")).stats}
  assert {"_main", "parse", "load_with_overrides"} <= functions


def test_sweeps_print_their_commands(capsys, tmp_path):
  """One command for each run, with the flags given and a workdir of its own; nothing is run."""
  flags = [
    f"--config={ROOT / 'configs' / 'atst_small.py'}",
    f"--workdir={tmp_path}/runs",
    "--config.seed=3",
  ]
  assert main.main([*flags, "--sweep=views"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4 and all(
    line.startswith("python -m atst_jax.main --config=") for line in lines
  )
  assert all("--config.seed=3" in line for line in lines)
  assert f"--workdir={tmp_path}/runs/segments=two_crop_frames=601" in lines[3]
  assert "--config.views.segments=two --config.views.crop_frames=601" in lines[3]
  assert len({line.split("--workdir=")[1].split()[0] for line in lines}) == 4 and not os.listdir(
    tmp_path
  )
  assert main.main([*flags, "--sweep=views", "--config.checkpoint.folder=gs://b/runs"]) == 0
  folders = [
    line.split("checkpoint.folder=")[1].split()[0] for line in capsys.readouterr().out.splitlines()
  ]
  assert len(set(folders)) == 4 and folders[3] == "gs://b/runs/segments=two_crop_frames=601"
  parsed = main.parse(shlex.split(lines[0])[3:])[1]
  assert parsed.views.segments == "single" and parsed.views.crop_frames == 101 and parsed.seed == 3
  spaced = [*(word for flag in flags[:2] for word in flag.split("=")), "--verbosity", "quiet"]
  assert main.main([*spaced, "--process_id", "0", "--sweep", "views"]) == 0
  words = shlex.split(capsys.readouterr().out.splitlines()[0])
  assert words[3:7] == [*flags[:1], words[4], "--verbosity=quiet", "--process_id=0"]
  assert main.main([*flags, "--sweep=lambda"]) == 2
  assert "has views, length" in capsys.readouterr().err


def test_programs_are_kept_for_accelerators(monkeypatch):
  """In the workdir, unless a folder is named; compiled for a CPU they are not kept."""
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    session.keep_programs("runs/x")
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    session.keep_programs("runs/x")
    session.keep_programs("runs/y")
    assert jax.config.jax_compilation_cache_dir == os.path.join("runs/x", "compiled")
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
  ("name", "version"), [("base", order.VERSION), ("finetune", labelled_batches.VERSION)]
)
def test_a_run_with_an_older_order_of_clips_is_refused_with_the_reason(tmp_path, name, version):
  """Before `data.order` clips came in version 1 of the order; --allow_changed_config goes on. So
  with those of the version before this one."""
  now, old = (configs.to_json(configs.load(name)) for _ in range(2))
  assert now["data"]["order"] == version
  del old["data"]["order"]
  before = configs.to_json(configs.load(name))
  before["data"]["order"] = version - 1
  for other, said in ((old, r"\(absent\)"), (before, version - 1)):
    with pytest.raises(UserError, match=rf"data.order: {said} -> {version} \(clips came in anoth"):
      workdir.agree([str(tmp_path)], now, other, ignore=(), allow_changes=False)
    assert workdir.agree([str(tmp_path)], now, other, ignore=(), allow_changes=True)
