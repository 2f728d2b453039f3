"""Floating-point operations of a pre-training config, and what they take on a chip at a stated utilisation.

  python -m atst_jax.flops --config=configs/base.py --clips=1912134 [--config.KEY=VALUE …]

A multiplication with its addition counts as two. Counted are the matrix products and convolutions of student (forward,
and twice that backward) and teacher (forward); not element-wise work, not the views, nothing twice. These are model
FLOPs: what a model FLOP utilisation (MFU) refers to.
"""

import math
import sys

from atst_jax import config as configs
from atst_jax.chips import CHIPS
from atst_jax.cnn import BLOCKS, CHANNELS
from atst_jax.command import Parser, guard
from atst_jax.errors import UserError
from atst_jax.frontend import get_frontend


def transformer_forward(*, frames, n_mels, width, depth, patch_frames) -> float:
  """FLOPs of ATST's encoder on one clip for its CLS token, of which alone the last block asks everything."""
  patches = frames // patch_frames
  tokens = patches + 1
  # Keys and values of all tokens; queries, projection and perceptron of some; scores and their product.
  block = lambda queries: 4 * tokens * width**2 + 20 * queries * width**2 + 4 * queries * tokens * width
  return 2 * patches * patch_frames * n_mels * width + (depth - 1) * block(tokens) + block(1)


def cnn_forward(*, frames, n_mels, version, width, hidden) -> float:
  """FLOPs of BYOL-A's encoder on one clip."""
  total, channels = 0, 1
  for _ in range(BLOCKS[version]):
    total += 2 * 9 * channels * CHANNELS * frames * n_mels
    frames, n_mels, channels = frames // 2, n_mels // 2, CHANNELS
  features = n_mels * CHANNELS
  return total + 2 * frames * hidden * (features + (width - features if version == "AudioNTT2022" else width))


def encoder_forward(encoder: dict, *, frames: int, n_mels: int) -> float:
  """FLOPs of a config's encoder on one clip of so many frames."""
  if encoder["kind"] == "transformer":
    sizes = {k: encoder[k] for k in ("width", "depth", "patch_frames")}
    return transformer_forward(frames=frames, n_mels=n_mels, **sizes)
  sizes = {k: encoder[k] for k in ("version", "width", "hidden")}
  return cnn_forward(frames=frames, n_mels=n_mels, **sizes)


def clip_flops(config) -> float:
  """Model FLOPs of one update per clip of the batch: two views, and their mixtures where λ is not 0."""
  n_mels = get_frontend(config["data"]["frontend"]).n_mels
  encoder = encoder_forward(config["encoder"], frames=config["views"]["crop_frames"], n_mels=n_mels)
  hidden, out = config["heads"]["hidden"], config["heads"]["out"]
  projector = 2 * hidden * (config["encoder"]["width"] + out)
  predictor = 2 * hidden * (out + out)
  student = 3 * (encoder + projector + predictor)
  mixed = 0 if not config["difference"]["weight"] else 2 if config["difference"]["symmetric"] else 1
  return (2 + mixed) * student + 2 * (encoder + projector)


def find_steps(config, clips: int | None) -> int:
  """Updates of a config on a data set of so many clips. Raises UserError where they are needed and not given."""
  if config.total_steps is not None:
    return config.total_steps
  if not clips:
    raise UserError("the steps follow from total_epochs and the data; give --clips=N or --config.total_steps=N")
  return round(config.total_epochs * clips / config.batch_size)


def main(argv=None) -> int:
  """Returns the exit code, that of `command.guard`."""
  parser = Parser("atst_jax.flops", __doc__)
  parser.add_argument("--config", required=True, help="FILE.py or FILE.py:VARIANT; --config.KEY=VALUE overrides a key")
  parser.add_argument("--clips", type=int, help="clips of the data set, where the steps follow from epochs")
  parser.add_argument("--mfu", type=float, default=0.4, help="assumed utilisation (default 0.4)")
  return guard(lambda: _main(*parser.parse_with_overrides(argv)))


def _main(flags, rest) -> None:
  config = configs.load_with_overrides(flags.config, rest)
  if not 0 < flags.mfu <= 1:
    raise UserError(f"--mfu={flags.mfu}: must lie between 0 and 1")
  steps = find_steps(config, flags.clips)
  clip = clip_flops(config)
  total = clip * config.batch_size * steps
  print(f"{clip / 1e9:.2f} GFLOP per clip, {steps} steps of {config.batch_size}: {total / 1e18:.3g} EFLOP in all")
  for name, chip in CHIPS.items():
    hours = total / (flags.mfu * chip.flops) / 3600
    digits = max(0, 2 - math.floor(math.log10(hours))) if hours < 100 else 0
    print(f"{name:8} {hours:8.{digits}f} chip-hours at {flags.mfu:.0%} of {chip.flops / 1e12:.0f} TFLOP/s")


if __name__ == "__main__":
  sys.exit(main())
