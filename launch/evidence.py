"""The evidence on real sound, from recordings to its tables: docs/evidence.md.

  python launch/evidence.py --recordings=recordings --output=runs/evidence
  python launch/evidence.py … --seeds=0,1,2 --only=base,lambda05
  python launch/evidence.py … --peer         also trains with PyTorch's update
  python launch/evidence.py … --encoders=encoders/mine     evaluates an export beside them
  python launch/evidence.py … --dry_run      prints the commands
  python launch/evidence.py … --tables       the tables of what is done so far

`evidence_sets.py` says what lies in `recordings/`, what pre-training hears, and what is tested;
configs/evidence.py has the variants. An encoder whose pre-training has heard a test clip is
refused. With --allow_heard it is evaluated, and every table says so.

Further flags, --config.KEY=VALUE, go to every pre-training: `--config.total_steps=4000` trains
longer. Commands run one after the other, a variant at a time; what is done is skipped, and what was
stopped goes on.
"""

import json
import pathlib
import shlex
import subprocess
import sys
from typing import NamedTuple

import evidence_sets as sets
from evidence_tables import tables

from atst_jax.method.subtraction import SECTIONS
from atst_jax.util.cli import Parser, guard
from atst_jax.util.config import flatten, load_with_overrides, variants
from atst_jax.util.errors import UserError

EXIT_RESUME = 75
VARIANTS = variants("configs/evidence.py")
BASE, PEER = "base", "peer"
SUBTRACTS = (BASE, "lambda02", "lambda05")  # also evaluated on BgKnown


class Run(NamedTuple):
  """A pre-training with its evaluations; or an encoder that comes from elsewhere."""

  name: str
  seed: int
  workdir: pathlib.Path
  encoder: pathlib.Path
  foreign: bool = False


class Step(NamedTuple):
  """A command, and what is there when it is done."""

  done: pathlib.Path
  command: list[str]  # of Python


def training(run: Run, output: pathlib.Path, overrides: list[str]) -> list[Step]:
  """The pre-training of a run and its export."""
  if run.foreign:
    return []
  variant = BASE if run.name == PEER else run.name
  flags = [
    f"--config=configs/evidence.py:{variant}",
    f"--workdir={run.workdir}",
    f"--config.seed={run.seed}",
    f"--config.data.path={output / 'sets' / sets.PRETRAIN}",
    *overrides,
  ]
  agree(run.workdir, flags)
  done = run.encoder / "config.json"
  if run.name == PEER:
    return [Step(done, ["-m", "launch.evidence_peer", *flags])]
  export = ["-m", "atst_jax.export", f"--workdir={run.workdir}", f"--output={run.encoder}"]
  return [Step(run.encoder, ["-m", "atst_jax.main", *flags]), Step(done, export)]


def evaluations(run: Run, output: pathlib.Path) -> list[Step]:
  """By the exact probe. The random encoder beside a run is drawn with its seed."""
  common = [f"--config.encoder={run.encoder}", f"--config.seed={run.seed}", "--config.seeds=1"]
  asked = {task: ["linear.py", "--config.protocol=exact"] for task in sets.TASKS}
  if run.name in SUBTRACTS:
    asked[sets.BGKNOWN] = ["bgknown.py"]
    if run.name != BASE:
      asked[sets.BGKNOWN].append("--config.baselines=()")
  return [
    Step(
      run.workdir / name / "results.json",
      [
        *("-m", "atst_jax.main", f"--config=configs/{config}", f"--workdir={run.workdir / name}"),
        f"--config.data.path={output / 'sets' / name}",
        *common,
        *flags,
      ],
    )
    for name, (config, *flags) in asked.items()
  ]


def agree(workdir: pathlib.Path, flags: list[str]) -> None:
  """Raises UserError if a pre-training that has begun was given other values than `flags` say."""
  path = workdir / "config.json"
  if not path.is_file():
    return
  config, _, *overrides = flags
  stored = flatten(json.loads(path.read_text(encoding="utf-8")))
  asked = flatten(load_with_overrides(config.removeprefix("--config="), overrides, SECTIONS))
  for key, value in asked.items():  # what is None is filled when a run begins
    value = json.loads(json.dumps(value))
    if value is not None and not key.startswith("data.") and value != stored.get(key, value):
      raise UserError(
        f"{workdir} was trained with {key}={stored[key]}, not {value}: choose another --output"
      )


def check_heard(run: Run, tested: sets.Tested, allowed: bool) -> None:
  """Notes in the run's workdir which test clips its pre-training has heard. Raises UserError if
  there are any, or if nobody knows, unless that is allowed."""
  heard: list[str] | None
  try:
    heard = tested.heard_by(str(run.encoder))
  except UserError:
    if not allowed:
      raise
    heard = None
  if heard and not allowed:
    raise UserError(
      f"the pre-training of {run.encoder} has heard {len(heard)} test clips, the first is "
      f"{heard[0]!r}; train on a set without them, or give --allow_heard: then every table says so"
    )
  run.workdir.mkdir(parents=True, exist_ok=True)
  (run.workdir / sets.HEARD).write_text(json.dumps(heard) + "\n", encoding="utf-8")


def execute(step: Step, dry_run: bool) -> None:
  """Runs a command until it is done, unless it is. Ends the program if it fails."""
  if step.done.exists():
    return
  command = [sys.executable, *step.command]
  print(shlex.join(command), flush=True)
  while not dry_run and (code := subprocess.run(command).returncode):
    if code != EXIT_RESUME:
      raise SystemExit(f"exit code {code}: {shlex.join(command)}")


def planned(flags, seeds: list[int]) -> list[Run]:
  """The runs that the flags ask for, a variant at a time. Raises UserError."""
  wanted = [name for name in flags.only.split(",") if name]
  if unknown := set(wanted) - set(VARIANTS):
    raise UserError(
      f"--only={flags.only}: no variant {', '.join(sorted(unknown))}; there are "
      f"{', '.join(VARIANTS)}"
    )
  runs = []
  for name in [*wanted, *([PEER] if flags.peer else [])]:
    for seed in seeds:
      workdir = flags.output / name / f"seed{seed}"
      runs.append(Run(name, seed, workdir, workdir / "encoder"))
  for folder in filter(None, flags.encoders.split(",")):
    encoder = pathlib.Path(folder)
    if encoder.name in (*VARIANTS, PEER, "sets", "manifests"):
      raise UserError(f"--encoders={folder}: {encoder.name} is a folder of --output; rename it")
    runs.append(
      Run(encoder.name, seeds[0], flags.output / encoder.name / f"seed{seeds[0]}", encoder, True)
    )
  return runs


def main(argv: list[str]) -> int:
  """Returns 0. Raises UserError, and SystemExit naming a command that fails."""
  parser = Parser("python launch/evidence.py", __doc__)
  add = parser.add_argument
  add("--recordings", required=True, type=pathlib.Path, help="folder with esc10/, fsdd/, notes/")
  folder = "folder of all sets and runs; made if need be"
  add("--output", required=True, type=pathlib.Path, help=folder)
  add("--seeds", default="0,1,2", help="of the pre-trainings, with commas (default 0,1,2)")
  add("--only", default=",".join(VARIANTS), help="variants, with commas between; default: all")
  add("--peer", action="store_true", help="also train the base recipe with PyTorch's update")
  add("--encoders", default="", help="exported encoders to evaluate beside, with commas between")
  heard = "evaluate what has heard test clips, or may have; every table says so"
  add("--allow_heard", action="store_true", help=heard)
  add("--dry_run", action="store_true", help="print the commands that are left, and end")
  add("--tables", action="store_true", help="print the tables of what is done, and end")
  flags, overrides = parser.parse_with_overrides(argv)
  try:
    seeds = [int(seed) for seed in flags.seeds.split(",")]
  except ValueError:
    raise UserError(f"--seeds={flags.seeds}: whole numbers with commas between") from None
  runs, output = planned(flags, seeds), flags.output
  if not flags.tables:
    sets.write_manifests(flags.recordings, output)
    for done, command in sets.preparations(flags.recordings, output):
      execute(Step(done, command), flags.dry_run)
    tested = None if flags.dry_run else sets.Tested(output)
    for run in runs:
      for step in training(run, output, overrides):
        execute(step, flags.dry_run)
      if tested:
        check_heard(run, tested, flags.allow_heard)
      for step in evaluations(run, output):
        execute(step, flags.dry_run)
  if flags.dry_run:
    return 0
  text = tables(output, list(dict.fromkeys(run.name for run in runs)), seeds, BASE)
  if not flags.tables:
    (output / "evidence.md").write_text(text, encoding="utf-8")
  print(text)
  return 0


if __name__ == "__main__":
  sys.exit(guard(lambda: main(sys.argv[1:])))
