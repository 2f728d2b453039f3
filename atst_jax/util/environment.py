"""Environment variables that make the programs faster, by platform, in one place.

  eval "$(python -m atst_jax.util.environment gpu)"      also: cpu, tpu

`main` and `benchmark` set START themselves, and start again with it. The rest is for launchers.
Values that are set already stay. In lists of flags they come last, and so win.
"""

import os
import sys
from collections.abc import Mapping

from atst_jax.util.cli import Parser, guard
from atst_jax.util.errors import UserError

# Memory in pages of 2 MiB, if the system offers them (Linux, "madvise"): with pages of 4 KiB a step
# on a CPU spent a quarter of its time in page faults.
START = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # lists of flags, in which the last of equals counts
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
PLATFORMS = {
  "cpu": {},
  "gpu": {
    # Collectives overlap with computation. XLA takes its memory in one piece; here most of it.
    "XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
  },
  "tpu": {
    # The gradients' all-reduces run while the backward pass goes on.
    "LIBTPU_INIT_ARGS": "--xla_tpu_enable_data_parallel_all_reduce_opt=true "
    "--xla_tpu_data_parallel_opt_different_sized_ops=true"
  },
}


def slurm_devices(environ: Mapping[str, str]) -> dict[str, str]:
  """{"JAX_LOCAL_DEVICE_IDS": numbers} of this task's GPUs among the visible ones.

  JAX would give a task the one GPU with the task's number on the node. Here a task that is alone on
  its node, or whose GPUs SLURM has bound to it, gets all visible ones; tasks that see the same ones
  share them equally. Empty outside a step of SLURM, or without GPUs.

  Raises UserError if they cannot be shared.
  """
  visible = [environ[key] for key in VISIBLE if environ.get(key)]
  if "SLURM_STEP_ID" not in environ or not visible:
    return {}
  seen = len(visible[0].split(","))
  tasks = _tasks_on_node(environ)
  first = 0
  if tasks > 1 and seen == int(environ.get("SLURM_GPUS_ON_NODE", seen)):
    if seen % tasks:
      raise UserError(
        f"{tasks} tasks on this node cannot share {seen} GPUs; use --ntasks-per-node=1, or as many "
        "tasks as GPUs"
      )
    seen //= tasks
    first = seen * int(environ["SLURM_LOCALID"])
  return {"JAX_LOCAL_DEVICE_IDS": ",".join(str(first + i) for i in range(seen))}


def _tasks_on_node(environ: Mapping[str, str]) -> int:
  """From a step's list such as `2(x3),1`: two tasks on each of three nodes, one on the fourth."""
  numbers = []
  for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
    number, _, times = part.rstrip(")").partition("(x")
    numbers += [int(number)] * int(times or 1)
  return numbers[int(environ.get("SLURM_NODEID", 0)) % len(numbers)]


def start_anew(module: str) -> None:
  """Replaces this process by the same command with START, if one of its variables is not set.

  Only a process that was started as `python [options] -m module` is replaced: a profiler, debugger
  or coverage tool before the module would be lost.
  """
  missing = {key: value for key, value in START.items() if key not in os.environ}
  if missing and sys.platform == "linux" and _runs(module, sys.orig_argv[1:]):
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def _runs(module: str, arguments: list[str]) -> bool:
  """Whether `python ARGUMENTS` runs the module itself: after options, the first word is `-m`."""
  words = iter(arguments)
  for word in words:
    if word == "-m":
      return next(words, None) == module
    if word in ("-W", "-X"):
      next(words, None)
    elif not word.startswith("-"):
      return False
  return False


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("atst_jax.util.environment", __doc__)
  parser.add_argument("platform", choices=PLATFORMS)
  return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  own = slurm_devices(os.environ) if flags.platform == "gpu" else {}
  for key, value in {**START, **PLATFORMS[flags.platform], **own}.items():
    print(
      f'export {key}="{value} ${{{key}:-}}"'
      if key in FLAGS
      else f'export {key}="${{{key}:-{value}}}"'
    )


if __name__ == "__main__":
  sys.exit(main())
