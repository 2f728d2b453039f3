"""BgKnown: whether what is left of a mixture's vector, once that of its background is subtracted,
tells the foreground.

Source: the difference-aware paper (5.2, Table 1). `data_pipeline.bgknown` makes the set.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import atst_jax
from atst_jax.artifacts.folder import describe_encoder, params_hash
from atst_jax.artifacts.model import Model, load_model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import features
from atst_jax.downstream.evaluation import chance, finished, score_of, write_results
from atst_jax.downstream.linear import evar_probe, selection
from atst_jax.downstream.metrics import summary
from atst_jax.downstream.papers.published import published
from atst_jax.downstream.splits import Split, make_splits
from atst_jax.runtime.workdir import agree, claim, continuation
from atst_jax.util import config as configs
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

FREE_KEYS = ("encoder", "data.path")  # params_hash and data.fingerprint say what they are
# folder of the set -> the paper's name
CONDITIONS = {"mix": "Mix", "a": "(a) 100%", "b": "(b) 50%", "c": "(c) 0%"}
VECTORS = ("y", "last", "all")
BASELINES = ("random", "mel")
COUNTS = ("epochs", "batch_size", "patience")  # of the probe
BENCHMARK = "bgknown_esc50"  # what the published scores are of


def load(root: str) -> dict[str, Dataset]:
  """The four sets of `data_pipeline.bgknown`. Raises UserError unless they are of the same
  mixtures."""
  if not storage.is_folder(os.path.join(root, "mix")):
    raise UserError(
      f"--config.data.path={root} holds no folder `mix`: it is not a set of known backgrounds; make one "
      "with `python -m data_pipeline.bgknown`"
    )
  sets = {condition: Dataset.load(os.path.join(root, condition)) for condition in CONDITIONS}
  made_of = {key: dataset.manifest["preparation"].get("mixtures") for key, dataset in sets.items()}
  if (
    len({*made_of.values()}) > 1
    or None in made_of.values()
    or len({d.frontend.hash for d in sets.values()}) > 1
  ):
    raise UserError(
      f"the sets in {root} are not of the same mixtures or front-end: {made_of}; make them again with "
      "`python -m data_pipeline.bgknown`"
    )
  return sets


def read_labels(sets: dict[str, Dataset]) -> features.Labels:
  """What is known of the mixtures. Raises UserError if a set has other clips, or has them in
  another order."""
  found = {condition: features.read_labels(dataset) for condition, dataset in sets.items()}
  for condition, labels in found.items():
    if labels.ids != found["mix"].ids or not np.array_equal(labels.targets, found["mix"].targets):
      raise UserError(
        f"{sets[condition].root} holds other clips or labels than {sets['mix'].root}; make the sets "
        "again with `python -m data_pipeline.bgknown`"
      )
  return found["mix"]


def fingerprint(sets: dict[str, Dataset]) -> str:
  """16 hexadecimal digits of each of the four sets."""
  return "-".join(features.fingerprint(dataset) for dataset in sets.values())


def resolve(config: ConfigDict, model: Model, sets: dict[str, Dataset]) -> ConfigDict:
  """Fills the placeholders from encoder and data, and checks values. Raises UserError with key,
  value and remedy."""
  sets["mix"].check_frontend(model.frontend, config.encoder)
  config = config.copy_and_resolve_references()
  for key, section, value, source in (
    ("params_hash", config, model.config["params_hash"], "encoder"),
    ("fingerprint", config.data, fingerprint(sets), "data.path"),
  ):
    if section[key] not in (None, value):
      raise UserError(
        f"{key} is set to {section[key]}, but what --config.{source} names has {value}; leave it out"
      )
    section[key] = value
  config.statistics = config.statistics or ("data" if model.encoder.unit_protocol else "encoder")
  for key, value, choices in (
    ("protocol", config.protocol, ("difference",)),
    ("statistics", config.statistics, ("encoder", "data")),
    ("probe.monitor", config.probe.monitor, evar_probe.MONITORS),
  ):
    if value not in choices:
      raise UserError(f"--config.{key}={value}: choose one of {', '.join(choices)}")
  if not config.vectors or not set(config.vectors) <= set(VECTORS):
    raise UserError(f"--config.vectors={config.vectors}: choose from {', '.join(VECTORS)}")
  if not set(config.baselines) <= set(BASELINES):
    raise UserError(
      f"--config.baselines={config.baselines}: choose from {', '.join(BASELINES)}, or () for none"
    )
  rates = config.probe.learning_rates
  if not rates or rates[0] <= 0 or any(b <= a for a, b in itertools.pairwise(rates)):
    raise UserError(f"--config.probe.learning_rates={rates}: must be positive and ascending")
  for key, value in {
    "seeds": config.seeds,
    **{f"probe.{k}": config.probe[k] for k in COUNTS},
  }.items():
    if value <= 0:
      raise UserError(f"--config.{key}={value}: must be positive")
  if not np.isfinite(config.weight):
    raise UserError(f"--config.weight={config.weight}: must be finite")
  return config


def vectors(
  config: ConfigDict, model: Model, sets: dict[str, Dataset], ids: list[str], folder: str
) -> Iterator[tuple]:
  """Yields (name of the features, which vector, {condition: [(N, D), one for all seeds or one for
  each]})."""
  common = {"data": config.data.fingerprint, "frontend": model.frontend.hash}
  longest = max(
    split["max_frames"]
    for dataset in sets.values()
    for split in dataset.manifest["splits"].values()
  )

  def embed(encoder: Model, name: str) -> dict[str, np.ndarray]:
    settings = {k: v for k, v in encoder.config.items() if k not in ("provenance", "params_hash")}
    key = {**common, **settings, "params": params_hash(encoder.variables)}
    found, vectors = {}, lambda read: encoder.embed(read())
    for condition, dataset in sets.items():
      title = f"{name}, {CONDITIONS[condition]}"
      read = functools.partial(features.mels, dataset, len(ids), title)
      found[condition] = features.cached(
        folder, {**key, "condition": condition}, title, ids, functools.partial(vectors, read)
      )
    return found

  def each(name: str, arrays: list[dict[str, np.ndarray]]):
    if not model.encoder.has_blocks:
      yield name, "y", {c: [x[c] for x in arrays] for c in CONDITIONS}
      return
    for vector in config.vectors:
      taken = {c: [choose(x[c], vector, model.depth) for x in arrays] for c in CONDITIONS}
      title = {"y": name, "last": f"{name}, last block", "all": f"{name}, all blocks"}[vector]
      yield title, vector, taken

  yield from each("pre-trained", [embed(model, "pre-trained")])
  if "random" in config.baselines:
    seeds = range(config.seed, config.seed + config.seeds)
    yield from each(
      "random", [embed(model.reinitialized(seed), f"random {seed}") for seed in seeds]
    )
  if "mel" not in config.baselines:
    return
  mel = lambda condition, dataset: features.cached(
    folder,
    {**common, "params": "mel", "condition": condition},
    "mel",
    ids,
    lambda: features.mel_statistics(features.mels(dataset, len(ids), "mel"), max_frames=longest),
  )
  yield (
    "mel",
    "mean and std",
    {condition: [mel(condition, dataset)] for condition, dataset in sets.items()},
  )


def choose(x: np.ndarray, vector: str, depth: int) -> np.ndarray:
  """(N, 2·depth·D) of all blocks, [CLS…, mean…] -> what `vector` names; "y" is the last block's
  CLS."""
  if vector == "all":
    return x
  last = features.last_blocks(x, depth=depth, num_blocks=1)
  return np.ascontiguousarray(last[:, : last.shape[1] // 2]) if vector == "y" else last


def probe(
  arrays: list[np.ndarray],
  labels: features.Labels,
  split: Split,
  config: ConfigDict,
  score: Callable,
) -> dict:
  """Scores of a linear probe on (N, D) vectors, shared by the seeds or one array for each."""
  c, seeds = config.probe, [config.seed + i for i in range(config.seeds)]
  own = (labels.splits == "valid").any()
  known = split.train if own else np.sort(np.concatenate([split.train, split.valid]))
  options = {
    "known": known,
    "epochs": c.epochs,
    "batch_size": c.batch_size,
    "patience": c.patience,
    "monitor": "loss" if labels.multi_label else c.monitor,
    "multi_label": labels.multi_label,
  }
  runs = []
  for array, group in zip(
    arrays, [seeds] if len(arrays) == 1 else [[seed] for seed in seeds], strict=True
  ):
    x = jnp.asarray(array)
    fit = lambda index, valid, rates, x=x, group=group: evar_probe.fit(
      x, labels.targets, index, valid, rates=rates, seeds=group, **options
    )
    results = selection.evaluate(
      fit, x, labels.targets, split, score, seeds=group, rates=tuple(c.learning_rates), refit=False
    )
    runs += [
      {
        "seed": seed,
        "fold": None,
        "score": score(result.test_logits, labels.targets[split.test]),
        "learning_rate": result.rate,
      }
      for seed, result in zip(group, results, strict=True)
    ]
  return {**summary([run["score"] for run in runs]), "runs": runs}


def evaluate(config, model, sets, labels, split: Split, workdir: str) -> list[dict]:
  """The rows of results.json: every kind of features under every condition."""
  rows, score, folder = [], score_of(labels), os.path.join(workdir, "features")
  for name, vector, found in vectors(config, model, sets, labels.ids, folder):
    for condition, title in CONDITIONS.items():
      arrays = found["mix"]
      if condition != "mix":
        arrays = [
          mix - config.weight * known for mix, known in zip(arrays, found[condition], strict=True)
        ]
      scores = functools.partial(probe, arrays, labels, split, config, score)
      row = {
        "name": title,
        "features": name,
        "vector": vector,
        "dimensions": arrays[0].shape[1],
        "weight": None if condition == "mix" else config.weight,
        **finished(workdir, config, f"{name}, {title}", scores),
      }
      rows.append(row)
      log.info("%s, %s: %.4f", name, title, rows[-1]["mean"])
  return rows


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Evaluates, prints the table and writes results.json and results.md into the workdir. Returns
  0."""
  if jax.process_count() > 1:
    raise UserError(
      f"this evaluation runs in one process, not in {jax.process_count()}; leave out --distributed"
    )
  model, sets = load_model(config.encoder), load(config.data.path)
  config = resolve(config, model, sets)
  mix = sets["mix"]
  if config.statistics == "data":
    model = model.standardized(mix.statistics)
  labels = read_labels(sets)
  (split,) = make_splits(
    ids=labels.ids,
    groups=labels.groups,
    targets=labels.targets,
    folds=labels.folds,
    splits=labels.splits,
    label_names=mix.label_names,
    way="split",
    num_folds=2,
    hold_out="tenth",
    seed=config.seed,
    owned=mix.manifest.get("groups", {}).get("divided_by_owner", False),
  )
  lock = claim(workdir)
  try:
    agree(workdir, configs.to_json(config), ignore=FREE_KEYS, allow_changes=allow_changed_config)
    rows = evaluate(config, model, sets, labels, split, workdir)
    name = mix.manifest["name"]
    results = {
      "job": config.job,
      "protocol": config.protocol,
      "data": {
        "name": name,
        "path": config.data.path,
        "fingerprint": config.data.fingerprint,
        "clips": len(labels.ids),
        "classes": len(mix.label_names),
        "multi_label": labels.multi_label,
        "mixtures": mix.manifest["preparation"]["mixtures"],
        "divisions": [{key: len(part) for key, part in split._asdict().items()}],
      },
      "encoder": {
        "path": config.encoder,
        "params_hash": config.params_hash,
        "frontend": model.frontend.to_json(),
        "provenance": model.config["provenance"],
      },
      "config": configs.to_json(config),
      "versions": {"atst_jax": atst_jax.__version__, "jax": jax.__version__},
      "metric": "mAP" if labels.multi_label else "accuracy",
      "selected_on_test": False,
      "published": [row._asdict() for row in published(config.protocol)]
      if name == BENCHMARK
      else [],
      "chance": chance(labels.targets, [split], labels.multi_label),
      "rows": rows,
    }
    write_results(workdir, results)
  finally:
    lock.close()
  return 0


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, mixtures and what is probed of an evaluation of BgKnown."""
  model, sets = load_model(config.encoder), load(config.data.path)
  config = resolve(config, model, sets)
  mix = sets["mix"]
  parts = ", ".join(f"{split} {mix.num_clips(split)}" for split in mix.splits)
  return [
    f"workdir     {continuation(configs.to_json(config), workdir, FREE_KEYS)}",
    describe_encoder(config.encoder, model.config),
    f"data        {config.data.path}: mixtures of {parts}, {len(mix.label_names)} classes; sets {', '.join(sets)}",
    f"probes      {config.seeds} seeds x {len(config.probe.learning_rates)} rates of each kind of features, "
    f"{config.probe.epochs} epochs; baselines {', '.join(config.baselines) or 'none'}",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/",
  ]
