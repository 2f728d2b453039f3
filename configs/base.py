"""The system as one: ATST Base with the subtraction loss at λ = 0.2, on AudioSet.

  python -m atst_jax.main --config=configs/base.py --workdir=runs/base

Expects data/audioset, prepared with --frontend=atst (`:released`: audiossl), about 1.9 million
clips of 10 s. Values are ATST's (paper 3.1; where it is silent, the released code's), the
subtraction's are the difference-aware paper's (5.1), mixed in the energy domain. The combination is
new: no published score exists for it.

346 GFLOP per clip, 132 EFLOP in all: 93 H100-hours or 467 TPU-v5e-hours at 40 % of their peak
(python -m atst_jax.performance.cost --config=configs/base.py --clips=1912134). Eight GPUs or a
slice of a pod.
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ("paper", "released")
# with λ = 0, Mixup may take the neighbours, which λ > 0 leaves out (views.partner_shifts)
SWEEPS = {"lambda": [{"difference.weight": weight} for weight in (0.0, 0.1, 0.2, 0.5, 0.8)]}


def get_config(variant: str = "paper") -> ConfigDict:
  """ATST Base, λ = 0.2."""
  config = ConfigDict()
  config.job = "pretrain"
  config.objective = "byol"  # with the subtraction loss; others have configs of their own
  config.seed = 0  # of parameters, order of the clips and augmentation
  config.platform = "auto"  # "cpu", "gpu" or "tpu": refuse to run on another
  config.dtype = "auto"  # compute: bfloat16 on accelerators, float32 on the CPU
  config.batch_size = 1536  # clips, over all devices
  config.total_epochs = config_dict.FieldReference(200.0)  # passes over the data; steps follow
  config.total_steps = config_dict.placeholder(int)  # if set, instead of total_epochs
  config.warmup_epochs = config_dict.FieldReference(10.0)  # the learning rate rises linearly
  config.warmup_steps = config_dict.placeholder(int)  # if set, instead of warmup_epochs
  # exported encoder that student and teacher begin with, ours or converted; its normalisation is
  # taken where it is not set here
  config.initial = config_dict.placeholder(str)
  config.initial_hash = config_dict.placeholder(str)  # of its weights; filled from it
  config.joint_views = True  # BatchNorm statistics over both views
  config.export = "teacher"  # the network whose encoder is exported; "student"
  # how an export averages the chunks of long audio (atst_jax.embed --tail)
  config.tail = "weighted"
  # an export embeds so much of the middle of longer sounds; not set: whole sounds
  config.max_seconds = config_dict.placeholder(float)

  config.data = ConfigDict()
  config.data.source = "records"  # or "synthetic": noise, where there is no data
  config.data.path = "data/audioset"  # prepared data set: a folder, or gs://…, s3://…
  config.data.split = "train"  # of the data set, to train on
  # front-end that the data were prepared with: atst, audiossl, byola, byola_htk, difference, cola,
  # ssast, vggish
  config.data.frontend = "atst"
  config.data.clip_frames = 1001  # 10 s; of longer clips a random window is read
  config.data.streams = 64  # the data are read in; divides the batch, at most as many as shards
  config.data.shuffle_window = 64  # records in each stream's shuffle buffer, which tf.data holds
  config.data.reader = "auto"  # "tf.data" or "plain" (no TensorFlow): the same batches
  config.data.order = 3  # version of the order of clips; 1 was uneven, 2 had windows
  # that read shards; 0: as many as cores by tf.data; by the plain reader 1 from a disk, 16 from a
  # store
  config.data.threads = 0
  # share of the clips that may be damaged, and are replaced by others of their shards
  config.data.max_damaged = 0.0
  config.data.fingerprint = config_dict.placeholder(str)  # filled from the data

  config.views = ConfigDict()
  config.views.segments = "two"  # or "single": both views of one segment
  config.views.crop_frames = 601  # 6 s; the longest view
  # (shortest, longest), if not always crop_frames
  config.views.first_frames = config_dict.placeholder(tuple)
  config.views.second_frames = config_dict.placeholder(tuple)  # the same of the second view
  # of short clips; "silence": filled up at their end and counted as sound; "silence_around"
  config.views.padding = "mask"
  config.views.normalization = ConfigDict()
  config.views.normalization.kind = "min_max"  # to -1..1; "standard": mean 0, deviation 1
  config.views.normalization.top_db = 80.0  # below a clip's maximum everything is clamped (dB)
  # dB that becomes -1; from the data's statistics
  config.views.normalization.low = config_dict.placeholder(float)
  config.views.normalization.high = config_dict.placeholder(float)  # dB that becomes 1
  config.views.mixup_ratio = 0.4  # the largest share of another clip
  # of clips of other lengths Mixup's window may also lie at the very end
  config.views.mixup_last_offset = True
  # clips mixed with each other, 5 or more (λ = 0: 3); divides the batch of a device (256 devices: 6
  # each)
  config.views.group = 6
  # random resize crop: bounds of its height, of the clip's bins
  config.views.freq_scale = (0.6, 1.5)
  config.views.time_scale = (0.6, 1.5)  # bounds of its width, of the clip's frames
  # width of the canvas of zeros it is cropped from, of the clip's frames
  config.views.canvas_time = 1.5
  config.views.fader_gain = 0.0  # random linear fader
  config.views.post_norm = False  # one mean and deviation of all views of the batch

  config.encoder = ConfigDict()
  config.encoder.kind = "transformer"  # others, "cnn" for one, have other keys
  config.encoder.width = 768  # numbers of a token; of a "cnn": of its vector
  config.encoder.depth = 12  # blocks
  config.encoder.heads = 12  # of attention; divides the width
  # stochastic depth: the last block's chance to be skipped, in training
  config.encoder.drop_path = 0.1
  config.encoder.patch_frames = 4  # of a token, over all mel bins
  config.encoder.max_frames = 1001  # the position table's length

  config.heads = ConfigDict()
  config.heads.hidden = 4096  # of projector and predictor
  config.heads.out = 256  # numbers that are compared
  config.heads.use_bias = False  # in their linear layers

  # What the difference-aware paper leaves open: atst_jax/method/subtraction.py has the other keys
  # and their defaults.
  config.difference = ConfigDict()
  config.difference.weight = 0.2  # λ
  config.difference.mix_domain = "energy"  # or "normalized": Eq. 2 to the letter

  config.optimizer = ConfigDict()
  # whose AdamW; "transformers": that of the library which the released code used; "adam_l2":
  # PyTorch's Adam, the decay in the gradient of every parameter
  config.optimizer.form = "optax"
  # after a linear warm-up; or "constant"; "stairs": constant, after a warm-up in steps of 50
  config.optimizer.schedule = "cosine"
  config.optimizer.base_lr = 2e-4  # x batch_size / reference_batch
  config.optimizer.reference_batch = 256  # 0: the rate does not depend on the batch
  config.optimizer.end_lr = 1e-6  # of "cosine"
  config.optimizer.weight_decay_start = 0.04  # at the first step
  config.optimizer.weight_decay_end = 0.4  # at the last step; half a cosine leads there
  config.optimizer.b1 = 0.9  # AdamW's decay of the mean gradient
  config.optimizer.b2 = 0.999  # AdamW's decay of the mean squared gradient
  config.optimizer.eps = 1e-6  # added to the root of the mean squared gradient

  config.teacher = ConfigDict()
  config.teacher.decay_start = 0.9995  # of the teacher's moving average, at the first step
  config.teacher.decay_end = 1.0  # at the last step; half a cosine leads there
  config.teacher.lead_steps = 0  # the decay after step t is that of step t + lead_steps
  config.teacher.before_step = False  # averages parameters from before the optimizer's step

  # How it is computed, not what: all but accumulation may change between a run and its next start.
  config.compute = ConfigDict()
  # parts of a batch that are encoded one after the other (gradient accumulation); BatchNorm of an
  # encoder sees each part by itself
  config.compute.accumulation = 1
  # blocks of a transformer are computed again in the backward pass, to save memory
  config.compute.remat = False
  # implementation of attention; "auto": "cudnn" for transformers in bfloat16 on
  # NVIDIA GPUs, else "xla"
  config.compute.attention = "auto"
  # implementation of what stands between the matrix products; "auto": "pallas" in the same cases,
  # where 64 divides the width, else "xla"
  config.compute.kernels = "auto"
  # random resize crop by "gather" (auto: on a CPU) or by "matrix" products
  config.compute.resize = "auto"

  config.mesh = ConfigDict()
  config.mesh.data = -1  # devices that share the batch; -1: all that are left
  config.mesh.fsdp = 1  # devices that share parameters, optimizer and teacher

  config.checkpoint = ConfigDict()
  # if not in the workdir: one that all hosts reach, gs://…
  config.checkpoint.folder = config_dict.placeholder(str)
  config.checkpoint.every_steps = 2000  # and at the end, and on a signal
  config.checkpoint.keep = 3  # newest ones
  config.checkpoint.keep_every = 50_000  # steps, of which a checkpoint stays for good

  # against runs that go wrong (atst_jax/pretraining/guard.py, atst_jax/runtime/watchdog.py)
  config.guard = ConfigDict()
  config.guard.window = 128  # latest losses that a spike is compared with
  config.guard.spike = 12.0  # deviations above their median; 0: never
  # steps in a row, not finite or a spike, until the run goes back to a checkpoint
  config.guard.patience = 16
  config.guard.rollbacks = 3  # times at most that a run goes back; then it ends
  # when the teacher's outputs (without a teacher, the student's) are nearly one point, or on one
  # line; or "stop"
  config.guard.collapse = "warn"
  config.guard.collapse_std = 0.1  # collapse: std_teacher (std_student) * sqrt(P) is below this
  config.guard.collapse_rank = 1.1  # collapse: rank_teacher (rank_student) is below this
  config.guard.collapse_steps = 200  # steps in a row with one of these, until it is reported
  # also reported: that rank (participation ratio) is below this share of P, the numbers that are
  # compared; 0: never
  config.guard.narrow = 1 / 64
  config.guard.step_seconds = 900.0  # without a step, and the run ends with all stacks; 0: never
  config.guard.start_seconds = 7200.0  # the same for start, compilation and restore

  # Evaluation of the encoder on a labelled set while it trains. It changes nothing in training.
  config.online = ConfigDict()
  # of a prepared labelled set; off if it is not set
  config.online.path = config_dict.placeholder(str)
  config.online.every_steps = 5000  # and before the first step, and after the last
  config.online.clips = 2000  # at most, equally many of every class
  # "teacher" or "student"; the one that is exported
  config.online.network = config_dict.placeholder(str)
  config.online.max_seconds = 12.0  # longer clips are cropped centrally
  config.online.knn = 10  # neighbours
  # penalties x clips; the validation clips choose
  config.online.ridge = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
  config.online.splits = ConfigDict()
  config.online.splits.way = "auto"  # or "fold", "split", "random"
  config.online.splits.num_folds = 5  # of "random"
  config.online.splits.hold_out = "fold"  # what chooses the penalty; "tenth" of the other clips

  config.log = ConfigDict()
  config.log.every_steps = 50  # a line, and a point of the curves
  # a project of Weights & Biases, beside JSON lines and TensorBoard
  config.log.wandb = config_dict.placeholder(str)
  # an experiment of MLflow; the store that MLFLOW_TRACKING_URI names
  config.log.mlflow = config_dict.placeholder(str)
  if variant == "released":
    release(config)
  return config


def common() -> ConfigDict:
  """`get_config` without what only the objective "byol" reads, for the configs of others."""
  config = get_config()
  for key in ("joint_views", "heads", "difference", "teacher"):
    del config[key]
  del config.compute["resize"]
  for key in set(config.views) - {"crop_frames", "normalization"}:
    del config.views[key]
  config.export = "student"
  return config


def release(config: ConfigDict) -> None:
  """Every difference between ATST's paper and its released code as in the code
  (docs/paper_and_code.md). Its crop of the waveform and its bank of Mixup partners are not here:
  shards hold spectrograms, and a step no past."""
  config.total_epochs, config.warmup_epochs = None, None
  config.total_steps, config.warmup_steps = 318_000, 15_860  # of the released base recipe
  config.data.frontend = "audiossl"
  config.dtype = "float32"
  config.max_seconds = 12.0
  config.views.padding = "silence"
  config.views.mixup_last_offset = False
  config.views.normalization.low, config.views.normalization.high = -79.6482, 50.6842
  config.optimizer.form = "transformers"
  config.teacher.lead_steps = 1
  config.tail = "released"
