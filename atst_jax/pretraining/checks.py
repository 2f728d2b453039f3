"""What a resolved pre-training config may hold: ranges, choices, and what has to fit together."""

import math

from ml_collections import ConfigDict

from atst_jax.artifacts.model import TAILS
from atst_jax.audio.frontend import get_frontend
from atst_jax.data.dataset import Dataset
from atst_jax.data.input_pipeline import READERS
from atst_jax.data.order import VERSION, check_streams
from atst_jax.downstream import values as evaluated
from atst_jax.method.normalization import NORMALIZATIONS, check_normalization
from atst_jax.method.optimizer import FORMS, SCHEDULES, STAIR
from atst_jax.models.encoders import ENCODERS, fields_of, make_encoder
from atst_jax.objectives.objective import Objective
from atst_jax.objectives.registry import OBJECTIVES, check_sections, get_objective
from atst_jax.runtime.devices import resolve_fused
from atst_jax.util.config import flatten
from atst_jax.util.errors import UserError

LARGEST = 2**31 - 1  # of any whole number: the device counts in 32 bits
END_LR = 1e-6  # configs/base.py's
ENCODER_KEYS: dict[type, set[str]] = {int: set(), float: set(), str: set()}
for kind in ENCODERS:
  for name, of in fields_of(kind).items():
    ENCODER_KEYS[of].add(f"encoder.{name}")
# What may be set, beyond what the types say. Integers here must be positive.
POSITIVE = (
  "batch_size",
  "total_steps",
  "data.clip_frames",
  "data.streams",
  "data.shuffle_window",
  *ENCODER_KEYS[int],
  *(key for objective in OBJECTIVES.values() for key in objective.positive),
  "compute.accumulation",
  "checkpoint.every_steps",
  "checkpoint.keep",
  "checkpoint.keep_every",
  "guard.window",
  "guard.patience",
  "guard.collapse_steps",
  "log.every_steps",
  "online.every_steps",
  "online.clips",
  "online.knn",
)
CHOICES = {
  "objective": tuple(OBJECTIVES),
  "views.normalization.kind": tuple(NORMALIZATIONS),
  "compute.attention": ("auto", "xla", "cudnn"),
  "compute.kernels": ("auto", "xla", "pallas"),
  "encoder.kind": tuple(ENCODERS),
  **{f"encoder.{key}": names for e in ENCODERS.values() for key, names in e.choices.items()},
  "optimizer.form": tuple(FORMS),
  "optimizer.schedule": SCHEDULES,
  "guard.collapse": ("warn", "stop"),
  "export": ("teacher", "student"),
  "tail": TAILS,
  "data.source": ("records", "synthetic"),
  "data.reader": READERS,
  "online.network": ("teacher", "student"),
  **{key: names for objective in OBJECTIVES.values() for key, names in objective.choices.items()},
}
RANGES = {  # both ends included
  "seed": (0, LARGEST),
  "data.threads": (0, 1024),
  "data.order": (VERSION, VERSION),
  "data.max_damaged": (0, 0.5),
  "views.normalization.top_db": (1e-3, 1e6),
  "views.normalization.std": (1e-6, 1e6),
  **dict.fromkeys(ENCODER_KEYS[float], (0, 0.99)),  # rates of what is dropped
  "guard.spike": (0, 1e6),
  "guard.rollbacks": (0, 1000),
  "guard.collapse_std": (0, 1),
  "guard.collapse_rank": (0, 1e6),
  "guard.narrow": (0, 1),
  "guard.step_seconds": (0, 1e6),
  "guard.start_seconds": (0, 1e6),
  "online.max_seconds": (0.05, 3600),
  "max_seconds": (0.1, 86_400),
  "optimizer.base_lr": (0, 1e3),
  "optimizer.end_lr": (0, 1e3),
  "optimizer.weight_decay_start": (0, 1e3),
  "optimizer.weight_decay_end": (0, 1e3),
  "optimizer.b1": (0, 0.9999999),
  "optimizer.b2": (0, 0.9999999),
  # with 0 a parameter without a gradient, as positions behind the crop, would become 0 / 0
  "optimizer.eps": (1e-12, 1),
  "optimizer.reference_batch": (0, 1e9),
  **{key: ends for objective in OBJECTIVES.values() for key, ends in objective.ranges.items()},
}


def _check_normalization(normalization: ConfigDict) -> None:
  """Raises UserError for constants that are missing, too many or no numbers."""
  try:
    check_normalization(**normalization)
  except (ValueError, TypeError) as error:
    raise UserError(
      f"views.normalization: {error}; start from a config of that kind (configs/base.py: min_max, "
      "configs/byola.py: standard, configs/ssast.py: half_standard, configs/cola.py: log_magnitude)"
    ) from error


def check_values(config: ConfigDict, objective: Objective) -> None:
  """Raises UserError for a value out of its range, naming the key and the range. Keys of another
  kind, or of another objective, are absent."""
  values = flatten(config)
  present = lambda table: ((key, table[key]) for key in table if values.get(key) is not None)
  for key, value in values.items():
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
      raise UserError(f"--config.{key}={value}: must lie between -{LARGEST} and {LARGEST}")
  for key, low in present(dict.fromkeys((*POSITIVE, *objective.positive), 1)):
    if values[key] < low:
      raise UserError(f"--config.{key}={values[key]}: must be at least {low}")
  for key, allowed in present({**CHOICES, **objective.choices}):
    if values[key] not in allowed:
      raise UserError(f"--config.{key}={values[key]}: choose one of {', '.join(allowed)}")
  if not 0 <= config.warmup_steps <= config.total_steps:
    raise UserError(
      f"--config.warmup_steps={config.warmup_steps}: must lie between 0 and "
      f"total_steps={config.total_steps}; set it too"
    )
  for key, (low, high) in present({**RANGES, **objective.ranges}):
    if not low <= values[key] <= high:
      raise UserError(f"--config.{key}={values[key]}: must lie between {low} and {high}")
  evaluated.check_values(config, ascending=("online.ridge",))
  normalization = config.views.normalization
  if normalization.kind == "min_max" and not normalization.low < normalization.high:
    raise UserError(
      f"--config.views.normalization.low={normalization.low}: must be below "
      f"views.normalization.high={normalization.high}"
    )
  if not objective.has_teacher:
    for key in ("export", "online.network"):
      if values[key] == "teacher":
        raise UserError(
          f"--config.{key}=teacher: objective {objective.name} has no teacher; set "
          f"--config.{key}=student"
        )


def check_encoder(encoder) -> None:
  """Raises UserError if the section's keys are not those of its kind."""
  wanted = fields_of(encoder.kind)
  if set(encoder) - {"kind"} != set(wanted):
    raise UserError(
      f"--config.encoder.kind={encoder.kind} needs the keys {', '.join(sorted(wanted))}; start "
      "from a config of that kind (configs/base.py: transformer, byola.py: cnn, cola.py: "
      "efficientnet, trill.py: resnet50, ssast.py: ssast, conformer.py: conformer)"
    )


def is_ragged(config: ConfigDict, dataset: Dataset | None) -> bool:
  """Whether what the encoder sees may be shorter than `views.crop_frames`, so that lengths have to
  be tracked."""
  return get_objective(config).is_ragged(_shortest_clip(config, dataset))


def _shortest_clip(config: ConfigDict, dataset: Dataset | None) -> int:
  return config.data.clip_frames if dataset is None else dataset.min_frames(config.data.split)


def _longest_clip(config: ConfigDict, dataset: Dataset | None) -> int:
  most = config.data.clip_frames
  return most if dataset is None else min(most, dataset.max_frames(config.data.split))


def check_crop(config: ConfigDict) -> None:
  """Raises UserError for a crop that fits neither the clips nor the encoder."""
  encoder, crop = config.encoder, config.views.crop_frames
  shortest = make_encoder(encoder).hop
  limits = {"data.clip_frames": config.data.clip_frames}
  if "max_frames" in encoder:
    limits["encoder.max_frames"] = encoder.max_frames
  if not shortest <= crop <= min(limits.values()):
    named = " and ".join(f"{key} {value}" for key, value in limits.items())
    raise UserError(
      f"views.crop_frames {crop} must be at least {shortest}, which make one vector of this "
      f"encoder, and at most {named}"
    )


def _check_optimizer(optimizer: ConfigDict) -> None:
  if optimizer.schedule != "cosine" and optimizer.end_lr != END_LR:
    raise UserError(
      f"--config.optimizer.end_lr={optimizer.end_lr:g} does nothing with "
      f"--config.optimizer.schedule={optimizer.schedule}; leave it out"
    )


def _check_stairs(config: ConfigDict) -> None:
  if config.optimizer.schedule == "stairs" and 0 < config.warmup_steps < STAIR:
    raise UserError(
      f"--config.warmup_steps={config.warmup_steps}: stairs have steps of {STAIR}; set 0, or "
      f"{STAIR} and more"
    )


def check_compute(config: ConfigDict, devices: int) -> None:
  """Raises UserError for what the encoder or the number of clips on a device does not allow."""
  compute, clips = config.compute, config.batch_size // devices
  if clips % compute.accumulation:
    raise UserError(
      f"--config.compute.accumulation={compute.accumulation} does not divide the {clips} clips of "
      f"a device (batch_size {config.batch_size} on {devices} devices)"
    )
  if compute.remat and not hasattr(make_encoder(config.encoder), "remat"):
    raise UserError("--config.compute.remat needs --config.encoder.kind=transformer, or ssast")
  unsuited = make_encoder(config.encoder).unsuited()
  resolve_fused(compute.attention, compute.kernels, dtype=config.dtype, unsuited=unsuited)


def _smaller_batch(config: ConfigDict, clips: int, devices: int) -> str:
  """The largest batch that works, for a message."""
  on_device = math.lcm(get_objective(config).unit, config.compute.accumulation)
  unit = math.lcm(config.data.streams, devices * on_device)
  if clips >= unit:
    return f"set --config.batch_size={clips // unit * unit}"
  return (
    f"a batch is a multiple of {unit} here (data.streams {config.data.streams}, and {on_device} on "
    f"each of {devices} devices): add recordings, or lower these"
  )


def check(config: ConfigDict, dataset: Dataset | None, devices: int, processes: int) -> None:
  """Raises UserError for a resolved config that cannot work, before anything is compiled."""
  objective, encoder, batch = get_objective(config), config.encoder, config.batch_size
  check_sections(config, flatten(config))
  check_values(config, objective)
  if batch % devices:
    raise UserError(
      f"batch_size {batch} is not divisible by {devices} devices; use a multiple of {devices}"
    )
  check_encoder(encoder)
  if config.tail == "released" and not make_encoder(encoder).has_blocks:
    raise UserError(
      "--config.tail=released counts the patches of ATST's transformer; for --config.encoder.kind="
      f"{encoder.kind} take --config.tail=drop"
    )
  _check_optimizer(config.optimizer)
  _check_stairs(config)
  _check_normalization(config.views.normalization)
  check_crop(config)
  n_mels = get_frontend(config.data.frontend).n_mels
  lengths = (_shortest_clip(config, dataset), _longest_clip(config, dataset))
  objective.check(devices=devices, clip_lengths=lengths, n_mels=n_mels)
  check_compute(config, devices)
  try:
    make_encoder(encoder).check(n_mels)
  except ValueError as error:
    raise UserError(str(error)) from error
  if dataset is not None:
    clips = dataset.num_clips(config.data.split)
    if clips < batch:
      raise UserError(
        f"{dataset.root} holds {clips} clips, less than one batch of {batch}; "
        f"{_smaller_batch(config, clips, devices)}"
      )
    shards = len(dataset.shards(config.data.split))
    check_streams(batch_size=batch, streams=config.data.streams, shards=shards, processes=processes)
