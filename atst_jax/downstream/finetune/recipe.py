"""A fine-tuning config, filled in and checked, with the opened encoder and data."""

import dataclasses
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from atst_jax.artifacts.folder import read
from atst_jax.artifacts.model import TAILS
from atst_jax.audio.frontend import FrontEnd
from atst_jax.data.dataset import Dataset
from atst_jax.data.labelled_batches import VERSION, steps_per_epoch
from atst_jax.downstream import evaluation, features
from atst_jax.downstream.features import Labels
from atst_jax.downstream.splits import Split
from atst_jax.downstream.values import check_values, filled, refuse_idle, refuse_idle_folds
from atst_jax.method.augment import RESIZES
from atst_jax.models.encoders import ENCODERS, make_encoder
from atst_jax.runtime.devices import resolve_dtype
from atst_jax.runtime.mesh import make_mesh
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError

FILE = "configs/finetune.py"
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
  "data.order": (VERSION, VERSION),
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


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A resolved fine-tuning: opened files, and settings by name."""

  record: dict  # the resolved config as JSON
  exported: dict  # the export's config
  encoder: Any  # its variables
  dataset: Dataset
  labels: Labels
  splits: list[Split]
  mesh: Mesh
  frames: int  # T of every batch: the longest clip, at most `max_seconds`
  seeds: list[int]
  initial: str
  batch_size: int
  epochs: int
  evaluate_every_epochs: int
  schedule: dict  # of `program.learning_rates`
  program: dict  # of `program.compile_for`
  checkpoint: dict
  guard: dict
  log_every_steps: int
  select_on_test: bool


def resolve(config: ConfigDict) -> Recipe:
  """Opens encoder and data, fills the placeholders of a config from them, and checks values for
  this machine's devices.

  Raises UserError with key, value and remedy.
  """
  exported, encoder, _ = read(config.encoder)
  dataset, mesh = Dataset.load(config.data.path), make_mesh(**config.mesh)
  dataset.check_frontend(FrontEnd.from_json(exported["frontend"]), config.encoder)
  config = filled(config, exported, features.fingerprint(dataset))
  config.dtype = resolve_dtype(config.dtype)
  transformer = ENCODERS[exported["encoder"]["kind"]].has_blocks
  if not transformer:
    for key, value, plain in (
      ("drop_path", config.drop_path, None),
      ("padding", config.padding, None),
      ("tail", config.tail, None),
      ("optimizer.layer_decay", config.optimizer.layer_decay, 1.0),
      ("compute.remat", config.compute.remat, False),
    ):
      if value not in (plain, "silence"):
        raise UserError(
          f"--config.{key}={value} is for ATST's transformer; {config.encoder} is of the kind "
          f"{exported['encoder']['kind']}, which is trained on clips that are filled up with "
          "silence: leave it out"
        )
  if config.drop_path is None and transformer:
    config.drop_path = 0.1
  config.padding = config.padding or ("mask" if transformer else "silence")
  config.tail = config.tail or exported["tail"]
  _check(config, mesh.size)
  labels = features.read_labels(dataset)
  splits = evaluation.divide(
    dataset, labels, seed=config.seed, select_on_test=config.select_on_test, **config.splits
  )
  _refuse_idle(config, labels)
  for split in splits:
    steps_per_epoch(len(split.train), config.batch_size)
  longest = max(split["max_frames"] for split in dataset.manifest["splits"].values())
  most = dataset.frontend.num_frames(round(config.max_seconds * dataset.frontend.sample_rate))
  frames, least = min(longest, most), make_encoder(exported["encoder"]).hop
  if frames < least:
    raise UserError(
      f"{config.data.path}: of clips of up to {longest} frames, {frames} are heard "
      f"(--config.max_seconds={config.max_seconds:g}), and {config.encoder} needs at least {least}"
    )
  return Recipe(
    record=configs.to_json(config),
    exported=exported,
    encoder=encoder,
    dataset=dataset,
    labels=labels,
    splits=splits,
    mesh=mesh,
    frames=frames,
    seeds=[config.seed + i for i in range(config.seeds)],
    initial=config.initial,
    batch_size=config.batch_size,
    epochs=round(config.epochs),
    evaluate_every_epochs=config.evaluate_every_epochs,
    schedule=schedule_settings(config),
    program=program_settings(config),
    checkpoint=config.checkpoint.to_dict(),
    guard=config.guard.to_dict(),
    log_every_steps=config.log.every_steps,
    select_on_test=config.select_on_test,
  )


def _refuse_idle(config: ConfigDict, labels: Labels) -> None:
  """Raises UserError for settings of Mixup, crops or divisions that play no part in this run."""
  if not config.mixup.probability:
    why = "plays no part without Mixup; leave it out, or set --config.mixup.probability=1"
    refuse_idle(config, FILE, ("mixup.alpha",), why)
  if not config.crop.enabled:
    keys = tuple(f"crop.{key}" for key in config.crop if key != "enabled")
    why = "plays no part without random crops; leave it out, or set --config.crop.enabled=true"
    refuse_idle(config, FILE, keys, why)
  refuse_idle_folds(config, FILE, labels)


def schedule_settings(config: ConfigDict) -> dict:
  """The keyword arguments of `program.learning_rates`, from a resolved config."""
  return {
    "batch_size": config.batch_size,
    "epochs": round(config.epochs),
    "warmup_epochs": config.warmup_epochs,
    **{key: config.optimizer[key] for key in ("base_lr", "reference_batch", "end_lr")},
  }


def program_settings(config: ConfigDict) -> dict:
  """The keyword arguments of `program.compile_for` in a resolved config."""
  crop = {key: config.crop[key] for key in ("freq_scale", "time_scale", "canvas_time")}
  return {
    **{key: config[key] for key in ("padding", "tail", "drop_path", "dtype")},
    "mixup": config.mixup.to_dict(),
    "crop": crop if config.crop.enabled else None,
    "optimizer": {key: config.optimizer[key] for key in ("momentum", "clip_norm")},
    "layer_decay": config.optimizer.layer_decay,
    "compute": config.compute.to_dict(),
  }


def _check(config: ConfigDict, devices: int) -> None:
  """Raises UserError, with key and range, for a value that cannot work."""
  values = configs.flatten(config)
  for key in POSITIVE:
    if values[key] < 1:
      raise UserError(f"--config.{key}={values[key]}: must be at least 1")
  for key, (low, high) in RANGES.items():
    if values[key] is not None and not low <= values[key] <= high:
      raise UserError(f"--config.{key}={values[key]}: must lie between {low} and {high}")
  if not 0 <= config.warmup_epochs <= config.epochs:
    raise UserError(
      f"--config.warmup_epochs={config.warmup_epochs}: must lie between 0 and "
      f"epochs={config.epochs}; set it too"
    )
  check_values(config, one_of=CHOICES)
  for key in ("freq_scale", "time_scale"):
    if len(config.crop[key]) != 2 or not 0 < config.crop[key][0] <= config.crop[key][1]:
      raise UserError(
        f"--config.crop.{key}={config.crop[key]}: must be two positive numbers, the smaller first"
      )
  group = config.mixup.group
  if config.batch_size % devices:
    raise UserError(
      f"batch_size {config.batch_size} is not divisible by {devices} devices; use a multiple of "
      f"{devices}"
    )
  if config.mixup.probability and (group < 2 or config.batch_size // devices % group):
    raise UserError(
      f"mixup.group {group} must be at least 2 and divide the {config.batch_size // devices} "
      f"clips of a device (batch_size {config.batch_size} on {devices} devices)"
    )
