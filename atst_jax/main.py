"""Runs the job that a config names.

  python -m atst_jax.main --config=configs/base.py [--workdir=runs/mine] [--config.batch_size=512 …]
  python -m atst_jax.main --config=configs/base.py --dry_run
  python -m atst_jax.main --config=configs/base.py --workdir=runs/base --sweep=lambda

Exit codes: 0 done, 1 the program failed, 2 a mistake in what was asked (one message), 3 the
training diverged, 74 a store or a disk did not answer, 75 stopped early: run the same command
again.
"""

import importlib
import json
import os
import shlex
import sys
import time
import traceback

from atst_jax.method.subtraction import SECTIONS
from atst_jax.runtime import preemption
from atst_jax.runtime.preemption import EXIT_DIVERGED, EXIT_RESUME
from atst_jax.util import config as configs
from atst_jax.util.cli import Parser, guard, leave
from atst_jax.util.environment import start_anew
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

# Every job is a module with `run(config, workdir, allow_changed_config=…)` and `describe(config,
# workdir)`.
JOBS = {
  "pretrain": "atst_jax.pretraining.job",
  "linear": "atst_jax.downstream.linear.job",
  "few": "atst_jax.downstream.linear.few",
  "finetune": "atst_jax.downstream.finetune.job",
  "retrieval": "atst_jax.downstream.retrieval.job",
  "difference": "atst_jax.downstream.bgknown.job",
}


def parse(argv):
  """(flags, config with its overrides). Raises UserError."""
  parser = Parser("atst_jax.main", __doc__)
  parser.add_config()
  parser.add_argument(
    "--workdir",
    help="folder of the run, in which an interrupted run is continued; runs/CONFIG or "
    "runs/CONFIG-VARIANT by default",
  )
  parser.add_argument(
    "--allow_changed_config", action="store_true", help="continue a run although its config changed"
  )
  parser.add_argument(
    "--dry_run", action="store_true", help="check config and data, tell what would run, and end"
  )
  parser.add_argument(
    "--print_config", action="store_true", help="print the config with its overrides and end"
  )
  parser.add_argument("--sweep", help="print the commands of one of the config's sweeps and end")
  parser.add_argument(
    "--distributed",
    action="store_true",
    help="several processes, found by jax.distributed (TPU, SLURM)",
  )
  parser.add_argument(
    "--coordinator", help="host:port of process 0, where they are not found by themselves"
  )
  parser.add_argument("--num_processes", type=int, help="of the whole job; goes with --coordinator")
  parser.add_argument(
    "--process_id", type=int, help="number of this process, from 0; goes with --coordinator"
  )
  flags, rest = parser.parse_with_overrides(argv)
  config = configs.load_with_overrides(flags.config, rest, SECTIONS)
  if flags.workdir is None:
    path, _, variant = flags.config.partition(":")
    name = os.path.basename(path).removesuffix(".py")
    flags.workdir = os.path.join("runs", "-".join(filter(None, (name, variant))))
    log.info("--workdir=%s", flags.workdir)
  return flags, config


def sweep_commands(flags, argv) -> list[str]:
  """One command for every run of a sweep, with a workdir of its own. Raises UserError for an
  unknown sweep."""
  sweeps = configs.sweeps(flags.config)
  if flags.sweep not in sweeps:
    raise UserError(f"--sweep={flags.sweep}: {flags.config} has {', '.join(sweeps) or 'no sweeps'}")
  # From the parsed flags, not from argv, where a value may stand alone: `--verbosity quiet`.
  kept = [
    f"--{name}" if value is True else f"--{name}={value}"
    for name, value in vars(flags).items()
    if name not in ("config", "workdir", "sweep") and value is not None and value is not False
    if (name, value) != ("verbosity", "info")
  ]
  kept += [flag for flag in argv if flag.startswith("--config.")]
  commands = []
  for overrides in sweeps[flags.sweep]:
    name = "_".join(f"{key.rpartition('.')[2]}={value}" for key, value in overrides.items())
    words = [
      "python",
      "-m",
      "atst_jax.main",
      f"--config={flags.config}",
      f"--workdir={flags.workdir}/{name}",
      *kept,
      *[f"--config.{key}={value}" for key, value in overrides.items()],
    ]
    folder = "--config.checkpoint.folder="
    words = [f"{word}/{name}" if word.startswith(folder) else word for word in words]
    commands.append(shlex.join(words))
  return commands


def main(argv=None) -> int:
  """Returns the exit code; see the module's docstring."""
  return guard(lambda: _main(sys.argv[1:] if argv is None else argv))


@preemption.Starting()
def _main(argv) -> int:
  flags, config = parse(argv)
  if flags.sweep:
    print("\n".join(sweep_commands(flags, argv)))
    return 0
  if flags.print_config:
    print(json.dumps(configs.to_json(config), indent=1))
    return 0
  if config.job not in JOBS:
    raise UserError(f"--config.job={config.job}: choose one of {', '.join(JOBS)}")
  if flags.distributed or flags.coordinator:
    import jax

    try:
      jax.distributed.initialize(flags.coordinator, flags.num_processes, flags.process_id)
    except (RuntimeError, ValueError) as error:
      raise UserError(
        f"the processes cannot find each other: {error}; check --coordinator, --num_processes and "
        "--process_id"
      ) from error
    preemption.retake()
  job = importlib.import_module(JOBS[config.job])
  from atst_jax.runtime.devices import check_platform  # JAX takes long to import

  check_platform(config.get("platform", "auto"))
  if flags.dry_run:
    print("\n".join(["nothing is run", *job.describe(config, flags.workdir)]))
    return 0
  try:
    return job.run(config, flags.workdir, allow_changed_config=flags.allow_changed_config)
  except FloatingPointError as error:
    print(f"diverged: {error}", file=sys.stderr)
    return EXIT_DIVERGED


def end(code: int):
  """Ends the process.

  If one of several processes fails, the others wait for its part of a sum. It must not wait for
  them, but ends, which they notice. Before that it waits `LAST_WORDS` seconds, in which other
  processes that failed can print their reason.
  """
  jax = sys.modules.get("jax")
  several = jax is not None and jax.distributed.is_initialized()
  if several and code not in (0, EXIT_RESUME):
    time.sleep(preemption.LAST_WORDS)
    leave(code, at_once=True)
  sys.exit(code)


if __name__ == "__main__":
  preemption.hold()
  start_anew("atst_jax.main")
  try:
    code = main()
  except Exception:
    traceback.print_exc()
    code = 1
  end(code)
