"""The system as one: ATST Base with the subtraction loss at λ = 0.2, on AudioSet.

  python -m atst_jax.main --config=configs/base.py --workdir=runs/base

Expects data/audioset, prepared with --frontend=atst (about 1.9 million clips of 10 s). Values are ATST's (paper 3.1;
where it is silent, the released code's), the subtraction's are the difference-aware paper's (5.1), mixed in the energy
domain. The combination is new: no published score exists for it.
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ("paper",)


def get_config(variant: str = "paper") -> ConfigDict:
  """ATST Base, λ = 0.2."""
  del variant
  config = ConfigDict()
  config.job = "pretrain"
  config.seed = 0
  config.platform = "auto"  # "cpu", "gpu" or "tpu": refuse to run on another
  config.dtype = "auto"  # compute: bfloat16 on accelerators, float32 on the CPU
  config.batch_size = 1536  # clips, over all devices
  config.total_epochs = 200.0
  config.total_steps = config_dict.placeholder(int)  # if set, instead of total_epochs
  config.warmup_epochs = 10.0
  config.warmup_steps = config_dict.placeholder(int)  # if set, instead of warmup_epochs

  config.data = ConfigDict()
  config.data.source = "records"  # or "synthetic": noise, where there is no TensorFlow
  config.data.path = "data/audioset"
  config.data.split = "train"
  config.data.frontend = "atst"
  config.data.clip_frames = 1001  # 10 s
  config.data.streams = 64
  config.data.shuffle_window = 256  # records
  config.data.fingerprint = config_dict.placeholder(str)  # filled from the data

  config.views = ConfigDict()
  config.views.segments = "two"
  config.views.crop_frames = 601  # 6 s
  config.views.top_db = 80.0
  config.views.low = config_dict.placeholder(float)  # dB that becomes -1; from the data's statistics
  config.views.high = config_dict.placeholder(float)  # dB that becomes 1
  config.views.mixup_ratio = 0.4
  config.views.group = 6  # clips mixed with each other; divides the batch of a device (256 devices: 6 clips each)
  config.views.freq_scale = (0.6, 1.5)
  config.views.time_scale = (0.6, 1.5)
  config.views.canvas_time = 1.5

  config.encoder = ConfigDict()
  config.encoder.kind = "transformer"
  config.encoder.width = 768
  config.encoder.depth = 12
  config.encoder.heads = 12
  config.encoder.drop_path = 0.1
  config.encoder.patch_frames = 4
  config.encoder.max_frames = 1001

  config.heads = ConfigDict()
  config.heads.hidden = 4096
  config.heads.out = 256
  config.heads.use_bias = False
  config.joint_views = True  # BatchNorm statistics over both views

  config.difference = ConfigDict()
  config.difference.weight = 0.2  # λ
  config.difference.gamma_min = 0.4
  config.difference.gamma_max = 0.6
  config.difference.mix_domain = "energy"

  config.optimizer = ConfigDict()
  config.optimizer.base_lr = 2e-4  # x batch_size / 256
  config.optimizer.end_lr = 1e-6
  config.optimizer.weight_decay_start = 0.04
  config.optimizer.weight_decay_end = 0.4
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-6

  config.teacher = ConfigDict()
  config.teacher.decay_start = 0.9995
  config.teacher.decay_end = 1.0

  config.mesh = ConfigDict()
  config.mesh.data = -1
  config.mesh.fsdp = 1

  config.checkpoint = ConfigDict()
  config.checkpoint.every_steps = 2000
  config.checkpoint.keep = 3
  config.checkpoint.keep_every = 50_000

  config.log = ConfigDict()
  config.log.every_steps = 50
  return config
