"""What pre-training will need on a TPU slice, compiled on a machine without one.

  python -m atst_jax.plan --config=configs/base.py --topology=v5e:16x16 --clips=1912134
  python -m atst_jax.plan --config=configs/base.py --topology=v4:2x2x4 --slices=2 --config.mesh.fsdp=4
  python -m atst_jax.plan --config=configs/base.py --topology=h200:8 --clips=1912134

For a TPU the real train step is compiled for the described slice (pip install -e .[tpu]): whether it fits, its memory,
operations and collectives are the compiler's. Three times of a step are printed: all its operations at the chip's peak,
all bytes between chips, and the operands of all operations as if none stayed on the chip. No step is faster than the
first two, its bound; the longest of all three, its roofline, is what to expect of a small batch. With gradient
accumulation there is no roofline: the compiler counts what stands in a loop once. For GPUs nothing is compiled: the
state's and the gradients' bytes are counted, memory of activations is not known.

Exit codes: 0 it fits, 1 it does not (what would help is compiled and said), 2 a mistake in what was asked.
"""

import argparse
import contextlib
import json
import math
import os
import re
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from atst_jax import config as configs
from atst_jax import recipe
from atst_jax.checks import check, is_ragged
from atst_jax.chips import CHIPS, find_chip
from atst_jax.collectives import ACROSS, find_collectives
from atst_jax.errors import UserError
from atst_jax.flops import clip_flops, find_steps
from atst_jax.input_pipeline import check_streams
from atst_jax.mesh import make_mesh, mesh_shape

HOST_NETWORK = 25e9  # bytes per second between slices, of one host: 200 Gbit/s, assumed
MACHINE_NETWORK = 50e9  # bytes per second between machines with GPUs, of one GPU: 400 Gbit/s, assumed
MACHINE = 8  # GPUs
FULL = 0.9  # of a chip's memory: what the search for the largest batch aims at
QUIET = {  # libtpu looks for a TPU, and says so, when it only has to compile
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3",
}  # fmt: skip
GIB = 2**30
REMEDIES = (  # tried in this order, where they are not set
  {"compute.remat": "true"},
  {"compute.accumulation": "2"},
  {"compute.accumulation": "4"},
  {"mesh.fsdp": "-1", "mesh.data": "1"},
  {"mesh.fsdp": "-1", "mesh.data": "1", "compute.remat": "true", "compute.accumulation": "4"},
)


class DoesNotFit(Exception):
  """The compiler's refusal: `needed` bytes of `limit` (0 where it does not say)."""

  def __init__(self, message: str):
    super().__init__(message)
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    match = re.search(r"([\d.]+)([KMG])\)? (?:of|exceeds(?: available HBM)?) \(?([\d.]+)([KMG])", message)
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
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
  except Exception as error:  # the plugin's own, of many kinds
    if "support not installed" in str(error):
      raise UserError(f"--topology={topology}: libtpu is not installed; pip install -e .[tpu]") from error
    raise UserError(f"--topology={topology}: {str(error).splitlines()[0][:200]}; for example v5e:16x16, v4:2x2x4, "
                    "v5p:4x4x4, v6e:8x8, h200:8") from error  # fmt: skip


def _changed(config: ConfigDict, changes: dict[str, str]) -> ConfigDict:
  config = config.copy_and_resolve_references()
  for key, value in changes.items():
    configs.override(config, key, value)
  return config


def _program(config: ConfigDict, devices: list):
  """(resolved config, program) on a mesh of described devices; checked as training would."""
  config = config.copy_and_resolve_references()
  config.dtype = "bfloat16" if config.dtype == "auto" else config.dtype
  config = recipe.resolve(config, None)
  hosts = len({device.process_index for device in devices})
  check(config, None, len(devices), hosts)
  check_streams(batch_size=config.batch_size, streams=config.data.streams, shards=config.data.streams, processes=hosts)
  mesh = make_mesh(**config.mesh, devices=devices)
  return config, recipe.compile_for(config, mesh, ragged=is_ragged(config, None))


@contextlib.contextmanager
def _uncached():
  """Without JAX's cache of compiled programs: a program for a described slice cannot be read from it."""
  enabled = jax.config.jax_enable_compilation_cache
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
  print(f"compiling batch {config.batch_size} for {len(devices)} x {devices[0].device_kind} ...", file=sys.stderr)
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
  return (m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
          + m.generated_code_size_in_bytes)  # fmt: skip


def on_tpu(config: ConfigDict, devices: list, slices: int) -> dict:
  """The numbers of a step that fits. Raises DoesNotFit, UserError."""
  config, compiled = compile_step(config, devices)
  name = find_chip(devices[0].device_kind)
  if name is None:
    raise UserError(f"{devices[0].device_kind!r} is not in the table of chips (atst_jax/chips.py)")
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
    "chip": name, "chips": count, "hosts": hosts, "slices": slices, "mesh": dict(make_mesh(
      **config.mesh, devices=devices).shape), "batch_size": config.batch_size, "dtype": config.dtype,
    "memory_bytes": memory_of(compiled), "memory_limit_bytes": chip.memory,
    "state_bytes": compiled.memory_analysis().alias_size_in_bytes,
    "program_flops": program, "model_flops": model,
    "collectives": kinds, "sent_bytes": sent, "across_bytes": across,
    "compute_seconds": max(program or 0, model) / chip.flops,
    "memory_seconds": None if looped else cost["bytes accessed"] / chip.bandwidth,
    "network_seconds": network,
  }  # fmt: skip


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
  check_streams(batch_size=config.batch_size, streams=config.data.streams, shards=config.data.streams,
                processes=machines)  # fmt: skip
  chip, (data, fsdp) = CHIPS[name], mesh_shape(**config.mesh, count=count)
  init, _ = recipe.build(config, ragged=is_ragged(config, None))
  state = jax.eval_shape(init, jax.random.key(0))
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  sent = 2 * size(state.params) * (count - 1) / count
  across = 2 * size(state.params) / MACHINE * (machines - 1) / machines  # after a sum inside each machine
  flops = clip_flops(config) * config.batch_size / count
  return {
    "chip": name, "chips": count, "hosts": machines, "slices": 1,
    "mesh": {"data": data, "fsdp": fsdp}, "batch_size": config.batch_size, "dtype": config.dtype,
    "memory_bytes": None, "memory_limit_bytes": chip.memory, "state_bytes": size(state) // fsdp,
    "program_flops": None, "model_flops": flops, "collectives": {"all-reduce": None} if count > 1 else {},
    "sent_bytes": sent, "across_bytes": across, "compute_seconds": flops / chip.flops, "memory_seconds": None,
    "network_seconds": max(sent / chip.links, across / MACHINE_NETWORK),
  }  # fmt: skip


def time_of(plan: dict, steps: int | None, mfu: float) -> dict:
  """Seconds of a step at its bound, its roofline and an assumed utilisation, clips per second, hours of the recipe."""
  compute, network = plan["compute_seconds"], plan["network_seconds"]
  useful = plan["model_flops"] / CHIPS[plan["chip"]].flops
  seconds = {"bound": max(compute, network), "roofline": max(compute, network, plan["memory_seconds"] or 0),
             "assumed": max(useful / mfu, network)}  # fmt: skip
  times = {}
  for name, step in seconds.items():
    times[name] = {"seconds": step, "clips_per_second": plan["batch_size"] / step, "mfu": useful / step}
    if steps:
      times[name] |= {"hours": steps * step / 3600, "chip_hours": steps * step / 3600 * plan["chips"]}
  return {**plan, "steps": steps, "assumed_mfu": mfu, "times": times}


def largest_batch(config: ConfigDict, devices: list, memory: int, state: int, tries: int) -> int:
  """The largest global batch that compiled in so many tries. Memory grows about in proportion to a device's clips; the
  search ends once a batch fills most of it."""
  unit = math.lcm(len(devices) * math.lcm(config.views.group, config.compute.accumulation), config.data.streams)
  limit = CHIPS[find_chip(devices[0].device_kind)].memory
  fits, refused = config.batch_size, math.inf
  for _ in range(tries):
    guess = (FULL * limit - state) / ((memory - state) / fits) if refused == math.inf else (fits + refused) / 2
    batch = int(guess) // unit * unit
    if memory >= FULL * limit or not fits < batch < refused:
      break
    try:
      _, compiled = compile_step(_changed(config, {"batch_size": str(batch)}), devices)
      memory, fits = memory_of(compiled), batch
    except DoesNotFit:
      refused = batch
  return fits


def remedy(config: ConfigDict, devices: list) -> tuple[dict, int] | None:
  """(the first of REMEDIES with which the step fits, its bytes), or None."""
  flat = configs.flatten(config)
  for changes in REMEDIES:
    changes = {key: value for key, value in changes.items() if str(flat[key]).lower() != value}
    try:
      _, compiled = compile_step(_changed(config, changes), devices)
      return changes, memory_of(compiled)
    except (DoesNotFit, UserError):
      continue
  return None


def show(plan: dict) -> list[str]:
  """Lines for people."""
  gib = lambda n: f"{n / GIB:.2f} GiB"
  ms = lambda part: f"{part} {1e3 * plan[part + '_seconds']:.2f}" if plan[part + "_seconds"] is not None else ""
  where = f"{plan['chips']} x {plan['chip']} on {plan['hosts']} host(s)"
  where += f" in {plan['slices']} slices" if plan["slices"] > 1 else ""
  mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
  per_chip = plan["batch_size"] // plan["chips"]
  lines = [f"{where}, mesh {mesh}, batch {plan['batch_size']} ({per_chip} clips a chip), {plan['dtype']}"]
  state = f"state {gib(plan['state_bytes'])}"
  of = f"of {gib(plan['memory_limit_bytes'])} a chip, {state}"
  lines.append(f"memory       {gib(plan['memory_bytes'])} {of}" if plan["memory_bytes"] else
               f"memory       {state}; activations are not known without a compiler")  # fmt: skip
  if "largest_batch" in plan:
    lines.append(
      f"batch        up to {plan['largest_batch']} compiled ({plan['largest_batch'] // plan['chips']} a chip)"
    )
  program = f"{plan['program_flops'] / 1e12:.3f} TFLOP in the program, " if plan["program_flops"] else ""
  lines.append(f"step of chip {program}{plan['model_flops'] / 1e12:.3f} TFLOP of the model")
  kinds = ", ".join(f"{n or ''} {kind}".strip() for kind, n in plan["collectives"].items()) or "none"
  across = (
    f", {plan['across_bytes'] / 2**20:.1f} MiB to other {'machines' if plan['memory_bytes'] is None else 'slices'}"
    if plan["across_bytes"]
    else ""
  )
  lines.append(f"collectives  {kinds}; a chip sends {plan['sent_bytes'] / 2**20:.1f} MiB{across}")
  lines.append(f"ms of a step {', '.join(filter(None, map(ms, ('compute', 'network', 'memory'))))}")
  titles = {"bound": "at the bound", "roofline": "the roofline", "assumed": f"at {plan['assumed_mfu']:.0%} MFU"}
  for name, title in titles.items():
    time = plan["times"][name]
    if name == "roofline" and plan["memory_seconds"] is None:
      continue
    hours = (
      f", {plan['steps']} steps in {time['hours']:.3g} h, {time['chip_hours']:.3g} chip-hours" if plan["steps"] else ""
    )
    lines.append(f"{title:12} {time['clips_per_second']:.0f} clips/s, MFU {time['mfu']:.0%}{hours}")
  if not plan["steps"]:
    lines.append("recipe       its steps follow from the data: give --clips=N for its hours")
  return lines


def _explain(config: ConfigDict, devices: list, error: DoesNotFit) -> str:
  needed = f": {error.needed / GIB:.2f} of {error.limit / GIB:.2f} GiB a chip" if error.needed else ""
  found = remedy(config, devices)
  if found is None:
    return f"does not fit{needed}, and neither remat, accumulation nor fsdp helps; lower batch_size, or take more chips"
  flags = " ".join(f"--config.{key}={value}" for key, value in found[0].items())
  return f"does not fit{needed}; it does with {flags} ({found[1] / GIB:.2f} GiB)"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser("python -m atst_jax.plan", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
  add = parser.add_argument
  add("--config", required=True, help="FILE.py or FILE.py:VARIANT; --config.KEY=VALUE overrides a key")
  add("--topology", required=True, help="chips of a TPU slice (v4:2x2x4, v5e:16x16, v5p:4x4x4, v6e:8x8) or a number of "
      "GPUs (a100:8, h100:8, h200:8)")  # fmt: skip
  add("--slices", type=int, default=1, help="so many such slices")
  add("--clips", type=int, default=0, help="clips of the data set, where the steps follow from epochs")
  add("--mfu", type=float, default=0.4, help="assumed utilisation (default 0.4)")
  add("--tries", type=int, default=2, help="compilations spent on the largest batch (default 2)")
  add("--json", action="store_true", help="print JSON")
  return parser


def main(argv=None) -> int:
  flags, rest = _parser().parse_known_args(argv)
  jax.config.update("jax_platforms", "cpu")
  try:
    config = configs.load_with_overrides(flags.config, rest)
    if not 0 < flags.mfu <= 1 or flags.slices < 1 or flags.tries < 0:
      raise UserError("--mfu must lie between 0 and 1, --slices must be at least 1, --tries at least 0")
    steps = find_steps(config, flags.clips) if flags.clips or config.total_steps else None
    config.total_steps, config.warmup_steps = steps or 10_000, config.warmup_steps or 1
    if flags.topology.split(":")[0].upper() in CHIPS:
      plan = on_gpus(config, flags.topology, flags.slices)
    else:
      devices = describe(flags.topology, flags.slices)
      try:
        plan = on_tpu(config, devices, flags.slices)
      except DoesNotFit as error:
        print(_explain(config, devices, error))
        return 1
      if flags.tries:
        plan["largest_batch"] = largest_batch(config, devices, plan["memory_bytes"], plan["state_bytes"], flags.tries)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
  plan = time_of(plan, steps, flags.mfu)
  print(json.dumps(plan) if flags.json else "\n".join(show(plan)))
  return 0


if __name__ == "__main__":
  sys.exit(main())
