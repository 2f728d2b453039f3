"""Linear evaluation: what a linear layer can read off an encoder, beside what it reads off two baselines.

A score means little alone: on small sets an encoder with random parameters, or the mean and standard deviation of the
log-mel spectrogram, come far. So every evaluation measures all three with the same probe, divisions and seeds.
"""

import itertools
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import atst_jax
from atst_jax import config as configs
from atst_jax import export
from atst_jax.downstream import features, probe
from atst_jax.downstream.report import table, write_markdown
from atst_jax.downstream.splits import make_splits
from atst_jax.errors import UserError
from atst_jax.logs import log
from atst_jax.metrics import accuracy, effective_rank, knn_scores, mean_average_precision
from atst_jax.model import Model, load_model
from atst_jax.records import Dataset, write_json
from atst_jax.workdir import agree, claim

# Where things lie does not enter what is computed: params_hash and data.fingerprint say what they are.
FREE_KEYS = ("encoder", "data.path")
BLOCKS = ("all", "last")


def resolve(config: ConfigDict, model: Model, dataset: Dataset) -> ConfigDict:
  """Fills the placeholders from encoder and data, and checks values. Raises UserError with key, value and remedy."""
  if dataset.frontend.hash != model.frontend.hash:
    raise UserError(f"{dataset.root} was prepared with the front-end {dataset.frontend.name!r} "
                    f"({dataset.frontend.hash}), the encoder {config.encoder} expects {model.frontend.name!r} "
                    f"({model.frontend.hash}); prepare the data with --frontend={model.frontend.name}")  # fmt: skip
  config = config.copy_and_resolve_references()
  found = (("params_hash", config, "params_hash", model.config["params_hash"], "encoder"),
           ("data.fingerprint", config.data, "fingerprint", features.fingerprint(dataset), "data.path"))  # fmt: skip
  for key, section, name, value, source in found:
    if section[name] not in (None, value):
      raise UserError(f"--config.{key}={section[name]}, but what --config.{source} names has {value}; leave it out")
    section[name] = value
  if config.statistics not in ("encoder", "data"):
    raise UserError(f"--config.statistics={config.statistics}: choose one of encoder, data")
  rates = config.probe.learning_rates
  if not rates or rates[0] <= 0 or any(b <= a for a, b in itertools.pairwise(rates)):
    raise UserError(f"--config.probe.learning_rates={rates}: must be positive and ascending")
  if not config.blocks or not set(config.blocks) <= set(BLOCKS):
    raise UserError(f"--config.blocks={config.blocks}: choose from {', '.join(BLOCKS)}")
  for key, value in (("seeds", config.seeds), ("knn", config.knn), ("probe.epochs", config.probe.epochs),
                     ("probe.batch_size", config.probe.batch_size), ("max_seconds", config.max_seconds)):  # fmt: skip
    if not 0 < value < float("inf"):
      raise UserError(f"--config.{key}={value}: must be positive and finite")
  return config


def rows(config: ConfigDict, model: Model, dataset: Dataset, ids: list[str], folder: str) -> Iterator[tuple]:
  """Yields (name, features of each seed): one (N, D) array where the seed makes no difference, else one for each."""
  frontend = model.frontend
  max_frames = frontend.num_frames(round(config.max_seconds * frontend.sample_rate))
  common = {"data": config.data.fingerprint, "frontend": frontend.hash, "max_frames": max_frames}

  def embed(encoder, name):
    settings = {k: v for k, v in encoder.config.items() if k not in ("provenance", "params_hash")}
    key = {**common, **settings, "params": export.params_hash(encoder.variables), "blocks": encoder.depth}
    compute = lambda: encoder.embed(features.mels(dataset, len(ids), name), max_frames=max_frames)
    return features.cached(folder, key, name, ids, compute)

  def each(name, arrays):
    if model.config["encoder"]["kind"] != "transformer":  # no blocks to choose from
      yield name, arrays
      return
    for blocks in config.blocks:
      num_blocks = model.depth if blocks == "all" else 1
      title = f"{name}, {'all blocks' if blocks == 'all' else 'last block'}"
      yield title, [features.last_blocks(x, depth=model.depth, num_blocks=num_blocks) for x in arrays]

  yield from each("pre-trained", [embed(model, "pre-trained")])
  seeds = range(config.seed, config.seed + config.seeds)
  yield from each("random", [embed(model.reinitialized(seed), f"random {seed}") for seed in seeds])
  compute = lambda: features.mel_statistics(features.mels(dataset, len(ids), "mel"), max_frames=max_frames)
  yield "mel mean and std", [features.cached(folder, {**common, "params": "mel"}, "mel", ids, compute)]


def run_row(name: str, arrays: list[np.ndarray], labels, splits, config: ConfigDict) -> dict:
  """Probes one kind of features on every fold with every seed; see `report` for what is returned."""
  if labels.multi_label:
    score = lambda logits, targets: mean_average_precision(logits, targets)[0]
  else:
    score = lambda logits, targets: accuracy(logits, targets.argmax(-1))
  seeds = [config.seed + i for i in range(config.seeds)]
  shared = len(arrays) == 1
  runs = []
  for array, group in zip(arrays, [seeds] if shared else [[seed] for seed in seeds], strict=True):
    x = jnp.asarray(array)
    for fold, split in enumerate(splits):
      known, targets = np.sort(np.concatenate([split.train, split.valid])), labels.targets
      votes = knn_scores(array[known], targets[known], array[split.test], k=min(config.knn, len(known)))
      knn = score(votes, targets[split.test])
      results = probe.evaluate(x, targets, split, score, rates=tuple(config.probe.learning_rates), seeds=group,
                               epochs=config.probe.epochs, batch_size=config.probe.batch_size,
                               refit=config.probe.refit, multi_label=labels.multi_label)  # fmt: skip
      for seed, result in zip(group, results, strict=True):
        runs.append({"seed": seed, "fold": fold, "score": score(result.test_logits, targets[split.test]), "knn": knn,
                     "learning_rate": result.rate, "at_edge": result.at_edge,
                     "valid_scores": [v if np.isfinite(v) else None for v in result.valid_scores]})  # fmt: skip
  edges = sorted({run["learning_rate"] for run in runs if run["at_edge"]})
  if edges:
    number = sum(run["at_edge"] for run in runs)
    log.warning("%s: the best learning rate is at the end of the grid in %d of %d runs (%s); extend "
                "--config.probe.learning_rates", name, number, len(runs), edges)  # fmt: skip
  per_seed = [float(np.mean([run["score"] for run in runs if run["seed"] == seed])) for seed in seeds]
  return {
    "name": name,
    "dimensions": arrays[0].shape[1],
    "mean": float(np.mean(per_seed)),
    "std": float(np.std(per_seed, ddof=1)) if len(seeds) > 1 else None,
    "per_seed": per_seed,
    "knn": float(np.mean([run["knn"] for run in runs])),
    "effective_rank": float(np.mean([effective_rank(array) for array in arrays])),
    "runs": runs,
  }


def chance(targets: np.ndarray, splits, multi_label: bool) -> float:
  """What needs no features: the share of the training clips' commonest class, or the labels' mean prevalence."""
  if multi_label:
    prevalence = [targets[s.test].mean(0) for s in splits]
    return float(np.mean([p[p > 0].mean() for p in prevalence]))
  return float(np.mean([targets[s.test, targets[s.train].sum(0).argmax()].mean() for s in splits]))


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Evaluates, prints the table and writes results.json and results.md into the workdir. Returns 0."""
  if jax.process_count() > 1:
    raise UserError(f"the linear evaluation runs in one process, not in {jax.process_count()}; leave out --distributed")
  model, dataset = load_model(config.encoder), Dataset.load(config.data.path)
  config = resolve(config, model, dataset)
  if config.statistics == "data":
    model = model.standardized(dataset.statistics)
  labels = features.read_labels(dataset)
  splits = make_splits(ids=labels.ids, targets=labels.targets, folds=labels.folds, splits=labels.splits,
                       label_names=dataset.label_names, seed=config.seed, **config.splits)  # fmt: skip
  lock = claim(workdir)
  try:
    agree(workdir, configs.to_json(config), ignore=FREE_KEYS, allow_changes=allow_changed_config)
    done = []
    for name, arrays in rows(config, model, dataset, labels.ids, os.path.join(workdir, "features")):
      done.append(run_row(name, arrays, labels, splits, config))
      log.info("%s: %.4f", name, done[-1]["mean"])
    results = {
      "data": {"name": dataset.manifest["name"], "path": dataset.root, "fingerprint": config.data.fingerprint,
               "clips": len(labels.ids), "classes": len(dataset.label_names), "multi_label": labels.multi_label,
               "divisions": [{key: len(part) for key, part in split._asdict().items()} for split in splits]},
      "encoder": {"path": config.encoder, "params_hash": config.params_hash, "frontend": model.frontend.to_json(),
                  "provenance": model.config["provenance"]},
      "config": configs.to_json(config),
      "versions": {"atst_jax": atst_jax.__version__, "jax": jax.__version__},
      "metric": "mAP" if labels.multi_label else "accuracy",
      "chance": chance(labels.targets, splits, labels.multi_label),
      "rows": done,
    }  # fmt: skip
    write_json(os.path.join(workdir, "results.json"), results)
    write_markdown(os.path.join(workdir, "results.md"), results)
    print(table(results))
  finally:
    lock.close()
  return 0
