"""What a job would do, from its config and its data: `atst_jax.main --dry_run`. Nothing is compiled or written."""

import math
import os

import jax
from ml_collections import ConfigDict

from atst_jax import config as configs
from atst_jax import export, flops, recipe, storage, trackers, train
from atst_jax.checkpoint import checkpoint_folder
from atst_jax.checks import check, is_ragged
from atst_jax.downstream import difference, evaluation, features, finetune, finetune_recipe, linear, retrieval, text
from atst_jax.downstream.labelled_batches import steps_per_epoch
from atst_jax.downstream.pair_set import read_pairs
from atst_jax.errors import UserError
from atst_jax.mesh import make_mesh, process_rows
from atst_jax.model import load_model
from atst_jax.online import Online
from atst_jax.records import Dataset
from atst_jax.workdir import CONFIG, read_config


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Lines for people. Raises UserError for what would end the job at its start."""
  return DESCRIPTIONS[config.job](config, workdir)


def _continuation(config: ConfigDict, workdir: str, ignore: tuple[str, ...]) -> str:
  """Whether the run is new, goes on, or would be refused."""
  if not storage.is_file(os.path.join(workdir, CONFIG)):
    return f"{workdir}: a new run"
  changes = configs.changes(read_config(workdir), configs.to_json(config), ignore)
  if changes:
    raise UserError("\n  ".join([f"{workdir} belongs to a run with another config:", *changes]))
  return f"{workdir}: belongs to this run"


def _steps(folder: str) -> list[int]:
  return sorted(int(name) for name in storage.names(folder) if name.isdigit())


def pretrain(config: ConfigDict, workdir: str) -> list[str]:
  """Data, devices, network, steps, memory and files of a pre-training."""
  dataset = Dataset.load(config.data.path) if config.data.source == "records" else None
  config = recipe.resolve(config, dataset)
  check(config, dataset, jax.device_count(), jax.process_count())
  mesh = make_mesh(**config.mesh)
  process_rows(mesh, config.batch_size)
  trackers.check(trackers.names(config.log))
  logs = ", ".join(["metrics.jsonl", "TensorBoard", *(k for k, name in trackers.names(config.log).items() if name)])
  online = Online(config, mesh) if config.online.path else None
  ragged = is_ragged(config, dataset)
  state = recipe.compile_for(config, mesh, ragged=ragged).state
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  here = sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state))
  if dataset is None:
    data = "synthetic noise"
  else:
    clips, split = dataset.num_clips(config.data.split), config.data.split
    epochs = config.total_steps * config.batch_size / clips
    data = (f"{dataset.root}, split {split}: {clips} clips in {len(dataset.shards(split))} shards, "
            f"front-end {dataset.frontend.name}; {epochs:.3g} epochs")  # fmt: skip
  flop = flops.clip_flops(config)
  folder = checkpoint_folder(workdir, config.checkpoint.folder)
  steps = _steps(folder)
  start = f"; goes on from step {steps[-1]}" if steps else ""
  per_device = config.batch_size // jax.device_count()
  return [
    f"workdir     {_continuation(config, workdir, train.FREE_KEYS)}{start}",
    f"data        {data}",
    f"devices     {jax.device_count()} x {jax.devices()[0].device_kind}, mesh "
    f"{' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}, {config.dtype}",
    f"network     {count(state.params):,} parameters ({count(state.params['encoder']):,} of the encoder), "
    f"teacher {count(state.teacher.params):,}",
    f"steps       {config.total_steps} of {config.batch_size} clips ({per_device} on a device), warm-up "
    f"{config.warmup_steps}; views of {config.views.crop_frames} frames{', some shorter' if ragged else ''}",
    f"work        {flop / 1e9:.3g} GFLOP per clip, {flop * config.batch_size * config.total_steps / 1e18:.3g} EFLOP",
    f"memory      state {size / 2**20:.0f} MiB, {here / 2**20:.0f} MiB of it on a device; activations are known once "
    "it is compiled (`python -m atst_jax.benchmark step`, `…plan`)",
    f"writes      {folder}: {size / 2**20:.0f} MiB every {config.checkpoint.every_steps} steps, "
    f"{config.checkpoint.keep} kept; {workdir}: {logs} every {config.log.every_steps} steps",
    "evaluates   nothing while it trains (--config.online.path)" if online is None else
    f"evaluates   {config.online.path} every {config.online.every_steps} steps",
  ]  # fmt: skip


def _labelled(config: ConfigDict, dataset: Dataset) -> tuple[list, list[str]]:
  """(divisions of a labelled set, lines about it)."""
  labels = features.read_labels(dataset)
  splits = evaluation.divide(config, dataset, labels)
  parts = "; ".join(f"{len(s.train)} + {len(s.valid)} + {len(s.test)}" for s in splits)
  return splits, [
    f"data        {dataset.root}: {len(labels.ids)} clips, {len(dataset.label_names)} classes, "
    f"{'several labels' if labels.multi_label else 'one label'} each",
    f"divisions   {len(splits)}, training + validation + test clips: {parts}",
  ]


def _encoder(config: ConfigDict, exported: dict) -> str:
  encoder = exported["encoder"]
  return f"encoder     {config.encoder}: {encoder['kind']} of width {encoder['width']}, {exported['params_hash']}"


def linear_evaluation(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, data, divisions and the number of probes of a linear evaluation."""
  model, dataset = load_model(config.encoder), Dataset.load(config.data.path)
  config = linear.resolve(config, model, dataset)
  splits, lines = _labelled(config, dataset)
  rates = config.probe.learning_rates
  return [
    f"workdir     {_continuation(config, workdir, linear.FREE_KEYS)}",
    _encoder(config, model.config),
    *lines,
    f"probes      {len(splits) * config.seeds * len(rates)} of each kind of features: {len(splits)} divisions x "
    f"{config.seeds} seeds x {len(rates)} rates, {config.probe.epochs} epochs, protocol {config.protocol}",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/",
  ]


def fine_tuning(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, data, divisions, runs and their steps of a fine-tuning."""
  recipe.check_platform(config.platform)
  exported, _, _ = export.read(config.encoder)
  dataset = Dataset.load(config.data.path)
  config = finetune_recipe.resolve(config, exported, dataset, jax.device_count())
  splits, lines = _labelled(config, dataset)
  steps = sorted({round(config.epochs) * steps_per_epoch(len(split.train), config.batch_size) for split in splits})
  return [
    f"workdir     {_continuation(config, workdir, finetune.FREE_KEYS)}",
    _encoder(config, exported),
    *lines,
    f"runs        {len(splits) * config.seeds}: {len(splits)} divisions x {config.seeds} seeds, {config.epochs} "
    f"epochs, {' to '.join(map(str, steps))} steps of {config.batch_size} clips of "
    f"{finetune_recipe.clip_frames(config, dataset)} frames each",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md; checkpoints in "
    f"{checkpoint_folder(workdir, config.checkpoint.folder)}",
  ]


def pair_retrieval(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, pairs and adapters of a retrieval."""
  model, dataset = load_model(config.encoder), Dataset.load(config.data.path)
  config = retrieval.resolve(config, model, dataset, text.load_text_encoder(config.text.model).hash)
  pairs = read_pairs(dataset, features.read_labels(dataset), seed=config.seed)
  parts = ", ".join(f"{split} {len(pairs.rows(split))}" for split in ("train", "valid", "test"))
  return [
    f"workdir     {_continuation(config, workdir, retrieval.FREE_KEYS)}",
    _encoder(config, model.config),
    f"data        {dataset.root}: pairs of {parts}",
    f"adapters    {config.seeds} seeds, {config.train.epochs} epochs of batches of {config.train.batch_size}",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/",
  ]


def known_backgrounds(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, mixtures and what is probed of an evaluation of BgKnown."""
  model, sets = load_model(config.encoder), difference.load(config.data.path)
  config = difference.resolve(config, model, sets)
  mix = sets["mix"]
  parts = ", ".join(f"{split} {mix.num_clips(split)}" for split in mix.splits)
  return [
    f"workdir     {_continuation(config, workdir, difference.FREE_KEYS)}",
    _encoder(config, model.config),
    f"data        {config.data.path}: mixtures of {parts}, {len(mix.label_names)} classes; sets {', '.join(sets)}",
    f"probes      {config.seeds} seeds x {len(config.probe.learning_rates)} rates of each kind of features, "
    f"{config.probe.epochs} epochs; baselines {', '.join(config.baselines) or 'none'}",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/",
  ]


DESCRIPTIONS = {"pretrain": pretrain, "linear": linear_evaluation, "finetune": fine_tuning, "retrieval": pair_retrieval,
                "difference": known_backgrounds}  # fmt: skip
