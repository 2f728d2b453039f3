"""BYOL-A with the subtraction on 200,000 clips of AudioSet: the second paper.

  python -m atst_jax.main --config=configs/difference.py --workdir=runs/difference
  python -m atst_jax.main --config=configs/difference.py --workdir=runs/difference --sweep=lambda

The sweep prints the commands of λ = 0, .1, .2, .5, .8. Expects data/audioset200k_difference,
prepared with --frontend=difference (`:released`: byola). No code of this paper was released:
`:released` takes what it shares with BYOL-A from BYOL-A's: front-end, learning rate and the
teacher's update.

6.3 GFLOP per clip, 0.13 EFLOP in all for 200,000 clips: 0.1 H100-hours at 40 % of its peak, which
convolutions of 64 channels will not reach (python -m atst_jax.performance.cost
--config=configs/difference.py --clips=200000). One GPU does.

Aims at (paper, λ = .2 against 0): nine tasks, linear, mean 71.79 against 71.95; BgKnown at full
overlap 57.54 against 55.29; retrieval in rain, R@1, 53.99 against 50.23.
"""

from ml_collections import ConfigDict

from configs import base, byola

VARIANTS = ("paper", "released")
SWEEPS = base.SWEEPS


def get_config(variant: str = "paper") -> ConfigDict:
  """The difference-aware paper (5.1)."""
  config = byola.get_config(variant)
  config.difference.weight = 0.2
  config.data.path = "data/audioset200k_difference"
  if variant == "paper":
    config.data.frontend = "difference"
    config.optimizer.base_lr = 1e-3
  return config
