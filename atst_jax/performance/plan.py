"""The train step compiled for a TPU slice or machines with GPUs that are only described, and the
numbers of its program."""

import collections
import contextlib
import os
import re
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from atst_jax.data.order import check_streams
from atst_jax.models.encoders import make_encoder
from atst_jax.performance import gpus, hlo
from atst_jax.performance.chips import CHIPS, find_chip
from atst_jax.performance.collectives import ACROSS, find_collectives
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check, is_ragged
from atst_jax.pretraining.recipe import clip_flops
from atst_jax.runtime.devices import resolve_fused
from atst_jax.runtime.mesh import make_mesh
from atst_jax.util.errors import UserError

HOST_NETWORK = 25e9  # bytes per second between slices, of one host: 200 Gbit/s, assumed
# bytes per second between machines with GPUs, of one GPU: 400 Gbit/s, assumed
MACHINE_NETWORK = 50e9
QUIET = {  # otherwise libtpu looks for a TPU, and logs that, although it only has to compile
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}


class DoesNotFit(Exception):
  """The compiler's refusal: `needed` bytes of `limit` (0 if it does not tell)."""

  def __init__(self, message: str):
    super().__init__(message)
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    match = re.search(
      r"([\d.]+)([KMG])\)? (?:of|exceeds(?: available HBM)?) \(?([\d.]+)([KMG])", message
    )
    number, kind, other, other_kind = match.groups() if match else (0, "G", 0, "G")
    self.needed, self.limit = float(number) * unit[kind], float(other) * unit[other_kind]


def describe(topology: str, slices: int) -> list:
  """The devices of a TPU topology like "v5e:16x16". Raises UserError."""
  from jax.experimental import topologies

  for name, value in QUIET.items():
    os.environ.setdefault(name, value)
  options: dict = {"num_slices": slices} if slices > 1 else {}
  if topology.startswith("v4:"):
    options["chip_config_name"] = "megacore"  # one device a chip
  if topology.endswith(":1x1"):
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    return list(
      topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    )
  except Exception as error:  # the plugin raises many kinds
    if "support not installed" in str(error):
      raise UserError(
        f"--topology={topology}: libtpu is not installed; pip install -e .[tpu]"
      ) from error
    raise UserError(
      f"--topology={topology}: {gpus.reason(error)}; for example v5e:16x16, "
      "v4:2x2x4, v5p:4x4x4, v6e:8x8, h200:8"
    ) from error


def _program(config: ConfigDict, devices: list, gpu: str):
  """(resolved config, program, mesh) of described devices, checked as in training."""
  config = config.copy_and_resolve_references()
  config.dtype = "bfloat16" if config.dtype == "auto" else config.dtype
  asked = config.compute.attention, config.compute.kernels
  for key, theirs in (("attention", "cudnn"), ("kernels", "pallas")):
    if config.compute[key] == theirs:  # the described devices decide, not this machine
      config.compute[key] = "auto"
  config = recipe.resolve(config, None)
  hosts = len({device.process_index for device in devices})
  check(config, None, len(devices), hosts)
  check_streams(
    batch_size=config.batch_size,
    streams=config.data.streams,
    shards=config.data.streams,
    processes=hosts,
  )
  fused = resolve_fused(
    *asked,
    dtype=config.dtype,
    unsuited=make_encoder(config.encoder).unsuited(),
    capability=float(gpus.FACTS[gpu]["major"]) if gpu else 0,
  )
  mesh = make_mesh(**config.mesh, devices=devices)
  program = recipe.compile_for(config, mesh, ragged=is_ragged(config, None), fused=fused)
  return config, program, mesh


@contextlib.contextmanager
def _uncached():
  """Turns off JAX's cache of compiled programs, from which a program for a described slice cannot
  be read."""
  enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]  # made at run time
  try:
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()


def compile_step(config: ConfigDict, devices: list):
  """(resolved config, compiled train step). Raises DoesNotFit, UserError."""
  name = find_chip(devices[0].device_kind)
  gpu = name if name in gpus.FACTS else ""
  config, program, mesh = _program(config, devices, gpu)
  print(
    f"compiling batch {config.batch_size} for {len(devices)} x {devices[0].device_kind} ...",
    file=sys.stderr,
  )
  try:
    with _uncached():
      if not gpu:
        return config, program.step.lower(program.state, program.batch).compile()
      compiled = gpus.compile_step(program, mesh, gpu)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise DoesNotFit(str(error)) from error
  # For a GPU, XLA also compiles programs that do not fit.
  if (needed := memory_of(compiled)) > CHIPS[gpu].memory:
    raise DoesNotFit(f"{needed / 2**30:.2f}G of {CHIPS[gpu].memory / 2**30:.2f}G")
  return config, compiled


def memory_of(compiled) -> int:
  """Bytes of one device while the step runs."""
  m = compiled.memory_analysis()
  return (
    m.argument_size_in_bytes
    + m.output_size_in_bytes
    - m.alias_size_in_bytes
    + m.temp_size_in_bytes
    + m.generated_code_size_in_bytes
  )


def _common(config, compiled, devices: list, name: str, collectives: list) -> dict:
  """The numbers of any compiled step, on chips called `name`."""
  return {
    "chip": name,
    "chips": len(devices),
    "mesh": dict(make_mesh(**config.mesh, devices=devices).shape),
    "batch_size": config.batch_size,
    "dtype": config.dtype,
    "memory_bytes": memory_of(compiled),
    "memory_limit_bytes": CHIPS[name].memory,
    "state_bytes": compiled.memory_analysis().alias_size_in_bytes,
    "collectives": dict(collections.Counter(collective.kind for collective in collectives)),
    "sent_bytes": sum(collective.sent for collective in collectives),
  }


def on_tpu(config: ConfigDict, devices: list, slices: int) -> dict:
  """The numbers of a step that fits. Raises DoesNotFit, UserError."""
  config, compiled = compile_step(config, devices)
  name = find_chip(devices[0].device_kind)
  if name is None:
    raise UserError(
      f"{devices[0].device_kind!r} is not in the table of chips (atst_jax/performance/chips.py)"
    )
  chip, cost, count = CHIPS[name], compiled.cost_analysis(), len(devices)
  collectives = find_collectives(compiled.as_text(), count)
  sent = sum(collective.sent for collective in collectives)
  network = sent / chip.links
  hosts = len({device.process_index for device in devices})
  across = sum(c.size for c in collectives if c.kind == ACROSS)
  if across:  # a sum over the slices
    network += 2 * across * (slices - 1) / slices / (HOST_NETWORK * hosts / count)
  model, looped = clip_flops(config) * config.batch_size / count, config.compute.accumulation > 1
  program = None if looped else cost["flops"]  # the compiler counts a loop's body once
  return {
    **_common(config, compiled, devices, name, collectives),
    "hosts": hosts,
    "slices": slices,
    "program_flops": program,
    "model_flops": model,
    "across_bytes": across,
    "compute_seconds": max(program or 0, model) / chip.peak(config.dtype),
    "memory_seconds": None if looped else cost["bytes accessed"] / chip.bandwidth,
    "network_seconds": network,
  }


# The shares of its data sheet that an H200 reached in products and in memory (790 of 989 TFLOP/s,
# 4.3 of 4.8 TB/s). With these, two measured steps (ATST Small at 768 and Base at 384 clips: 228 and
# 272 ms) took 1.12 and 1.09 times the sum of both times of their programs.
REACHED_FLOPS, REACHED_BANDWIDTH, CALIBRATION = 0.8, 0.9, 1.1


def describe_gpus(topology: str, slices: int) -> list:
  """The devices of "h200:8" or another number. Raises UserError."""
  kind, _, number = topology.partition(":")
  if not number.isdigit() or not int(number):
    raise UserError(f"--topology={topology}: write {kind}:NUMBER, for example {kind}:8")
  if slices > 1:
    raise UserError(
      f"--slices={slices}: slices are of TPUs; write the number of all GPUs, "
      f"for example {kind}:{slices * int(number)}"
    )
  return gpus.describe(kind.upper(), int(number), CHIPS[kind.upper()])


def on_gpus(config: ConfigDict, devices: list) -> dict:
  """The numbers of a step that fits described GPUs. Raises DoesNotFit, UserError."""
  config, compiled = compile_step(config, devices)
  name, count = find_chip(devices[0].device_kind), len(devices)
  assert name is not None  # it was described by its name
  chip = CHIPS[name]
  text = compiled.as_text()
  work, collectives = hlo.count(text), find_collectives(text, count)
  sent = sum(collective.sent for collective in collectives)
  machines = -(-count // gpus.MACHINE)
  # Each machine sums up inside first.
  across = sent / gpus.MACHINE if machines > 1 else 0
  model = clip_flops(config) * config.batch_size / count
  compute = max(work.flops, model) / chip.peak(config.dtype)
  memory = work.bytes / (REACHED_BANDWIDTH * chip.bandwidth)
  return {
    **_common(config, compiled, devices, name, collectives),
    "hosts": machines,
    "slices": 1,
    "program_flops": work.flops,
    "model_flops": model,
    "moved_bytes": work.bytes,
    "across_bytes": across,
    "compute_seconds": compute,
    "memory_seconds": work.bytes / chip.bandwidth,
    "network_seconds": max(sent / chip.links, across / MACHINE_NETWORK),
    "forecast_seconds": CALIBRATION * (compute / REACHED_FLOPS + memory),
  }
