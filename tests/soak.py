"""Kills a training run at random instants, again and again; it has to end as if nothing had
happened.

  python -m tests.soak [--minutes=10] [--hours=0] [--seed=0] [--keep]

Every round is a run of its own (a real command, real signals), disturbed until it ends, and
compared with a twin that was left alone: bit for bit, or, in every third round, which gets another
number of devices at each start, closely. Between two starts the newest checkpoint may be damaged,
provided that there is another one, and what a killed save has left may be damaged further. Prints
what was done and what became of it; the exit code is 1 if anything was lost.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from atst_jax.runtime.checkpoint_folder import UNFINISHED, entries, newest_good
from atst_jax.runtime.metric_writer import read_metrics
from tests.checkpoints import read_tree
from tests.tiny import ROOT, tiny_flags, write_dataset

STEPS, EVERY = 300, 20
DEVICES = (1, 2, 4)
# parameters after STEPS on other numbers of devices; 5e-5 was seen
CLOSE = {"rtol": 0, "atol": 1e-3}
STOPS = {signal.SIGTERM: 75, signal.SIGINT: 75, signal.SIGUSR1: 75, signal.SIGKILL: -signal.SIGKILL}


class Lost(Exception):
  """What the run should have survived."""


class Soak:
  def __init__(self, folder: pathlib.Path, seed: int):
    self.folder, self.random = folder, random.Random(seed)
    data = write_dataset(folder / "data", frames=(40, 90))
    self.flags = tiny_flags(
      data__source="records",
      data__path=data,
      total_steps=str(STEPS),
      warmup_steps="10",
      checkpoint__every_steps=str(EVERY),
      checkpoint__keep="2",
      encoder__width="32",
      encoder__depth="1",
      difference__weight="0",
      log__every_steps="5",
      optimizer__base_lr="1e-3",
    )
    self.faults, self.lives, self.seconds = collections.Counter(), 0, 0.0

  def start(self, workdir, devices) -> subprocess.Popen:
    env = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "atst_jax.main", f"--workdir={workdir}", *self.flags]
    self.lives += 1
    with open(workdir.with_suffix(".log"), "a", encoding="utf-8") as output:
      return subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)

  def undisturbed(self) -> pathlib.Path:
    workdir = self.folder / "undisturbed"
    for name in ("warm", "undisturbed"):  # the first one compiles, the second one is timed
      started = time.time()
      if code := self.start(self.folder / name, 1).wait():
        raise Lost(f"a run that was left alone ended with {code}: {workdir.with_suffix('.log')}")
      self.seconds = time.time() - started
    return workdir

  def round(self, number: int, until: float) -> pathlib.Path | None:
    """Disturbs a run until it ends; None if the time is over before."""
    workdir, elastic = self.folder / f"round{number}", number % 3 == 2
    while time.time() < until:
      devices = self.random.choice(DEVICES) if elastic else 1
      had = self.good(workdir)
      process = self.start(workdir, devices)
      number = self.random.choice([*STOPS, signal.SIGKILL, signal.SIGKILL])
      try:
        code = process.wait(self.random.uniform(0, 0.9) * self.seconds)
      except subprocess.TimeoutExpired:
        process.send_signal(number)
        code = process.wait(120)
        self.faults[number.name] += 1
        # Before the program has its handlers (a second of imports) a signal ends it as any other.
        if code not in (STOPS[number], -number, 0):
          raise Lost(f"{number.name} ended with {code}: {workdir.with_suffix('.log')}") from None
      else:
        if code:
          raise Lost(f"ended with {code} by itself: {workdir.with_suffix('.log')}")
      if had and not self.good(workdir):
        raise Lost(f"{workdir}: there was a good checkpoint, now there is none")
      if code == 0:
        return workdir
      if elastic:
        self.faults["other devices"] += 1
      self.damage(workdir)
    return None

  def good(self, workdir) -> list[int]:
    """Steps of the checkpoints that are good."""
    folder, found = str(workdir / "checkpoints"), []
    for entry in entries(folder):
      if newest_good(folder, [entry], {}):
        found.append(entry.step)
    return found

  def damage(self, workdir):
    """Sometimes, something on the disk breaks while the run is dead."""
    folder = workdir / "checkpoints"
    good = self.good(workdir)
    if len(good) > 1 and self.random.random() < 0.4:
      files = [p for p in (folder / str(good[0])).rglob("*") if p.is_file() and p.stat().st_size]
      path, kind = (
        self.random.choice(files),
        self.random.choice(["flipped byte", "cut file", "lost file"]),
      )
      if kind == "flipped byte":
        data = bytearray(path.read_bytes())
        data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        path.write_bytes(data)
      elif kind == "cut file":
        os.truncate(path, self.random.randrange(path.stat().st_size))
      else:
        path.unlink()
      self.faults[f"newest checkpoint: {kind}"] += 1
    for unfinished in folder.glob(f"*/{UNFINISHED}"):
      files = [p for p in unfinished.parent.rglob("*") if p.is_file() and p.name != UNFINISHED]
      if files and self.random.random() < 0.5:
        self.random.choice(files).unlink()
        self.faults["unfinished checkpoint: lost file"] += 1
    metrics = workdir / "metrics.jsonl"
    if metrics.exists() and self.random.random() < 0.2:
      os.truncate(metrics, max(0, metrics.stat().st_size - self.random.randrange(40)))
      self.faults["cut metrics"] += 1


def state(workdir):
  return read_tree(workdir / "checkpoints" / str(STEPS) / "default")


def losses(workdir):
  return {r["step"]: r["loss"] for r in read_metrics(workdir / "metrics.jsonl")}


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    "python -m tests.soak",
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--minutes", type=float, default=10)
  parser.add_argument("--hours", type=float, default=0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--keep", action="store_true", help="keep the folder of the runs")
  flags = parser.parse_args(argv)
  until = time.time() + 60 * flags.minutes * (flags.hours == 0) + 3600 * flags.hours
  folder = pathlib.Path(tempfile.mkdtemp(prefix="soak"))
  soak, same, close, furthest, error = Soak(folder, flags.seed), 0, 0, 0.0, None
  try:
    twin = soak.undisturbed()
    expected = state(twin)
    for number in range(1_000_000):
      if (workdir := soak.round(number, until)) is None:
        break
      found = state(workdir)
      if number % 3 == 2:
        difference = jax.tree.map(
          lambda a, b: float(np.max(np.abs(a - b), initial=0)), found["params"], expected["params"]
        )
        furthest = max(furthest, *jax.tree.leaves(difference))
        jax.tree.map(
          lambda a, b: np.testing.assert_allclose(a, b, **CLOSE),
          found["params"],
          expected["params"],
        )
        close += 1
      else:
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        ours = losses(workdir)
        if any(losses(twin)[step] != loss for step, loss in ours.items()):
          raise Lost(f"{workdir}: other losses than those of {twin}")
        same += 1
      shutil.rmtree(workdir)
      print(f"round {number}: {soak.lives} starts, {sum(soak.faults.values())} faults", flush=True)
  except (Lost, AssertionError) as lost:
    error = lost
  print(json.dumps(dict(soak.faults.most_common()), indent=1))
  print(
    f"{sum(soak.faults.values())} faults in {soak.lives} starts of runs of {STEPS} steps; {same} "
    f"runs ended bit for bit as the undisturbed one, {close} on changing numbers of devices within "
    f"{furthest:.1e}"
  )
  if error:
    print(f"LOST: {error}\nthe runs are in {folder}", file=sys.stderr)
    return 1
  if not flags.keep:
    shutil.rmtree(folder)
  return 0


if __name__ == "__main__":
  sys.exit(main())
