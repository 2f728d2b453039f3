"""The FLOP model against what XLA counts in the compiled step."""

import jax
import pytest

from atst_jax.models.transformer import Transformer
from atst_jax.performance.chips import CHIPS, find_chip
from atst_jax.performance.cost import main
from atst_jax.pretraining import recipe
from atst_jax.pretraining.recipe import clip_flops
from tests.tiny import tiny_config

BASE = {
  "encoder__width": "192",
  "encoder__depth": "3",
  "heads__hidden": "512",
  "heads__out": "64",
  "batch_size": "8",
  "views__crop_frames": "64",
  "data__clip_frames": "64",
  "encoder__max_frames": "64",
}
BYOLA = {
  "encoder__width": "2048",
  "encoder__hidden": "512",
  "batch_size": "8",
  "views__crop_frames": "64",
}
# of the objectives without a teacher, which keep their encoders' sizes over time
HIDING = {
  "encoder__width": "192",
  "encoder__depth": "3",
  "batch_size": "8",
  "views__crop_frames": "96",
  "data__clip_frames": "96",
}
CHANGES = {"base.py": BASE, "byola.py": BYOLA, "ssast.py:small": HIDING}
PAIRS = HIDING | {"encoder__max_frames": "96"}
CHANGES |= {"cola.py:small_transformer": PAIRS, "trill.py:small_transformer": PAIRS}
CHANGES["conformer.py:small"] = HIDING | {"encoder__feed_forward": "512"}


@pytest.mark.parametrize(
  "file, changes",
  [
    ("base.py", {}),
    ("base.py", {"difference__weight": "0"}),
    ("base.py", {"difference__symmetric": "false"}),
    ("byola.py", {}),
    ("cola.py:small_transformer", {}),
    ("trill.py:small_transformer", {}),
    ("ssast.py:small", {}),
    ("ssast.py:small", {"ssast__task": "generative"}),
    ("conformer.py:small", {}),
  ],
)
def test_model_flops_are_xlas(file, changes):
  """Within 12 %: XLA also counts element-wise work and the views. Seen red with the backward pass
  counted once."""
  config = recipe.resolve(tiny_config(file=file, **{**CHANGES[file], **changes}), None)
  init, step = recipe.build(config, ragged=False)
  state = jax.eval_shape(init, jax.random.key(0))
  batch = next(recipe.batches(config, None, start_step=0, rows=None))
  counted = jax.jit(step).lower(state, batch).cost_analysis()["flops"]
  assert 0.85 < clip_flops(config.to_dict()) * config.batch_size / counted < 1.05


def test_known_sizes():
  """ATST Base on 6 s: 12 blocks on 151 tokens, 2 · 85 M parameters each, and the attention's
  products; the last block works for CLS alone, which needs keys and values of all tokens."""
  sizes = {"width": 768, "depth": 12, "heads": 12, "patch_frames": 4, "max_frames": 1001}
  expected = 151 * 2 * 12 * 12 * 768**2 + 12 * 4 * 151**2 * 768 + 150 * 2 * 256 * 768
  expected -= 150 * (2 * 10 * 768**2 + 4 * 151 * 768)
  assert Transformer(**sizes, drop_path=0.1).flops(frames=601, n_mels=64) == expected


def test_command(capsys):
  assert main(["--config=configs/atst_small.py", "--clips=200000"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert "51.15 GFLOP per clip, 39062 steps of 1536" in lines[0]
  assert any("H100" in line for line in lines)
  assert main(["--config=configs/atst_small.py"]) == 2 and "--clips=N" in capsys.readouterr().err
  assert main(["--config=configs/atst_small.py", "--clips=5", "--mfu=2"]) == 2


def test_float32_has_a_peak_of_its_own(capsys):
  """Its products are float32's everywhere. Seen red with bfloat16's peak for both."""
  assert main(["--config=configs/base.py:released"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert "at 40% of 67 TFLOP/s" in next(line for line in lines if line.startswith("H100"))
  assert "at 40% of 32.8 TFLOP/s" in next(line for line in lines if line.startswith("TPU v5e"))
  assert CHIPS["A100"].peak("float32") == 19.5e12 and CHIPS["A100"].peak("auto") == 312e12


@pytest.mark.parametrize(
  ("kind", "chip"),
  [
    ("NVIDIA H100 80GB HBM3", "H100"),
    ("NVIDIA A100-SXM4-40GB", "A100"),
    ("NVIDIA GH200 480GB", "H200"),
    ("TPU v5 lite", "TPU v5e"),
    ("TPU v5p", "TPU v5p"),
    ("NVIDIA RTX A1000 Laptop GPU", None),
    ("NVIDIA H100 PCIe", None),
    ("NVIDIA H200 NVL", None),
  ],
)
def test_a_chip_is_not_taken_for_another(kind, chip):
  """Seen red with names that contain a chip's: utilisation was that of another peak."""
  assert find_chip(kind) == chip


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--clips=-5"], "300 epochs of -5 clips in batches of 1536 are no number of steps"),
    (["--clips=1"], "300 epochs of 1 clips in batches"),
    (["--clips=5", "--config.total_epochs=inf"], "no number of steps"),
    (["--clips=5", "--config.total_epochs=none"], "give --clips=N or --config.total_steps=N"),
    (["--clips=5", "--config.batch_size=0"], "--config.batch_size=0: must be at least 1"),
    (["--config.total_steps=0"], "--config.total_steps=0: must be at least 1"),
    (["--config=configs/linear.py"], "is of a 'linear' job; only a pre-training has a step"),
  ],
)
def test_mistakes_are_one_line(flags, message, capsys):
  """Seen red as tracebacks."""
  assert main(["--config=configs/atst_small.py", *flags]) == 2
  assert message in capsys.readouterr().err
