"""A pod that is described, not there: the train step compiled for a TPU slice, and what is known
without a compiler of machines with GPUs."""

import contextlib
import os
import re
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from atst_jax.data.input_pipeline import check_streams
from atst_jax.performance.chips import CHIPS, find_chip
from atst_jax.performance.collectives import ACROSS, find_collectives
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check, is_ragged
from atst_jax.pretraining.recipe import clip_flops
from atst_jax.runtime.mesh import make_mesh, mesh_shape
from atst_jax.util.errors import UserError

HOST_NETWORK = 25e9  # bytes per second between slices, of one host: 200 Gbit/s, assumed
# bytes per second between machines with GPUs, of one GPU: 400 Gbit/s, assumed
MACHINE_NETWORK = 50e9
MACHINE = 8  # GPUs
QUIET = {  # libtpu looks for a TPU, and says so, when it only has to compile
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}


class DoesNotFit(Exception):
  """The compiler's refusal: `needed` bytes of `limit` (0 where it does not say)."""

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
  except Exception as error:  # the plugin's own, of many kinds
    if "support not installed" in str(error):
      raise UserError(
        f"--topology={topology}: libtpu is not installed; pip install -e .[tpu]"
      ) from error
    raise UserError(
      f"--topology={topology}: {str(error).splitlines()[0][:200]}; for example v5e:16x16, v4:2x2x4, "
      "v5p:4x4x4, v6e:8x8, h200:8"
    ) from error


def _program(config: ConfigDict, devices: list):
  """(resolved config, program) on a mesh of described devices; checked as training would."""
  config = config.copy_and_resolve_references()
  config.dtype = "bfloat16" if config.dtype == "auto" else config.dtype
  config = recipe.resolve(config, None)
  hosts = len({device.process_index for device in devices})
  check(config, None, len(devices), hosts)
  check_streams(
    batch_size=config.batch_size,
    streams=config.data.streams,
    shards=config.data.streams,
    processes=hosts,
  )
  mesh = make_mesh(**config.mesh, devices=devices)
  return config, recipe.compile_for(config, mesh, ragged=is_ragged(config, None))


@contextlib.contextmanager
def _uncached():
  """Without JAX's cache of compiled programs: a program for a described slice cannot be read from
  it."""
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
  config, program = _program(config, devices)
  print(
    f"compiling batch {config.batch_size} for {len(devices)} x {devices[0].device_kind} ...",
    file=sys.stderr,
  )
  try:
    with _uncached():
      return config, program.step.lower(program.state, program.batch).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise DoesNotFit(str(error)) from error


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
  kinds = {c.kind: sum(other.kind == c.kind for other in collectives) for c in collectives}
  model, looped = clip_flops(config) * config.batch_size / count, config.compute.accumulation > 1
  program = None if looped else cost["flops"]  # the compiler counts a loop's body once
  return {
    "chip": name,
    "chips": count,
    "hosts": hosts,
    "slices": slices,
    "mesh": dict(make_mesh(**config.mesh, devices=devices).shape),
    "batch_size": config.batch_size,
    "dtype": config.dtype,
    "memory_bytes": memory_of(compiled),
    "memory_limit_bytes": chip.memory,
    "state_bytes": compiled.memory_analysis().alias_size_in_bytes,
    "program_flops": program,
    "model_flops": model,
    "collectives": kinds,
    "sent_bytes": sent,
    "across_bytes": across,
    "compute_seconds": max(program or 0, model) / chip.flops,
    "memory_seconds": None if looped else cost["bytes accessed"] / chip.bandwidth,
    "network_seconds": network,
  }


def on_gpus(config: ConfigDict, topology: str, slices: int) -> dict:
  """The same as far as it is known without a compiler for GPUs. Raises UserError."""
  if slices > 1:
    raise UserError(
      f"--slices={slices}: slices are of TPUs; write the number of all GPUs, for example h200:{8 * slices}"
    )
  kind, _, number = topology.partition(":")
  if not number.isdigit() or not int(number):
    raise UserError(f"--topology={topology}: write {kind}:NUMBER, for example {kind}:8")
  name, count = kind.upper(), int(number)
  config = config.copy_and_resolve_references()
  config.dtype = "bfloat16" if config.dtype == "auto" else config.dtype
  config = recipe.resolve(config, None)
  machines = -(-count // MACHINE)
  check(config, None, count, machines)
  check_streams(
    batch_size=config.batch_size,
    streams=config.data.streams,
    shards=config.data.streams,
    processes=machines,
  )
  chip, (data, fsdp) = CHIPS[name], mesh_shape(**config.mesh, count=count)
  init, _ = recipe.build(config, ragged=is_ragged(config, None))
  state = jax.eval_shape(init, jax.random.key(0))
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  sent = 2 * size(state.params) * (count - 1) / count
  # after a sum inside each machine
  across = 2 * size(state.params) / MACHINE * (machines - 1) / machines
  flops = clip_flops(config) * config.batch_size / count
  return {
    "chip": name,
    "chips": count,
    "hosts": machines,
    "slices": 1,
    "mesh": {"data": data, "fsdp": fsdp},
    "batch_size": config.batch_size,
    "dtype": config.dtype,
    "memory_bytes": None,
    "memory_limit_bytes": chip.memory,
    "state_bytes": size(state) // fsdp,
    "program_flops": None,
    "model_flops": flops,
    "collectives": {"all-reduce": None} if count > 1 else {},
    "sent_bytes": sent,
    "across_bytes": across,
    "compute_seconds": flops / chip.flops,
    "memory_seconds": None,
    "network_seconds": max(sent / chip.links, across / MACHINE_NETWORK),
  }
