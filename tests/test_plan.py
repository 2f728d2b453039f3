"""The plan for a pod: compiled by the TPU compiler itself where libtpu is installed, and its
arithmetic."""

import functools
import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from atst_jax import plan
from atst_jax.performance import gpus, hlo
from atst_jax.performance import plan as pod
from atst_jax.performance.chips import find_chip
from atst_jax.pretraining import recipe
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.tiny import ROOT, tiny_config, tiny_flags

WIDE = {
  "encoder__width": "128",
  "heads__hidden": "256",
  "difference__weight": "0",
  "batch_size": "16",
}
SHALLOW = {**WIDE, "encoder__depth": "1"}
needs_cuda = pytest.mark.skipif(
  not gpus.installed(), reason="JAX's CUDA plugin is not installed: .[cuda]"
)
needs_libtpu = pytest.mark.skipif(
  not importlib.util.find_spec("libtpu"), reason="libtpu is not installed: .[tpu]"
)


def _plan(capsys, *flags, **changes):
  code = plan.main([*tiny_flags(**changes), *flags, "--json"])
  captured = capsys.readouterr()
  return json.loads(captured.out) if code == 0 else (code, captured.out + captured.err)


@functools.cache
def _slice(topology, slices=1, **changes):
  """The plan of a tiny step; compiled once for all tests."""
  config = tiny_config(**{**SHALLOW, **changes})
  devices = pod.describe(topology, slices)
  return plan.time_of(pod.on_tpu(config, devices, slices), 3600, 0.4)


@needs_libtpu
def test_a_slice():
  """The compiler's own numbers: the state is as large as the arrays, the only collectives are
  sums."""
  result = _slice("v5e:2x2")
  config = recipe.resolve(tiny_config(**SHALLOW), None)
  state = jax.eval_shape(recipe.build(config, ragged=False)[0], jax.random.key(0))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  assert result["chips"] == 4
  assert result["chip"] == "TPU v5e"
  assert result["mesh"] == {"data": 4, "fsdp": 1}
  assert size <= result["state_bytes"] < 1.5 * size  # the TPU pads small arrays
  assert list(result["collectives"]) == ["all-reduce"]
  params = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
  # kernels' gradients are summed in bfloat16
  assert params * 3 / 4 < result["sent_bytes"] < 2 * params * 3 / 4
  assert result["dtype"] == "bfloat16" and result["memory_bytes"] > result["state_bytes"]
  bound = result["times"]["bound"]
  assert bound["seconds"] == max(result["compute_seconds"], result["network_seconds"])
  # 3600 steps
  assert bound["hours"] == pytest.approx(bound["seconds"])
  assert bound["chip_hours"] == pytest.approx(4 * bound["seconds"])
  assert result["times"]["roofline"]["seconds"] == max(bound["seconds"], result["memory_seconds"])
  exact = _slice("v5e:2x2", dtype="float32")  # six passes of bfloat16
  assert exact["compute_seconds"] > 5.5 * result["compute_seconds"]


@needs_libtpu
def test_fsdp_divides_the_state():
  parts = _slice("v5e:2x2", mesh__data="1", mesh__fsdp="4")
  assert parts["state_bytes"] < 0.5 * _slice("v5e:2x2")["state_bytes"]
  assert "all-gather" in parts["collectives"]


@needs_libtpu
def test_slices_add_a_network():
  two = _slice("v5e:2x2", slices=2)
  one = _slice("v5e:2x2")
  assert two["chips"] == 8 and two["across_bytes"] > 0 == one["across_bytes"]
  assert two["network_seconds"] > 1.2 * one["network_seconds"]


@pytest.mark.slow
@needs_libtpu
def test_remat_saves_memory():
  """At a size at which the encoder's activations are what counts. Takes minutes."""
  temporary = {}
  for remat in ("false", "true"):
    flags = ["--config.batch_size=192", f"--config.compute.remat={remat}", "--config.total_steps=1"]
    config = configs.load_with_overrides(
      "configs/atst_small.py", [*flags, "--config.warmup_steps=1"]
    )
    result = pod.on_tpu(config, pod.describe("v5e:1x1", 1), 1)
    temporary[remat] = result["memory_bytes"] - result["state_bytes"]
  assert temporary["true"] < 0.6 * temporary["false"]


@needs_libtpu
def test_what_does_not_fit_is_refused_by_the_compiler():
  config = configs.load_with_overrides(
    "configs/atst_small.py",
    [
      "--config.encoder.depth=2",
      "--config.batch_size=6144",
      "--config.total_steps=100",
      "--config.warmup_steps=1",
    ],
  )
  with pytest.raises(pod.DoesNotFit) as error:
    pod.compile_step(config, pod.describe("v5e:1x1", 1))
  assert error.value.needed > error.value.limit > 15 * 2**30


@needs_libtpu
@pytest.mark.parametrize(
  ("topology", "chips", "hosts"),
  [
    ("v4:2x2x4", 16, 4),
    ("v5e:1x1", 1, 1),
    ("v5e:16x16", 256, 64),
    ("v5p:2x2x2", 8, 2),
    ("v6e:2x4", 8, 2),
  ],
)
def test_topologies(topology, chips, hosts):
  devices = pod.describe(topology, 1)
  assert (len(devices), len({device.process_index for device in devices})) == (chips, hosts)
  assert find_chip(devices[0].device_kind)


def test_the_remedy_is_the_first_that_compiles(capsys, monkeypatch):
  tried = []

  def compile_step(config, devices):
    tried.append((config.compute.remat, config.compute.accumulation))
    if config.compute.accumulation < 4:
      raise pod.DoesNotFit(
        "RESOURCE_EXHAUSTED: the total memory required (43.24G) exceeds available HBM (15.75G)"
      )
    return config, None

  monkeypatch.setattr(pod, "compile_step", compile_step)
  monkeypatch.setattr(pod, "describe", lambda topology, slices: jax.devices()[:1])
  monkeypatch.setattr(pod, "memory_of", lambda compiled: 2**30)
  assert plan.main([*tiny_flags(), "--topology=v5e:1x1"]) == 1
  text = capsys.readouterr().out
  assert "does not fit: 43.24 of 15.75 GiB a chip; it does with" in text
  assert "with --config.compute.accumulation=4 (1.00 GiB)" in text
  assert tried == [(False, 1), (True, 1), (False, 2), (False, 4)]


def test_the_largest_batch_is_searched(monkeypatch):
  """Memory of 100 MiB + 10 MiB a clip on a chip of 16 GiB: 1,464 clips would be 90 %."""
  compiled = []

  def compile_step(config, devices):
    compiled.append(config.batch_size)
    if config.batch_size > 1600:
      raise pod.DoesNotFit("")
    return config, config.batch_size

  monkeypatch.setattr(pod, "compile_step", compile_step)
  monkeypatch.setattr(pod, "memory_of", lambda batch: (100 + 10 * batch) << 20)
  monkeypatch.setattr(plan, "find_chip", lambda kind: "TPU v5e")
  config = tiny_config(batch_size="16", views__group="2", data__streams="4")
  assert plan.largest_batch(config, jax.devices()[:1], 260 << 20, 100 << 20, 3) == 1464
  assert compiled == [1464]
  compiled.clear()
  # half as much as it will be
  found = plan.largest_batch(config, jax.devices()[:1], 180 << 20, 100 << 20, 4)
  assert compiled[0] > 1600 and 1400 < found <= 1600


STEP = {"chip": "H100", "chips": 1, "hosts": 1, "slices": 1, "mesh": {"data": 1}, "batch_size": 8}
STEP |= {"dtype": "bfloat16", "memory_limit_bytes": 80e9, "state_bytes": 1e9, "collectives": {}}
STEP |= {"model_flops": 67e12, "program_flops": 0, "sent_bytes": 0, "across_bytes": 0}
STEP |= {"compute_seconds": 1.0, "network_seconds": 0, "memory_seconds": 0.1}


def test_float32_takes_longer():
  """On chips that multiply float32 more slowly. Seen red with bfloat16's peak for both."""
  times = lambda dtype: plan.time_of(STEP | {"dtype": dtype}, None, 0.4)["times"]
  assert times("float32")["assumed"]["seconds"] == pytest.approx(1 / 0.4)
  assert times("float32")["bound"]["mfu"] == pytest.approx(1)
  assert times("bfloat16")["bound"]["mfu"] == pytest.approx(67 / 989)


@pytest.mark.parametrize("memory, most, told", [(59, 8, False), (61, 8, True), (59, 16, True)])
def test_what_jax_does_not_take_by_itself_is_told(memory, most, told):
  """75 % of an H100's 80 GB are 60."""
  step = STEP | {"memory_bytes": 1e9 * memory, "largest_batch": most, "forecast_seconds": 1.5}
  lines = plan.show(plan.time_of(step, None, 0.4))
  assert any("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in line for line in lines) == told


@needs_cuda
def test_gpus_are_compiled_for(capsys):
  """In a process of its own, which has to set up JAX for it. Eight GPUs only sum gradients and
  statistics, twice 7/8 of whose bytes leave each; cuDNN's attention and our kernels are in it."""
  flags = [*tiny_flags(**WIDE, total_steps="7200"), "--config.dtype=bfloat16", "--topology=h200:8"]
  command = [sys.executable, "-m", "atst_jax.plan", *flags, "--json", "--tries=0"]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  result = json.loads(run.stdout)
  config = recipe.resolve(tiny_config(**WIDE), None)
  params = jax.eval_shape(recipe.build(config, ragged=False)[0], jax.random.key(0)).params
  size = 4 * sum(x.size for x in jax.tree.leaves(params))
  assert list(result["collectives"]) == ["all-reduce"]
  assert size * 7 / 8 < result["sent_bytes"] < 2.2 * size * 7 / 8
  forecast = result["times"]["forecast"]
  assert forecast["hours"] == pytest.approx(2 * forecast["seconds"])
  assert forecast["seconds"] > result["compute_seconds"] + result["memory_seconds"]
  assert result["program_flops"] > 0.5 * result["model_flops"]


def test_work_in_a_loop_counts_as_often_as_it_runs():
  """A product of (2, 3) and (3, 4) in bfloat16, seven times, and a fusion of 40 bytes once."""
  text = """
%body (p: bf16[2,3]) -> bf16[2,4] {
  %p = bf16[2,3]{1,0} parameter(0)
  %q = bf16[3,4]{1,0} bitcast(%p)
  ROOT %r = (bf16[2,4]{1,0}, s8[0]{0}) custom-call(%p, %q), PRODUCT
}

ENTRY %main (x: f32[4]) -> f32[6] {
  %x = f32[4]{0} parameter(0)
  %w = bf16[2,4]{1,0} while(%x), condition=%c, body=%body, TRIPS
  ROOT %f = f32[6]{0} fusion(%x), kind=kLoop, calls=%fused
}
"""
  product = '"lhs_contracting_dimensions":["1"]'
  text = text.replace("PRODUCT", f'custom_call_target="__cublas$lt$matmul", {product}')
  work = hlo.count(text.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"7"}}'))
  assert work.flops == 7 * 2 * 2 * 3 * 4
  assert work.bytes == 7 * 2 * (6 + 12 + 8) + 40


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--topology=h200:0"], "write h200:NUMBER"),
    (["--topology=h200:8", "--mfu=2"], "--mfu must lie"),
    (["--topology=h200:8", "--slices=2"], "write the number of all GPUs, for example h200:16"),
    (["--topology=b200:8"], "write a100, h100, h200 or a TPU"),
    (["--topology=h200:8", "--mfu=0.5"], "--mfu=0.5 is for TPUs"),
    (["--topology=h200:9"], "give up to 8, or a multiple of 8"),
    (["--topology=h200:12"], "machines have 8 GPUs; give up to 8, or a multiple of 8"),
    (["--topology=h200:8", "--config.total_steps=0"], "total_steps=0: must be at least 1"),
    (["--topology=h200:16"], "jax's CUDA plugin is not installed; pip install -e .[cuda]"),
  ],
)
def test_mistakes_are_one_line(capsys, flags, message, monkeypatch):
  monkeypatch.setattr(gpus, "installed", lambda: False)
  code, text = _plan(capsys, *flags)
  last = text.splitlines()[-1]
  assert code == 2 and last.startswith("error: ") and message in last and "Traceback" not in text


@pytest.mark.parametrize(
  ("gpu", "changes", "message"),
  [
    ("", {"compute__attention": "cudnn"}, "needs an NVIDIA GPU from Ampere on; leave it out"),
    ("H200", {"compute__attention": "flash"}, "choose one of auto, xla, cudnn"),
    ("H200", {"compute__kernels": "pallas"}, "needs an encoder.width that 64 divides"),
    ("H200", {"encoder__heads": "0"}, "encoder.heads=0: must be at least 1"),
  ],
)
def test_what_the_described_device_does_not_have_is_refused(gpu, changes, message):
  """By what that device has, not by this machine."""
  with pytest.raises(UserError, match=message):
    pod._program(tiny_config(**changes), jax.devices()[:1], gpu)


@needs_libtpu
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--topology=v5e:3x5"], "not divisible"),
    (["--topology=v9:2x2"], "for example v5e:16x16"),
    (
      ["--topology=v5e:16x16", "--config.data.streams=16", "--config.batch_size=512"],
      "data.streams 16 is not divisible by the 64 processes",
    ),
  ],
)
def test_slices_that_cannot_be(capsys, flags, message):
  code, text = _plan(capsys, *flags)
  assert code == 2 and message in text
