"""What a resolved pre-training config may hold: ranges, choices, and what has to fit together."""

import itertools

from ml_collections import ConfigDict

from atst_jax.artifacts.model import TAILS
from atst_jax.audio.frontend import get_frontend
from atst_jax.data.dataset import Dataset
from atst_jax.data.input_pipeline import READERS
from atst_jax.data.order import VERSION, check_streams
from atst_jax.method import views as view_lengths
from atst_jax.method.augment import RESIZES
from atst_jax.method.normalization import NORMALIZATIONS
from atst_jax.method.optimizer import FORMS
from atst_jax.method.subtraction import Subtraction
from atst_jax.models.encoders import ENCODERS, fields_of, make_encoder
from atst_jax.runtime.devices import resolve_fused
from atst_jax.util.config import flatten
from atst_jax.util.errors import UserError

LARGEST = 2**31 - 1  # of any whole number: the device counts in 32 bits
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
  "heads.hidden",
  "heads.out",
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
  "views.segments": ("two", "single"),
  "views.padding": view_lengths.PADDINGS,
  "views.normalization.kind": tuple(NORMALIZATIONS),
  "difference.gamma_per": ("clip", "batch"),
  "difference.mix_domain": ("normalized", "energy"),
  "difference.mix_stage": ("post_norm", "pre_norm"),
  "difference.renormalize": ("none", "batch"),
  "difference.neighbour": ("group", "batch"),
  "difference.subtrahend": ("student", "teacher"),
  "difference.level": ("clip", "frame"),
  "compute.attention": ("auto", "xla", "cudnn"),
  "compute.kernels": ("auto", "xla", "pallas"),
  "compute.resize": ("auto", *RESIZES),
  "encoder.kind": tuple(ENCODERS),
  **{f"encoder.{key}": names for e in ENCODERS.values() for key, names in e.choices.items()},
  "optimizer.form": tuple(FORMS),
  "optimizer.schedule": ("cosine", "constant"),
  "guard.collapse": ("warn", "stop"),
  "export": ("teacher", "student"),
  "tail": TAILS,
  "data.source": ("records", "synthetic"),
  "data.reader": READERS,
  "online.network": ("teacher", "student"),
}
RANGES = {  # both ends included
  "seed": (0, LARGEST),
  "data.threads": (0, 1024),
  "data.order": (VERSION, VERSION),
  "data.max_damaged": (0, 0.5),
  "difference.weight": (0, 1),
  "difference.gamma_min": (1e-3, 0.999),
  "difference.gamma_max": (1e-3, 0.999),
  "views.mixup_ratio": (0, 1),
  "views.normalization.top_db": (1e-3, 1e6),
  "views.normalization.std": (1e-6, 1e6),
  "views.fader_gain": (0, 1e3),
  "views.canvas_time": (1, 100),
  **dict.fromkeys(ENCODER_KEYS[float], (0, 0.99)),  # rates of what is dropped
  "difference.mix_k": (1e-6, 1e6),
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
  "optimizer.eps": (0, 1),
  "optimizer.reference_batch": (0, 1e9),
  "teacher.lead_steps": (0, 1),
  "teacher.decay_start": (0, 1),
  "teacher.decay_end": (0, 1),
}


def check_values(config: ConfigDict) -> None:
  """Raises UserError for a value out of its range, naming the key and the range. Keys of another
  kind are absent."""
  values = flatten(config)
  present = lambda table: ((key, table[key]) for key in table if values.get(key) is not None)
  for key, value in values.items():
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
      raise UserError(f"--config.{key}={value}: must lie between -{LARGEST} and {LARGEST}")
  for key, low in present(dict.fromkeys(POSITIVE, 1)):
    if values[key] < low:
      raise UserError(f"--config.{key}={values[key]}: must be at least {low}")
  for key, allowed in present(CHOICES):
    if values[key] not in allowed:
      raise UserError(f"--config.{key}={values[key]}: choose one of {', '.join(allowed)}")
  for key, (low, high) in present({**RANGES, "warmup_steps": (0, config.total_steps)}):
    if not low <= values[key] <= high:
      raise UserError(f"--config.{key}={values[key]}: must lie between {low} and {high}")
  for key in ("views.freq_scale", "views.time_scale"):
    if len(values[key]) != 2 or not 0 < values[key][0] <= values[key][1]:
      raise UserError(
        f"--config.{key}={values[key]}: must be two positive numbers, the smaller first"
      )
  subtraction = Subtraction(**config.difference)
  if not subtraction.gamma_min <= subtraction.gamma_max:
    raise UserError(
      f"--config.difference.gamma_min={subtraction.gamma_min}: must be below "
      f"difference.gamma_max={subtraction.gamma_max}"
    )
  penalties = config.online.ridge
  if not penalties or penalties[0] <= 0 or any(b <= a for a, b in itertools.pairwise(penalties)):
    raise UserError(f"--config.online.ridge={penalties}: must be positive and ascending")
  normalization = config.views.normalization
  if normalization.kind == "min_max" and not normalization.low < normalization.high:
    raise UserError(
      f"--config.views.normalization.low={normalization.low}: must be below "
      f"views.normalization.high={normalization.high}"
    )


def check_encoder(encoder) -> None:
  """Raises UserError if the section's keys are not those of its kind."""
  wanted = fields_of(encoder.kind)
  if set(encoder) - {"kind"} != set(wanted):
    raise UserError(
      f"--config.encoder.kind={encoder.kind} needs the keys {', '.join(sorted(wanted))}; start "
      "from a config of that kind (configs/base.py: transformer, configs/byola.py: cnn)"
    )


def ranges_of(views) -> list[tuple[int, int]]:
  """(shortest, longest) frames of each view of a config's `views` section."""
  return view_lengths.frame_ranges(
    views["crop_frames"], views["first_frames"], views["second_frames"]
  )


def is_ragged(config: ConfigDict, dataset: Dataset | None) -> bool:
  """Whether any view may be shorter than `views.crop_frames`, so that lengths have to be
  tracked."""
  return view_lengths.is_ragged(
    config.data.clip_frames if dataset is None else dataset.min_frames(config.data.split),
    padding=config.views.padding,
    crop_frames=config.views.crop_frames,
    first_frames=config.views.first_frames,
    second_frames=config.views.second_frames,
  )


def check_views(config: ConfigDict, dataset: Dataset | None) -> None:
  """Raises UserError for lengths that fit neither each other, the clips nor the encoder."""
  views, encoder = config.views, config.encoder
  for key in ("first_frames", "second_frames"):
    if views[key] is not None and (
      len(views[key]) != 2 or not all(isinstance(n, int) for n in views[key])
    ):
      raise UserError(
        f"--config.views.{key}={views[key]}: must be two whole numbers of frames, the shorter first"
      )
  crop, ranges = views.crop_frames, ranges_of(views)
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
  for key, (low, high) in zip(("first_frames", "second_frames"), ranges, strict=True):
    if not shortest <= low <= high <= crop:
      raise UserError(
        f"--config.views.{key}=({low}, {high}): must be two numbers from {shortest} to "
        f"views.crop_frames {crop}, the smaller first"
      )
  if max(high for _, high in ranges) < crop:
    raise UserError(
      f"views.crop_frames {crop} is longer than any view; set it to the longest of "
      "views.first_frames and views.second_frames"
    )
  if views.segments == "single" and (ranges[0] != ranges[1] or ranges[0][0] < ranges[0][1]):
    raise UserError(
      "--config.views.segments=single takes both views from one segment; leave out "
      "views.first_frames and views.second_frames"
    )
  if ENCODERS[encoder.kind].has_batch_norm and is_ragged(config, dataset):
    raise UserError(
      f"some views are shorter than views.crop_frames, and BatchNorm of --config.encoder.kind="
      f"{encoder.kind} would see their padding; set --config.views.padding=silence and leave out "
      "views.first_frames and views.second_frames"
    )


def check_difference(config: ConfigDict) -> None:
  """Raises UserError for a choice that would do nothing, or two that exclude each other."""
  difference, kind = Subtraction(**config.difference), ENCODERS[config.encoder.kind]
  for key, value, needs, met in (
    ("level", "frame", "encoder.kind=cnn", not kind.has_blocks),
    ("track_mixtures", False, "encoder.kind=cnn", kind.has_batch_norm),
    ("mix_stage", "pre_norm", "views.post_norm=true", config.views.post_norm),
    (
      "mix_stage",
      "pre_norm",
      "difference.mix_domain=normalized",
      difference.mix_domain == "normalized",
    ),
    ("joint_projector", True, "difference.symmetric=true", difference.symmetric),
    ("gamma_shared", True, "difference.symmetric=true", difference.symmetric),
    ("stop_gradient", True, "difference.subtrahend=student", difference.subtrahend == "student"),
  ):
    if getattr(difference, key) == value and not met:
      raise UserError(
        f"--config.difference.{key}={value} makes a difference only with --config.{needs}"
      )
  if difference.mix_k is not None and difference.mix_domain != "energy":
    raise UserError(
      "--config.difference.mix_k is used only with --config.difference.mix_domain=energy"
    )


def check_compute(config: ConfigDict, devices: int) -> None:
  """Raises UserError for what the encoder or the number of clips on a device does not allow."""
  compute, clips = config.compute, config.batch_size // devices
  if clips % compute.accumulation:
    raise UserError(
      f"--config.compute.accumulation={compute.accumulation} does not divide the {clips} clips of "
      f"a device (batch_size {config.batch_size} on {devices} devices)"
    )
  if compute.remat and not ENCODERS[config.encoder.kind].has_blocks:
    raise UserError("--config.compute.remat needs --config.encoder.kind=transformer")
  unsuited = make_encoder(config.encoder).unsuited()
  resolve_fused(compute.attention, compute.kernels, dtype=config.dtype, unsuited=unsuited)


def check(config: ConfigDict, dataset: Dataset | None, devices: int, processes: int) -> None:
  """Raises UserError for a resolved config that cannot work, before anything is compiled."""
  check_values(config)
  group, encoder = config.views.group, config.encoder
  batch = config.batch_size
  if batch % devices:
    raise UserError(
      f"batch_size {batch} is not divisible by {devices} devices; use a multiple of {devices}"
    )
  if group < 2 or batch // devices % group:
    raise UserError(
      f"views.group {group} must be at least 2 and divide the {batch // devices} clips of a device "
      f"(batch_size {batch} on {devices} devices)"
    )
  check_encoder(encoder)
  check_views(config, dataset)
  check_difference(config)
  check_compute(config, devices)
  try:
    make_encoder(encoder).check(get_frontend(config.data.frontend).n_mels)
  except ValueError as error:
    raise UserError(str(error)) from error
  if dataset is not None:
    clips = dataset.num_clips(config.data.split)
    if clips < batch:
      raise UserError(
        f"{dataset.root} holds {clips} clips, less than one batch of {batch}; lower batch_size"
      )
    shards = len(dataset.shards(config.data.split))
    check_streams(batch_size=batch, streams=config.data.streams, shards=shards, processes=processes)
