"""The demo's pre-training: a small transformer with the subtraction loss, on 1,000 synthesised sounds.

  make demo

Sized for two CPU cores and a few minutes; not a recipe for real audio.
"""

from configs import base

VARIANTS = ("paper",)


def get_config(variant: str = "paper"):
  config = base.get_config(variant)
  config.batch_size = 32
  config.total_steps = 1200
  config.warmup_steps = 60
  config.data.path = "runs/demo/data"
  config.data.clip_frames = 401  # 4 s
  config.data.streams = 16
  config.views.crop_frames = 128
  config.views.group = 4
  config.encoder.width, config.encoder.depth, config.encoder.heads = 96, 4, 3
  config.encoder.drop_path = 0.0
  config.encoder.max_frames = 128
  config.heads.hidden, config.heads.out = 512, 128
  config.optimizer.base_lr = 8e-3  # 1e-3 at this batch
  config.teacher.decay_start = 0.99
  config.checkpoint.every_steps = 400
  config.log.every_steps = 20
  return config
