"""ATST Base on AudioSet (AS-2M), λ = 0: the first paper's larger model.

  python -m atst_jax.main --config=configs/atst_base.py --workdir=runs/atst_base

Expects data/audioset, prepared with --frontend=atst (`:released`: audiossl), about 1.9 million
clips of 10 s.

198 GFLOP per clip, 76 EFLOP in all: 53 H100-hours or 267 TPU-v5e-hours at 40 % of their peak
(python -m atst_jax.performance.cost --config=configs/atst_base.py --clips=1912134). Eight GPUs or a
slice of a pod.

Aims at (paper, Table 2, linear): AS-20K mAP .338, SPCV2 95.1, VOX1 72.0, NSYNTH 75.6, US8K 84.1.
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = base.VARIANTS


def get_config(variant: str = "paper") -> ConfigDict:
  """ATST Base (paper 3.1)."""
  config = base.get_config(variant)
  config.difference.weight = 0.0
  return config
