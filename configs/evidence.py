"""Pre-training in small for the evidence on real sound: does the subtraction loss do what its paper
says?

  python launch/evidence.py --recordings=recordings --output=runs/evidence

runs everything that belongs to it, this config's sweeps first. `:transformer` and `:cnn` are
trained at λ = 0, 0.2 and 0.5 with three seeds each (`lambda`); `:ablation` is ATST's choice of
views and of their length (`views`).

Sized for two CPU cores and minutes: 480 recordings, so a comparison of losses, not a recipe. See
docs/evidence.md.
"""

from ml_collections import ConfigDict

from configs import base, difference

VARIANTS = ("transformer", "cnn", "ablation")
SEEDS = (0, 1, 2)
SWEEPS = {
  "lambda": [
    {"difference.weight": weight, "seed": seed} for seed in SEEDS for weight in (0.0, 0.2, 0.5)
  ],
  "views": [
    {"views.segments": segments, "views.crop_frames": frames, "seed": seed}
    for seed in SEEDS
    for segments in ("single", "two")
    for frames in (48, 192)
  ],
}


def get_config(variant: str = "transformer") -> ConfigDict:
  """A tiny ATST (`transformer`, `ablation`) or AudioNTT2022 with a narrow perceptron (`cnn`)."""
  config = difference.get_config() if variant == "cnn" else base.get_config()
  config.batch_size = 64
  config.total_epochs, config.warmup_epochs = None, None
  config.data.clip_frames = 501  # 5 s
  config.data.streams = 16
  config.views.group = 8
  if variant == "cnn":
    config.total_steps, config.warmup_steps = 160, 0
    config.batch_size = 40
    config.data.streams = 8
    config.views.group = 5
    config.data.path = "runs/evidence/difference"
    config.views.crop_frames = 48
    config.encoder.width, config.encoder.hidden = 1280, 256  # 1,024 of them are the convolutions'
    config.heads.hidden = 512
  else:
    config.total_steps, config.warmup_steps = 400, 20
    config.data.path = "runs/evidence/atst"
    config.views.segments = "single"
    config.views.crop_frames = 96
    config.encoder.width, config.encoder.depth, config.encoder.heads = 96, 3, 3
    config.encoder.drop_path = 0.0
    config.encoder.patch_frames = 8
    config.encoder.max_frames = 192
    config.heads.hidden, config.heads.out = 512, 128
    config.optimizer.base_lr = 4e-3  # 1e-3 at this batch
    config.optimizer.weight_decay_end = 0.04
    config.teacher.decay_start = 0.99
  if variant == "ablation":
    config.difference.weight = 0.0
  config.checkpoint.every_steps = 500
  config.log.every_steps = 20
  return config
