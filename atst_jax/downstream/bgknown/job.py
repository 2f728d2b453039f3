"""BgKnown: subtracts the vector of a known background from a mixture's, and classifies the
foreground by the difference.

Source: the difference-aware paper (5.2, Table 1). `data_pipeline.bgknown` makes the set. It divides
backgrounds in two, as the paper does: those of the tested mixtures, and all others. So validation
mixtures, which choose epoch and penalty, lie over backgrounds of the training mixtures. Tested
scores do not gain by that: their backgrounds are unheard.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts.folder import describe_encoder
from atst_jax.artifacts.model import Model, load_model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import bootstrap, evaluation, features, ridge
from atst_jax.downstream.bgknown.sets import CONDITIONS, fingerprint, load, read_labels
from atst_jax.downstream.evaluation import score_of
from atst_jax.downstream.features import Labels
from atst_jax.downstream.linear import evar_probe, exact
from atst_jax.downstream.linear.probing import Training, convergence, described, probe, test_logits
from atst_jax.downstream.metrics import chance, summary
from atst_jax.downstream.papers.published import BENCHMARK, published
from atst_jax.downstream.splits import Split
from atst_jax.downstream.values import check_values, filled, refuse_idle
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError

NOTE = (
  "Intervals are for other foregrounds over the same backgrounds: a background that several "
  "mixtures share is not drawn, so that intervals are too narrow where backgrounds are few."
)
FREE_KEYS = ("encoder", "data.path")  # hashes say what they are
VECTORS = {"y": "", "last": ", last block", "all": ", all blocks"}  # and what they add to a name
BASELINES = ("random", "mel")
PROTOCOLS = ("difference", "exact")  # the paper's probe with the exact one beside it, or that alone


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluation of BgKnown, resolved: what it opens, and its settings by name."""

  record: dict  # the resolved config as JSON
  model: Model
  sets: dict[str, Dataset]  # by condition
  labels: Labels
  split: Split
  seeds: list[int]
  vectors: tuple[str, ...]
  baselines: tuple[str, ...]
  weight: float  # of the background that is subtracted
  training: Training
  penalties: tuple[float, ...]  # of the exact probe
  groups: np.ndarray | None = None  # of `ridge.evaluate`, that choose among them


def resolve(config: ConfigDict) -> Evaluation:
  """Opens encoder and sets, fills the placeholders from them, and checks values. Raises UserError
  with key, value and remedy."""
  model, sets = load_model(config.encoder), load(config.data.path)
  mix = sets["mix"]
  mix.check_frontend(model.frontend, config.encoder)
  config = filled(config, model.config, fingerprint(sets))
  config.statistics = config.statistics or ("data" if model.encoder.unit_protocol else "encoder")
  check_values(
    config,
    one_of={
      "protocol": PROTOCOLS,
      "statistics": ("encoder", "data"),
      "probe.monitor": evar_probe.MONITORS,
    },
    some_of={"vectors": VECTORS},
    ascending=("probe.learning_rates", "exact.penalties"),
    positive=("seeds", "probe.epochs", "probe.batch_size", "probe.patience"),
  )
  if not set(config.baselines) <= set(BASELINES):
    raise UserError(
      f"--config.baselines={config.baselines}: choose from {', '.join(BASELINES)}, or () for none"
    )
  if not np.isfinite(config.weight):
    raise UserError(f"--config.weight={config.weight}: must be finite")
  labels = read_labels(sets)
  (split,) = evaluation.divide(
    mix, labels, seed=config.seed, way="split", num_folds=2, hold_out="tenth"
  )
  alone = config.protocol == "exact"
  if alone:
    refuse_idle(
      config,
      "configs/bgknown.py",
      ("probe.",),
      "plays no part by the protocol exact, whose probe is solved in closed form; leave it out, or "
      "set --config.protocol=difference",
    )
  config.exact.chosen_on, groups = exact.chosen_on(
    config.exact.chosen_on, labels, [split], exact=alone, on_test=False
  )
  return Evaluation(
    record=configs.to_json(config),
    model=model.standardized(mix.statistics) if config.statistics == "data" else model,
    sets=sets,
    labels=labels,
    split=split,
    seeds=[config.seed + i for i in range(config.seeds)],
    vectors=tuple(config.vectors),
    baselines=tuple(config.baselines),
    weight=config.weight,
    penalties=tuple(config.exact.penalties),
    groups=groups,
    training=Training(
      protocol="exact" if alone else "evar",
      rates=tuple(config.probe.learning_rates),
      epochs=config.probe.epochs,
      batch_size=config.probe.batch_size,
      refit=False,
      patience=config.probe.patience,
      monitor=config.probe.monitor,
      scaled_by_train=bool((labels.splits == "valid").any()),
    ),
  )


def vectors(job: Evaluation, folder: str) -> Iterator[tuple[str, str, dict[str, list]]]:
  """Yields (name of the features, which vector, {condition: [(N, D), one for all seeds or one for
  each]})."""
  sets, ids, model = job.sets, job.labels.ids, job.model
  common = {"data": job.record["data"]["fingerprint"], "frontend": model.frontend.hash}
  found = {
    condition: features.Vectors(
      folder, dataset, ids, key={**common, "condition": condition}, max_frames=None
    )
    for condition, dataset in sets.items()
  }
  splits = [split for dataset in sets.values() for split in dataset.manifest["splits"].values()]
  longest = max(split["max_frames"] for split in splits)

  def encode(encoder, name):
    return {c: found[c].encoded(encoder, f"{name}, {CONDITIONS[c]}") for c in found}

  def statistics():
    return {c: found[c].statistics(longest=longest) for c in found}

  kinds = ("pre-trained", *(kind for kind in BASELINES if kind in job.baselines))
  for kind, arrays in features.by_kind(kinds, model, job.seeds, encode, statistics):
    if kind == "mel":
      yield kind, "mean and std", {c: [x[c] for x in arrays] for c in sets}
    elif not model.encoder.has_blocks:
      yield kind, "y", {c: [x[c] for x in arrays] for c in sets}
    else:
      for vector in job.vectors:
        taken = {c: [choose(x[c], vector, model.depth) for x in arrays] for c in sets}
        yield f"{kind}{VECTORS[vector]}", vector, taken


def choose(x: np.ndarray, vector: str, depth: int) -> np.ndarray:
  """(N, 2·depth·D) of all blocks, [CLS…, mean…] -> what `vector` names; "y" is the last block's
  CLS."""
  if vector == "all":
    return x
  last = features.last_blocks(x, depth=depth, num_blocks=1)
  return np.ascontiguousarray(last[:, : last.shape[1] // 2]) if vector == "y" else last


def subtracted(
  found: dict[str, list[np.ndarray]], condition: str, weight: float
) -> list[np.ndarray]:
  """The mixtures' vectors less `weight` times those of the background that a condition knows; under
  "mix" the vectors themselves."""
  if condition == "mix":
    return found["mix"]
  pairs = zip(found["mix"], found[condition], strict=True)
  return [mix - weight * known for mix, known in pairs]


def run_row(
  name: str, vector: str, condition: str, vectors_of: dict, job: Evaluation
) -> list[dict]:
  """Probes one kind of features under one condition: its row, in a list."""
  score, test, targets = score_of(job.labels), job.split.test, job.labels.targets
  arrays, title = subtracted(vectors_of, condition, job.weight), f"{name}, {CONDITIONS[condition]}"
  alone = job.training.protocol == "exact"
  # the exact probe draws nothing
  seeds = job.seeds[:1] if alone and len(arrays) == 1 else job.seeds
  found: dict[int, ridge.Result] = {}  # by seed
  for x, group in features.with_seeds(arrays, seeds):
    result = ridge.evaluate(x, targets, job.split, score, job.penalties, groups=job.groups)
    found |= dict.fromkeys(group, result)
  exactly = {seed: {"seed": seed, "fold": None, **exact.told(r)} for seed, r in found.items()}
  of_exact = exact.summarised(title, list(exactly.values())[: len(arrays)])
  if alone:
    runs = [{**run, "score": run["exact"]} for run in exactly.values()]
    logits = [np.stack([found[seed].test_scores for seed in seeds])]
    beside = {"penalties_at_edge": of_exact["at_edge"]}
  else:
    probed = probe(arrays, job.labels, [job.split], seeds, job.training, score)
    told = described(probed, job.labels, [job.split], job.training.refit, score)
    runs = [{**exactly[run["seed"]], **run, "fold": None} for run in told]
    logits = test_logits(probed, seeds, 1)
    beside = {"exact": of_exact, **convergence(title, runs)}
  row = {
    "name": CONDITIONS[condition],
    "features": name,
    "vector": vector,
    "dimensions": arrays[0].shape[1],
    "weight": None if condition == "mix" else job.weight,
    **summary([run["score"] for run in runs]),
    **beside,
    "runs": runs,
    "tested": bootstrap.of_logits(
      bootstrap.design([test], job.labels.ids, job.labels.groups),
      logits,
      [targets[test]],
      job.labels.multi_label,
    ),
  }
  return [row]


def parts(job: Evaluation, folder: str) -> Iterator[evaluation.Part]:
  """Every kind of features under every condition."""
  for name, vector, found in vectors(job, folder):
    for condition, title in CONDITIONS.items():
      compute = functools.partial(run_row, name, vector, condition, found, job)
      yield f"{name}, {title}", compute


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Evaluates, prints the table and writes results.json and results.md into the workdir. Returns
  0."""
  evaluation.one_process("this evaluation")
  return evaluation.frozen(
    resolve(config),
    workdir,
    free_keys=FREE_KEYS,
    allow_changes=allow_changed_config,
    parts=parts,
    results=_results,
  )


def _compares(job: Evaluation) -> bool:
  """Whether scores compare with the published ones."""
  return job.record["protocol"] == "difference" and job.sets["mix"].manifest["name"] == BENCHMARK


def _results(job: Evaluation, rows: list[dict]) -> dict:
  mix, labels = job.sets["mix"], job.labels
  mixtures = mix.manifest["preparation"]["mixtures"]
  results = evaluation.results_of(
    job.record,
    job.model.config,
    data={
      **evaluation.labelled_data(job.record, mix, labels, [job.split]),
      "task": features.task(mix.label_names, labels, mixtures),
      "mixtures": mixtures,
    },
    metric="mAP" if labels.multi_label else "accuracy",
    published=published("difference") if _compares(job) else [],
    chance=chance(labels.targets, [job.split], labels.multi_label),
    rows=rows,
  )
  return {**results, "notes": [NOTE]}


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, mixtures and what is probed of an evaluation of BgKnown."""
  job = resolve(config)
  mix = job.sets["mix"]
  probes = (
    f"{len(job.seeds)} seeds x {len(job.training.rates)} rates of each kind of features, "
    f"{job.training.epochs} epochs"
  )
  if job.training.protocol == "exact":
    probes = f"{len(job.penalties)} penalties of each kind of features"
  counts = ", ".join(f"{split} {mix.num_clips(split)}" for split in mix.splits)
  return [
    f"workdir     {evaluation.belongs(job.record, workdir, FREE_KEYS)}",
    describe_encoder(job.record["encoder"], job.model.config),
    f"data        {job.record['data']['path']}: mixtures of {counts}, "
    f"{len(mix.label_names)} classes; sets {', '.join(job.sets)}",
    f"probes      {probes}; baselines {', '.join(job.baselines) or 'none'}",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/, predictions/",
  ]
