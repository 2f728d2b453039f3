"""The checks of `launch/gpu_check.sh`, each in processes of its own, within its share of the time.

A check that fails or runs out of time has its row in the table; the exit code is then 1.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = pathlib.Path(os.environ.get("OUT", "runs/gpu_check")).resolve()
FILES = OUT / "gpu_check_files"  # of the run, which are nobody else's
STEPS = 40  # of the run that is stopped and continued
STARTED = time.monotonic()
# Configs, batches, and seconds of a measured step: ours, torch.compile's and ours again.
STEP_SHARES = (("atst_small", 768, 90), ("atst_base", 384, 90), ("base", 192, 90))
LARGEST = ("atst_small", 1536)
# Seconds of the other checks; with the steps 474 in all.
SHARES = {"kernels": 45, "run": 55, "trace": 18, "types": 30, "largest": 20}
TINY = (
  *("encoder.width=64", "encoder.depth=2", "encoder.heads=2", "heads.hidden=64", "heads.out=32"),
  *("views.crop_frames=60", "data.clip_frames=80", "views.group=4", "data.streams=8"),
)


class Clock:
  """The time of one check after the other. What a check leaves over is the next one's."""

  def __init__(self):
    self.until = STARTED

  def grant(self, seconds: float) -> None:
    """The next check's share."""
    self.until += seconds

  def left(self) -> float:
    """Seconds until the share is over."""
    return self.until - time.monotonic()


CLOCK = Clock()


def run(*command: str) -> str:
  """Runs a command, shows and returns its output. Raises RuntimeError with the last lines if it
  fails."""
  seconds = CLOCK.left()
  if seconds < 5:
    raise RuntimeError("no time left")
  print(f"[{time.monotonic() - STARTED:.0f} s] {' '.join(command)}", flush=True)
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as process:
    try:
      output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)  # and what it has started
      raise RuntimeError(f"not done after {seconds:.0f} s") from None
  print(output, errors[-2000:], sep="", flush=True)
  if process.returncode:
    raise RuntimeError(f"exit code {process.returncode}: {errors.strip()[-200:]}")
  return output


def python(*arguments: str) -> str:
  """`run` of this interpreter."""
  return run(sys.executable, *arguments)


def overrides(batch: int, small: bool) -> list[str]:
  """Flags of a config: its batch, or a tiny one of a tiny network."""
  keys = [f"batch_size={16 if small else batch}", "data.source=synthetic", *(TINY if small else ())]
  return [f"--config.{key}" for key in keys]


def speed(name: str, batch: int, small: bool, torch: bool) -> str:
  """Measures a step, and torch.compile's in the same call."""
  flags = [f"--config=configs/{name}.py", *overrides(batch, small), "--repeats=3"]
  compared = ["--torch", "--torch_compile"] if torch else []
  text = python("-m", "atst_jax.benchmark", "step", *flags, *compared)
  return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def kernels(small: bool) -> str:
  """Pallas's kernels and cuDNN's attention against XLA's, on the device."""
  return python("-m", "launch.gpu_parts", "kernels", str(int(small))).splitlines()[-1]


def trace(name: str, batch: int, small: bool) -> str:
  """The 15 longest kernels of a step."""
  flags = [f"--config=configs/{name}.py", *overrides(batch, small)]
  text = python("-m", "launch.gpu_parts", "trace", *flags)
  return "; ".join(text.splitlines()[-15:])


def types(small: bool) -> str:
  """Losses of 20 steps in bfloat16 against float32."""
  flags = ["--config=configs/atst_small.py", *overrides(96, small)]
  return python("-m", "launch.gpu_parts", "types", *flags).splitlines()[-1]


def stopped(command: list[str], metrics: pathlib.Path) -> int:
  """The exit code of a run that gets SIGTERM at step 10. Raises RuntimeError if it does not end."""
  seconds = CLOCK.left()
  with subprocess.Popen(command, cwd=ROOT) as process:
    try:
      while process.poll() is None and CLOCK.left() > 0:
        if metrics.exists() and '"step": 10' in metrics.read_text():
          process.send_signal(signal.SIGTERM)
          break
        time.sleep(0.05)
      return process.wait(timeout=max(CLOCK.left(), 1))
    except subprocess.TimeoutExpired:
      raise RuntimeError(f"not stopped after {seconds:.0f} s") from None
    finally:
      process.kill()


def whole_run(small: bool) -> str:
  """A run is stopped by SIGTERM and continued; its checkpoint must be that of an undisturbed run.
  Then it is exported and used."""
  shutil.rmtree(FILES, ignore_errors=True)  # of an earlier check: a finished run is not continued
  flags = ["--config=configs/atst_small.py", *overrides(96, small)]
  keys = (
    f"total_steps={STEPS}",
    "warmup_steps=4",
    "checkpoint.every_steps=20",
    "log.every_steps=5",
  )
  flags += [f"--config.{key}" for key in keys]
  command = lambda name: [
    *(sys.executable, "-m", "atst_jax.main", *flags, f"--workdir={FILES / name}")
  ]
  run(*command("straight"))
  code = stopped(command("stopped"), FILES / "stopped" / "metrics.jsonl")
  if code != 75:
    raise RuntimeError(f"SIGTERM gave exit code {code}, not 75")
  run(*command("stopped"))
  facts = []
  for name in ("straight", "stopped"):
    manifest = FILES / name / "checkpoints" / str(STEPS) / "manifest.json"
    facts.append(json.loads(manifest.read_text())["state"])
  if facts[0] != facts[1]:
    different = sum(facts[0][key] != facts[1].get(key) for key in facts[0])
    raise RuntimeError(f"{different} of {len(facts[0])} arrays differ after stopping")
  encoder, sounds = FILES / "encoder", FILES / "sounds"
  python("-m", "atst_jax.export", f"--workdir={FILES / 'stopped'}", f"--output={encoder}")
  python("-m", "data_pipeline.synth", f"--output={sounds}", "--clips_per_class=2")
  flags = [f"--encoder={encoder}", f"--input={sounds}", f"--output={FILES / 'vectors.npz'}"]
  python("-m", "atst_jax.embed", *flags)
  return f"stopped and continued: all {len(facts[0])} arrays equal bit for bit; exported, embedded"


def checks_of(small: bool) -> list[tuple]:
  """(name, seconds, check) of every check, in their order."""
  torch = importlib.util.find_spec("torch") is not None
  found: list[tuple] = [("kernels", SHARES["kernels"], lambda: kernels(small))]
  for name, batch, seconds in STEP_SHARES:
    found.append(
      (f"step {name} {batch}", seconds, lambda n=name, b=batch: speed(n, b, small, torch))
    )
  found.append(("run", SHARES["run"], lambda: whole_run(small)))
  for name, batch, _ in STEP_SHARES:
    check = lambda n=name, b=batch: trace(n, b, small)
    found.append((f"trace {name} {batch}", SHARES["trace"], check))
  found.append(("types", SHARES["types"], lambda: types(small)))
  largest = "step {} {}".format(*LARGEST)
  return [*found, (largest, SHARES["largest"], lambda: speed(*LARGEST, small, False))]


def main(argv: list[str]) -> int:
  """Runs the checks and writes the table. Returns the exit code."""
  if unknown := set(argv) - {"--small"}:
    print(f"{unknown.pop()}: the only flag is --small; launch/gpu_check.sh says what it does")
    return 2
  small = "--small" in argv
  OUT.mkdir(parents=True, exist_ok=True)
  rows, failed = [], 0
  with tempfile.TemporaryDirectory() as compiled:
    if not small:  # what one process has compiled, the next ones read
      os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    for name, seconds, check in checks_of(small):
      started = time.monotonic()
      CLOCK.grant(5 * seconds if small else seconds)  # without a GPU there is no hurry
      try:
        found = check()
      except Exception as error:  # the others still run
        found, failed = f"FAILED: {error}", failed + 1
      rows.append(f"| {name} | {' '.join(found.split())} | {time.monotonic() - started:.0f} |")
      table = ["| check | found | s |", "|---|---|---:|", *rows]
      (OUT / "gpu_check.md").write_text("\n".join(table) + "\n", encoding="utf-8")
  print("\n".join(table))
  return int(failed > 0)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
