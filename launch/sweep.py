"""Runs the commands of a config's sweep, here or by a launcher; each run has a workdir of its own.

  python launch/sweep.py --config=configs/difference.py --workdir=runs/difference --sweep=lambda
  python launch/sweep.py … --dry_run
  python launch/sweep.py … --with="sbatch --gpus-per-node=8 launch/slurm.sh"  one job for each run

Here they run one after the other. A run that stops with 75 is started again. After a failed run the
others still run. The exit code is 1 if any failed.
"""

import argparse
import shlex
import subprocess
import sys

EXIT_RESUME = 75
MAIN = ["-m", "atst_jax.main"]


def commands(flags: list[str]) -> list[list[str]]:
  """The flags of every run, as `atst_jax.main --sweep` lists them."""
  listed = subprocess.run([sys.executable, *MAIN, *flags], stdout=subprocess.PIPE, text=True)
  if listed.returncode:
    raise SystemExit(listed.returncode)
  return [shlex.split(line)[3:] for line in listed.stdout.splitlines()]


def wait(process: subprocess.Popen) -> int:
  """The exit code. Ctrl-C reaches the run too, which saves and ends; then the sweep ends with
  it."""
  try:
    return process.wait()
  except KeyboardInterrupt:
    raise SystemExit(process.wait()) from None


def main() -> int:
  """Returns 1 if any run failed, else 0."""
  parser = argparse.ArgumentParser(
    "python launch/sweep.py",
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--sweep", required=True, help="of the config's SWEEPS")
  parser.add_argument(
    "--with", dest="launcher", default="", help="command that is given the flags of atst_jax.main"
  )
  parser.add_argument("--dry_run", action="store_true", help="print the commands and end")
  flags, rest = parser.parse_known_args()
  failed = 0
  for run in commands([*rest, f"--sweep={flags.sweep}"]):
    command = [*(shlex.split(flags.launcher) or [sys.executable, *MAIN]), *run]
    print(shlex.join(command), flush=True)
    if flags.dry_run:
      continue
    while (code := wait(subprocess.Popen(command))) == EXIT_RESUME:
      pass
    failed += code != 0
  return int(failed > 0)


if __name__ == "__main__":
  sys.exit(main())
