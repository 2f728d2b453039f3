"""Decides for slurm.sh whether a job is queued again, and whether its limit is too short.

  launch/run.sh launch.restarts before --limit=3:00 -- FLAGS      warns of a short limit
  launch/run.sh launch.restarts after --limit=3:00 --code=75 --started=T -- FLAGS

FLAGS are those of atst_jax.main, T is the start of the job in seconds since 1970. The workdir's
restarts.json keeps the results of the last starts. Exit codes: 0 queue it again, 4 do not, others:
not known.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import time

from atst_jax import main as atst
from atst_jax.util import storage
from atst_jax.util.errors import UserError

LAST = 4  # exit code: the job ends with its own code
ENDED, MISTAKE, DIVERGED, STOPPED = 0, 2, 3, 75
FAILURES = 10  # restarts in a row after failures, without a new checkpoint between them
EARLY = 3  # starts in a row that were asked to stop before they had a new checkpoint
MARGIN = 120  # seconds before its end at which SLURM sends the signal (slurm.sh)
SHARE = 10  # a job should last so many times as long as its start and its save
RECORD = "restarts.json"


@dataclasses.dataclass
class Starts:
  """The record of a run's starts.

  Attributes:
    checkpoints: at the end of the last start.
    failed, early: starts in a row that failed, or were asked to stop, without a new checkpoint.
    starting, saving: seconds until the first step of the last start, and from its last step to its
      end. `reached` is False if it had no first step: then it needs longer than `starting`.
  """

  checkpoints: list[str] = dataclasses.field(default_factory=list)
  failed: int = 0
  early: int = 0
  starting: float = 0.0
  saving: float = 0.0
  reached: bool = True


def read(workdir: str) -> Starts:
  """The record in the workdir; an empty one if there is none that can be read."""
  try:
    return Starts(**json.loads(storage.read_text(os.path.join(workdir, RECORD))))
  except (OSError, ValueError, TypeError):
    return Starts()


def checkpoints(workdir: str, folder: str | None) -> list[str]:
  """The saved steps of each run of a job: `4`, `seed0-division1/12`."""
  folder, found = folder or os.path.join(workdir, "checkpoints"), []
  for name in storage.names(folder):
    if name.isdigit():
      found.append(name)
    elif "." not in name:
      inner = storage.names(os.path.join(folder, name))
      found += [f"{name}/{step}" for step in inner if step.isdigit()]
  return found


def seconds(limit: str) -> float:
  """Seconds of a limit in `squeue`'s form: 2:00, 1:30:00, 2-00:00:00; infinite for words."""
  days, _, rest = limit.rpartition("-")
  try:
    parts = [int(part) for part in rest.split(":")]
    return int(days or 0) * 86400 + sum(n * 60**i for i, n in enumerate(reversed(parts)))
  except ValueError:
    return math.inf


def warning(starts: Starts, limit: str) -> str:
  """A warning if the limit is too short, or ""."""
  left = seconds(limit) - MARGIN
  need = starts.starting + starts.saving
  ask = math.ceil((MARGIN + SHARE * need) / 60)
  if left <= 0:
    ask = max(ask, 30)
    return (
      f"the job's limit is {limit} and the signal to save comes {MARGIN} s before its end, so at "
      f"once; give --time={ask} at least"
    )
  if left > 2 * need:
    return ""
  what = f"the last start took {starts.starting:.0f} s to its first step"
  what += f" and {starts.saving:.0f} s to save"
  if not starts.reached:
    what = f"the last start had not come to its first step after {starts.starting:.0f} s"
  return (
    f"{what}; the job's limit is {limit}, of which the last {MARGIN} s are for saving. Little of "
    f"it is left to train; give --time={ask} at least"
  )


def update(starts: Starts, *, code: int, saved: list[str], workdir: str, started: float) -> Starts:
  """The record after another start, which has just ended with `code`."""
  now = time.time()
  new = bool(set(saved) - set(starts.checkpoints))
  failed, early = (0, 0) if new else (starts.failed, starts.early)
  if code != STOPPED:
    failed += 1
  elif not new:
    early += 1
  try:
    beat = json.loads(storage.read_text(os.path.join(workdir, "heartbeat.json")))
  except (OSError, ValueError):
    beat = {}
  times = {"starting": max(now - started, 0.0), "saving": starts.saving, "reached": False}
  if (beat.get("first_time") or 0) >= started:
    times = {"starting": beat["first_time"] - started, "saving": starts.saving, "reached": True}
    if code == STOPPED:
      times["saving"] = max(now - beat["step_time"], 0.0)
  return Starts(checkpoints=saved, failed=failed, early=early, **times)


def verdict(starts: Starts, code: int, limit: str) -> tuple[bool, str]:
  """(whether to queue the job again, a message)."""
  if code in (ENDED, MISTAKE, DIVERGED):
    return False, ""
  if starts.early >= EARLY:
    return False, (
      f"{starts.early} starts in a row were asked to stop before they had a new checkpoint; the "
      f"job is not queued again. {warning(starts, limit) or 'Somebody asks too early'}"
    )
  if starts.failed > FAILURES:
    return False, (
      f"{starts.failed} starts in a row failed without a new checkpoint, the last with {code}; the "
      "job is not queued again. The log tells why"
    )
  told = f"exit code {code}: queued again, SLURM starts it in two minutes"
  if code != STOPPED:
    told += f" (restart {starts.failed} of {FAILURES} without a new checkpoint)"
  return True, told


def run_of(argv: list[str]) -> tuple[str, str | None]:
  """(workdir, folder of checkpoints, if not in it) of the flags of atst_jax.main. Raises
  UserError."""
  flags, config = atst.parse(argv)
  return flags.workdir, (config.get("checkpoint") or {}).get("folder")


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code; see the module's docstring."""
  parser = argparse.ArgumentParser("launch/run.sh launch.restarts", description=__doc__)
  parser.add_argument("when", choices=("before", "after"))
  parser.add_argument("--limit", required=True)
  parser.add_argument("--code", type=int)
  parser.add_argument("--started", type=float)
  argv = sys.argv[1:] if argv is None else argv
  cut = argv.index("--") if "--" in argv else len(argv)
  flags = parser.parse_args(argv[:cut])
  try:
    workdir, folder = run_of(argv[cut + 1 :])
  except UserError:  # which the job itself tells
    return 2
  starts = read(workdir)
  if flags.when == "before":
    if told := warning(starts, flags.limit):
      print(f"warning: {told}", file=sys.stderr)
    return 0
  starts = update(
    starts,
    code=flags.code,
    saved=checkpoints(workdir, folder),
    workdir=workdir,
    started=flags.started,
  )
  again, told = verdict(starts, flags.code, flags.limit)
  # what ends here may be submitted again, and is then a new row of starts
  kept = starts if again else dataclasses.replace(starts, failed=0, early=0)
  try:
    # a start that was stopped early has not made it
    storage.make_folder(workdir)
    storage.write_text(os.path.join(workdir, RECORD), json.dumps(dataclasses.asdict(kept)))
  except OSError as error:
    print(f"warning: {workdir}: restarts cannot be counted ({error.strerror})", file=sys.stderr)
    return 1
  if told:
    print(told if again else f"error: {told}", file=sys.stderr)
  return 0 if again else LAST


if __name__ == "__main__":
  sys.exit(main())
