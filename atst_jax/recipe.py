"""A pre-training config made concrete: filled in from the data, checked, and built into functions."""

import functools
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from atst_jax import train_step as method
from atst_jax.config import flatten
from atst_jax.ema import ema
from atst_jax.errors import UserError
from atst_jax.frontend import get_frontend
from atst_jax.input_pipeline import check_streams, record_batches, synthetic_batches
from atst_jax.logs import log
from atst_jax.optimizer import cosine_schedule, make_optimizer
from atst_jax.records import Dataset

DTYPES = {"auto": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}
SYNTHETIC = {"min": -100.0, "max": 40.0}  # dB, the range of the synthetic source's noise


def resolve(config: ConfigDict, dataset: Dataset | None) -> ConfigDict:
  """Fills the placeholders of a pre-training config from the data: steps, normalisation, fingerprint.

  total_steps and warmup_steps follow from total_epochs and warmup_epochs unless they are set.

  Raises UserError where something is missing or does not fit the data.
  """
  config = config.copy_and_resolve_references()
  frontend = get_frontend(config.data.frontend)
  if dataset is not None:
    if dataset.frontend.hash != frontend.hash:
      raise UserError(
        f"{dataset.root} was prepared with the front-end {dataset.frontend.name!r} ({dataset.frontend.hash}), "
        f"data.frontend is {frontend.name!r} ({frontend.hash}); prepare it again with "
        f"--frontend={frontend.name} or set --config.data.frontend={dataset.frontend.name}"
      )
    fingerprint = dataset.fingerprint(config.data.split)
    if config.data.fingerprint not in (None, fingerprint):
      raise UserError(
        f"--config.data.fingerprint={config.data.fingerprint}, but {dataset.root} has {fingerprint}; leave it out"
      )
    config.data.fingerprint = fingerprint
  if config.dtype not in DTYPES:
    raise UserError(f"--config.dtype={config.dtype}: choose one of {', '.join(DTYPES)}")
  if config.dtype == "auto":
    config.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  statistics = dataset.statistics if dataset else SYNTHETIC
  for key, name in (("low", "min"), ("high", "max")):
    if config.views[key] is None:
      config.views[key] = float(statistics[name])
  clips = dataset.num_clips(config.data.split) if dataset else None
  for name in ("total", "warmup"):
    if config[f"{name}_steps"] is None:
      if clips is None or config[f"{name}_epochs"] is None:
        raise UserError(
          f"{name}_steps is not set and cannot follow from {name}_epochs="
          f"{config[f'{name}_epochs']} with the {config.data.source!r} source; set --config.{name}_steps=…"
        )
      steps = config[f"{name}_epochs"] * clips / max(config.batch_size, 1)
      if not math.isfinite(steps):
        raise UserError(f"--config.{name}_epochs={config[f'{name}_epochs']}: must be finite")
      config[f"{name}_steps"] = round(steps)
    elif config[f"{name}_epochs"] is not None:
      log.info("%s_steps=%d is set; %s_epochs=%s is not used", name, config[f"{name}_steps"], name,
               config[f"{name}_epochs"])  # fmt: skip
    config[f"{name}_epochs"] = None
  return config


# What may be set, beyond what the types say. Integers here must be positive.
POSITIVE = (
  "batch_size",
  "total_steps",
  "data.clip_frames",
  "data.streams",
  "data.shuffle_window",
  "encoder.width",
  "encoder.depth",
  "encoder.heads",
  "encoder.patch_frames",
  "encoder.max_frames",
  "heads.hidden",
  "heads.out",
  "checkpoint.every_steps",
  "checkpoint.keep",
  "checkpoint.keep_every",
  "log.every_steps",
)
CHOICES = {
  "views.segments": ("two", "single"),
  "difference.mix_domain": ("normalized", "energy"),
  "encoder.kind": tuple(method.ENCODERS),
  "data.source": ("records", "synthetic"),
}
RANGES = {  # both ends included
  "difference.weight": (0, 1),
  "difference.gamma_min": (1e-3, 0.999),
  "difference.gamma_max": (1e-3, 0.999),
  "views.mixup_ratio": (0, 1),
  "views.top_db": (1e-3, 1e6),
  "views.canvas_time": (1, 100),
  "encoder.drop_path": (0, 0.99),
  "optimizer.base_lr": (0, 1e3),
  "optimizer.end_lr": (0, 1e3),
  "optimizer.weight_decay_start": (0, 1e3),
  "optimizer.weight_decay_end": (0, 1e3),
  "optimizer.b1": (0, 0.9999999),
  "optimizer.b2": (0, 0.9999999),
  "optimizer.eps": (0, 1),
  "teacher.decay_start": (0, 1),
  "teacher.decay_end": (0, 1),
}


def check_values(config: ConfigDict) -> None:
  """Raises UserError for a value out of its range, naming the key and the range."""
  values = flatten(config)
  for key in POSITIVE:
    if values[key] < 1:
      raise UserError(f"--config.{key}={values[key]}: must be at least 1")
  for key, allowed in CHOICES.items():
    if values[key] not in allowed:
      raise UserError(f"--config.{key}={values[key]}: choose one of {', '.join(allowed)}")
  for key, (low, high) in {**RANGES, "warmup_steps": (0, config.total_steps)}.items():
    if not low <= values[key] <= high:
      raise UserError(f"--config.{key}={values[key]}: must lie between {low} and {high}")
  for key in ("views.freq_scale", "views.time_scale"):
    if len(values[key]) != 2 or not 0 < values[key][0] <= values[key][1]:
      raise UserError(f"--config.{key}={values[key]}: must be two positive numbers, the smaller first")
  for low, high in (("views.low", "views.high"), ("difference.gamma_min", "difference.gamma_max")):
    if not values[low] <= values[high] or (low == "views.low" and values[low] == values[high]):
      raise UserError(f"--config.{low}={values[low]}: must be below {high}={values[high]}")


def check(config: ConfigDict, dataset: Dataset | None, devices: int, processes: int) -> None:
  """Raises UserError for a resolved config that cannot work, before anything is compiled."""
  check_values(config)
  group, crop, encoder = config.views.group, config.views.crop_frames, config.encoder
  batch = config.batch_size
  if batch % devices:
    raise UserError(f"batch_size {batch} is not divisible by {devices} devices; use a multiple of {devices}")
  if group < 2 or batch // devices % group:
    raise UserError(
      f"views.group {group} must be at least 2 and divide the {batch // devices} clips of a device "
      f"(batch_size {batch} on {devices} devices)"
    )
  if not encoder.patch_frames <= crop <= min(config.data.clip_frames, encoder.max_frames):
    raise UserError(
      f"views.crop_frames {crop} must be at least encoder.patch_frames {encoder.patch_frames} and at most "
      f"data.clip_frames {config.data.clip_frames} and encoder.max_frames {encoder.max_frames}"
    )
  if encoder.width % encoder.heads:
    raise UserError(f"encoder.width {encoder.width} is not divisible by encoder.heads {encoder.heads}")
  if dataset is not None:
    clips = dataset.num_clips(config.data.split)
    if clips < batch:
      raise UserError(f"{dataset.root} holds {clips} clips, less than one batch of {batch}; lower batch_size")
    shards = len(dataset.shards(config.data.split))
    check_streams(batch_size=batch, streams=config.data.streams, shards=shards, processes=processes)


def build(config: ConfigDict, *, ragged: bool):
  """(init(key) -> state, train_step(state, batch) -> (state, metrics)) of a resolved config; nothing is compiled."""
  network = method.make_network(
    encoder=config.encoder,
    heads=config.heads,
    joint_views=config.joint_views,
    difference_weight=config.difference.weight,
    dtype=DTYPES[config.dtype],
  )
  tx, schedules = make_optimizer(total_steps=config.total_steps, warmup_steps=config.warmup_steps,
                                 batch_size=config.batch_size, **config.optimizer)  # fmt: skip
  decay = cosine_schedule(config.teacher.decay_start, config.teacher.decay_end, total_steps=config.total_steps)
  parts = {"network": network, "tx": tx, "teacher": ema(decay)}
  init = functools.partial(method.init_state, frames=config.views.crop_frames, group=config.views.group,
                           n_mels=get_frontend(config.data.frontend).n_mels, **parts)  # fmt: skip
  step = method.make_train_step(
    schedules={**schedules, "ema_decay": decay},
    seed=config.seed,
    ragged=ragged,
    views=config.views.to_dict(),
    difference=config.difference.to_dict(),
    **parts,
  )
  return init, step


def batches(config: ConfigDict, dataset: Dataset | None, *, start_step: int, rows):
  """The iterator of this process's rows, from `start_step` on."""
  common = {"clip_frames": config.data.clip_frames, "batch_size": config.batch_size, "seed": config.seed,
            "start_step": start_step, "rows": rows}  # fmt: skip
  if dataset is None:
    return synthetic_batches(n_mels=get_frontend(config.data.frontend).n_mels, **common)
  return record_batches(dataset, split=config.data.split, streams=config.data.streams,
                        shuffle_window=config.data.shuffle_window, **common)  # fmt: skip
