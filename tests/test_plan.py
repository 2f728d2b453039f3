"""The plan for a pod: compiled by the TPU compiler itself where libtpu is installed, and its arithmetic."""

import importlib.util
import json

import jax
import pytest
from tiny import tiny_config, tiny_flags

from atst_jax import plan, recipe
from atst_jax.collectives import Collective, find_collectives

needs_libtpu = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed: .[tpu]")


def _plan(capsys, *flags, **changes):
  code = plan.main([*tiny_flags(**changes), *flags, "--json"])
  captured = capsys.readouterr()
  return json.loads(captured.out) if code == 0 else (code, captured.out + captured.err)


@needs_libtpu
def test_a_slice(capsys):
  """The compiler's own numbers: the state is as large as the arrays, the only collectives are sums."""
  result = _plan(capsys, "--topology=v5e:2x2", "--tries=1", batch_size="16", total_steps="3600")
  config = recipe.resolve(tiny_config(batch_size="16"), None)
  state = jax.eval_shape(recipe.build(config, ragged=False)[0], jax.random.key(0))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  assert result["chips"] == 4 and result["chip"] == "TPU v5e" and result["mesh"] == {"data": 4, "fsdp": 1}
  assert size <= result["state_bytes"] < 2 * size + 2**20  # the TPU pads small arrays
  assert list(result["collectives"]) == ["all-reduce"] and result["sent_bytes"] > 0
  assert result["dtype"] == "bfloat16" and result["memory_bytes"] > result["state_bytes"]
  assert result["largest_batch"] >= result["batch_size"] and not result["largest_batch"] % 4
  bound = max(result[f"{part}_seconds"] for part in ("compute", "memory", "network"))
  assert result["bound_hours"] == pytest.approx(bound) and result["bound_chip_hours"] == pytest.approx(4 * bound)


@needs_libtpu
def test_fsdp_divides_the_state_and_slices_add_a_network(capsys):
  changes = {"encoder__width": "128", "heads__hidden": "256", "batch_size": "16"}
  whole = _plan(capsys, "--topology=v5e:2x2", "--tries=0", **changes)
  parts = _plan(capsys, "--topology=v5e:2x2", "--tries=0", mesh__data="1", mesh__fsdp="4", **changes)
  assert parts["state_bytes"] < 0.5 * whole["state_bytes"] and "all-gather" in parts["collectives"]
  slices = _plan(capsys, "--topology=v5e:2x2", "--slices=2", "--tries=0", **changes)
  assert slices["chips"] == 8 and slices["network_seconds"] > whole["network_seconds"]


@needs_libtpu
def test_remat_saves_memory_and_what_does_not_fit_is_refused(capsys):
  """By the compiler for a chip of 16 GiB."""
  changes = {"encoder__width": "64", "encoder__depth": "4", "difference__weight": "0", "data__clip_frames": "256",
             "views__crop_frames": "256", "encoder__max_frames": "256", "mesh__data": "1"}  # fmt: skip
  small = {"topology": "v5e:1x1", **changes}
  memory = {}
  for remat in ("false", "true"):
    flags = {k: v for k, v in small.items() if k != "topology"}
    memory[remat] = _plan(capsys, "--topology=v5e:1x1", "--tries=0", **flags, batch_size="512", compute__remat=remat)
  temporary = {remat: result["memory_bytes"] - result["state_bytes"] for remat, result in memory.items()}
  assert temporary["true"] < 0.8 * temporary["false"]
  config = tiny_config(**changes, batch_size="65536", dtype="bfloat16")
  with pytest.raises(plan.DoesNotFit) as error:
    plan.compile_step(config, plan.describe("v5e:1x1", 1))
  assert error.value.needed > error.value.limit > 15 * 2**30


@needs_libtpu
@pytest.mark.parametrize(("topology", "chips", "hosts"), [
  ("v4:2x2x4", 16, 4), ("v5e:1x1", 1, 1), ("v5e:16x16", 256, 64), ("v5p:2x2x2", 8, 2), ("v6e:2x4", 8, 2),
])  # fmt: skip
def test_topologies(topology, chips, hosts):
  devices = plan.describe(topology, 1)
  assert (len(devices), len({device.process_index for device in devices})) == (chips, hosts)
  assert plan.find_chip(devices[0].device_kind)


def test_the_remedy_is_the_first_that_compiles(capsys, monkeypatch):
  tried = []

  def compile_step(config, devices):
    tried.append((config.compute.remat, config.compute.accumulation))
    if config.compute.accumulation < 4:
      raise plan.DoesNotFit("RESOURCE_EXHAUSTED: the total memory required (43.24G) exceeds available HBM (15.75G)")
    return config, None

  monkeypatch.setattr(plan, "compile_step", compile_step)
  monkeypatch.setattr(plan, "describe", lambda topology, slices: jax.devices()[:1])
  monkeypatch.setattr(plan, "memory_of", lambda compiled: 2**30)
  assert plan.main([*tiny_flags(), "--topology=v5e:1x1"]) == 1
  text = capsys.readouterr().out
  assert "does not fit: 43.24 of 15.75 GiB a chip; it does with --config.compute.accumulation=4 (1.00 GiB)" in text
  assert tried == [(False, 1), (True, 1), (False, 2), (False, 4)]


def test_the_largest_batch_is_searched(monkeypatch):
  """Memory of 100 MiB + 10 MiB a clip on a chip of 16 GiB: 1,464 clips would be 90 %."""
  compiled = []

  def compile_step(config, devices):
    compiled.append(config.batch_size)
    if config.batch_size > 1600:
      raise plan.DoesNotFit("")
    return config, config.batch_size

  monkeypatch.setattr(plan, "compile_step", compile_step)
  monkeypatch.setattr(plan, "memory_of", lambda batch: (100 + 10 * batch) << 20)
  monkeypatch.setattr(plan, "find_chip", lambda kind: "TPU v5e")
  config = tiny_config(batch_size="16", views__group="2", data__streams="4")
  assert plan.largest_batch(config, jax.devices()[:1], 260 << 20, 100 << 20, 3) == 1464 and compiled == [1464]
  compiled.clear()
  found = plan.largest_batch(config, jax.devices()[:1], 180 << 20, 100 << 20, 4)  # half as much as it will be
  assert compiled[0] > 1600 and 1400 < found <= 1600


def test_gpus_are_counted(capsys):
  """Parameters' gradients are summed by rings: twice (n - 1) / n of their bytes leave a GPU."""
  result = _plan(capsys, "--topology=h200:8", total_steps="7200")
  config = recipe.resolve(tiny_config(), None)
  params = jax.eval_shape(recipe.build(config, ragged=False)[0], jax.random.key(0)).params
  assert result["sent_bytes"] == 2 * 4 * sum(x.size for x in jax.tree.leaves(params)) * 7 / 8
  assert result["memory_bytes"] is None and result["assumed_hours"] == pytest.approx(
    2 * max(result["compute_seconds"] / 0.4, result["network_seconds"])
  )


@pytest.mark.parametrize(("flags", "message"), [
  (["--topology=h200:0"], "write h200:NUMBER"), (["--topology=h200:3"], "batch_size 16 is not divisible by 3"),
  (["--topology=h200:8", "--mfu=2"], "--mfu must lie"),
])  # fmt: skip
def test_mistakes_are_one_line(capsys, flags, message):
  code, text = _plan(capsys, *flags)
  assert code == 2 and message in text and text.count("\n") == 1


@needs_libtpu
@pytest.mark.parametrize(("flags", "message"), [
  (["--topology=v5e:3x5"], "not divisible"), (["--topology=v9:2x2"], "for example v5e:16x16"),
  (["--topology=v5e:16x16", "--config.data.streams=16", "--config.batch_size=512"],
   "data.streams 16 is not divisible by the 64 processes"),
])  # fmt: skip
def test_slices_that_cannot_be(capsys, flags, message):
  code, text = _plan(capsys, *flags)
  assert code == 2 and message in text


def test_collectives_are_read_from_the_text():
  text = """
  %a = (f32[768]{0:T(256)}, bf16[2,3]{1,0}) all-reduce(%x, %y), replica_groups=mesh['a'=8,'b'=2] {'a'}, to_apply=%add
  %b = f32[64]{0} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %c = (f32[64]{0}, f32[256]{0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %d = f32[256]{0} all-gather-done(%c)
  %e = pred[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %f = f32[8]{0} fusion(%all-reduce), calls=%g"""
  assert find_collectives(text, 16) == [
    Collective("all-reduce", 4 * 768 + 2 * 6, 8), Collective("reduce-scatter", 4 * 256, 4),
    Collective("all-gather", 4 * 256, 4), Collective("collective-permute", 8, 16)]  # fmt: skip
  assert Collective("all-reduce", 800, 8).sent == 1400 and Collective("all-gather", 800, 8).sent == 700
  assert Collective("collective-permute", 8, 16).sent == 8
