"""The programs that the config files run on NVIDIA GPUs, and their compilation without one.

  python -m tests.gpu_programs base.py finetune.py transformer

compiles them for one H200 by jax's CUDA plugin (pip install -e .[cuda]) and prints what each moves
through memory. Their networks are as shallow as `make_shallow` has them.
"""

import sys

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from atst_jax.artifacts.model import Model
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.downstream.finetune import program as finetuning
from atst_jax.downstream.finetune.recipe import program_settings
from atst_jax.objectives.registry import get_objective
from atst_jax.performance import gpus, hlo, speed
from atst_jax.performance.chips import CHIPS
from atst_jax.pretraining import recipe
from atst_jax.runtime.mesh import make_mesh
from atst_jax.util import config as configs
from tests.tiny import make_shallow

MIN_MAX = {"kind": "min_max", "top_db": 80.0, "low": -100.0, "high": 40.0}
STANDARD = {"kind": "standard", "mean": -5.0, "std": 4.0}


def exported(path: str) -> dict:
  """What an export of a pre-training config says of its encoder, made shallow."""
  encoder = configs.load(f"configs/{path}").encoder.to_dict()
  make_shallow(encoder)
  return {
    "encoder": encoder,
    "chunk_frames": 601,
    "max_seconds": None,
    "head": None,
    "normalization": MIN_MAX if encoder["kind"] == "transformer" else STANDARD,
    "frontend": FRONTENDS["atst" if encoder["kind"] == "transformer" else "byola"].to_json(),
  }


def shapes(B: int, T: int, classes: int) -> dict:
  """A batch without its contents."""
  return {
    "mel": jax.ShapeDtypeStruct((B, T, 64), "float16"),
    "length": jax.ShapeDtypeStruct((B,), "int32"),
    "target": jax.ShapeDtypeStruct((B, classes), "uint8"),
  }


def pretraining(path: str, mesh) -> dict:
  """The train step, of clips with lengths where the encoder masks them."""
  config = configs.load_with_overrides(f"configs/{path}", ["--config.dtype=bfloat16"])
  config.data.source = "synthetic"
  config = speed.resolved(config, None)
  make_shallow(config.encoder)
  objective = get_objective(config)
  config.batch_size = 2 * objective.unit * config.compute.accumulation
  ragged = objective.has_views and config.encoder.kind == "transformer"
  program = recipe.compile_for(config, mesh, ragged=ragged)
  return {"step": (program.step, (program.state, program.batch))}


def fine_tuning(path: str, mesh) -> dict:
  """The train step and the prediction, of an ATST Small and of clips of two chunks."""
  config = configs.load_with_overrides(f"configs/{path}", ["--config.dtype=bfloat16"])
  config.padding, config.tail, config.drop_path = "mask", "weighted", 0.1
  config.batch_size = config.mixup.group = 4
  about = exported("atst_small.py")
  model = Model(about, None, None)
  variables = jax.eval_shape(model.encoder.init, jax.random.key(0), jnp.zeros((1, 601, 64)))
  program = finetuning.compile_for(
    about,
    variables,
    mesh,
    frames=1001,
    n_mels=64,
    classes=10,
    multi_label=True,
    **program_settings(config),
  )
  state, batch = program.state, shapes(4, 1001, 10)
  rate, seed = (jax.ShapeDtypeStruct((), kind) for kind in ("float32", "uint32"))
  return {
    "step": (program.step, (state, batch, rate, seed)),
    "predict": (program.predict, (state.params, state.batch_stats, batch)),
  }


def inference(path: str, mesh) -> dict:
  """The vectors of an export of that config, as evaluations ask for them: in float32."""
  model = Model(exported(path), None, None)
  variables = jax.eval_shape(model.encoder.init, jax.random.key(0), jnp.zeros((1, 601, 64)))
  number = lambda kind: jax.ShapeDtypeStruct((4,), kind)
  mel = jax.ShapeDtypeStruct((4, 601, 64), "float32")
  return {"embed": (jax.jit(model.outputs), (variables, mel, number("int32"), number("float32")))}


KINDS = {"pretrain": pretraining, "finetune": fine_tuning}
INFERENCE = {"transformer": "atst_small.py", "cnn": "byola.py"}


def programs(name: str, mesh) -> dict:
  """{part: (jitted function, abstract arguments)} of a config file, or of inference by the kind
  of an encoder."""
  if name in INFERENCE:
    return inference(INFERENCE[name], mesh)
  return KINDS[configs.load(f"configs/{name}").job](name, mesh)


def lowered(function, arguments):
  """A program lowered for one H200. That needs neither a GPU nor its plugin, unless the arguments
  lie on described devices."""
  chip = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
  mesh = AbstractMesh((1, 1), ("data", "fsdp"), (AxisType.Auto,) * 2, abstract_device=chip)
  with jax.sharding.use_abstract_mesh(mesh):
    return function.trace(*arguments).lower(lowering_platforms=("cuda",))


def anywhere(function, arguments):
  """The same program without the places of its arguments."""
  bare = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  return jax.jit(function.__wrapped__), jax.tree.map(bare, arguments)


def main(names: list[str]) -> None:
  """Compiles the programs and prints a line for each."""
  jax.config.update("jax_platforms", "cpu")
  mesh = make_mesh(data=1, fsdp=1, devices=gpus.describe("H200", 1, CHIPS["H200"]))
  finetuning.resolve_fused = recipe.resolve_fused = lambda *_, unsuited, **__: tuple(
    "xla" if kind in unsuited else kind for kind in ("cudnn", "pallas")
  )
  for name in names:
    for part, (function, arguments) in programs(name, mesh).items():
      work = hlo.count(lowered(function, arguments).compile().as_text())
      print(f"{name} {part}: {work.bytes / 1e9:.1f} GB", flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
