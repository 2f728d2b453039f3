"""A conformer that tells hidden frames from others of their clip (Srivastava et al. 2022).

  python -m atst_jax.main --config=configs/conformer.py --workdir=runs/conformer
  python -m atst_jax.main --config=configs/conformer.py:small --workdir=runs/conformer_small

The loss is wav2vec 2.0's, on log-mel and without a quantiser. Expects data/audioset, prepared with
--frontend=atst; the paper trains on 67,000 hours of videos. No code was released: what the paper
does not say is wav2vec 2.0's or named as ours. `:small` is for the data of `real_small` and two CPU
cores; its sizes and steps are ours. `:small_transformer` has patches of 4 frames and SSAST's
encoder of the size of `real_small` in it.

294 GFLOP per clip, 30 EFLOP in all: 21 H100-hours at 40 % of its peak (python -m
atst_jax.performance.cost --config=configs/conformer.py --clips=1912134).

Published, of 67,000 hours (as ATST's Table 3 quotes): AudioSet-20K 27.6 mAP, fine-tuned.
"""

from ml_collections import ConfigDict, config_dict

from configs import base, cola, ssast

VARIANTS = ("paper", "small", "small_transformer")


def get_config(variant: str = "paper") -> ConfigDict:
  """The large conformer, of 88 million parameters."""
  config = base.common()
  config.objective = "wav2vec"
  config.batch_size = 256  # ours
  config.total_epochs, config.warmup_epochs = None, None
  config.total_steps, config.warmup_steps = 400_000, 32_000  # wav2vec 2.0's
  config.data.clip_frames = 1001
  config.views.crop_frames = 1000  # 10 s; ours
  config.views.normalization = ConfigDict()
  config.views.normalization.kind = "standard"  # ours
  # nepers; from the data's statistics
  config.views.normalization.mean = config_dict.placeholder(float)
  config.views.normalization.std = config_dict.placeholder(float)  # the same
  config.encoder = ConfigDict()
  config.encoder.kind = "conformer"
  config.encoder.width = 768
  config.encoder.depth = 12
  config.encoder.heads = 12  # ours
  config.encoder.feed_forward = 1024  # with it the parameters are 88 million
  config.encoder.kernel = 31  # of the convolution of a block; Gulati et al.'s is 32, not odd
  config.encoder.position_kernel = (
    129  # of the convolution that gives positions; wav2vec 2.0's: 128
  )
  config.encoder.dropout = 0.1  # Gulati et al.'s
  config.wav2vec = ConfigDict()
  config.wav2vec.probability = 0.065  # share of the vectors that begin a span
  config.wav2vec.span = 10  # vectors that are hidden from there on
  config.wav2vec.distractors = 100  # for each hidden vector
  config.wav2vec.temperature = 0.1  # that a cosine is divided by
  config.optimizer.base_lr = 5e-4  # wav2vec 2.0's, as Adam's constants; the cosine is ours
  config.optimizer.reference_batch = 0
  config.optimizer.weight_decay_start = config.optimizer.weight_decay_end = 0.01
  config.optimizer.b2 = 0.98
  if variant.startswith("small"):
    cola.shrink(config)
    config.encoder.width, config.encoder.depth, config.encoder.heads = 128, 4, 2
    config.encoder.feed_forward = 256
    config.encoder.kernel, config.encoder.position_kernel = 15, 15
    config.wav2vec.span = 5  # of 48 vectors of 20 ms
    config.optimizer.base_lr = 1e-3
  if variant == "small_transformer":
    # vectors of 40 ms: spans of 80 ms, so that short clips are not hidden whole; as many as above
    config.wav2vec.span, config.wav2vec.probability = 2, 0.15
    config.encoder = ssast.get_config("small_frame").encoder
  return config
