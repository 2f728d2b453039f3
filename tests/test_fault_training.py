"""Steps that go wrong: skipped inside the jitted step, undone by going back to a checkpoint, or the
end with a dump."""

import os
import re
import signal

import jax
import numpy as np
import pytest

from atst_jax import main
from atst_jax.pretraining import recipe
from atst_jax.pretraining.recovery import Recovery
from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.runtime.preemption import StopRequest
from tests.checkpoints import MIN_MAX, parent, read_tree
from tests.evaluation import make_clips, write_clips
from tests.tiny import tiny_config, tiny_flags

pytestmark = pytest.mark.usefixtures("one_device")


def _poisoned(monkeypatch, steps, at=None):
  """Batches whose mels are NaN at these steps (counted from 1); `at` = {step: function} is called
  there."""
  original = recipe.batches

  def batches(config, dataset, *, start_step, **options):
    for number, batch in enumerate(
      original(config, dataset, start_step=start_step, **options), start_step + 1
    ):
      if number in steps:
        batch["mel"][:] = np.nan
      if at and number in at and not options.get("with_ids"):
        at.pop(number)()
      yield batch

  monkeypatch.setattr(recipe, "batches", batches)


def _run(workdir, *more, **overrides):
  small = {
    "total_steps": "16",
    "warmup_steps": "2",
    "encoder__depth": "1",
    "checkpoint__every_steps": "4",
    "checkpoint__keep": "1",
    "guard__patience": "3",
    "guard__rollbacks": "1",
    "guard__window": "8",
    "difference__weight": "0",
  }
  flags = tiny_flags(**small | overrides)
  return main.main([*flags, *more, f"--workdir={workdir}"])


def _state(workdir, step):
  return read_tree(workdir / "checkpoints" / str(step) / "default")


def test_fault_26_the_run_goes_back_and_skips_the_window(tmp_path, monkeypatch, warnings):
  """Steps 10 to 12 are bad: back to the checkpoint of 8, and on with batch 13; 9 to 12 are lost. A
  run that is stopped at 11, in the middle of the bad steps, ends bit for bit as one that is not,
  although it has a newer checkpoint."""
  _poisoned(monkeypatch, {10, 11, 12})
  assert _run(tmp_path / "whole") == 0
  state = _state(tmp_path / "whole", 16)
  assert int(state["guard"]["skipped"]) == 4 and int(state["teacher"]["count"]) == 12
  assert int(state["guard"]["rollbacks"]) == 1 and int(state["step"]) == 16
  told = next(w for w in warnings if "Going back" in w)
  assert re.search(
    r"steps 10 to 12 were bad \(loss nan.*clips: 0/9/0, 0/9/1, .*16 in all .*state of step 8, and "
    r"on "
    r"with the data after step 12 \(1 of 1 times\)",
    told,
  )
  assert [w.split(" was")[0] for w in warnings if "was skipped" in w] == [
    "step 10",
    "step 11",
    "step 12",
  ]
  steps = [r["step"] for r in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
  assert steps == list(range(1, 17))
  with np.load(tmp_path / "whole" / "bad_batch_10_process_0.npz", allow_pickle=False) as dump:
    assert dump["step"] == 10 and np.isnan(dump["mel"]).all() and dump["id"][0] == "0/9/0"
    assert dump["metric_bad"] == 3

  _poisoned(monkeypatch, set(), {11: lambda: os.kill(os.getpid(), signal.SIGUSR1)})
  assert _run(tmp_path / "stopped") == 75
  assert sorted(os.listdir(tmp_path / "stopped" / "checkpoints"), key=int) == ["8", "11"]
  assert _run(tmp_path / "stopped") == 0
  jax.tree.map(np.testing.assert_array_equal, _state(tmp_path / "stopped", 16), state)


def test_fault_26_a_run_that_stays_bad_ends_with_a_dump(tmp_path, monkeypatch, warnings, capsys):
  """From the initial state, since there is no checkpoint yet; then exit code 3, with whole
  checkpoints."""
  _poisoned(monkeypatch, {2, 3, 4, *range(11, 17)})
  assert _run(tmp_path) == 3
  assert any(
    "Going back to the state of step 0, and on with the data after step 4" in w for w in warnings
  )
  error = capsys.readouterr().err
  told = r"diverged: steps 11 to 13 were bad .*0/10/0, .*bad_batch_11_process_0.npz.*back 1 times"
  assert re.search(told, error)
  assert (tmp_path / "bad_batch_11_process_0.npz").exists() and "Traceback" not in error
  state = _state(tmp_path, 8)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  assert int(state["guard"]["skipped"]) == 4


def test_fault_26_a_step_that_is_undone_is_measured_once(tmp_path, monkeypatch):
  """Steps 5 and 6 are bad, and the online evaluation is due at 6: after the run has gone back."""
  _poisoned(monkeypatch, {5, 6})
  online = {"online__path": write_clips(tmp_path / "labelled", make_clips(36))}
  online |= {"online__every_steps": "2", "online__clips": "24", "online__max_seconds": "0.7"}
  small = {"total_steps": "8", "guard__patience": "2", "online__knn": "3"}
  assert _run(tmp_path / "run", **small, **online) == 0
  records = read_metrics(tmp_path / "run" / "metrics.jsonl")
  assert [r["step"] for r in records if "online_seconds" in r] == [0, 2, 4, 6, 8]
  assert [r["step"] for r in records if "loss" in r] == list(range(1, 9))


def test_fault_26_a_run_that_may_begin_again_needs_the_encoder_it_began_with(
  tmp_path, monkeypatch, capsys
):
  """Stopped before its first sound checkpoint: a rollback would ask for the export hours later."""
  encoder, asked = parent(tmp_path / "encoder", normalization=MIN_MAX), iter((False, False, True))
  free = dict.fromkeys(("views__normalization__low", "views__normalization__high"), "none")
  options = {"initial": encoder, "encoder__depth": str(tiny_config().encoder.depth), **free}
  options |= {"total_steps": "6", "checkpoint__every_steps": "5", "guard__patience": "1"}
  with monkeypatch.context() as patch:
    patch.setattr(StopRequest, "agreed", lambda self: next(asked))
    assert _run(tmp_path / "run", **options) == 75
  os.rename(encoder, tmp_path / "away")
  assert _run(tmp_path / "run", **options) == 2
  error = capsys.readouterr().err
  assert "no checkpoint of this run is sound yet" in error and "Traceback" not in error
  os.rename(tmp_path / "away", encoder)
  _poisoned(monkeypatch, {4})
  assert _run(tmp_path / "run", **options) == 0  # back to the beginning; 5 is sound
  os.rename(encoder, tmp_path / "away")
  assert _run(tmp_path / "run", "--allow_changed_config", **options | {"total_steps": "7"}) == 0


def test_fault_27_what_has_collapsed_is_not_sound_where_that_ends_a_run(tmp_path):
  options = dict.fromkeys(("checkpoints", "abstract_state", "fresh", "read"))
  options |= {"outputs": 8, "patience": 3, "rollbacks": 1, "collapse_steps": 20, "narrow": 0.0}
  sound = lambda collapse, **metrics: Recovery(
    str(tmp_path), collapse=collapse, **options
  ).is_sound({"bad": 0, "collapsed": 0, **metrics})
  assert sound("stop") and not sound("warn", bad=1) and not sound("stop", collapsed=1)
  assert sound("warn", collapsed=1)  # the run goes on in that state
