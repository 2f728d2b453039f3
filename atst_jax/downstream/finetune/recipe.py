"""A fine-tuning config made concrete: filled in from encoder and data, checked, and built into
functions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atst_jax.artifacts.model import TAILS
from atst_jax.audio.frontend import FrontEnd
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import features
from atst_jax.downstream.finetune import step as finetune_step
from atst_jax.downstream.finetune.classifier import make_classifier
from atst_jax.method.augment import RESIZES
from atst_jax.method.optimizer import cosine_schedule
from atst_jax.models.encoders import ENCODERS, make_encoder
from atst_jax.runtime.devices import DTYPES, resolve_dtype, resolve_fused
from atst_jax.runtime.mesh import batch_sharding, replicated, state_shardings
from atst_jax.util.errors import UserError

POSITIVE = (
  "batch_size",
  "seeds",
  "mixup.group",
  "checkpoint.every_epochs",
  "checkpoint.keep",
  "log.every_steps",
  "evaluate_every_epochs",
)
RANGES = {  # both ends included
  "epochs": (1, 1e6),
  "max_seconds": (0.1, 1e6),
  "drop_path": (0, 0.99),
  "mixup.probability": (0, 1),
  "mixup.alpha": (1e-3, 1e3),
  "crop.canvas_time": (1, 100),
  "optimizer.base_lr": (1e-12, 1e6),
  "optimizer.end_lr": (0, 1e6),
  "optimizer.reference_batch": (1, 1e9),
  "optimizer.momentum": (0, 0.9999),
  "optimizer.clip_norm": (1e-6, 1e9),
  "optimizer.layer_decay": (1e-3, 1),
}
CHOICES = {
  "padding": ("mask", "silence"),
  "tail": TAILS,
  "initial": ("pre-trained", "random"),
  "compute.attention": ("auto", "xla", "cudnn"),
  "compute.kernels": ("auto", "xla", "pallas"),
  "compute.resize": ("auto", *RESIZES),
}


def resolve(config: ConfigDict, exported: dict, dataset: Dataset, devices: int) -> ConfigDict:
  """Fills the placeholders of a config from the export's config and the data, and checks values for
  so many devices.

  Raises UserError with key, value and remedy.
  """
  dataset.check_frontend(FrontEnd.from_json(exported["frontend"]), config.encoder)
  config = config.copy_and_resolve_references()
  found = (
    ("params_hash", config, "params_hash", exported["params_hash"], "encoder"),
    ("data.fingerprint", config.data, "fingerprint", features.fingerprint(dataset), "data.path"),
  )
  for key, section, name, value, source in found:
    if section[name] not in (None, value):
      raise UserError(
        f"--config.{key}={section[name]}, but what --config.{source} names has {value}; leave it out"
      )
    section[name] = value
  config.dtype = resolve_dtype(config.dtype)
  transformer = ENCODERS[exported["encoder"]["kind"]].has_blocks
  if not transformer:
    for key, value, plain in (
      ("drop_path", config.drop_path, None),
      ("padding", config.padding, None),
      ("optimizer.layer_decay", config.optimizer.layer_decay, 1.0),
      ("compute.remat", config.compute.remat, False),
    ):
      if value not in (plain, "silence"):
        raise UserError(
          f"--config.{key}={value} is for transformers; {config.encoder} is a convolutional encoder, "
          "which is trained on clips that are filled up with silence: leave it out"
        )
  if config.drop_path is None and transformer:
    config.drop_path = 0.1
  config.padding = config.padding or ("mask" if transformer else "silence")
  config.tail = config.tail or exported["tail"]
  _check(config, devices)
  return config


def _check(config: ConfigDict, devices: int) -> None:
  """Raises UserError for a value that cannot work, naming key and range."""
  read = lambda key: (
    config[key] if "." not in key else config[key.partition(".")[0]][key.partition(".")[2]]
  )
  for key in POSITIVE:
    if read(key) < 1:
      raise UserError(f"--config.{key}={read(key)}: must be at least 1")
  for key, (low, high) in {**RANGES, "warmup_epochs": (0, config.epochs)}.items():
    if read(key) is not None and not low <= read(key) <= high:
      raise UserError(f"--config.{key}={read(key)}: must lie between {low} and {high}")
  for key, allowed in CHOICES.items():
    if read(key) not in allowed:
      raise UserError(f"--config.{key}={read(key)}: choose one of {', '.join(allowed)}")
  for key in ("freq_scale", "time_scale"):
    if len(config.crop[key]) != 2 or not 0 < config.crop[key][0] <= config.crop[key][1]:
      raise UserError(
        f"--config.crop.{key}={config.crop[key]}: must be two positive numbers, the smaller first"
      )
  group = config.mixup.group
  if config.batch_size % devices:
    raise UserError(
      f"batch_size {config.batch_size} is not divisible by {devices} devices; use a multiple of {devices}"
    )
  if config.mixup.probability and (group < 2 or config.batch_size // devices % group):
    raise UserError(
      f"mixup.group {group} must be at least 2 and divide the {config.batch_size // devices} clips of a "
      f"device (batch_size {config.batch_size} on {devices} devices)"
    )


def clip_frames(config: ConfigDict, dataset: Dataset) -> int:
  """T of every batch: the longest clip, at most `max_seconds`."""
  frontend = dataset.frontend
  longest = max(split["max_frames"] for split in dataset.manifest["splits"].values())
  return min(longest, frontend.num_frames(round(config.max_seconds * frontend.sample_rate)))


def learning_rates(config: ConfigDict, steps_per_epoch: int) -> np.ndarray:
  """The rate of every step: linear over the warm-up to base_lr · batch_size / reference_batch, then
  half a cosine."""
  peak = config.optimizer.base_lr * config.batch_size / config.optimizer.reference_batch
  total = round(config.epochs) * steps_per_epoch
  warmup = round(config.warmup_epochs * steps_per_epoch)
  rate = cosine_schedule(peak, config.optimizer.end_lr, total_steps=total, warmup_steps=warmup)
  return np.asarray(rate(jnp.arange(total)), np.float32)


class Program(NamedTuple):
  """A resolved config's functions for a mesh, jitted; `state` is abstract, with its shardings."""

  init: Callable  # (key, the encoder's variables) -> state
  step: Callable  # (state, batch, rate, seed) -> (state, metrics); the state is donated
  predict: Callable  # (params, batch_stats, batch) -> logits, on every process
  keep_best: Callable  # (state, score, epoch) -> state; the state is donated
  state: finetune_step.FinetuneState


def compile_for(
  config: ConfigDict,
  exported: dict,
  encoder,
  mesh: Mesh,
  *,
  frames,
  n_mels,
  labels: features.Labels,
) -> Program:
  """What fine-tuning runs; compiled when it is first called.

  Args:
    exported: the export's config.
    encoder: its variables, or their shapes.
    frames: T of a batch.
  """
  attention, kernels = resolve_fused(
    config.compute.attention,
    config.compute.kernels,
    dtype=config.dtype,
    unsuited=make_encoder(exported["encoder"]).unsuited(),
  )
  network = make_classifier(
    exported["encoder"],
    classes=labels.targets.shape[1],
    drop_path=config.drop_path,
    chunk_frames=exported["chunk_frames"],
    tail=config.tail,
    dtype=DTYPES[config.dtype],
    attention=attention,
    kernels=kernels,
    remat=config.compute.remat,
  )
  tx = finetune_step.make_optimizer(
    momentum=config.optimizer.momentum, clip_norm=config.optimizer.clip_norm
  )

  def init(key, encoder):
    return finetune_step.init_state(
      key, encoder, network=network, tx=tx, frames=frames, n_mels=n_mels
    )

  abstract = jax.eval_shape(init, jax.random.key(0), encoder)
  shardings, rows, whole = state_shardings(mesh, abstract), batch_sharding(mesh), replicated(mesh)
  state = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
  )
  scales = finetune_step.layer_scales(
    abstract.params, depth=exported["encoder"].get("depth", 0), decay=config.optimizer.layer_decay
  )
  crop = {key: config.crop[key] for key in ("freq_scale", "time_scale", "canvas_time")}
  common = {
    "network": network,
    "normalization": exported["normalization"],
    "padding": config.padding,
  }
  step = finetune_step.make_train_step(
    tx=tx,
    scales=scales,
    mixup=config.mixup.to_dict(),
    crop=crop if config.crop.enabled else None,
    binary=labels.multi_label or config.mixup.probability > 0,
    resize=config.compute.resize,
    **common,
  )
  return Program(
    jax.jit(init, out_shardings=shardings),
    jax.jit(
      step,
      in_shardings=(shardings, rows, whole, whole),
      out_shardings=(shardings, whole),
      donate_argnums=0,
    ),
    jax.jit(
      finetune_step.make_predict(**common),
      in_shardings=(shardings.params, shardings.batch_stats, rows),
      out_shardings=whole,
    ),
    jax.jit(
      finetune_step.keep_best,
      in_shardings=(shardings, whole, whole),
      out_shardings=shardings,
      donate_argnums=0,
    ),
    state,
  )
