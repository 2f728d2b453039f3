"""Signals, stalls, dead partners, machines that lack something: the process ends in time, with a
code and a reason."""

import json
import os
import re
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax import main
from atst_jax.pretraining import recipe
from atst_jax.runtime import devices, watchdog
from atst_jax.runtime.mesh import make_mesh
from atst_jax.runtime.metric_writer import MetricWriter
from atst_jax.util.errors import UserError
from tests import programs
from tests.checkpoints import read_tree
from tests.tiny import running, tiny_config, tiny_flags, two_processes, wait_for_step

FLAGS = {
  "total_steps": "8",
  "warmup_steps": "2",
  "checkpoint__every_steps": "4",
  "guard__window": "8",
  "difference__weight": "0",
  "encoder__depth": "1",
}


def _run(workdir, **overrides):
  return main.main([*tiny_flags(**FLAGS | overrides), f"--workdir={workdir}"])


def _at(monkeypatch, actions):
  """Calls actions[step]() before the batch of that step (counted from 1) is given."""
  original = recipe.batches

  def batches(config, dataset, *, start_step, **options):
    for number, batch in enumerate(
      original(config, dataset, start_step=start_step, **options), start_step + 1
    ):
      actions.get(number, lambda: None)()
      yield batch

  monkeypatch.setattr(recipe, "batches", batches)


def test_fault_31_two_runs_are_equal_bit_for_bit(tmp_path, one_device):
  states = []
  for name in ("a", "b"):
    assert _run(tmp_path / name) == 0
    states.append(read_tree(tmp_path / name / "checkpoints" / "8" / "default"))
  jax.tree.map(np.testing.assert_array_equal, *states)


STALLED = """
import ctypes, time
from atst_jax.runtime import watchdog
watchdog.PERIOD, watchdog.GRACE = 0.1, 0.5
with watchdog.Watchdog({!r}, index=0, step_seconds=1.0, start_seconds=50.0) as dog:
  dog.phase("restore")
  time.sleep(1.2)  # within the limit of another phase
  dog.beat(3)
  {}
"""


def test_fault_32_a_stalled_process_ends_with_its_stacks(tmp_path):
  """A thread waits: exit 74, the place on standard error and in a file. A call keeps the
  interpreter's lock: exit 1."""
  waits = STALLED.format(str(tmp_path), "time.sleep(60)")
  locks = STALLED.format(str(tmp_path / "none"), "ctypes.PyDLL(None).sleep(60)")
  with running([], program=("-c", waits)) as waiting, running([], program=("-c", locks)) as locked:
    output, _ = waiting.communicate(timeout=50)
    last_words, _ = locked.communicate(timeout=50)
  assert waiting.returncode == 74, output
  assert "stalled: nothing has moved for 1 s in phase 'step' after step 3" in output
  assert "guard.step_seconds" in output
  assert 'File "<string>", line 9 in <module>' in output
  assert 'File "<string>", line 9 in <module>' in (tmp_path / "stacks_process_0.txt").read_text()
  beat = json.loads((tmp_path / "heartbeat.json").read_text())
  assert beat["phase"] == "stalled" and beat["step"] == 3 and beat["pid"] == waiting.pid
  assert locked.returncode == 1 and "Timeout" in last_words, last_words
  assert "line 9 in <module>" in last_words


def test_fault_32_stalled_input_is_noticed_and_the_heartbeat_tells(
  tmp_path, monkeypatch, one_device
):
  """The batch of step 6 does not come: the watchdog tells it within its limit (here it then comes
  after all)."""
  moved, beats = threading.Event(), []
  monkeypatch.setattr(watchdog, "PERIOD", 0.05)
  monkeypatch.setattr(
    watchdog.Watchdog,
    "_end",
    lambda self, limit: (beats.append((self._phase, self._step)), moved.set()),
  )
  _at(monkeypatch, {6: lambda: moved.wait(60)})
  assert _run(tmp_path, guard__step_seconds="1.0") == 0
  # the step that is known to have ended: 5 is looked at after 6 is dispatched
  assert beats[0] == ("step", 4)
  beat = json.loads((tmp_path / "heartbeat.json").read_text())
  assert beat == beat | {
    "step": 8,
    "phase": "ended",
    "pid": os.getpid(),
    "host": socket.gethostname(),
  }
  assert abs(beat["time"] - time.time()) < 60 and beat["step_time"] <= beat["time"]


RAISING = """
import sys
from atst_jax import main; from atst_jax.pretraining import recipe
from atst_jax.util.errors import UserError
original = recipe.batches
def batches(*args, **options):
  for i, batch in enumerate(original(*args, **options)):
    if i == 5 and "--process_id=0" in sys.argv:
      raise UserError("a shard of process 0 alone is damaged")
    yield batch
recipe.batches = batches
main.end(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("fault", ["dies", "raises"])
def test_fault_36_when_one_process_dies_or_raises_the_other_ends(tmp_path, fault):
  """Within a minute and not with 0; the one that raises ends with its own code, and does not wait
  for the other."""
  flags = tiny_flags(**FLAGS | {"total_steps": "1000000", "checkpoint__every_steps": "1000000"})
  program = ("-c", RAISING) if fault == "raises" else ("-m", "atst_jax.main")
  with two_processes([f"--workdir={tmp_path}", *flags], program=program) as ranks:
    outputs = [None, None]
    first, second = (0, 1)
    if fault == "dies":
      first, second = (1, 0)
      wait_for_step(tmp_path, 3, ranks[0])
      ranks[1].kill()
    outputs[first] = ranks[first].communicate(timeout=300)[0]
    started = time.time()
    outputs[second] = ranks[second].communicate(timeout=60)[0]
    assert time.time() - started < 60 and ranks[second].returncode not in (0, 75), outputs
    if fault == "raises":
      assert ranks[0].returncode == 2, outputs
      assert "a shard of process 0 alone is damaged" in outputs[0]


@pytest.fixture(scope="module")
def program():
  config = recipe.resolve(tiny_config(**FLAGS), None)
  return config, programs.compile_for(
    config, make_mesh(data=1, fsdp=1, devices=jax.devices()[:1]), ragged=False
  )


def test_fault_28_what_is_not_float32_is_refused_at_the_start(program):
  """A teacher, statistics, optimizer or loss in bfloat16."""
  _, tiny = program
  half = lambda tree: jax.tree.map(
    lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree
  )
  breaks = {
    "teacher": lambda s, m: (s._replace(teacher=half(s.teacher)), m),
    "batch_stats": lambda s, m: (s._replace(batch_stats=half(s.batch_stats)), m),
    "opt_state": lambda s, m: (s._replace(opt_state=half(s.opt_state)), m),
    "loss": lambda s, m: (s, {**m, "loss": half(m["loss"])}),
  }
  for name, spoil in breaks.items():
    step = jax.jit(
      lambda state, batch, spoil=spoil: spoil(
        state, {"loss": jnp.mean(batch["mel"].astype(jnp.float32))}
      )
    )
    with pytest.raises(
      TypeError, match=rf"results of the step are not float32, the first: .*{name}.* is bfloat16"
    ):
      recipe.compile_step(tiny._replace(step=step))


def test_fault_37_the_step_is_compiled_once(program):
  """What was compiled cannot be compiled again: another shape or type is an error, not a slow
  step."""
  config, tiny = program
  compiled = programs.compile_step(tiny)
  state = tiny.init(jax.random.key(0))
  batch = jax.device_put(
    next(recipe.batches(config, None, start_step=0, rows=None)),
    {k: v.sharding for k, v in tiny.batch.items()},
  )
  for _ in range(2):
    state, _ = compiled(state, batch)
  assert int(state.step) == 2
  for wrong in ({"mel": batch["mel"][:, :60]}, {"mel": batch["mel"].astype(jnp.float32)}):
    with pytest.raises(TypeError):
      compiled(state, {**batch, **wrong})


def test_fault_35_too_little_memory_names_what_helps(tmp_path, monkeypatch, one_device, capsys):
  def refuse(program):
    raise jax.errors.JaxRuntimeError(
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 26.46G of 15.75G"
    )

  monkeypatch.setattr(recipe, "compile_step", refuse)
  assert _run(tmp_path) == 2
  error = capsys.readouterr().err
  assert "Used 26.46G of 15.75G" in error and "batch_size=16" in error and "Traceback" not in error
  for knob in (
    "compute.accumulation",
    "compute.remat",
    "mesh.fsdp",
    "dtype=bfloat16",
    "atst_jax.plan",
  ):
    assert knob in error


def test_fault_35_an_accelerator_that_is_not_there(monkeypatch):
  """Asked for by the config, or by a launcher."""
  with pytest.raises(UserError, match="platform 'gpu' is asked for, but JAX found 'cpu'"):
    devices.check_platform("gpu")
  devices.check_platform("auto")
  monkeypatch.setenv("ATST_PLATFORM", "tpu")
  devices.check_platform("cpu")
  with pytest.raises(UserError, match=r"'tpu' is asked for, .* or set --config.platform=cpu"):
    devices.check_platform("auto")


@pytest.mark.parametrize("job", ["base", "finetune"])
def test_fault_35_a_job_on_another_platform_writes_nothing(job, tmp_path, capsys):
  flags = [f"--config=configs/{job}.py", "--config.platform=tpu", f"--workdir={tmp_path / 'run'}"]
  assert main.main(flags) == 2
  assert "platform 'tpu' is asked for, but JAX found 'cpu'" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("steps", "growth"), [(160, 1.03), pytest.param(500, 1.05, marks=pytest.mark.slow)]
)
def test_fault_33_memory_is_flat(tmp_path, monkeypatch, one_device, steps, growth):
  """Resident memory over so many steps, with logs and ten checkpoints."""

  def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
      return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

  first, last, sizes = steps // 4, steps // 4 + steps, {}
  _at(
    monkeypatch,
    {step: lambda step=step: sizes.update({step: resident()}) for step in (first, last)},
  )
  every = str(last // 10)
  assert (
    _run(tmp_path, total_steps=str(last), checkpoint__every_steps=every, log__every_steps="5") == 0
  )
  assert sizes[last] < growth * sizes[first], {k: f"{v / 2**20:.1f} MiB" for k, v in sizes.items()}


def test_fault_34_a_logger_that_fails_warns_once_and_training_goes_on(tmp_path, warnings):
  """A full disk under metrics.jsonl, a TensorBoard folder that is a file."""
  (tmp_path / "tensorboard").write_text("")
  writer = MetricWriter(tmp_path)
  with open("/dev/full", "w", encoding="utf-8") as full:
    os.dup2(full.fileno(), writer._file.fileno())
  for step in (1, 2, 3):
    writer.write(step, {"loss": 1.0})
  writer.close()
  assert sorted(re.match(r"logging to (\S+) failed", w)[1] for w in warnings) == [
    "TensorBoard",
    "metrics.jsonl",
  ]
  assert all("training goes on without it" in w for w in warnings)
