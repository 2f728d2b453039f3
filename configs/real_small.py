"""A small ATST for a few thousand short recordings on two CPU cores.

python -m atst_jax.main --config=configs/real_small.py --workdir=runs/real_small
"""

from configs import base

VARIANTS = ("paper",)


def get_config(variant: str = "paper"):
  config = base.get_config(variant)
  config.batch_size = 128
  config.total_steps = 3000
  config.warmup_steps = 200
  config.data.path = "data/real"
  config.data.clip_frames = 501
  config.data.streams = 16
  config.views.crop_frames = 96
  config.views.group = 8
  config.encoder.width, config.encoder.depth, config.encoder.heads = 128, 4, 2
  config.encoder.max_frames = 97
  config.heads.hidden = 1024
  config.optimizer.base_lr = 1e-3
  config.teacher.decay_start = 0.996
  config.checkpoint.every_steps = 500
  config.checkpoint.keep_every = 1000
  config.log.every_steps = 20
  return config
