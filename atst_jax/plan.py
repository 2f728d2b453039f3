"""What pre-training will need on a TPU slice, compiled on a machine without one.

  python -m atst_jax.plan --config=configs/base.py --topology=v5e:16x16 --clips=1912134
  python -m atst_jax.plan --config=configs/base.py --topology=v4:2x2x4 --slices=2 --config.mesh.fsdp=4
  python -m atst_jax.plan --config=configs/base.py --topology=h200:8 --clips=1912134

For a TPU the real train step is compiled for the described slice (pip install -e .[tpu]): whether
it fits, its memory, operations and collectives are the compiler's. Three times of a step are
printed: all its operations at the chip's peak, all bytes between chips, and the operands of all
operations as if none stayed on the chip. No step is faster than the first two, its bound; the
longest of all three, its roofline, is what to expect of a small batch. With gradient accumulation
there is no roofline: the compiler counts what stands in a loop once. For GPUs nothing is compiled:
the state's and the gradients' bytes are counted, memory of activations is not known.

Exit codes: 0 it fits, 1 it does not (what would help is compiled and said), 2 a mistake in what was
asked.
"""

import json
import math
import sys

import jax
from ml_collections import ConfigDict

from atst_jax.performance import plan as pod
from atst_jax.performance.chips import CHIPS, find_chip
from atst_jax.performance.cost import find_steps
from atst_jax.util import config as configs
from atst_jax.util.cli import Parser, guard
from atst_jax.util.errors import UserError

FULL = 0.9  # of a chip's memory: what the search for the largest batch aims at
GIB = 2**30
REMEDIES = (  # tried in this order, where they are not set
  {"compute.remat": "true"},
  {"compute.accumulation": "2"},
  {"compute.accumulation": "4"},
  {"mesh.fsdp": "-1", "mesh.data": "1"},
  {"mesh.fsdp": "-1", "mesh.data": "1", "compute.remat": "true", "compute.accumulation": "4"},
)


def _changed(config: ConfigDict, changes: dict[str, str]) -> ConfigDict:
  config = config.copy_and_resolve_references()
  for key, value in changes.items():
    configs.override(config, key, value)
  return config


def time_of(plan: dict, steps: int | None, mfu: float) -> dict:
  """Seconds of a step at its bound, its roofline and an assumed utilisation, clips per second,
  hours of the recipe."""
  compute, network = plan["compute_seconds"], plan["network_seconds"]
  useful = plan["model_flops"] / CHIPS[plan["chip"]].flops
  seconds = {
    "bound": max(compute, network),
    "roofline": max(compute, network, plan["memory_seconds"] or 0),
    "assumed": max(useful / mfu, network),
  }
  times = {}
  for name, step in seconds.items():
    times[name] = {
      "seconds": step,
      "clips_per_second": plan["batch_size"] / step,
      "mfu": useful / step,
    }
    if steps:
      times[name] |= {
        "hours": steps * step / 3600,
        "chip_hours": steps * step / 3600 * plan["chips"],
      }
  return {**plan, "steps": steps, "assumed_mfu": mfu, "times": times}


def largest_batch(config: ConfigDict, devices: list, memory: int, state: int, tries: int) -> int:
  """The largest global batch that compiled in so many tries. Memory grows about in proportion to a
  device's clips; the search ends once a batch fills most of it."""
  unit = math.lcm(
    len(devices) * math.lcm(config.views.group, config.compute.accumulation), config.data.streams
  )
  chip = find_chip(devices[0].device_kind)
  assert chip is not None  # it was described by its name
  limit = CHIPS[chip].memory
  fits, refused = config.batch_size, math.inf
  for _ in range(tries):
    guess = (
      (FULL * limit - state) / ((memory - state) / fits)
      if refused == math.inf
      else (fits + refused) / 2
    )
    batch = int(guess) // unit * unit
    if memory >= FULL * limit or not fits < batch < refused:
      break
    try:
      _, compiled = pod.compile_step(_changed(config, {"batch_size": str(batch)}), devices)
      memory, fits = pod.memory_of(compiled), batch
    except pod.DoesNotFit:
      refused = batch
  return fits


def remedy(config: ConfigDict, devices: list) -> tuple[dict, int] | None:
  """(the first of REMEDIES with which the step fits, its bytes), or None."""
  flat = configs.flatten(config)
  for changes in REMEDIES:
    changes = {key: value for key, value in changes.items() if str(flat[key]).lower() != value}
    try:
      _, compiled = pod.compile_step(_changed(config, changes), devices)
      return changes, pod.memory_of(compiled)
    except (pod.DoesNotFit, UserError):
      continue
  return None


def show(plan: dict) -> list[str]:
  """Lines for people."""
  gib = lambda n: f"{n / GIB:.2f} GiB"
  ms = lambda part: (
    f"{part} {1e3 * plan[part + '_seconds']:.2f}" if plan[part + "_seconds"] is not None else ""
  )
  where = f"{plan['chips']} x {plan['chip']} on {plan['hosts']} host(s)"
  where += f" in {plan['slices']} slices" if plan["slices"] > 1 else ""
  mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
  per_chip = plan["batch_size"] // plan["chips"]
  lines = [
    f"{where}, mesh {mesh}, batch {plan['batch_size']} ({per_chip} clips a chip), {plan['dtype']}"
  ]
  state = f"state {gib(plan['state_bytes'])}"
  of = f"of {gib(plan['memory_limit_bytes'])} a chip, {state}"
  lines.append(
    f"memory       {gib(plan['memory_bytes'])} {of}"
    if plan["memory_bytes"]
    else f"memory       {state}; activations are not known without a compiler"
  )
  if "largest_batch" in plan:
    lines.append(
      f"batch        up to {plan['largest_batch']} compiled ({plan['largest_batch'] // plan['chips']} a chip)"
    )
  program = (
    f"{plan['program_flops'] / 1e12:.3f} TFLOP in the program, " if plan["program_flops"] else ""
  )
  lines.append(f"step of chip {program}{plan['model_flops'] / 1e12:.3f} TFLOP of the model")
  kinds = (
    ", ".join(f"{n or ''} {kind}".strip() for kind, n in plan["collectives"].items()) or "none"
  )
  across = (
    f", {plan['across_bytes'] / 2**20:.1f} MiB to other {'machines' if plan['memory_bytes'] is None else 'slices'}"
    if plan["across_bytes"]
    else ""
  )
  lines.append(f"collectives  {kinds}; a chip sends {plan['sent_bytes'] / 2**20:.1f} MiB{across}")
  lines.append(f"ms of a step {', '.join(filter(None, map(ms, ('compute', 'network', 'memory'))))}")
  titles = {
    "bound": "at the bound",
    "roofline": "the roofline",
    "assumed": f"at {plan['assumed_mfu']:.0%} MFU",
  }
  for name, title in titles.items():
    time = plan["times"][name]
    if name == "roofline" and plan["memory_seconds"] is None:
      continue
    hours = (
      f", {plan['steps']} steps in {time['hours']:.3g} h, {time['chip_hours']:.3g} chip-hours"
      if plan["steps"]
      else ""
    )
    lines.append(f"{title:12} {time['clips_per_second']:.0f} clips/s, MFU {time['mfu']:.0%}{hours}")
  if not plan["steps"]:
    lines.append("recipe       its steps follow from the data: give --clips=N for its hours")
  return lines


def _explain(config: ConfigDict, devices: list, error: pod.DoesNotFit) -> str:
  needed = (
    f": {error.needed / GIB:.2f} of {error.limit / GIB:.2f} GiB a chip" if error.needed else ""
  )
  found = remedy(config, devices)
  if found is None:
    return f"does not fit{needed}, and neither remat, accumulation nor fsdp helps; lower batch_size, or take more chips"
  flags = " ".join(f"--config.{key}={value}" for key, value in found[0].items())
  return f"does not fit{needed}; it does with {flags} ({found[1] / GIB:.2f} GiB)"


def _parser() -> Parser:
  parser = Parser("atst_jax.plan", __doc__)
  add = parser.add_argument
  add(
    "--config", required=True, help="FILE.py or FILE.py:VARIANT; --config.KEY=VALUE overrides a key"
  )
  add(
    "--topology",
    required=True,
    help="chips of a TPU slice (v4:2x2x4, v5e:16x16, v5p:4x4x4, v6e:8x8) or a number of "
    "GPUs (a100:8, h100:8, h200:8)",
  )
  add("--slices", type=int, default=1, help="so many such slices")
  add(
    "--clips", type=int, default=0, help="clips of the data set, where the steps follow from epochs"
  )
  add("--mfu", type=float, default=0.4, help="assumed utilisation (default 0.4)")
  add("--tries", type=int, default=2, help="compilations spent on the largest batch (default 2)")
  add("--json", action="store_true", help="print JSON")
  return parser


def main(argv=None) -> int:
  """Returns the exit code; see the module's docstring."""
  return guard(lambda: _main(*_parser().parse_with_overrides(argv)))


def _main(flags, rest) -> int:
  jax.config.update("jax_platforms", "cpu")
  config = configs.load_with_overrides(flags.config, rest)
  if not 0 < flags.mfu <= 1 or flags.slices < 1 or flags.tries < 0:
    raise UserError(
      "--mfu must lie between 0 and 1, --slices must be at least 1, --tries at least 0"
    )
  steps = find_steps(config, flags.clips) if flags.clips or config.total_steps else None
  config.total_steps, config.warmup_steps = steps or 10_000, config.warmup_steps or 1
  if flags.topology.split(":")[0].upper() in CHIPS:
    plan = pod.on_gpus(config, flags.topology, flags.slices)
  else:
    devices = pod.describe(flags.topology, flags.slices)
    try:
      plan = pod.on_tpu(config, devices, flags.slices)
    except pod.DoesNotFit as error:
      print(_explain(config, devices, error))
      return 1
    if flags.tries:
      plan["largest_batch"] = largest_batch(
        config, devices, plan["memory_bytes"], plan["state_bytes"], flags.tries
      )
  plan = time_of(plan, steps, flags.mfu)
  print(json.dumps(plan) if flags.json else "\n".join(show(plan)))
  return 0


if __name__ == "__main__":
  sys.exit(main())
