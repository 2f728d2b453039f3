"""A small ATST for a few thousand short recordings on two CPU cores (25 minutes).

  python -m atst_jax.main --config=configs/real_small.py --workdir=runs/real_small

Expects data/real: any folder of recordings, prepared with --frontend=atst. λ = 0. docs/evidence.md
has what it reaches.
"""

from configs import base

VARIANTS = ("paper",)


def get_config(variant: str = "paper"):
  config = base.get_config(variant)
  config.batch_size = 64
  config.total_epochs = None
  config.total_steps = 6000
  config.warmup_epochs = None
  config.warmup_steps = 300
  config.data.path = "data/real"
  config.data.clip_frames = 501  # 5 s
  config.data.streams = 16
  config.views.crop_frames = 96
  config.views.group = 8
  config.encoder.width, config.encoder.depth, config.encoder.heads = 128, 4, 2
  config.encoder.drop_path = 0.0
  config.encoder.max_frames = 97
  config.heads.hidden = 1024
  config.difference.weight = 0.0
  config.optimizer.base_lr = 4e-3  # 1e-3 at this batch
  config.teacher.decay_start = 0.99
  config.checkpoint.every_steps = 500
  config.checkpoint.keep_every = 500
  config.log.every_steps = 20
  return config
