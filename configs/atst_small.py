"""ATST Small on 200,000 clips of AudioSet (AS-200K), λ = 0: the first paper's smaller model and its
ablations.

  python -m atst_jax.main --config=configs/atst_small.py --workdir=runs/atst_small
  python -m atst_jax.main --config=configs/atst_small.py --workdir=runs/atst_small --sweep=views
  python -m atst_jax.main --config=configs/atst_small.py --workdir=runs/atst_small --sweep=length

The sweeps print their commands: the view ablation (Table 1) and the segment length (Figure 2).

51 GFLOP per clip, 3.1 EFLOP in all: 2.2 H100-hours or 11 TPU-v5e-hours at 40 % of their peak
(python -m atst_jax.performance.cost --config=configs/atst_small.py --clips=200000). One GPU does.

Aims at (paper, Table 1, linear: AS-20K mAP, SPCV2, VOX1, NSYNTH, US8K):
  two segments of 6 s      .279  93.6  61.9  75.3  82.0
  single segment of 6 s    .257  94.0  57.3  73.8  80.9
  two segments of 1 s      .191  91.3  50.0  74.3  76.6
  single segment of 1 s    .210  94.3  52.3  73.8  79.3
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = base.VARIANTS
FRAMES = {seconds: 100 * seconds + 1 for seconds in range(1, 11)}
SWEEPS = {
  "views": [
    {"views.segments": segments, "views.crop_frames": FRAMES[seconds]}
    for segments in ("single", "two")
    for seconds in (1, 6)
  ],
  "length": [{"views.crop_frames": frames} for frames in FRAMES.values()],
}


def get_config(variant: str = "paper") -> ConfigDict:
  """ATST Small (paper 3.1)."""
  config = base.get_config(variant)
  config.difference.weight = 0.0
  config.data.path = "data/audioset200k"
  config.encoder.width, config.encoder.heads = 384, 6
  config.optimizer.base_lr = 5e-4
  config.teacher.decay_start = 0.99
  if variant == "released":
    config.total_steps, config.warmup_steps = 39_100, 1300
    # an anchor of 9 s and a positive of 6 s, as its script says
    config.views.crop_frames = FRAMES[9]
    config.views.second_frames = (FRAMES[6], FRAMES[6])
  else:
    config.total_epochs = 300.0
  return config
