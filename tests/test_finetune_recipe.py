"""The recipes of fine-tuning: learning rates, and every program at its full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.downstream.finetune import program as programs
from atst_jax.downstream.finetune import recipe
from atst_jax.downstream.finetune.classifier import make_classifier
from atst_jax.runtime.mesh import make_mesh
from atst_jax.util import config as configs
from tests.evaluation import MIN_MAX
from tests.tiny import ROOT


def test_learning_rates_rise_over_the_warm_up_and_fall_to_the_end():
  config = configs.load(f"{ROOT / 'configs' / 'finetune.py'}:spcv2")
  rates = programs.learning_rates(165, **recipe.schedule_settings(config))
  assert len(rates) == 50 * 165 and rates[0] == 0 and rates[-1] == pytest.approx(1e-6, abs=1e-7)
  assert rates.max() == rates[5 * 165] == pytest.approx(0.5 * 512 / 256)
  assert np.all(np.diff(rates[: 5 * 165]) > 0) and np.all(np.diff(rates[5 * 165 :]) <= 0)


@pytest.mark.parametrize("variant", ["as20k", "spcv2", "vox1"])
def test_every_recipe_builds_at_full_size(variant):
  """Shapes of a whole step of ATST Base's width, two chunks of six seconds where clips are of
  ten."""
  config = configs.load(f"{ROOT / 'configs' / 'finetune.py'}:{variant}")
  config.dtype, config.padding, config.tail, config.drop_path = "bfloat16", "mask", "released", 0.1
  encoder = configs.load(str(ROOT / "configs" / "atst_base.py")).encoder.to_dict()
  encoder["depth"] = 2
  exported = {"encoder": encoder, "chunk_frames": 601, "normalization": MIN_MAX}
  network = make_classifier(
    encoder,
    classes=1,
    drop_path=0.1,
    chunk_frames=601,
    tail="released",
    dtype=None,
    attention="xla",
    remat=False,
  )
  variables = jax.eval_shape(network.encoder.init, jax.random.key(0), jnp.zeros((1, 601, 64)))
  classes, frames = {"as20k": (527, 1001), "spcv2": (35, 101), "vox1": (1251, 1201)}[variant]
  program = programs.compile_for(
    exported,
    variables,
    make_mesh(data=-1, fsdp=1),
    frames=frames,
    n_mels=64,
    classes=classes,
    multi_label=variant == "as20k",
    **recipe.program_settings(config),
  )
  batch = {
    "mel": jax.ShapeDtypeStruct((512, frames, 64), "float16"),
    "length": jax.ShapeDtypeStruct((512,), "int32"),
    "target": jax.ShapeDtypeStruct((512, classes), "uint8"),
  }
  after, metrics = jax.eval_shape(program.step, program.state, batch, np.float32(1), np.uint32(0))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), program.state
  )
  assert metrics["loss"].shape == () and program.state.params["head"]["kernel"].shape == (
    1536,
    classes,
  )
