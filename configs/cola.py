"""COLA: two windows of a clip told from those of other clips (Saeed et al. 2021).

  python -m atst_jax.main --config=configs/cola.py --workdir=runs/cola
  python -m atst_jax.main --config=configs/cola.py:small --workdir=runs/cola_small

Expects data/audioset_cola, prepared with --frontend=cola, which has COLA's magnitudes. Values are
the released code's; docs/paper_and_code.md has what differs. `:small` is for the data of
`real_small` (prepared with --frontend=atst) and two CPU cores; its sizes and steps are ours.
`:small_transformer` has the encoder of `real_small` in it.
"""

from ml_collections import ConfigDict, config_dict

from configs import base, real_small

VARIANTS = ("paper", "small", "small_transformer")


def get_config(variant: str = "paper") -> ConfigDict:
  """COLA with bilinear similarity."""
  config = base.common()
  config.objective = "cola"
  config.batch_size = 64  # released code; the paper compares 256 to 2048
  config.total_epochs, config.warmup_epochs = None, None
  config.total_steps, config.warmup_steps = 100_000, 0
  config.data.path = "data/audioset_cola"
  config.data.frontend = "cola"
  config.data.clip_frames = 998  # 10 s
  config.views.crop_frames = 98  # 1 s
  config.views.normalization = ConfigDict()
  config.views.normalization.kind = "log_magnitude"  # nepers
  config.views.normalization.floor = 1e-5  # the smallest magnitude
  config.views.normalization.offset = 0.0  # added to the magnitude
  config.encoder = ConfigDict()
  config.encoder.kind = "efficientnet"
  config.encoder.width = 1280
  config.encoder.stem = 32  # channels of the first convolution; 32 is B0
  config.encoder.depth = 4  # blocks of the deepest stage; 4 is B0
  config.encoder.drop_path = 0.2
  config.cola = ConfigDict()
  config.cola.similarity = "bilinear"  # or "cosine"
  # what a cosine is divided by; COLA's is 0.2
  config.cola.temperature = config_dict.placeholder(float)
  config.cola.out = 512  # numbers of the head
  # of the positives alone: deviation of the samples, in units of the L2 norm of the clip
  config.cola.noise = 0.001
  config.optimizer.schedule = "constant"
  config.optimizer.base_lr = 1e-3
  config.optimizer.reference_batch = 0
  config.optimizer.weight_decay_start = config.optimizer.weight_decay_end = 0.0  # Adam
  config.optimizer.form = "transformers"  # Keras's: eps is added before the bias correction
  config.optimizer.eps = 1e-7  # Keras's
  if variant.startswith("small"):
    shrink(config)
    config.encoder.stem, config.encoder.depth, config.encoder.width = 16, 1, 256
  if variant == "small_transformer":
    config.encoder = real_small.get_config().encoder
  return config


def shrink(config: ConfigDict) -> None:
  """Data and steps of the small variants, the same for every objective."""
  small = real_small.get_config()
  config.batch_size = small.batch_size
  config.total_steps, config.warmup_steps = 1500, 100
  config.data = small.data
  config.views.crop_frames = small.views.crop_frames
  config.checkpoint, config.log = small.checkpoint, small.log
