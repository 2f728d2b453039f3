"""The demo's pre-training: `real_small` with fewer steps, on 1,500 synthesised words.

  make demo

Four minutes on two CPU cores.
"""

from configs import real_small

VARIANTS = ("paper",)


def get_config(variant: str = "paper"):
  config = real_small.get_config(variant)
  config.total_steps = 1400
  config.warmup_steps = 50
  config.data.path = "runs/demo/data"
  config.data.clip_frames = 201  # 2 s: all of a clip
  return config
