"""Checks of `gpu_check.py` that run inside one process:

python -m launch.gpu_parts kernels 0|1
python -m launch.gpu_parts trace|types --config=…
"""

import collections
import pathlib
import sys
import tempfile


def _program(argv: list[str]):
  """(program, batch) of a config's flags."""
  from atst_jax.method.subtraction import SECTIONS
  from atst_jax.performance import speed as measured
  from atst_jax.pretraining import recipe
  from atst_jax.runtime.mesh import process_rows, put_batch
  from atst_jax.util import config as configs

  path = argv[0].removeprefix("--config=")
  asked = configs.load_with_overrides(path, argv[1:], SECTIONS)
  config, mesh, program = measured._prepare(asked, None)
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
  if not spent:
    print("no kernels of a GPU were seen")
    sys.exit(int(jax.default_backend() == "gpu"))
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
  checks = {"kernels": lambda a: _kernels(a == ["1"]), "trace": _trace, "types": _types}
  checks[sys.argv[1]](sys.argv[2:])
