"""The config belongs to the checkpoint: what a run is continued and exported with, and what is
recorded of a change."""

import json
import shutil

import jax
import numpy as np
import pytest

from atst_jax import main
from atst_jax.artifacts import export
from atst_jax.pretraining import job, recipe
from atst_jax.runtime.checkpoint import find_checkpoint
from atst_jax.runtime.workdir import read_starts
from atst_jax.util.errors import UserError
from tests.checkpoints import parent
from tests.tiny import tiny_config, tiny_flags


def test_fault_05_checkpoints_that_lie_elsewhere_are_not_begun_anew(tmp_path):
  """Whatever may change: the folder's name did, or the folder is not mounted."""
  mine, other = str(tmp_path / "disk"), str(tmp_path / "other")
  (tmp_path / "disk" / "7").mkdir(parents=True)
  run = {"seed": 0, "checkpoint": {"folder": mine}}
  (tmp_path / "config.json").write_text(json.dumps(run))
  (tmp_path / "starts.jsonl").write_text('{"step": 0}\n{"step": 5}\n')
  assert job.stored_config(str(tmp_path), mine) == run
  for folder in (other, None):
    with pytest.raises(UserError, match=rf"lie in {mine}, and .* has none; copy them there"):
      job.stored_config(str(tmp_path), folder)
  shutil.rmtree(mine)
  (tmp_path / "disk" / "4").mkdir(parents=True)
  (tmp_path / "disk" / "4" / "unfinished").touch()  # a killed save is no checkpoint
  for starts, saved in ((5,), 5), ((0, {"saved": 2}), 2), ((0, {"saved": 2}, 6), 6):
    lines = [start if isinstance(start, dict) else {"step": start} for start in starts]
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=rf"saved one at step {saved}; mount or copy the folder"):
      job.stored_config(str(tmp_path), mine)
  # stopped before its first checkpoint, or begun anew on purpose and then stopped so
  for starts in ('{"step": 0}\n', '{"step": 0}\n{"saved": 2}\n{"step": 0}\n'):
    (tmp_path / "starts.jsonl").write_text(starts)
    assert job.stored_config(str(tmp_path), mine) is None


METRICS = (
  *("loss", "skipped", "bad", "collapsed", "learning_rate", "weight_decay", "ema_decay"),
  *("grad_norm", "std_student", "std_teacher"),
)
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def idle(monkeypatch):
  """A training that computes nothing: all arrays are 0, and steps are counted."""
  compile_for = recipe.compile_for

  def compiled_for(*args, **options):
    program = compile_for(*args, **options)
    zeros = lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
    return program._replace(init=lambda key: jax.tree.map(zeros, program.state))

  def step(state, batch):
    return state._replace(step=state.step + 1), {**dict.fromkeys(METRICS, 0.0), "rank_teacher": 8.0}

  monkeypatch.setattr(recipe, "compile_for", compiled_for)
  monkeypatch.setattr(recipe, "compile_step", lambda program: step)


def _run(*more, **overrides):
  small = {"total_steps": "2", "encoder__depth": "1", "difference__weight": "0"}
  small["checkpoint__every_steps"] = "2"
  return main.main([*tiny_flags(**small | overrides), *more])


def _records(workdir):
  names = ("config.json", "starts.jsonl", "metrics.jsonl", "checkpoints/2/config.json")
  return [(workdir / name).read_bytes() for name in names]


def test_fault_08_a_change_is_recorded_by_what_is_saved_with_it(
  tmp_path, warnings, capsys, monkeypatch, idle
):
  """A finished run that is asked for other values does nothing and changes nothing; nor does one
  that fails. A run that goes on with them records each at its step; exports are made with the
  config of their checkpoint."""
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / "runs" / "base"  # the default
  assert _run() == 0
  before = _records(workdir)
  assert _run("--allow_changed_config", views__normalization__high="20") == 0
  assert "nothing is trained with the other values" in warnings[-1]
  assert _run("--allow_changed_config", encoder__width="32") == 2
  assert "cannot be restored into this model" in capsys.readouterr().err
  assert _records(workdir) == before and _run() == 0

  more = {"total_steps": "3", "views__normalization__high": "20"}
  assert _run(**more) == 2
  assert "normalization.high: 40.0 -> 20.0" in capsys.readouterr().err
  assert _run("--allow_changed_config", **more) == 0
  start = read_starts(str(workdir))[-1]
  assert start["step"] == 2 and start["changes"] == [
    "total_steps: 2 -> 3",
    "views.normalization.high: 40.0 -> 20.0",
  ]
  assert json.loads((workdir / "config.json").read_text())["total_steps"] == 3
  monkeypatch.setattr(export, "write", lambda output, variables, **options: written.append(options))
  for step, high in ((2, 40), (3, 20)):
    written = []
    export.export_run(str(workdir), "exported", step)
    assert written[0]["normalization"]["high"] == high
    config = find_checkpoint(str(workdir / "checkpoints"), step)[2]
    assert config["views"]["normalization"]["high"] == high and config["total_steps"] == step
  assert len(read_starts(str(workdir))) == 2


def test_fault_05_a_folder_that_is_not_there_at_the_second_start_is_missed(tmp_path, capsys, idle):
  """It began from nothing and saved: that is noted. All that the first start wrote stays."""
  place, workdir = tmp_path / "disk", tmp_path / "run"
  options = {"checkpoint__folder": str(place), "total_steps": "4"}
  assert _run(f"--workdir={workdir}", **options) == 0
  records = (workdir / "metrics.jsonl").read_bytes()
  assert records and [start["step"] for start in read_starts(str(workdir))] == [0]
  place.rename(tmp_path / "unmounted")
  assert _run(f"--workdir={workdir}", **options) == 2
  error = capsys.readouterr().err
  assert f"{place} holds no checkpoint, but this run has saved one at step 2; mount" in error
  assert (workdir / "metrics.jsonl").read_bytes() == records
  shutil.rmtree(place)
  (tmp_path / "unmounted").rename(place)
  assert _run(f"--workdir={workdir}", **options) == 0
  assert (workdir / "metrics.jsonl").read_bytes() == records


def test_fault_03_a_first_save_that_never_ended_binds_to_nothing(tmp_path, capsys, idle):
  """Its run begins anew, also with another config, and says so before."""
  workdir = tmp_path / "run"
  assert _run(f"--workdir={workdir}") == 0
  (workdir / "checkpoints" / "2" / "manifest.json").unlink()
  (workdir / "checkpoints" / "2" / "unfinished").touch()
  assert _run(f"--workdir={workdir}", "--dry_run", seed="3") == 0
  assert f"{workdir}: a new run\n" in capsys.readouterr().out
  assert _run(f"--workdir={workdir}", seed="3") == 0


def test_fault_05_a_changed_bit_in_a_config_is_damage_like_any_other(tmp_path, warnings, idle):
  """Not "another config": the checkpoint before says what the run's is."""
  workdir = tmp_path / "run"
  assert _run(f"--workdir={workdir}", total_steps="4") == 0
  path = workdir / "checkpoints" / "4" / "config.json"
  assert path.read_text().count('"seed": 0,') == 1
  path.write_text(path.read_text().replace('"seed": 0,', '"seed": 1,'))
  assert _run(f"--workdir={workdir}", total_steps="4") == 0
  assert any(
    "from checkpoint 2, since 4: the contents of config.json are not" in w for w in warnings
  )


def test_fault_01_a_run_goes_on_without_the_encoder_that_it_began_with(tmp_path, capsys, idle):
  """All that was taken from the export is in the checkpoint; a new run needs it."""
  constants = {"kind": "min_max", "low": -90.0, "high": 30.0, "top_db": 80.0}
  encoder = parent(tmp_path / "encoder", normalization=constants)
  free = dict.fromkeys(("views__normalization__low", "views__normalization__high"), "none")
  options = {"initial": encoder, "total_steps": "2", **free}
  options["encoder__depth"] = str(tiny_config().encoder.depth)
  workdir = f"--workdir={tmp_path / 'run'}"
  assert _run(workdir, **options) == 0
  shutil.rmtree(encoder)
  assert _run(workdir, **options) == 0
  assert _run(workdir, "--allow_changed_config", **options | {"total_steps": "3"}) == 0
  assert read_starts(str(tmp_path / "run"))[-1]["changes"] == ["total_steps: 2 -> 3"]
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["initial"] == encoder and len(config["initial_hash"]) == 16
  assert config["views"]["normalization"]["low"] == -90.0
  assert _run("--dry_run", workdir, **options | {"total_steps": "3"}) == 0
  assert "belongs to this run; goes on from step 3" in capsys.readouterr().out
  assert _run(f"--workdir={tmp_path / 'new'}", **options) == 2
  assert "not an exported encoder" in capsys.readouterr().err


def test_a_folder_whose_name_is_a_pattern_is_refused_before_anything_is_compiled(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(recipe, "compile_step", lambda program: pytest.fail("compiled"))
  assert _run(f"--workdir={tmp_path}/[x]") == 2
  assert "holds [, with which Orbax does not find its own files" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("config", "workdir"),
  [
    ("configs/base.py", "runs/base"),
    ("base", "runs/base"),
    ("configs/base.py:released", "runs/base-released"),
  ],
)
def test_the_workdir_has_the_name_of_the_config(monkeypatch, config, workdir):
  said = []
  monkeypatch.setattr(main.log, "info", lambda message, *args: said.append(message % args))
  assert main.parse([f"--config={config}"])[0].workdir == workdir
  assert said == [f"--workdir={workdir}"]
  assert main.parse([f"--config={config}", "--workdir=a"])[0].workdir == "a" and len(said) == 1
