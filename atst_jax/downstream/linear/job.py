"""Linear evaluation: what a linear layer can read off an encoder, beside what it reads off two
baselines.

A score means little alone: on small sets an encoder with random parameters, or the mean and
standard deviation of the log-mel spectrogram, come far. So every evaluation measures all three with
the same probe, divisions and seeds.

Two protocols: "atst" (ATST 3.2 and the released scripts; `probe`) and "evar" (BYOL-A's and the
difference-aware paper's; `evar_probe`). What a task asks for and what was published comes from
`tasks`.
"""

import functools
import itertools
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts.folder import describe_encoder, params_hash
from atst_jax.artifacts.model import Model, load_model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import features
from atst_jax.downstream.evaluation import (
  describe_labelled,
  divide,
  finished,
  results_of,
  score_of,
  write_results,
)
from atst_jax.downstream.linear import atst_probe, evar_probe, selection
from atst_jax.downstream.metrics import effective_rank, knn_scores, summary
from atst_jax.downstream.papers.tasks import TASKS, known_rates
from atst_jax.downstream.splits import Split
from atst_jax.runtime.workdir import agree, claim, continuation
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

# Where things lie does not enter what is computed: params_hash and data.fingerprint say what they
# are.
FREE_KEYS = ("encoder", "data.path")
BLOCKS = ("all", "last")
RANKED = 4096  # clips at most, evenly taken, for the effective rank
PROTOCOLS = ("atst", "evar")
CROPS = ("center", "unit")


def resolve(config: ConfigDict, model: Model, dataset: Dataset) -> ConfigDict:
  """Fills the placeholders from encoder and data, and checks values. Raises UserError with key,
  value and remedy."""
  dataset.check_frontend(model.frontend, config.encoder)
  config = config.copy_and_resolve_references()
  found = (
    ("params_hash", config, "params_hash", model.config["params_hash"], "encoder"),
    ("data.fingerprint", config.data, "fingerprint", features.fingerprint(dataset), "data.path"),
  )
  for key, section, name, value, source in found:
    if section[name] not in (None, value):
      raise UserError(
        f"--config.{key}={section[name]}, but what --config.{source} names has {value}; leave it out"
      )
    section[name] = value
  unit, task = model.encoder.unit_protocol, TASKS.get(dataset.manifest["name"])
  config.crop = config.crop or ("unit" if unit and config.protocol == "evar" else "center")
  config.statistics = config.statistics or (
    "data" if unit and config.protocol == "evar" else "encoder"
  )
  config.unit_seconds = config.unit_seconds or (task.unit_seconds if task else None)
  for key, value, choices in (
    ("protocol", config.protocol, PROTOCOLS),
    ("crop", config.crop, CROPS),
    ("statistics", config.statistics, ("encoder", "data")),
    ("probe.monitor", config.probe.monitor, evar_probe.MONITORS),
  ):
    if value not in choices:
      raise UserError(f"--config.{key}={value}: choose one of {', '.join(choices)}")
  if config.crop == "unit" and not (config.unit_seconds and config.unit_seconds > 0):
    raise UserError(
      f"--config.unit_seconds={config.unit_seconds}: {dataset.manifest['name']!r} is not in the table of "
      "tasks; say to how many seconds clips are cut or filled, or set --config.crop=center"
    )
  if config.select_on_test:
    config.probe.refit = False
  rates = config.probe.learning_rates
  if not rates or rates[0] <= 0 or any(b <= a for a, b in itertools.pairwise(rates)):
    raise UserError(f"--config.probe.learning_rates={rates}: must be positive and ascending")
  if config.probe.task_rates:
    known = known_rates(config.protocol, dataset.manifest["name"])
    config.probe.learning_rates = tuple(sorted({*map(float, rates), *known}))
  if not config.blocks or not set(config.blocks) <= set(BLOCKS):
    raise UserError(f"--config.blocks={config.blocks}: choose from {', '.join(BLOCKS)}")
  for key, value in (
    ("seeds", config.seeds),
    ("knn", config.knn),
    ("probe.epochs", config.probe.epochs),
    ("probe.batch_size", config.probe.batch_size),
    ("probe.patience", config.probe.patience),
    ("max_seconds", config.max_seconds),
  ):
    if not 0 < value < float("inf"):
      raise UserError(f"--config.{key}={value}: must be positive and finite")
  return config


def rows(
  config: ConfigDict, model: Model, dataset: Dataset, ids: list[str], folder: str
) -> Iterator[tuple]:
  """Yields (name, features of each seed): one (N, D) array where the seed makes no difference, else
  one for each."""
  frontend = model.frontend
  max_frames = frontend.num_frames(round(config.max_seconds * frontend.sample_rate))
  common = {
    "data": config.data.fingerprint,
    "frontend": frontend.hash,
    "max_frames": max_frames,
    "crop": config.crop,
  }
  unit = None
  if config.crop == "unit":
    unit = frontend.num_frames(round(config.unit_seconds * frontend.sample_rate))
    common |= {"unit": unit, "seed": config.seed}
  read = lambda name: features.mels(dataset, len(ids), name, unit=unit, seed=config.seed)

  def embed(encoder, name):
    settings = {k: v for k, v in encoder.config.items() if k not in ("provenance", "params_hash")}
    key = {**common, **settings, "params": params_hash(encoder.variables), "blocks": encoder.depth}
    compute = lambda: encoder.embed(read(name), max_frames=None if unit else max_frames)
    return features.cached(folder, key, name, ids, compute)

  def each(name, arrays):
    if not model.encoder.has_blocks:
      yield name, arrays
      return
    for blocks in config.blocks:
      num_blocks = model.depth if blocks == "all" else 1
      title = f"{name}, {'all blocks' if blocks == 'all' else 'last block'}"
      yield (
        title,
        [features.last_blocks(x, depth=model.depth, num_blocks=num_blocks) for x in arrays],
      )

  yield from each("pre-trained", [embed(model, "pre-trained")])
  seeds = range(config.seed, config.seed + config.seeds)
  yield from each("random", [embed(model.reinitialized(seed), f"random {seed}") for seed in seeds])
  compute = lambda: features.mel_statistics(read("mel"), max_frames=unit or max_frames)
  yield (
    "mel mean and std",
    [features.cached(folder, {**common, "params": "mel"}, "mel", ids, compute)],
  )


def make_fit(config: ConfigDict, x, labels, split: Split, seeds: list[int]):
  """The protocol's probe of features (N, D) on one division, as `selection.evaluate` asks for
  it."""
  c = config.probe
  options = {
    "seeds": seeds,
    "epochs": c.epochs,
    "batch_size": c.batch_size,
    "multi_label": labels.multi_label,
  }
  if config.protocol == "atst":
    return lambda index, valid, rates: atst_probe.fit(
      x, labels.targets, index, rates=rates, **options
    )
  # EVAR scales by all clips that are not tested, unless the set has a validation split of its own.
  own = config.select_on_test or (labels.splits == "valid").any()
  known = split.train if own else np.sort(np.concatenate([split.train, split.valid]))
  return lambda index, valid, rates: evar_probe.fit(
    x,
    labels.targets,
    index,
    valid,
    known=known,
    rates=rates,
    patience=c.patience,
    monitor="loss" if labels.multi_label else c.monitor,
    **options,
  )


def run_row(name: str, arrays: list[np.ndarray], labels, splits, config: ConfigDict) -> dict:
  """Probes one kind of features on every fold with every seed; see `report` for what is
  returned."""
  score = score_of(labels)
  seeds = [config.seed + i for i in range(config.seeds)]
  shared = len(arrays) == 1
  runs = []
  for array, group in zip(arrays, [seeds] if shared else [[seed] for seed in seeds], strict=True):
    x = jnp.asarray(array)
    for fold, split in enumerate(splits):
      known, targets = (
        np.union1d(split.train, [] if config.select_on_test else split.valid).astype(int),
        labels.targets,
      )
      votes = knn_scores(
        array[known], targets[known], array[split.test], k=min(config.knn, len(known))
      )
      knn = score(votes, targets[split.test])
      results = selection.evaluate(
        make_fit(config, x, labels, split, group),
        x,
        targets,
        split,
        score,
        seeds=group,
        rates=tuple(config.probe.learning_rates),
        refit=config.probe.refit,
      )
      for seed, result in zip(group, results, strict=True):
        runs.append(
          {
            "seed": seed,
            "fold": fold,
            "score": score(result.test_logits, targets[split.test]),
            "knn": knn,
            "learning_rate": result.rate,
            "at_edge": result.at_edge,
            "valid_scores": [v if np.isfinite(v) else None for v in result.valid_scores],
          }
        )
  edges = sorted({run["learning_rate"] for run in runs if run["at_edge"]})
  if edges:
    number = sum(run["at_edge"] for run in runs)
    log.warning(
      "%s: the best learning rate is at the end of the grid in %d of %d runs (%s); extend "
      "--config.probe.learning_rates",
      name,
      number,
      len(runs),
      edges,
    )
  return {
    "name": name,
    "features": name.partition(",")[0],
    "dimensions": arrays[0].shape[1],
    **summary([np.mean([run["score"] for run in runs if run["seed"] == seed]) for seed in seeds]),
    "knn": float(np.mean([run["knn"] for run in runs])),
    "effective_rank": float(
      np.mean([effective_rank(array[:: -(-len(array) // RANKED)]) for array in arrays])
    ),
    "runs": runs,
  }


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Evaluates, prints the table and writes results.json and results.md into the workdir. Returns 0.

  With `statistics` "data" the encoder is given the mean and deviation of the prepared set's
  training split, as BYOL-A does. A set with folds has one split, so that these two numbers (no
  labels) are of the tested clips too.
  """
  if jax.process_count() > 1:
    raise UserError(
      f"the linear evaluation runs in one process, not in {jax.process_count()}; leave out --distributed"
    )
  model, dataset = load_model(config.encoder), Dataset.load(config.data.path)
  config = resolve(config, model, dataset)
  if config.statistics == "data":
    model = model.standardized(dataset.statistics)
  labels = features.read_labels(dataset)
  splits = divide(config, dataset, labels)
  lock = claim(workdir)
  try:
    agree(workdir, configs.to_json(config), ignore=FREE_KEYS, allow_changes=allow_changed_config)
    done = []
    for title, arrays in rows(
      config, model, dataset, labels.ids, os.path.join(workdir, "features")
    ):
      compute = functools.partial(run_row, title, arrays, labels, splits, config)
      done.append(finished(workdir, config, title, compute))
      log.info("%s: %.4f", title, done[-1]["mean"])
    results = results_of(config, model.config, dataset, labels, splits, done)
    write_results(workdir, results)
  finally:
    lock.close()
  return 0


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, data, divisions and the number of probes of a linear evaluation."""
  model, dataset = load_model(config.encoder), Dataset.load(config.data.path)
  config = resolve(config, model, dataset)
  splits, lines = describe_labelled(config, dataset)
  rates = config.probe.learning_rates
  return [
    f"workdir     {continuation(configs.to_json(config), workdir, FREE_KEYS)}",
    describe_encoder(config.encoder, model.config),
    *lines,
    f"probes      {len(splits) * config.seeds * len(rates)} of each kind of features: {len(splits)} divisions x "
    f"{config.seeds} seeds x {len(rates)} rates, {config.probe.epochs} epochs, protocol {config.protocol}",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/",
  ]
