"""Retrieval with auxiliary information (difference-aware paper 5.3, Table 2): a sound and a
sentence ask for the sound that differs from it as the sentence says.

A recall means little alone. Beside it stand chance, queries of the sound alone and of the sentence
alone, and the whole system on an encoder with random parameters and on statistics of the log-mel
spectrogram.
"""

import functools
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import atst_jax
from atst_jax.artifacts.folder import describe_encoder, params_hash
from atst_jax.artifacts.model import Model, load_model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import features
from atst_jax.downstream.evaluation import finished, write_results
from atst_jax.downstream.metrics import recall_at, scale_of, summary
from atst_jax.downstream.papers.published import published
from atst_jax.downstream.retrieval import adapters, text
from atst_jax.downstream.retrieval.adapters import SYSTEMS
from atst_jax.downstream.retrieval.pair_set import PairSet, read_pairs
from atst_jax.runtime.workdir import agree, claim, continuation
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log, progress_bar

# Where things lie does not enter what is computed: their hashes say what they are.
FREE_KEYS = ("encoder", "data.path", "text.model")
FEATURES = ("pre-trained", "random", "mel")
REPORTED = "audio + text"


def resolve(config: ConfigDict, model: Model, dataset: Dataset, text_hash: str) -> ConfigDict:
  """Fills the placeholders and checks values. Raises UserError with key, value and remedy."""
  dataset.check_frontend(model.frontend, config.encoder)
  config = config.copy_and_resolve_references()
  found = (
    ("params_hash", config, "params_hash", model.config["params_hash"], "encoder"),
    ("data.fingerprint", config.data, "fingerprint", features.fingerprint(dataset), "data.path"),
    ("text.hash", config.text, "hash", text_hash, "text.model"),
  )
  for key, section, name, value, source in found:
    if section[name] not in (None, value):
      raise UserError(
        f"--config.{key}={section[name]}, but what --config.{source} names has {value}; leave it out"
      )
    section[name] = value
  config.statistics = config.statistics or ("data" if model.encoder.unit_protocol else "encoder")
  for key, values, choices in (
    ("statistics", (config.statistics,), ("encoder", "data")),
    ("blocks", (config.blocks,), ("last", "all")),
    ("scenes", (config.scenes,), ("each", "joint")),
    ("gallery", (config.gallery,), ("scene", "all")),
    ("text.pooling", (config.text.pooling,), text.POOLINGS),
    ("features", config.features, FEATURES),
    ("systems", config.systems, SYSTEMS),
    ("protocol", (config.protocol,), ("retrieval",)),
  ):
    if not values or not set(values) <= set(choices):
      raise UserError(f"--config.{key}={','.join(values)}: choose from {', '.join(choices)}")
  for key, value in (
    ("seeds", config.seeds),
    ("max_seconds", config.max_seconds),
    *((f"train.{key}", config.train[key]) for key in ("epochs", "batch_size", "learning_rate")),
    *((f"adapter.{key}", config.adapter[key]) for key in ("hidden", "width", "temperature")),
    *(("recall_at", k) for k in config.recall_at),
  ):
    if not 0 < value < float("inf"):
      raise UserError(f"--config.{key}={value}: must be positive and finite")
  if config.train.batch_size < 2:
    raise UserError(
      f"--config.train.batch_size={config.train.batch_size}: a pair needs another as its negative"
    )
  if not 0 <= config.train.label_weight < float("inf"):
    raise UserError(
      f"--config.train.label_weight={config.train.label_weight}: must be 0 or more, and finite"
    )
  return config


def galleries(config: ConfigDict, pairs: PairSet) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{scene: (test pairs that ask, pairs whose answers are the candidates)}. Raises UserError for
  too few of these."""
  out = {}
  for scene in np.unique(pairs.scenes).tolist():
    asked = pairs.rows("test", scene)
    out[scene] = asked, asked if config.gallery == "scene" else pairs.rows("test")
    size = len(out[scene][1])
    if size < max(config.recall_at):
      raise UserError(
        f"--config.recall_at={config.recall_at}: the scene {scene!r} has a gallery of {size} answers; "
        f"make more test pairs, or leave out K above {size}"
      )
  return out


def sounds(
  config: ConfigDict, model: Model, dataset: Dataset, ids: list[str], folder: str
) -> Iterator[tuple]:
  """Yields (features, vectors of each seed): one (N, D) array where the seed makes no difference,
  else one for each."""
  frontend = model.frontend
  max_frames = frontend.num_frames(round(config.max_seconds * frontend.sample_rate))
  common = {
    "data": config.data.fingerprint,
    "frontend": frontend.hash,
    "max_frames": max_frames,
    "crop": "center",
  }
  num_blocks = 1 if config.blocks == "last" else model.depth
  read = lambda name: features.mels(dataset, len(ids), name)

  def embed(encoder, name):
    settings = {k: v for k, v in encoder.config.items() if k not in ("provenance", "params_hash")}
    key = {**common, **settings, "params": params_hash(encoder.variables), "blocks": num_blocks}
    compute = lambda: encoder.embed(read(name), max_frames=max_frames, num_blocks=num_blocks)
    return features.cached(folder, key, name, ids, compute)

  for name in config.features:
    if name == "pre-trained":
      yield name, [embed(model, name)]
    elif name == "random":
      seeds = range(config.seed, config.seed + config.seeds)
      yield name, [embed(model.reinitialized(seed), f"random {seed}") for seed in seeds]
    else:
      compute = lambda: features.mel_statistics(read("mel"), max_frames=max_frames)
      yield name, [features.cached(folder, {**common, "params": "mel"}, "mel", ids, compute)]


def run_row(
  name: str, system: str, arrays, words, targets, pairs: PairSet, config: ConfigDict
) -> list[dict]:
  """Trains and tests one system on one kind of features; rows as results.json has them, one for
  each scene and K."""
  seeds = [config.seed + i for i in range(config.seeds)]
  groups = [seeds] if len(arrays) == 1 else [[seed] for seed in seeds]
  chosen, runs = galleries(config, pairs), {}
  for array, group in zip(arrays, groups, strict=True):
    for trained_on in [None] if config.scenes == "joint" else chosen:
      train, valid = (pairs.rows(split, trained_on) for split in ("train", "valid"))
      data = _data(array, words, targets, pairs, train, config.adapter.standardize)
      sizes = {key: config.adapter[key] for key in ("hidden", "width", "temperature")}
      with progress_bar(config.train.epochs, 0, "epoch") as bar:
        bar.set_description(f"{name}, {system}{f', {trained_on}' if trained_on else ''}")
        fitted = adapters.fit(
          data,
          train,
          valid,
          system=system,
          seeds=group,
          on_epoch=lambda losses, bar=bar: bar.update(),
          **config.train,
          **sizes,
        )
      for scene in chosen if trained_on is None else [trained_on]:
        asked, gallery = chosen[scene]
        wanted = np.searchsorted(gallery, asked)
        for place, seed in enumerate(group):
          cosines = adapters.similarity(fitted, data, asked, gallery, seed=place, system=system)
          recalls = recall_at(cosines, wanted, tuple(config.recall_at))
          for k, score in zip(config.recall_at, recalls, strict=True):
            runs.setdefault((scene, k), []).append(
              {
                "seed": seed,
                "fold": None,
                "score": score,
                "learning_rate": config.train.learning_rate,
                "epoch": int(fitted.epoch[place]),
                "valid_loss": float(fitted.valid_loss[place]),
              }
            )
  return [
    {
      "name": f"R@{k}",
      "scene": scene,
      "system": system,
      "features": name,
      "dimensions": arrays[0].shape[1],
      "gallery": len(chosen[scene][1]),
      **summary([run["score"] for run in found]),
      "runs": found,
    }
    for (scene, k), found in runs.items()
  ]


def _data(array, words, targets, pairs: PairSet, train, standardize: bool) -> adapters.Data:
  """Everything on the device; with `standardize`, sounds by the clips of the training pairs."""
  array = np.asarray(array)
  if standardize:
    mean, factor = scale_of(array[np.union1d(pairs.query[train], pairs.target[train])])
    array = (array - mean.astype(np.float32)) * factor.astype(np.float32)
  return adapters.Data(
    *map(
      jnp.asarray, (array, words, targets.astype(np.float32), pairs.query, pairs.target, pairs.text)
    )
  )


def chance_rows(config: ConfigDict, pairs: PairSet) -> list[dict]:
  """What drawing answers would reach: K of the gallery's M."""
  return [
    {
      "name": f"R@{k}",
      "scene": scene,
      "system": "chance",
      "features": "",
      "gallery": len(gallery),
      "mean": k / len(gallery),
      "std": None,
      "ci95": None,
      "per_seed": [],
      "runs": [],
    }
    for scene, (_, gallery) in galleries(config, pairs).items()
    for k in config.recall_at
  ]


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Evaluates, prints the table and writes results.json and results.md into the workdir. Returns
  0."""
  if jax.process_count() > 1:
    raise UserError(
      f"retrieval runs in one process, not in {jax.process_count()}; leave out --distributed"
    )
  model, dataset = load_model(config.encoder), Dataset.load(config.data.path)
  encoder = text.load_text_encoder(config.text.model)
  config = resolve(config, model, dataset, encoder.hash)
  if config.statistics == "data":
    model = model.standardized(dataset.statistics)
  labels = features.read_labels(dataset)
  pairs = read_pairs(dataset, labels, seed=config.seed)
  rows = chance_rows(config, pairs)
  lock = claim(workdir)
  try:
    agree(workdir, configs.to_json(config), ignore=FREE_KEYS, allow_changes=allow_changed_config)
    folder = os.path.join(workdir, "features")
    words = text.embed_texts(pairs.texts, encoder, pooling=config.text.pooling, folder=folder)
    for name, arrays in sounds(config, model, dataset, labels.ids, folder):
      for system in (
        config.systems if name == "pre-trained" else [s for s in config.systems if s == REPORTED]
      ):
        compute = functools.partial(
          run_row, name, system, arrays, words, labels.targets, pairs, config
        )
        done = finished(workdir, config, f"{name}, {system}", compute)
        log.info(
          "%s, %s: %s",
          name,
          system,
          ", ".join(f"{r['scene']} {r['name']} {r['mean']:.3f}" for r in done),
        )
        rows += done
    results = _results(config, model, dataset, labels, pairs, rows)
    write_results(workdir, results)
  finally:
    lock.close()
  return 0


def _results(
  config: ConfigDict, model: Model, dataset: Dataset, labels, pairs: PairSet, rows: list[dict]
) -> dict:
  sizes = {
    scene: {split: len(pairs.rows(split, scene)) for split in ("train", "valid", "test")}
    for scene in np.unique(pairs.scenes).tolist()
  }
  # Only the published pairs compare with what was published.
  first = f"{min(sizes)} R@{config.recall_at[0]}"
  known = published(config.protocol, first) if dataset.manifest["name"].startswith("apwd") else []
  return {
    "job": config.job,
    "protocol": config.protocol,
    "data": {
      "name": dataset.manifest["name"],
      "path": dataset.root,
      "fingerprint": config.data.fingerprint,
      "clips": len(labels.ids),
      "classes": len(dataset.label_names),
      "pairs": sizes,
      "sentences": len(pairs.texts),
    },
    "encoder": {
      "path": config.encoder,
      **{k: model.config[k] for k in ("params_hash", "frontend", "provenance")},
    },
    "config": configs.to_json(config),
    "versions": {"atst_jax": atst_jax.__version__, "jax": jax.__version__},
    "metric": "recall",
    "selected_on_test": False,
    "published": [row._asdict() for row in known],
    "chance": None,  # it differs between K and scenes: a row for each
    "rows": rows,
  }


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, pairs and adapters of a retrieval."""
  model, dataset = load_model(config.encoder), Dataset.load(config.data.path)
  config = resolve(config, model, dataset, text.load_text_encoder(config.text.model).hash)
  pairs = read_pairs(dataset, features.read_labels(dataset), seed=config.seed)
  parts = ", ".join(f"{split} {len(pairs.rows(split))}" for split in ("train", "valid", "test"))
  return [
    f"workdir     {continuation(configs.to_json(config), workdir, FREE_KEYS)}",
    describe_encoder(config.encoder, model.config),
    f"data        {dataset.root}: pairs of {parts}",
    f"adapters    {config.seeds} seeds, {config.train.epochs} epochs of batches of {config.train.batch_size}",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/",
  ]
