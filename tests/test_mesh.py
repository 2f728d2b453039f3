"""The same losses on any mesh: 1 device or 8, data or fsdp, one process or two."""

import functools
import itertools
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax import main
from atst_jax.pretraining import recipe
from atst_jax.runtime.mesh import make_mesh, process_rows, put_batch
from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.runtime.preemption import StopRequest
from atst_jax.util.errors import UserError
from tests.tiny import tiny_config, tiny_flags, two_processes, wait_for_step, write_dataset

STEPS = 2
DEVICES = {"base.py": 8, "byola.py": 4}
CONFIGS = {
  "base.py": {"encoder__width": "128", "encoder__depth": "1"},
  # Post-normalisation over the batch, BatchNorm and dropout in the encoder, one pass for each view.
  "byola.py": {
    "encoder__width": "1040",
    "encoder__hidden": "8",
    "views__normalization__mean": "-6",
    "views__normalization__std": "7",
    "difference__weight": "0.5",
    "difference__symmetric": "False",
    "batch_size": "8",
    "optimizer__base_lr": "1e-4",
    "optimizer__eps": "1e-4",
    "warmup_steps": "0",
  },
}


@functools.cache
def _compiled(devices, fsdp, file="base.py"):
  config = recipe.resolve(tiny_config(file=file, **CONFIGS[file]), None)
  mesh = make_mesh(data=-1, fsdp=fsdp, devices=jax.devices()[:devices])
  program = recipe.compile_for(config, mesh, ragged=False)
  if devices == 1 or fsdp > 1:
    state = program.init(jax.random.key(0))
  else:
    shardings = jax.tree.map(lambda x: x.sharding, program.state)
    state = jax.device_put(jax.device_get(_compiled(1, 1, file)[1]), shardings)
  batches = [
    put_batch(mesh, b)
    for b in itertools.islice(recipe.batches(config, None, start_step=0, rows=None), STEPS)
  ]
  return program.step.lower(state, batches[0]).compile(), state, batches


@functools.cache
def _losses(devices, fsdp, file="base.py"):
  step, state, batches = _compiled(devices, fsdp, file)
  state, losses = jax.tree.map(jnp.copy, state), []  # the step donates its state
  for batch in batches:
    state, metrics = step(state, batch)
    losses.append(
      [float(metrics[k]) for k in ("loss_byol", "loss_difference", "grad_norm", "std_student")]
    )
  return np.array(losses), jax.device_get(state.batch_stats)


@pytest.mark.parametrize(
  "devices, fsdp, file", [(8, 1, "base.py"), (8, 4, "base.py"), (4, 1, "byola.py")]
)
def test_fault_07_losses_and_batch_statistics_do_not_depend_on_the_mesh(devices, fsdp, file):
  """BatchNorm's statistics are those of the global batch. Seen red with the statistics of one
  device."""
  losses, stats = _losses(devices, fsdp, file)
  expected, expected_stats = _losses(1, 1, file)
  np.testing.assert_allclose(losses, expected, rtol=2e-4)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), stats, expected_stats
  )


@pytest.mark.parametrize("file", CONFIGS)
def test_views_and_mixing_do_not_communicate(file):
  """The data-parallel step gathers and permutes nothing: its collectives are sums."""
  text = _compiled(DEVICES[file], 1, file)[0].as_text()
  collectives = set(
    re.findall(r"\b(all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)\b", text)
  )
  assert collectives == {"all-reduce"}


def test_fsdp_shards_state():
  step, state, _ = _compiled(8, 4)
  kernel = state.params["encoder"]["block_00"]["qkv"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  assert state.teacher.params["encoder"]["block_00"]["qkv"]["kernel"].sharding == kernel.sharding
  whole = _compiled(8, 1)[0].memory_analysis().argument_size_in_bytes
  assert step.memory_analysis().argument_size_in_bytes < 0.5 * whole


def test_the_state_is_donated():
  """Its new arrays take the place of the old ones: all but the metrics are aliases."""
  step, state, _ = _compiled(8, 1)
  memory = step.memory_analysis()
  assert memory.alias_size_in_bytes == sum(x.nbytes for x in jax.tree.leaves(state))
  assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 2048


def test_mesh_numbers_are_refused():
  with pytest.raises(UserError, match=r"mesh.data=3 x mesh.fsdp=2 does not use the 8 devices"):
    make_mesh(data=3, fsdp=2)
  with pytest.raises(UserError, match=r"mesh\.data=-1 x mesh\.fsdp=3"):
    make_mesh(data=-1, fsdp=3)
  assert dict(make_mesh(data=-1, fsdp=2).shape) == {"data": 4, "fsdp": 2}
  assert process_rows(make_mesh(data=-1, fsdp=2), 16) == (0, 16)


@pytest.mark.usefixtures("one_device")
def test_fault_01_07_two_processes_equal_one_and_stop_together(tmp_path, monkeypatch):
  """Two processes of two devices, records read by both, against one process of one device. SIGTERM
  to one of them: both save the same step and exit with 75. One process goes on from what they
  saved. The two read by the plain reader, the one by tf.data."""
  data = write_dataset(tmp_path / "data", frames=(40, 90))
  flags = tiny_flags(
    data__source="records",
    data__path=data,
    total_steps="1000",
    warmup_steps="1",
    encoder__depth="1",
  )
  plain = [*flags, "--config.data.reader=plain"]
  with two_processes([f"--workdir={tmp_path / 'two'}", *plain], devices=2) as runs:
    wait_for_step(tmp_path / "two", 3, runs[0])
    runs[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in runs]
  assert [process.returncode for process in runs] == [75, 75], outputs
  # the first process speaks for both
  stopped = re.search(r"stopped after step (\d+)", outputs[0])[1]
  assert "stopped after" not in outputs[1]
  assert stopped in os.listdir(tmp_path / "two" / "checkpoints")

  def run(name, steps):
    asked = itertools.chain([False] * (steps - 1), [True])
    monkeypatch.setattr(StopRequest, "agreed", lambda self: next(asked))
    assert main.main([*flags, f"--workdir={tmp_path / name}"]) == 75

  run("one", 3)
  two, one = (read_metrics(tmp_path / name / "metrics.jsonl")[:3] for name in ("two", "one"))
  assert [r["step"] for r in two] == [1, 2, 3]
  for a, b in zip(two, one, strict=True):
    names = ("loss_byol", "loss_difference", "std_student")
    np.testing.assert_allclose([a[k] for k in names], [b[k] for k in names], rtol=2e-4)
  # array for array: `Checkpoints.restore` compares their marks
  run("two", 1)
  assert read_metrics(tmp_path / "two" / "metrics.jsonl")[-1]["step"] == int(stopped) + 1
