"""SSAST: hidden patches, told apart and drawn again (Gong et al. 2022).

  python -m atst_jax.main --config=configs/ssast.py --workdir=runs/ssast
  python -m atst_jax.main --config=configs/ssast.py:small --workdir=runs/ssast_small

Expects data/audioset_ssast, prepared with --frontend=ssast. Values are the released code's for
SSAST-Base-Patch-400; `:frame` is SSAST-Base-Frame-400. docs/paper_and_code.md has what differs.
`:small` and `:small_frame` are for the data of `real_small` (prepared with --frontend=atst) and two
CPU cores; their sizes and steps are ours.

588 GFLOP per clip, 11.2 EFLOP in all for 1,912,134 clips: 7.9 H100-hours at 40 % of its peak
(python -m atst_jax.performance.cost --config=configs/ssast.py --clips=1912134). One GPU does.

Published (as ATST's Table 3 quotes): AudioSet-20K 31.0 mAP, Speech Commands 98.0, VoxCeleb1 64.2,
fine-tuned.
"""

from ml_collections import ConfigDict, config_dict

from configs import base, cola

VARIANTS = ("paper", "frame", "small", "small_frame")


def get_config(variant: str = "paper") -> ConfigDict:
  """SSAST Base, 400 of 512 patches hidden."""
  config = base.common()
  config.objective = "ssast"
  config.batch_size = 24
  config.total_epochs, config.warmup_epochs = 10.0, None
  config.warmup_steps = 1000
  config.data.path = "data/audioset_ssast"
  config.data.frontend = "ssast"
  config.data.clip_frames = 1024
  config.data.streams = 24
  config.views.crop_frames = 1024
  config.views.normalization = ConfigDict()
  config.views.normalization.kind = "half_standard"  # mean 0, deviation 1/2
  # nepers; from the data's statistics
  config.views.normalization.mean = config_dict.placeholder(float)
  config.views.normalization.std = config_dict.placeholder(float)  # the same
  config.encoder = ConfigDict()
  config.encoder.kind = "ssast"
  config.encoder.width = 768
  config.encoder.depth = 12
  config.encoder.heads = 12
  config.encoder.drop_path = 0.0
  config.encoder.patch_mels = 16  # of a patch; divides the mel bins
  config.encoder.patch_frames = 16  # of a patch; divides views.crop_frames
  # the table of positions is for so many frames; other lengths take its centre or interpolate it
  config.encoder.position_frames = 1024
  config.ssast = ConfigDict()
  config.ssast.task = "joint"  # or "discriminative", "generative"
  config.ssast.masking = "cluster"  # squares of 3 to 5 patches; "uniform"
  config.ssast.masked = 400  # patches of a crop
  # what the discriminative loss chooses among, as released; "targets": as the paper's Eq. 1
  config.ssast.softmax = "predictions"
  config.ssast.generative_weight = 10.0  # of the generative loss in "joint"
  config.optimizer.form = "adam_l2"
  config.optimizer.schedule = "stairs"
  config.optimizer.base_lr = 1e-4
  config.optimizer.reference_batch = 0
  config.optimizer.weight_decay_start = config.optimizer.weight_decay_end = 5e-7
  config.optimizer.b1 = 0.95
  config.optimizer.eps = 1e-8
  # its targets are given: predictions of patches that are much alike are no collapse
  config.guard.collapse_std = config.guard.collapse_rank = config.guard.narrow = 0.0
  if variant.startswith("small"):
    cola.shrink(config)
    config.total_epochs = None
    config.encoder.width, config.encoder.depth, config.encoder.heads = 128, 4, 2
    config.encoder.position_frames = 96
    config.ssast.masked = 18  # of 24
    config.optimizer.base_lr = 1e-3
  if variant.endswith("frame"):
    # the same number of patches, over all mel bins
    config.encoder.patch_mels = 64 if variant.startswith("small") else 128
    config.encoder.patch_frames = 4 if variant.startswith("small") else 2
    config.ssast.masking = "uniform"
  return config
