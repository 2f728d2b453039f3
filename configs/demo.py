"""The demo's pre-training: a small transformer with the subtraction loss, on 1,000 synthesised
sounds.

  make demo

Sized for two CPU cores and a few minutes; not a recipe for real audio.
"""

from configs import base

VARIANTS = ("paper",)


def get_config(variant: str = "paper"):
  config = base.get_config(variant)
  config.batch_size = 40
  config.total_epochs = None
  config.total_steps = 1000
  config.warmup_epochs = None
  config.warmup_steps = 50
  config.data.path = "runs/demo/data"
  config.data.clip_frames = 401  # 4 s
  config.data.streams = 8
  # One segment for both views: what moves in time is then common to them, not only pitch, timbre
  # and background.
  config.views.segments = "single"
  config.views.crop_frames = 200
  config.views.group = 5
  config.encoder.width, config.encoder.depth, config.encoder.heads = 64, 3, 2
  config.encoder.drop_path = 0.0
  config.encoder.patch_frames = 8  # half the tokens of 4: twice as fast here
  config.encoder.max_frames = 200
  config.heads.hidden, config.heads.out = 256, 64
  config.optimizer.base_lr = 1.28e-2  # 2e-3 at this batch
  config.optimizer.weight_decay_end = 0.04
  config.teacher.decay_start = 0.99
  config.checkpoint.every_steps = 500
  config.log.every_steps = 20
  return config
