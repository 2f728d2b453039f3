"""Time and memory of pre-training on a TPU slice or on GPUs, from a machine without any.

  python -m atst_jax.plan --config=configs/base.py --topology=v5e:16x16 --clips=1912134
  python -m atst_jax.plan --config=configs/base.py --topology=v4:2x2x4 --slices=2
  python -m atst_jax.plan --config=configs/base.py --topology=h200:8 --clips=1912134

The real train step is compiled for the described devices, by the TPU's compiler (pip install -e
.[tpu]) or by XLA for GPUs (pip install -e .[cuda]; no GPU is needed). The compiler tells whether it
fits, and its memory, operations and collectives. Three times of a step are printed: all its
operations at the chip's peak (with dtype=float32 at that of float32), all bytes between chips, and
all bytes through the chip's memory. The larger of the first two is its bound: no step is faster.
For a TPU the longest of all three is its roofline; with gradient accumulation there is none, as the
compiler counts a loop's body once. For GPUs there is a forecast: the time of products plus that of
memory, at the rates that an H200 reached, times the factor by which two measured steps were slower
(docs/speed.md). It was within 2 % of those two steps, which were in bfloat16, and is not tried on
others.

Exit codes: 0 it fits, 1 it does not (remedies are compiled and named), 2 a mistake in what was
asked.
"""

import json
import math
import re

import jax
from ml_collections import ConfigDict

from atst_jax.objectives.registry import get_objective
from atst_jax.performance import gpus
from atst_jax.performance import plan as pod
from atst_jax.performance.chips import CHIPS, find_chip
from atst_jax.performance.cost import find_steps, load_pretraining
from atst_jax.util import config as configs
from atst_jax.util.cli import Parser, guard, leave
from atst_jax.util.errors import UserError

MFU = 0.4  # assumed of TPUs
FULL = 0.9  # of a chip's memory, for the search for the largest batch
GIB = 2**30
DEFAULT = 0.75  # of a GPU's memory, that JAX takes by itself
REMEDIES = (  # tried in this order, unless set already
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
  useful = plan["model_flops"] / CHIPS[plan["chip"]].peak(plan["dtype"])
  seconds = {
    "bound": max(compute, network),
    "roofline": max(compute, network, plan["memory_seconds"] or 0),
    "assumed": max(useful / mfu, network),
  }
  if "forecast_seconds" in plan:  # of GPUs: measured rates in place of an assumed one
    del seconds["assumed"], seconds["roofline"]
    seconds["forecast"] = max(plan["forecast_seconds"], network)
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
  """The largest global batch that compiled in so many tries. Memory is about proportional to a
  device's clips; the search ends once a batch fills most of it."""
  unit = math.lcm(
    len(devices) * math.lcm(get_objective(config).unit, config.compute.accumulation),
    config.data.streams,
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
  where = f"{plan['chips']} x {plan['chip']} on {plan['hosts']} host(s)"
  where += f" in {plan['slices']} slices" if plan["slices"] > 1 else ""
  mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
  clips = f"batch {plan['batch_size']} ({plan['batch_size'] // plan['chips']} clips a chip)"
  memory = f"{gib(plan['memory_bytes'])} of {gib(plan['memory_limit_bytes'])} a chip"
  lines = [
    f"{where}, mesh {mesh}, {clips}, {plan['dtype']}",
    f"memory       {memory}, state {gib(plan['state_bytes'])}",
  ]
  if batch := plan.get("largest_batch"):
    lines.append(f"batch        up to {batch} compiled ({batch // plan['chips']} a chip)")
  tight = plan["memory_bytes"] > DEFAULT * plan["memory_limit_bytes"]
  if "forecast_seconds" in plan and (tight or (batch or 0) > plan["batch_size"]):
    lines.append(
      f"             JAX takes {DEFAULT:.0%} of a GPU by itself; for more set "
      "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95, as the launchers do"
    )
  work = f"{plan['model_flops'] / 1e12:.3f} TFLOP of the model"
  if plan["program_flops"]:
    work = f"{plan['program_flops'] / 1e12:.3f} TFLOP in the program, {work}"
  if "moved_bytes" in plan:
    work += f", {plan['moved_bytes'] / 1e9:.0f} GB through memory"
  lines.append(f"step of chip {work}")
  kinds = [f"{n or ''} {kind}".strip() for kind, n in plan["collectives"].items()]
  sent = f"a chip sends {plan['sent_bytes'] / 2**20:.1f} MiB"
  if plan["across_bytes"]:
    others = "slices" if plan["slices"] > 1 else "machines"
    sent += f", {plan['across_bytes'] / 2**20:.1f} MiB to other {others}"
  lines.append(f"collectives  {', '.join(kinds) or 'none'}; {sent}")
  parts = ((part, plan[f"{part}_seconds"]) for part in ("compute", "network", "memory"))
  times = [f"{part} {1e3 * seconds:.2f}" for part, seconds in parts if seconds is not None]
  lines.append(f"ms of a step {', '.join(times)}")
  titles = {
    "bound": "at the bound",
    "roofline": "the roofline",
    "assumed": f"at {plan['assumed_mfu']:.0%} MFU",
    "forecast": "forecast",
  }
  for name, time in plan["times"].items():
    if name == "roofline" and plan["memory_seconds"] is None:
      continue
    line = f"{titles[name]:12} {time['clips_per_second']:.0f} clips/s, MFU {time['mfu']:.0%}"
    if plan["steps"]:
      hours = f"{time['hours']:.3g} h, {time['chip_hours']:.3g} chip-hours"
      line += f", {plan['steps']} steps in {hours}"
    lines.append(line)
  if not plan["steps"]:
    lines.append("recipe       its steps follow from the data: give --clips=N for its hours")
  return lines


def _explain(config: ConfigDict, devices: list, error: pod.DoesNotFit) -> str:
  needed = (
    f": {error.needed / GIB:.2f} of {error.limit / GIB:.2f} GiB a chip" if error.needed else ""
  )
  found = remedy(config, devices)
  if found is None:
    return (
      f"does not fit{needed}, and neither remat, accumulation nor fsdp helps; lower batch_size, "
      "or take more chips"
    )
  flags = " ".join(f"--config.{key}={value}" for key, value in found[0].items())
  return f"does not fit{needed}; it does with {flags} ({found[1] / GIB:.2f} GiB)"


def _parser() -> Parser:
  parser = Parser("atst_jax.plan", __doc__)
  parser.add_config()
  add = parser.add_argument
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
  add("--mfu", type=float, help="assumed utilisation of TPUs (default 0.4)")
  add("--tries", type=int, default=2, help="compilations spent on the largest batch (default 2)")
  add("--json", action="store_true", help="print JSON")
  return parser


def main(argv=None) -> int:
  """Returns the exit code; see the module's docstring."""
  return guard(lambda: _main(*_parser().parse_with_overrides(argv)))


def _main(flags, rest) -> int:
  jax.config.update("jax_platforms", "cpu")
  config = load_pretraining(flags.config, rest)
  mfu = MFU if flags.mfu is None else flags.mfu
  if not 0 < mfu <= 1 or flags.slices < 1 or flags.tries < 0:
    raise UserError(
      "--mfu must lie between 0 and 1, --slices must be at least 1, --tries at least 0"
    )
  known = flags.clips or config.total_steps is not None
  steps = find_steps(config, flags.clips) if known else None
  config.total_steps, config.warmup_steps = steps or 10_000, config.warmup_steps or 1
  kind = flags.topology.partition(":")[0]
  of_gpus = kind.upper() in gpus.FACTS
  if not of_gpus and not re.match(r"v\d|tpu", kind):
    known = ", ".join(name.lower() for name in gpus.FACTS)
    raise UserError(f"--topology={flags.topology}: write {known} or a TPU (v4, v5e, …), as h200:8")
  if of_gpus and flags.mfu is not None:
    raise UserError(
      f"--mfu={flags.mfu:g} is for TPUs; a GPU's step is forecast from its program: leave it out"
    )
  if of_gpus:
    devices = pod.describe_gpus(flags.topology, flags.slices)
  else:
    devices = pod.describe(flags.topology, flags.slices)
  try:
    plan = pod.on_gpus(config, devices) if of_gpus else pod.on_tpu(config, devices, flags.slices)
  except pod.DoesNotFit as error:
    print(_explain(config, devices, error))
    return 1
  if flags.tries:
    plan["largest_batch"] = largest_batch(
      config, devices, plan["memory_bytes"], plan["state_bytes"], flags.tries
    )
  plan = time_of(plan, steps, mfu)
  print(json.dumps(plan) if flags.json else "\n".join(show(plan)))
  return 0


if __name__ == "__main__":
  leave(main())
