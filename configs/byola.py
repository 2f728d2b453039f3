"""BYOL-A on AudioSet, λ = 0: the baseline of the second paper.

  python -m atst_jax.main --config=configs/byola.py --workdir=runs/byola

Expects data/audioset_byola, prepared with --frontend=byola. `:paper` is AudioNTT2022 (v2), 3,072
numbers; `:v1` is AudioNTT2020, 2,048 numbers, without the fader. `:released` is v2 as its released
code trains it with current libraries (docs/paper_and_code.md): in float32, and the teacher averages
the parameters from before the optimizer's step.

3.6 GFLOP per clip, 0.69 EFLOP in all for 1,912,134 clips: 0.5 H100-hours at 40 % of its peak, which
convolutions of 64 channels will not reach (python -m atst_jax.performance.cost
--config=configs/byola.py --clips=1912134). One GPU does.

Aims at (EVAR's table, linear, mean of nine tasks): 72.4.
"""

from ml_collections import ConfigDict, config_dict

from configs import base

VARIANTS = ("paper", "released", "v1")


def get_config(variant: str = "paper") -> ConfigDict:
  """BYOL-A v2 or v1."""
  config = base.get_config()
  config.batch_size = 256
  config.total_epochs, config.warmup_epochs = 100.0, 0.0
  config.joint_views = False
  config.export = "student"
  config.data.path = "data/audioset_byola"
  config.data.frontend = "byola"
  config.views.segments = "single"
  config.views.crop_frames = 96  # 0.95 s
  config.views.padding = "silence"
  config.views.normalization = ConfigDict()
  config.views.normalization.kind = "standard"
  # nepers; from the data's statistics
  config.views.normalization.mean = config_dict.placeholder(float)
  config.views.normalization.std = config_dict.placeholder(float)  # the same
  config.views.mixup_ratio = 0.2
  config.views.group = 16
  config.views.fader_gain = 1.0
  config.views.post_norm = True
  config.encoder = ConfigDict()
  config.encoder.kind = "cnn"
  config.encoder.version = "AudioNTT2022"  # v2; "AudioNTT2020": v1
  config.encoder.width = 3072
  config.encoder.hidden = 2048  # of its layers over time
  config.encoder.dropout = 0.3  # between them, in training
  config.heads.use_bias = True
  config.difference.weight = 0.0
  config.difference.mix_domain = "normalized"
  config.optimizer.schedule = "constant"
  config.optimizer.base_lr = 1e-4
  config.optimizer.reference_batch = 0
  config.optimizer.weight_decay_start = config.optimizer.weight_decay_end = 0.0  # Adam
  config.optimizer.eps = 1e-8
  config.teacher.decay_start = config.teacher.decay_end = 0.99
  if variant == "v1":
    config.views.mixup_ratio = 0.4
    config.views.fader_gain = 0.0
    config.views.padding = "silence_around"
    config.encoder.version, config.encoder.width = "AudioNTT2020", 2048
    config.optimizer.base_lr = 3e-4
  if variant == "released":
    config.dtype = "float32"
    config.teacher.before_step = True
  return config
