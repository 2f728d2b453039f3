"""Every config's program for a GPU that is not there: what "auto" chooses, traced, lowered, and
compiled where jax's CUDA plugin is installed."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from atst_jax.models.encoders import make_encoder
from atst_jax.models.transformer import Transformer
from atst_jax.performance import gpus
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check
from atst_jax.runtime import devices
from atst_jax.runtime.mesh import make_mesh
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests import gpu_programs
from tests.tiny import ROOT, tiny_config

NAMES = (
  *("atst_small.py", "atst_base.py", "base.py", "base.py:released", "real_small.py", "demo.py"),
  *("difference.py", "byola.py", "evidence.py", "evidence.py:cnn", "finetune.py"),
  *("cola.py", "trill.py", "ssast.py", "conformer.py"),
  *gpu_programs.INFERENCE,
)
ATTENTION, GRADIENT, KERNEL = "__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward(", "gpu.triton"


def found_in(function, arguments) -> tuple[bool, bool, bool]:
  """Whether cuDNN's attention, its gradient and our kernels are in a program for a GPU."""
  text = gpu_programs.lowered(function, arguments).as_text()
  return tuple(name in text for name in (ATTENTION, GRADIENT, KERNEL))


@pytest.fixture
def h200(monkeypatch):
  """JAX's devices say that they are Hopper's, and cuDNN its version."""
  from jax._src.cudnn import fused_attention_stablehlo

  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91001)
  monkeypatch.setattr(devices, "capability_of", lambda device: 9.0)


def test_every_config_is_among_them():
  """What trains, by its file; the other jobs embed by an exported encoder."""
  jobs = {path.name: configs.load(str(path)).job for path in (ROOT / "configs").glob("[a-z]*.py")}
  assert {name for name, job in jobs.items() if job in gpu_programs.KINDS} <= set(NAMES)
  assert {*jobs.values()} - {*gpu_programs.KINDS} == {"linear", "retrieval", "difference"}


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_traced_and_lowered_for_a_gpu(name, h200):
  """Forward and gradient; cuDNN and Pallas have rules of their own. Each is there where it suits
  the encoder. Evaluations are in float32, which is XLA's."""
  if name in gpu_programs.INFERENCE:
    unsuited = {"cudnn", "pallas"}
  elif name == "finetune.py":
    unsuited = {}
  else:
    unsuited = make_encoder(configs.load(f"configs/{name}").encoder).unsuited()
  cudnn, pallas = "cudnn" not in unsuited, "pallas" not in unsuited
  mesh = make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  for part, program in gpu_programs.programs(name, mesh).items():
    found = found_in(*gpu_programs.anywhere(*program))
    assert found == (cudnn, cudnn and part == "step", pallas), part


@pytest.mark.parametrize(
  ("frames", "masked"), [(3, False), (28, False), (601, False), (24, True)]
)  # 1, 8, 151 and 7 tokens
def test_attention_takes_every_length(frames, masked, h200):
  sizes = {"width": 64, "depth": 2, "heads": 2, "drop_path": 0.1, "patch_frames": 4}
  options = {"dtype": jnp.bfloat16, "attention": "cudnn", "kernels": "pallas"}
  encoder = Transformer(**sizes, max_frames=601, **options)
  mel, length = jnp.zeros((2, frames, 64)), jnp.array([frames, 0]) if masked else None
  variables = jax.eval_shape(encoder.init, jax.random.key(0), mel)
  forward = jax.jit(lambda variables, mel: encoder.apply(variables, mel, length))
  assert found_in(forward, (variables, mel)) == (True, False, True)

  def loss(variables, mel):
    keys = {"drop_path": jax.random.key(0)}
    return encoder.apply(variables, mel, length, train=True, rngs=keys)[0].sum()

  assert found_in(jax.jit(jax.grad(loss)), (variables, mel)) == (True, True, True)


@pytest.mark.slow
@pytest.mark.skipif(not gpus.installed(), reason="JAX's CUDA plugin is not installed: .[cuda]")
def test_every_config_is_compiled_for_a_gpu():
  """By XLA itself, in a process that has set up JAX for it. Takes minutes."""
  command = [sys.executable, "-m", "tests.gpu_programs", *NAMES]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  lines = [line for line in run.stdout.splitlines() if line.endswith(" GB")]
  assert len(lines) == len(NAMES) + 1  # fine-tuning's step and prediction


WIDE = {"encoder__width": "64", "dtype": "bfloat16"}
NARROW = {"encoder__width": "32", "dtype": "bfloat16"}
THIN = {"encoder__width": "64", "encoder__heads": "16", "dtype": "bfloat16"}


@pytest.mark.parametrize(
  ("device", "changes", "chosen"),
  [
    ("9.0", WIDE, ("cudnn", "pallas")),
    ("12.0", WIDE, ("cudnn", "pallas")),
    ("7.5", WIDE, ("xla", "xla")),
    ("gfx942", WIDE, ("xla", "xla")),  # AMD's
    (None, WIDE, ("xla", "xla")),
    ("9.0", {**WIDE, "dtype": "float32"}, ("xla", "xla")),
    ("9.0", NARROW, ("cudnn", "xla")),
    ("9.0", THIN, ("xla", "pallas")),
    ("9.0", {**WIDE, "compute__attention": "xla"}, ("xla", "pallas")),
  ],
)
def test_auto_takes_what_there_is(device, changes, chosen, monkeypatch):
  found = SimpleNamespace(device_kind="a GPU", compute_capability=device)
  monkeypatch.setattr(devices.jax, "devices", lambda: [found])
  config = tiny_config(**changes)
  unsuited, compute = make_encoder(config.encoder).unsuited(), config.compute
  answer = devices.resolve_fused(
    compute.attention, compute.kernels, dtype=config.dtype, unsuited=unsuited
  )
  assert answer == chosen


CUDNN, PALLAS = {"compute__attention": "cudnn"}, {"compute__kernels": "pallas"}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {**CUDNN, **WIDE},
      "attention=cudnn needs an NVIDIA GPU from Ampere on .JAX found cpu.; leave",
    ),
    ({**PALLAS, **WIDE}, "kernels=pallas needs an NVIDIA GPU from Ampere on"),
    (CUDNN, "attention=cudnn needs --config.dtype=bfloat16; leave it out"),
    ({**PALLAS, **NARROW}, "kernels=pallas needs an encoder.width that 64 divides .it is 32."),
    ({**CUDNN, **THIN}, "needs heads of a multiple of 8, up to 128 .* is 4."),
    ({**CUDNN, "file": "byola.py"}, "needs --config.encoder.kind=transformer"),
  ],
)
def test_what_is_not_there_is_refused(changes, message):
  config = recipe.resolve(tiny_config(**{"dtype": "float32", **changes}), None)
  with pytest.raises(UserError, match=message):
    check(config, None, 1, 1)
