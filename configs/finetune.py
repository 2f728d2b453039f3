"""Fine-tuning of an exported encoder on a labelled set (ATST 3.2): AS-20K, Speech Commands v2 or
VoxCeleb1.

  python -m atst_jax.main --config=configs/finetune.py:as20k \
      --workdir=runs/as20k/base_lr=2.0 --config.encoder=encoders/base
  python -m atst_jax.main --config=configs/finetune.py:as20k --workdir=runs/as20k --sweep=as20k

The second prints one command for each learning rate of the released scripts, of which the first is
one; `python -m
atst_jax.downstream.report runs/as20k/*` takes the run that the validation clips prefer. Values are
the paper's, where it is silent the released code's of that time (clipping, stochastic depth,
Mixup's Beta, rates). :released is AS-20K as the released code's main branch has it: rates fall from
layer to layer. :spcv2 and :vox1 are the other tasks; any other set with labels works too.
AS-20K has no validation clips of its own: a tenth of the training files chooses, where the
published scores were chosen on the test clips (--config.select_on_test=true does the same, and says
so).

Expects data/as20k (AudioSet's balanced and evaluation lists), data/speech_commands or
data/voxceleb1, prepared with the encoder's front-end.
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ("as20k", "released", "spcv2", "vox1")
SWEEPS = {
  "as20k": [{"optimizer.base_lr": rate} for rate in (0.5, 1.0, 2.0, 4.0)],
  "vox1": [{"optimizer.base_lr": rate} for rate in (0.05, 0.1, 0.5)],
}


def get_config(variant: str = "as20k") -> ConfigDict:
  """AS-20K: 200 epochs with Mixup and random resize crops."""
  config = ConfigDict()
  config.job = "finetune"
  config.protocol = "finetune"  # what results.json calls it
  config.seed = 0  # of the head, the order, the augmentation and drawn divisions
  # runs, with seed, seed + 1, …; the table gives their mean and standard deviation
  config.seeds = 1
  config.platform = "auto"  # "cpu", "gpu" or "tpu": refuse to run on another
  config.dtype = "auto"  # compute: bfloat16 on accelerators, float32 on the CPU
  config.encoder = "encoders/base"  # folder of an exported encoder
  config.params_hash = config_dict.placeholder(str)  # filled from the encoder
  # filled from the encoder: of its normalisation, front-end, chunks and length rule
  config.embedding_hash = config_dict.placeholder(str)
  # or "random": the same architecture from fresh parameters, as a baseline
  config.initial = "pre-trained"
  config.batch_size = 512  # clips, over all devices
  config.epochs = 200  # passes over the training clips
  config.warmup_epochs = 5.0  # the learning rate rises linearly
  config.evaluate_every_epochs = 1  # on the validation clips, which choose the epoch
  config.select_on_test = False  # chooses epochs on the test clips, as some published scores did
  config.max_seconds = 12.0  # longer clips are cropped centrally
  # of short clips; filled: "mask" for ATST's transformer, else "silence"
  config.padding = config_dict.placeholder(str)
  # how chunks of longer clips are averaged; filled from the encoder
  config.tail = config_dict.placeholder(str)
  # stochastic depth of a transformer; filled: 0.1
  config.drop_path = config_dict.placeholder(float)

  config.data = ConfigDict()
  config.data.path = "data/as20k"  # prepared labelled data set
  config.data.fingerprint = config_dict.placeholder(str)  # filled from the data
  config.data.order = 2  # version of the order of clips; 1 left some out of every epoch

  config.splits = ConfigDict()
  config.splits.way = "auto"  # or "fold", "split", "random"
  config.splits.num_folds = 5  # of "random"
  config.splits.hold_out = "tenth"  # of what a fold leaves, chooses the epoch; or the next "fold"

  config.mixup = ConfigDict()
  config.mixup.probability = 1.0  # 0: no Mixup, and cross entropy where a clip has one label
  config.mixup.alpha = 0.5  # of Beta(alpha, alpha); later official code: 10, with probability 0.5
  config.mixup.group = 8  # clips mixed with each other; divides the batch of a device

  config.crop = ConfigDict()
  config.crop.enabled = True  # random resize crop of the whole clip
  config.crop.freq_scale = (0.6, 1.5)  # bounds of its height, of the clip's bins
  config.crop.time_scale = (0.6, 1.5)  # bounds of its width, of the clip's frames
  # width of the canvas of zeros it is cropped from, of the clip's frames
  config.crop.canvas_time = 1.5

  config.optimizer = ConfigDict()
  config.optimizer.base_lr = 2.0  # x batch_size / reference_batch
  config.optimizer.reference_batch = 256  # see base_lr
  config.optimizer.end_lr = 1e-6  # of the cosine
  config.optimizer.momentum = 0.9  # of SGD
  config.optimizer.clip_norm = 3.0  # of the gradient
  # factor of the rate for each layer below the head; later official code: 0.75
  config.optimizer.layer_decay = 1.0

  # How it is computed, not what: these may change between a run and its continuation.
  config.compute = ConfigDict()
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
  config.mesh.fsdp = 1  # devices that share parameters and optimizer

  config.checkpoint = ConfigDict()
  # if not in the workdir: one that all hosts reach, gs://…
  config.checkpoint.folder = config_dict.placeholder(str)
  config.checkpoint.every_epochs = 1  # and at the end, and on a signal
  config.checkpoint.keep = 2  # an older one stays until the newer one has been read again

  config.guard = ConfigDict()
  config.guard.step_seconds = 900.0  # without a step, and the job ends with all stacks; 0: never
  config.guard.start_seconds = 7200.0  # the same for start, compilation and evaluation

  config.log = ConfigDict()
  config.log.every_steps = 20  # a line, and a point of the curves
  if variant == "released":
    config.optimizer.layer_decay = 0.75
  if variant == "spcv2":
    config.data.path = "data/speech_commands"
    config.epochs = 50
    config.optimizer.base_lr = 0.5  # the released script's only one
  if variant == "vox1":
    config.data.path = "data/voxceleb1"
    config.epochs = 50
    config.optimizer.base_lr = 0.1
    config.mixup.probability = 0.0
    config.crop.enabled = False
  return config
