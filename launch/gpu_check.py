"""The checks of `launch/gpu_check.sh`, each in a process of its own, within the time left.

A check that fails or runs out of time has its row in the table; the exit code is then 1.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = pathlib.Path(os.environ.get("OUT", "runs/gpu_check")).resolve()
SECONDS = 480
STEPS = 40  # of the run that is stopped and continued
STARTED = time.monotonic()
CONFIGS = (("atst_small", 768), ("atst_base", 384), ("base", 192), ("atst_small", 1536))
TINY = (
  *("encoder.width=64", "encoder.depth=2", "encoder.heads=2", "heads.hidden=64", "heads.out=32"),
  *("views.crop_frames=60", "data.clip_frames=80", "views.group=4", "data.streams=8"),
)


def left() -> float:
  """Seconds until the time is over."""
  return SECONDS - (time.monotonic() - STARTED)


def run(*command: str, seconds: float) -> str:
  """Runs a command, shows and returns its output. Raises RuntimeError with the last lines if it
  fails."""
  seconds = min(seconds, left() - 5)
  if seconds < 5:
    raise RuntimeError("no time left")
  print(f"[{time.monotonic() - STARTED:.0f} s] {' '.join(command)}", flush=True)
  try:
    done = subprocess.run(
      command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )
  except subprocess.TimeoutExpired:
    raise RuntimeError(f"not done after {seconds:.0f} s") from None
  print(done.stdout, done.stderr[-2000:], sep="", flush=True)
  if done.returncode:
    raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-200:]}")
  return done.stdout


def python(*arguments: str, seconds: float) -> str:
  """`run` of this interpreter."""
  return run(sys.executable, *arguments, seconds=seconds)


def overrides(batch: int, small: bool) -> list[str]:
  """Flags of a config: its batch, or a tiny one of a tiny network."""
  keys = [f"batch_size={16 if small else batch}", "data.source=synthetic", *(TINY if small else ())]
  return [f"--config.{key}" for key in keys]


def speed(name: str, batch: int, small: bool, torch: bool) -> str:
  """Measures a step, and torch.compile's in the same call."""
  flags = [f"--config=configs/{name}.py", *overrides(batch, small), "--repeats=3"]
  compared = ["--torch", "--torch_compile"] if torch else []
  text = python("-m", "atst_jax.benchmark", "step", *flags, *compared, seconds=110)
  return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def kernels(small: bool) -> str:
  """Pallas's kernels and cuDNN's attention against XLA's, on the device."""
  return python("launch/gpu_check.py", "kernels", str(int(small)), seconds=90).splitlines()[-1]


def trace(name: str, batch: int, small: bool) -> str:
  """The 15 longest kernels of a step."""
  flags = [f"--config=configs/{name}.py", *overrides(batch, small)]
  text = python("launch/gpu_check.py", "trace", *flags, seconds=110)
  return "; ".join(text.splitlines()[-15:])


def types(small: bool) -> str:
  """Losses of 20 steps in bfloat16 against float32."""
  flags = ["--config=configs/atst_small.py", *overrides(96, small)]
  return python("launch/gpu_check.py", "types", *flags, seconds=110).splitlines()[-1]


def whole_run(small: bool) -> str:
  """A run is stopped by SIGTERM and continued; its checkpoint must be that of an undisturbed run.
  Then it is exported and used."""
  flags = ["--config=configs/atst_small.py", *overrides(96, small)]
  keys = (
    f"total_steps={STEPS}",
    "warmup_steps=4",
    "checkpoint.every_steps=20",
    "log.every_steps=5",
  )
  flags += [f"--config.{key}" for key in keys]
  command = lambda name: [
    *(sys.executable, "-m", "atst_jax.main", *flags, f"--workdir={OUT / name}")
  ]
  run(*command("straight"), seconds=120)
  process = subprocess.Popen(command("stopped"), cwd=ROOT)
  metrics, deadline = OUT / "stopped" / "metrics.jsonl", time.monotonic() + min(100, left() - 10)
  while process.poll() is None and time.monotonic() < deadline:
    if metrics.exists() and '"step": 10' in metrics.read_text():
      process.send_signal(signal.SIGTERM)
      break
    time.sleep(0.05)
  code = process.wait(timeout=60)
  if code != 75:
    raise RuntimeError(f"SIGTERM gave exit code {code}, not 75")
  run(*command("stopped"), seconds=120)
  facts = []
  for name in ("straight", "stopped"):
    folder = OUT / name / "checkpoints" / str(STEPS)
    facts.append(json.loads(next(folder.glob("*.json")).read_text())["state"])
  if facts[0] != facts[1]:
    different = sum(facts[0][key] != facts[1].get(key) for key in facts[0])
    raise RuntimeError(f"{different} of {len(facts[0])} arrays differ after stopping")
  encoder, vectors = OUT / "encoder", OUT / "vectors.npz"
  python("-m", "atst_jax.export", f"--workdir={OUT / 'stopped'}", f"--output={encoder}", seconds=90)
  sounds = OUT / "sounds"
  python("-m", "data_pipeline.synth", f"--output={sounds}", "--clips_per_class=2", seconds=60)
  flags = [f"--encoder={encoder}", f"--input={sounds}", f"--output={vectors}"]
  python("-m", "atst_jax.embed", *flags, seconds=90)
  return f"stopped and continued: all {len(facts[0])} arrays equal bit for bit; exported, embedded"


def main(argv: list[str]) -> int:
  """Runs the checks and writes the table. Returns the exit code."""
  small = "--small" in argv
  OUT.mkdir(parents=True, exist_ok=True)
  try:
    import torch  # noqa: F401

    has_torch = True
  except ImportError:
    has_torch = False
  checks = {"kernels": lambda: kernels(small)}
  for name, batch in CONFIGS[:3]:
    checks[f"step {name} {batch}"] = lambda n=name, b=batch: speed(n, b, small, has_torch)
  checks["run"] = lambda: whole_run(small)
  for name, batch in CONFIGS[:3]:
    checks[f"trace {name} {batch}"] = lambda n=name, b=batch: trace(n, b, small)
  checks["types"] = lambda: types(small)
  checks["step {} {}".format(*CONFIGS[3])] = lambda: speed(*CONFIGS[3], small, False)
  rows, failed = [], 0
  for name, check in checks.items():
    started = time.monotonic()
    try:
      found = check()
    except Exception as error:  # the others still run
      found, failed = f"FAILED: {error}", failed + 1
    rows.append(f"| {name} | {' '.join(found.split())} | {time.monotonic() - started:.0f} |")
    table = ["| check | found | s |", "|---|---|---:|", *rows]
    (OUT / "gpu_check.md").write_text("\n".join(table) + "\n", encoding="utf-8")
  print("\n".join(table))
  return int(failed > 0)


def _program(argv: list[str]):
  """(resolved config, mesh, program, batch) of a config's flags."""
  from atst_jax.method.subtraction import SECTIONS
  from atst_jax.performance import speed as measured
  from atst_jax.pretraining import recipe
  from atst_jax.runtime.mesh import process_rows, put_batch
  from atst_jax.util import config as configs

  path = argv[0].removeprefix("--config=")
  config, mesh, program = measured._prepare(
    configs.load_with_overrides(path, argv[1:], SECTIONS), None
  )
  rows = process_rows(mesh, config.batch_size)
  batch = put_batch(mesh, next(recipe.batches(config, None, start_step=0, rows=rows)))
  return program, batch


def _attention(B: int, N: int, H: int) -> float:
  """The distance of cuDNN's attention and gradients from XLA's, relative to the largest value.
  Outputs at padded tokens have to be finite, too."""
  import jax
  import jax.numpy as jnp

  from atst_jax.models.layers import attend

  q, k, v = (jax.random.normal(jax.random.key(i), (B, N, H, 64), jnp.bfloat16) for i in range(3))
  tokens = jnp.arange(B, dtype=jnp.int32) % (N - 1) + 1
  valid = (jnp.arange(N)[None] < tokens[:, None])[..., None, None]

  def total(q, k, v, kind):
    return jnp.sin(jnp.where(valid, attend(q, k, v, tokens, kind), 0).astype(jnp.float32)).sum()

  gradient = jax.jit(jax.value_and_grad(total, (0, 1, 2)), static_argnums=3)
  found = [jax.tree.leaves(gradient(q, k, v, kind)) for kind in ("xla", "cudnn")]
  filled = jax.jit(lambda: attend(q, k, v, tokens, "cudnn"))()
  if not all(jnp.isfinite(x).all() for x in (filled, *found[1])):
    return float("inf")
  ratio = lambda a, b: float(abs(a - b).max() / (abs(a).max() + 1e-6))
  return max(ratio(*(x.astype(jnp.float32) for x in pair)) for pair in zip(*found, strict=True))


def _kernels(small: bool) -> None:
  import jax
  import jax.numpy as jnp

  from atst_jax.models import fused, pallas_kernels

  pallas_kernels.INTERPRET = jax.default_backend() != "gpu"
  B, N, D = (2, 16, 128) if small else (64, 152, 384)
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
  x, branch, h = (draw(i, B, N, D).astype(jnp.bfloat16) for i in range(3))
  scale = jnp.arange(B) % 2 * 1.25
  bias, gamma, beta = (draw(i, D) for i in range(3, 6))
  kernel = draw(6, D, D).astype(jnp.bfloat16)
  worst = {}
  for name, call, arguments in (
    ("add_norm", fused.add_norm, (x, branch, scale, bias, gamma, beta)),
    ("gelu_product", fused.gelu_product, (h, bias, kernel)),
  ):
    found = []
    for kind in ("xla", "pallas"):
      total = lambda *a, c=call, k=kind: sum(
        jnp.sin(y.astype(jnp.float32)).sum() for y in jax.tree.leaves(c(*a, k))
      )
      found.append(jax.jit(jax.value_and_grad(total, tuple(range(len(arguments)))))(*arguments))
    ratio = lambda a, b: float(jnp.abs(a - b).max() / (jnp.abs(a).max() + 1e-6))
    pairs = zip(*map(jax.tree.leaves, found), strict=True)
    worst[name] = max(ratio(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in pairs)
  if jax.default_backend() == "gpu":
    worst["attention by cuDNN"] = _attention(B, N, 6)
  print(", ".join(f"{name} differs by {value:.1e} of its largest" for name, value in worst.items()))
  if max(worst.values()) > 0.03:
    sys.exit(1)


def _trace(argv: list[str]) -> None:
  import collections
  import tempfile

  import jax

  program, batch = _program(argv)
  state = program.init(jax.random.key(0))
  step = program.step.lower(state, batch).compile()
  state, _ = jax.block_until_ready(step(state, batch))
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(step(state, batch))
    file = next(pathlib.Path(folder).rglob("*.xplane.pb"))
    spent: collections.Counter = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
      if "GPU" in plane.name:
        for line in plane.lines:
          for event in line.events if "Stream" in line.name else ():
            spent[event.name] += event.duration_ns
  for name, nanoseconds in spent.most_common(15):
    print(f"{nanoseconds / 1e6:.2f} ms {name[:60]}")


def _types(argv: list[str]) -> None:
  import jax

  losses = {}
  for dtype in ("float32", "bfloat16"):
    program, batch = _program([*argv, f"--config.dtype={dtype}"])
    state = program.init(jax.random.key(0))
    losses[dtype] = []
    for _ in range(20):
      state, metrics = program.step(state, batch)
      losses[dtype].append(float(metrics["loss"]))
  apart = [abs(a - b) for a, b in zip(*losses.values(), strict=True)]
  print(f"20 losses in bfloat16 are at most {max(apart):.4f} from float32 (last {apart[-1]:.4f})")
  if max(apart) > 0.1:
    sys.exit(1)


if __name__ == "__main__":
  parts = {"kernels": lambda a: _kernels(a == ["1"]), "trace": _trace, "types": _types}
  if len(sys.argv) > 1 and sys.argv[1] in parts:
    sys.path.insert(0, str(ROOT))
    parts[sys.argv[1]](sys.argv[2:])
  else:
    sys.exit(main(sys.argv[1:]))
