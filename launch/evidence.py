"""The evidence on real sound, from recordings to its tables: docs/evidence.md.

  python launch/evidence.py --recordings=recordings --output=runs/evidence
  python launch/evidence.py … --seeds=0,1,2 --only=base,lambda05
  python launch/evidence.py … --only=base,cola,cola_transformer        other objectives beside it
  python launch/evidence.py … --peer         also trains with PyTorch's update
  python launch/evidence.py … --text=stand_in              also retrieval, with random words
  python launch/evidence.py … --encoders=encoders/mine     evaluates an export beside them
  python launch/evidence.py … --trials       trials of the recipe, without what is tested
  python launch/evidence.py … --dry_run      prints the commands
  python launch/evidence.py … --tables       the tables of what is done so far

`evidence_sets.py` says what lies in `recordings/`, what pre-training hears, and what is tested;
configs/evidence.py has the variants, `COMPARATORS` the other objectives, `evidence_trials.py` the
trials. An encoder whose pre-training has heard a test clip is refused. With --allow_heard it is
evaluated, and every table says so.

Without --only the variants are trained; other objectives only where --only names them. Further
flags, --config.KEY=VALUE, go to every pre-training, and every config must have their keys. Commands
run one after the other, a variant at a time; what is done is skipped, and what was stopped goes on.
"""

import json
import pathlib
import shlex
import subprocess
import sys
from typing import NamedTuple

import evidence_sets as sets
from evidence_done import check_measured, check_trained, read
from evidence_tables import tables
from evidence_trials import TRIALS, overrides, told

from atst_jax.method.subtraction import SECTIONS
from atst_jax.util.cli import Parser, guard
from atst_jax.util.config import load_with_overrides, variants
from atst_jax.util.errors import UserError

EXIT_RESUME = 75
VARIANTS = variants("configs/evidence.py")
# Other objectives, by their configs: the same clips, steps and batch. No trial chose their values.
COMPARATORS = {
  "cola": "cola.py:small",
  "cola_transformer": "cola.py:small_transformer",
  "trill": "trill.py:small",
  "trill_transformer": "trill.py:small_transformer",
  "ssast": "ssast.py:small",
  "ssast_frame": "ssast.py:small_frame",
  "wav2vec": "conformer.py:small",
  "wav2vec_transformer": "conformer.py:small_transformer",
}
# As the variants: a run in the background may be paused for long.
PATIENT = ("--config.guard.step_seconds=0",)
BASE, PEER = "base", "peer"
SUBTRACTS = (BASE, "lambda02", "lambda05")
STAND_IN = "stand_in"  # a text model with random parameters (`evidence_text.py`)


class Run(NamedTuple):
  """A pre-training with its evaluations; or an encoder that comes from elsewhere."""

  name: str
  seed: int
  workdir: pathlib.Path
  encoder: pathlib.Path
  foreign: bool = False
  config: str = f"evidence.py:{BASE}"  # of configs/
  changes: tuple[str, ...] = ()  # flags of its own
  subtracts: bool = False  # also evaluated on mixtures

  @property
  def params_hash(self) -> str | None:
    """Of the encoder; None where it does not say."""
    return (read(self.encoder / "config.json") or {}).get("params_hash")


class Step(NamedTuple):
  """A command, and what is there when it is done."""

  done: pathlib.Path
  command: list[str]  # of Python


def training(run: Run, output: pathlib.Path, more: list[str]) -> list[Step]:
  """The pre-training of a run and its export. `more`: flags of all pre-trainings."""
  if run.foreign:
    return []
  flags = [
    f"--config=configs/{run.config}",
    f"--workdir={run.workdir}",
    f"--config.seed={run.seed}",
    f"--config.data.path={output / 'sets' / sets.PRETRAIN}",
    *run.changes,
    *more,
  ]
  check_trained(run.workdir, flags)
  done = run.encoder / "config.json"
  if run.name == PEER:
    return [Step(done, ["-m", "launch.evidence_peer", *flags])]
  export = ["-m", "atst_jax.export", f"--workdir={run.workdir}", f"--output={run.encoder}"]
  return [Step(run.encoder, ["-m", "atst_jax.main", *flags]), Step(done, export)]


def evaluations(run: Run, output: pathlib.Path, text: str) -> list[Step]:
  """By the exact probe. The random encoder beside a run is drawn with its seed.

  Args:
    text: model of retrieval; "" leaves it out.
  """
  probe = ["linear.py", "--config.protocol=exact", "--config.splits.way=split"]
  asked = dict.fromkeys(sets.TASKS, probe)
  if run.subtracts:
    # mixtures have no folds: the second collection chooses
    known = ["--config.protocol=exact", "--config.exact.chosen_on=valid"]
    asked[sets.BGKNOWN] = ["bgknown.py", *known]
    if run.name != BASE:
      asked[sets.BGKNOWN] += ["--config.baselines=()"]
    if text:
      few = ["--config.train.epochs=100", "--config.recall_at=1,5"]
      words = [f"--config.text.model={text}", "--config.text.pooling=mean"]
      asked[sets.PAIRS] = ["retrieval.py", *few, *words]
      if run.name != BASE:
        asked[sets.PAIRS] += ["--config.features=pre-trained"]
  steps = []
  for name, (config, *own) in asked.items():
    workdir = run.workdir / name
    flags = [
      f"--config=configs/{config}",
      f"--workdir={workdir}",
      f"--config.data.path={output / 'sets' / name}",
      f"--config.encoder={run.encoder}",
      f"--config.seed={run.seed}",
      "--config.seeds=1",
      *own,
    ]
    check_measured(workdir, flags, run.encoder, sets.fingerprint(output, name))
    steps.append(Step(workdir / "results.json", ["-m", "atst_jax.main", *flags]))
  return steps


def text_model(output: pathlib.Path, text: str) -> tuple[str, list[Step]]:
  """The folder or name of the text model that --text asks for, and what makes it."""
  if text != STAND_IN:
    return text, []
  folder, pairs = output / STAND_IN, output / "sets" / sets.PAIRS / "pairs.csv"
  command = ["-m", "launch.evidence_text", f"--pairs={pairs}", f"--output={folder}"]
  return str(folder), [Step(folder, command)]


def check_heard(run: Run, tested: sets.Tested, allowed: bool) -> None:
  """Notes in the run's workdir which encoder it is and which test clips its pre-training has heard.
  Raises UserError if there are any, or if nobody knows, unless that is allowed."""
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
  found = {"params_hash": run.params_hash, "heard": heard}
  (run.workdir / sets.HEARD).write_text(json.dumps(found) + "\n", encoding="utf-8")


def execute(step: Step, dry_run: bool) -> None:
  """Runs a command until it is done, unless it is. Ends the program if it fails."""
  if step.done.exists():
    return
  command = [sys.executable, *step.command]
  print(shlex.join(command), flush=True)
  while not dry_run and (code := subprocess.run(command).returncode):
    if code != EXIT_RESUME:
      raise SystemExit(f"exit code {code}: {shlex.join(command)}")


def check_flags(run: Run, more: list[str]) -> None:
  """Raises UserError if the run's config does not take its flags."""
  path = f"configs/{run.config}"
  try:
    load_with_overrides(path, [*run.changes, *more], SECTIONS)
  except UserError as error:
    raise UserError(f"{error} ({path})") from error


def planned(flags, output: pathlib.Path, more: list[str]) -> list[Run]:
  """The runs that the flags ask for, a variant or trial at a time. `more`: flags of all
  pre-trainings. Raises UserError."""
  known = tuple(TRIALS) if flags.trials else (*VARIANTS, *COMPARATORS)
  default = TRIALS if flags.trials else VARIANTS
  wanted = list(default) if flags.only is None else [x for x in flags.only.split(",") if x]
  if unknown := set(wanted) - set(known):
    raise UserError(
      f"--only={flags.only}: no {'trial' if flags.trials else 'variant'} "
      f"{', '.join(sorted(unknown))}; there are {', '.join(known)}"
    )
  if flags.trials and (flags.peer or flags.encoders or flags.text):
    raise UserError("--trials tests the recipe alone: leave out --peer, --encoders and --text")
  runs = []
  for name in [*wanted, *([PEER] if flags.peer else [])]:
    for seed in flags.seeds:
      workdir = output / name / f"seed{seed}"
      run = Run(name, seed, workdir, workdir / "encoder")
      if flags.trials:
        run = run._replace(changes=tuple(overrides(name)))
      elif name in COMPARATORS:
        run = run._replace(config=COMPARATORS[name], changes=PATIENT)
      elif name != PEER:
        run = run._replace(config=f"evidence.py:{name}", subtracts=name in SUBTRACTS)
      check_flags(run, more)
      runs.append(run)
  if flags.text and not any(run.subtracts for run in runs):
    raise UserError(
      f"--text={flags.text}: none of these runs is evaluated by retrieval; leave it out, or take "
      f"one of --only={','.join(SUBTRACTS)}"
    )
  taken = {*VARIANTS, *COMPARATORS, PEER, STAND_IN, "sets", "manifests", "trials"}
  for encoder in map(pathlib.Path, filter(None, flags.encoders.split(","))):
    if encoder.name in taken:
      raise UserError(
        f"--encoders={encoder}: {encoder.name} is a folder of --output, or of another encoder; "
        "rename it"
      )
    taken.add(encoder.name)
    workdir = output / encoder.name / f"seed{flags.seeds[0]}"
    runs.append(Run(encoder.name, flags.seeds[0], workdir, encoder, True))
  return runs


def whole_numbers(text: str) -> list[int]:
  """With commas between."""
  return [int(number) for number in text.split(",")]


def run_all(flags, runs: list[Run], output: pathlib.Path, more: list[str]) -> None:
  """Prepares the sets, then trains and evaluates every run."""
  sets.write_manifests(flags.recordings, output, trials=flags.trials, dry_run=flags.dry_run)
  steps = [Step(*step) for step in sets.preparations(flags.recordings, output)]
  model, made = text_model(output, flags.text)
  if any(run.subtracts for run in runs):
    mixed = sets.mixtures(flags.recordings, output, pairs=bool(model))
    steps += [*(Step(*step) for step in mixed), *made]
  for step in steps:
    execute(step, flags.dry_run)
  tested = None if flags.dry_run else sets.Tested(output)
  for run in runs:
    for step in training(run, output, more):
      execute(step, flags.dry_run)
    if tested:
      check_heard(run, tested, flags.allow_heard)
    for step in evaluations(run, output, model):
      execute(step, flags.dry_run)


def main(argv: list[str]) -> int:
  """Returns 0. Raises UserError, and SystemExit naming a command that fails."""
  parser = Parser("python launch/evidence.py", __doc__)
  add = parser.add_argument
  add("--recordings", required=True, type=pathlib.Path, help="folder with esc10/, fsdd/, notes/")
  folder = "folder of all sets and runs; made if need be"
  add("--output", required=True, type=pathlib.Path, help=folder)
  seeds = "of the pre-trainings, with commas (default 0,1,2; of trials 0)"
  add("--seeds", type=whole_numbers, help=seeds)
  only = "variants and other objectives, or trials, with commas between; default: every variant"
  add("--only", help=only)
  add("--peer", action="store_true", help="also train the base recipe with PyTorch's update")
  text = f"also retrieval: folder or name of a text model, or {STAND_IN} for one drawn at random"
  add("--text", default="", help=text)
  add("--encoders", default="", help="exported encoders to evaluate beside, with commas between")
  trials = "trials of the recipe (evidence_trials.py), tested on what chooses otherwise"
  add("--trials", action="store_true", help=trials)
  heard = "evaluate what has heard test clips, or may have; every table says so"
  add("--allow_heard", action="store_true", help=heard)
  add("--dry_run", action="store_true", help="print the commands that are left, and end")
  add("--tables", action="store_true", help="print the tables of what is done, and end")
  flags, more = parser.parse_with_overrides(argv)
  flags.seeds = flags.seeds or ([0] if flags.trials else [0, 1, 2])
  output = flags.output / "trials" if flags.trials else flags.output
  runs = planned(flags, output, more)
  if not flags.tables:
    run_all(flags, runs, output, more)
  if flags.dry_run:
    return 0
  names = list(dict.fromkeys(run.name for run in runs))
  changes = {name: told(name) for name in names} if flags.trials else {}
  text = tables(output, names, flags.seeds, BASE, changes, tuple(COMPARATORS))
  if not flags.tables:
    (output / "evidence.md").write_text(text, encoding="utf-8")
  print(text)
  return 0


if __name__ == "__main__":
  sys.exit(guard(lambda: main(sys.argv[1:])))
