"""Pre-training in small for docs/evidence.md: the base recipe, and one change of it at a time.

  python launch/evidence.py --recordings=recordings --output=runs/evidence

trains every variant with the seeds 0, 1 and 2 and evaluates it on clips that it has not heard.
`base` is `real_small` with 1,500 steps, about six minutes of two CPU cores. `cnn` is BYOL-A's
AudioNTT2022 with a narrow perceptron, on the same spectrograms, with as many steps as take the same
time. Sized for minutes: a comparison, not a recipe for large data.
"""

from ml_collections import ConfigDict

from configs import byola, real_small

# Values of the base recipe that a variant replaces.
CHANGES = {
  "base": {},
  "lambda02": {"difference.weight": 0.2},
  "lambda05": {"difference.weight": 0.5},
  "single": {"views.segments": "single"},
  "no_box_height": {"views.freq_scale": (1.0, 1.0)},
  "no_mixup": {"views.mixup_ratio": 0.0},
  "no_rrc": {
    "views.freq_scale": (1.0, 1.0),
    "views.time_scale": (1.0, 1.0),
    "views.canvas_time": 1.0,
  },
}
VARIANTS = (*CHANGES, "cnn")


def get_config(variant: str = "base") -> ConfigDict:
  """The base recipe with a variant's changes, or the CNN's."""
  config = _cnn() if variant == "cnn" else real_small.get_config()
  if variant != "cnn":
    config.total_steps, config.warmup_steps = 1500, 100
    config.update_from_flattened_dict(CHANGES[variant])
  config.data.path = "runs/evidence/sets/pretrain"
  config.data.clip_frames = 501  # 5 s
  config.checkpoint.every_steps = 250
  config.checkpoint.keep = 1
  config.checkpoint.keep_every = 100_000
  config.log.every_steps = 20
  config.guard.step_seconds = 0.0  # a run in the background may be paused for long
  return config


def _cnn() -> ConfigDict:
  """BYOL-A v2's recipe at λ = 0, with a smaller batch and few steps, so a higher rate."""
  config = byola.get_config()
  config.batch_size = 64
  config.total_epochs, config.warmup_epochs = None, None
  config.total_steps, config.warmup_steps = 200, 0
  config.data.frontend = "atst"
  config.data.streams = 16
  config.views.group = 8
  config.encoder.width, config.encoder.hidden = 1280, 256  # 1,024 of them are the convolutions'
  config.heads.hidden = 1024
  config.optimizer.base_lr = 1e-3  # the difference-aware paper's
  return config
