"""TRILL: windows of a clip are nearer to each other than to other clips (Shor et al. 2020).

  python -m atst_jax.main --config=configs/trill.py --workdir=runs/trill
  python -m atst_jax.main --config=configs/trill.py:small --workdir=runs/trill_small

Expects data/audioset_speech, clips labelled as speech, prepared with --frontend=vggish. The code
was not released: what the paper does not say is named as ours. `:small` is for the data of
`real_small` (prepared with --frontend=atst) and two CPU cores; its sizes and steps are ours.
`:small_transformer` has the encoder of `real_small` in it.
"""

from ml_collections import ConfigDict, config_dict

from configs import base, cola, real_small

VARIANTS = ("paper", "small", "small_transformer")


def get_config(variant: str = "paper") -> ConfigDict:
  """TRILL with ResNet-50."""
  config = base.common()
  config.objective = "trill"
  config.batch_size = 256  # ours
  config.total_epochs, config.warmup_epochs = None, None
  config.total_steps, config.warmup_steps = 100_000, 1000  # ours
  config.data.path = "data/audioset_speech"
  config.data.frontend = "vggish"  # ours: 64 bins, 25-ms windows and a hop of 10 ms are the paper's
  config.data.clip_frames = 998  # 10 s
  config.views.crop_frames = 96  # 0.96 s
  config.views.normalization = ConfigDict()
  config.views.normalization.kind = "log_magnitude"
  config.views.normalization.floor = 1e-5
  config.views.normalization.offset = 0.01  # VGGish's
  config.encoder = ConfigDict()
  config.encoder.kind = "resnet50"
  config.encoder.width = 512
  config.encoder.stem = 64  # channels of the first convolution
  config.encoder.stem_stride = 1  # its stride; ours, 2 for images
  config.encoder.depth = 6  # blocks of the deepest stage
  config.trill = ConfigDict()
  config.trill.margin = 0.1  # of the triplets; ours
  config.trill.distance_frames = 1000  # at most, between a clip's two windows: 10 s
  # numbers that are compared, by a linear layer; not set: the encoder's own, which are TRILL's
  config.trill.out = config_dict.placeholder(int)
  config.optimizer.schedule = "constant"  # ours, as the rest of the optimizer
  config.optimizer.base_lr = 1e-4
  config.optimizer.reference_batch = 0
  config.optimizer.weight_decay_start = config.optimizer.weight_decay_end = 0.0  # Adam
  config.optimizer.eps = 1e-8
  if variant.startswith("small"):
    cola.shrink(config)
    config.encoder.stem, config.encoder.depth, config.encoder.width = 16, 1, 128
    config.encoder.stem_stride = 2
    config.optimizer.base_lr = 1e-3
  if variant == "small_transformer":
    config.encoder = real_small.get_config().encoder
    config.trill.out = 128
  return config
