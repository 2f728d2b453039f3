"""Floating-point operations of a pre-training config, and their time on a chip at a stated
utilisation.

  python -m atst_jax.performance.cost --config=configs/base.py --clips=1912134

A multiplication with its addition counts as two. Matrix products and convolutions of the student
(forward, and twice that backward) and of the teacher (forward) are counted. Element-wise work and
views are not. These are model FLOPs, as in model FLOP utilisation (MFU). The peak is that of
bfloat16, or of float32 where the config has dtype=float32.
"""

import math
import sys

from ml_collections import ConfigDict

from atst_jax.method.subtraction import SECTIONS
from atst_jax.performance.chips import CHIPS
from atst_jax.pretraining.recipe import clip_flops
from atst_jax.util import config as configs
from atst_jax.util.cli import Parser, guard
from atst_jax.util.errors import UserError


def load_pretraining(path: str, flags: list[str]) -> ConfigDict:
  """`configs.load_with_overrides`. Raises UserError for another job's config, too."""
  config = configs.load_with_overrides(path, flags, SECTIONS)
  if config.job != "pretrain":
    raise UserError(f"--config={path} is of a {config.job!r} job; only a pre-training has a step")
  return config


def find_steps(config, clips: int | None) -> int:
  """Updates of a config on a data set of so many clips. Raises UserError if `clips` is needed and
  not given, or if there is no step."""
  steps, batch, epochs = config.total_steps, config.batch_size, config.total_epochs
  if batch < 1:
    raise UserError(f"--config.batch_size={batch}: must be at least 1")
  if steps is None:
    if not clips or epochs is None:
      raise UserError(
        "the steps follow from total_epochs and the data; give --clips=N or --config.total_steps=N"
      )
    steps = epochs * clips / batch
    if not 0.5 < steps < math.inf:
      raise UserError(
        f"{epochs:g} epochs of {clips} clips in batches of {batch} are no number of steps; change "
        "--clips, or set --config.total_steps=N"
      )
  elif steps < 1:
    raise UserError(f"--config.total_steps={steps}: must be at least 1")
  return round(steps)


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("atst_jax.performance.cost", __doc__)
  parser.add_config()
  parser.add_argument(
    "--clips", type=int, help="clips of the data set, if the steps follow from epochs"
  )
  parser.add_argument("--mfu", type=float, default=0.4, help="assumed utilisation (default 0.4)")
  return guard(lambda: _main(*parser.parse_with_overrides(argv)))


def _main(flags, rest) -> None:
  config = load_pretraining(flags.config, rest)
  if not 0 < flags.mfu <= 1:
    raise UserError(f"--mfu={flags.mfu}: must lie between 0 and 1")
  steps = find_steps(config, flags.clips)
  clip = clip_flops(config)
  total = clip * config.batch_size * steps
  print(
    f"{clip / 1e9:.2f} GFLOP per clip, {steps} steps of {config.batch_size}: "
    f"{total / 1e18:.3g} EFLOP in all"
  )
  for name, chip in CHIPS.items():
    peak = chip.peak(config.dtype)
    hours = total / (flags.mfu * peak) / 3600
    digits = max(0, 2 - math.floor(math.log10(hours))) if hours < 100 else 0
    shown = f"{hours:8.{digits}f} chip-hours at {flags.mfu:.0%} of {peak / 1e12:.3g} TFLOP/s"
    print(f"{name:8} {shown}")


if __name__ == "__main__":
  sys.exit(main())
