"""Linear evaluation: what a linear layer can read off an encoder, beside what it reads off two
baselines.

A score means little alone: on small sets an encoder with random parameters, or the mean and
standard deviation of the log-mel spectrogram, come far. So every evaluation measures all three with
the same probe, divisions and seeds.

Three protocols: "exact" (`exact`), "atst" (ATST 3.2 and the released scripts; `atst_probe`) and
"evar" (BYOL-A's and the difference-aware paper's; `evar_probe`). The last two say how far they
stayed from the optimum of what they minimise (`optimum`), and the exact probe's score stands beside
theirs. What a task asks for and what was published comes from `papers`.
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
from atst_jax.downstream import bootstrap, evaluation, features
from atst_jax.downstream.evaluation import check_values, describe_labelled, divide, score_of
from atst_jax.downstream.features import Labels
from atst_jax.downstream.linear import evar_probe, exact
from atst_jax.downstream.linear.probing import Training, convergence, described, probe
from atst_jax.downstream.metrics import chance, summary
from atst_jax.downstream.papers.published import is_evaluated, published
from atst_jax.downstream.papers.tasks import TASKS, known_rates
from atst_jax.downstream.splits import Split
from atst_jax.runtime.workdir import continuation
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError

# Where things lie does not enter what is computed: params_hash and data.fingerprint say what they
# are.
FREE_KEYS = ("encoder", "data.path")
BLOCKS = ("all", "last")
PROTOCOLS = ("exact", "atst", "evar")
CROPS = ("center", "unit")
MEL = "mel mean and std"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A linear evaluation, resolved: what it opens, and its settings by name."""

  record: dict  # the resolved config as JSON
  model: Model
  dataset: Dataset
  labels: Labels
  splits: list[Split]
  seeds: list[int]
  blocks: tuple[str, ...]
  max_frames: int  # of the central crop
  unit: int | None  # frames that clips are cut or filled to, in place of that crop
  knn: int
  penalties: tuple[float, ...]  # of the exact probe
  training: Training
  select_on_test: bool


def resolve(config: ConfigDict) -> Evaluation:
  """Opens encoder and data, fills the placeholders from them, and checks values. Raises UserError
  with key, value and remedy."""
  model, dataset = load_model(config.encoder), Dataset.load(config.data.path)
  dataset.check_frontend(model.frontend, config.encoder)
  config = config.copy_and_resolve_references()
  evaluation.fill(
    config,
    (
      ("params_hash", model.config["params_hash"], "encoder"),
      ("data.fingerprint", features.fingerprint(dataset), "data.path"),
    ),
  )
  name = dataset.manifest["name"]
  unit, task = model.encoder.unit_protocol, TASKS.get(name)
  config.protocol = config.protocol or ("atst" if is_evaluated(name) else "exact")
  by_unit = unit and config.protocol == "evar"
  config.crop = config.crop or ("unit" if by_unit else "center")
  config.statistics = config.statistics or ("data" if by_unit else "encoder")
  config.unit_seconds = config.unit_seconds or (task.unit_seconds if task else None)
  check_values(
    config,
    one_of={
      "protocol": PROTOCOLS,
      "crop": CROPS,
      "statistics": ("encoder", "data"),
      "probe.monitor": evar_probe.MONITORS,
      "probe.tested_epoch": ("last", "best"),
    },
    some_of={"blocks": BLOCKS},
    ascending=("probe.learning_rates", "exact.penalties"),
    positive=(
      *("seeds", "knn", "max_seconds"),
      *(f"probe.{key}" for key in ("epochs", "batch_size", "patience")),
    ),
  )
  if config.crop == "unit" and not (config.unit_seconds and config.unit_seconds > 0):
    raise UserError(
      f"--config.unit_seconds={config.unit_seconds}: {dataset.manifest['name']!r} is not in the "
      "table of "
      "tasks; say to how many seconds clips are cut or filled, or set --config.crop=center"
    )
  if config.select_on_test:
    config.probe.refit = False
  if config.probe.tested_epoch == "best" and (config.probe.refit or config.protocol != "atst"):
    raise UserError(
      "--config.probe.tested_epoch=best is of the protocol atst, and a refit would leave no "
      "validation clips to choose by: set --config.protocol=atst --config.probe.refit=false"
    )
  if config.probe.task_rates:
    rates = {*map(float, config.probe.learning_rates)}
    rates |= {*known_rates(config.protocol, dataset.manifest["name"])}
    config.probe.learning_rates = tuple(sorted(rates))
  labels = features.read_labels(dataset)
  splits = divide(
    dataset, labels, seed=config.seed, select_on_test=config.select_on_test, **config.splits
  )
  frames = lambda seconds: model.frontend.num_frames(round(seconds * model.frontend.sample_rate))
  return Evaluation(
    record=configs.to_json(config),
    model=model.standardized(dataset.statistics) if config.statistics == "data" else model,
    dataset=dataset,
    labels=labels,
    splits=splits,
    seeds=[config.seed + i for i in range(config.seeds)],
    blocks=tuple(config.blocks),
    max_frames=frames(config.max_seconds),
    unit=frames(config.unit_seconds) if config.crop == "unit" else None,
    knn=config.knn,
    penalties=tuple(config.exact.penalties),
    training=Training(
      protocol=config.protocol,
      rates=tuple(config.probe.learning_rates),
      epochs=config.probe.epochs,
      batch_size=config.probe.batch_size,
      refit=config.probe.refit,
      best_epoch=config.probe.tested_epoch == "best",
      patience=config.probe.patience,
      monitor=config.probe.monitor,
      # EVAR scales by all clips that are not tested, unless the set has a validation split
      scaled_by_train=config.select_on_test or bool((labels.splits == "valid").any()),
    ),
    select_on_test=config.select_on_test,
  )


def vectors(job: Evaluation, folder: str) -> Iterator[tuple[str, list[np.ndarray]]]:
  """Yields (name of the row, features): one (N, D) array where the seed makes no difference, else
  one for each."""
  key = {
    "data": job.record["data"]["fingerprint"],
    "frontend": job.model.frontend.hash,
    "max_frames": job.max_frames,
    "crop": job.record["crop"],
  }
  if job.unit:
    key |= {"unit": job.unit, "seed": job.seeds[0]}
  found = features.Vectors(
    folder,
    job.dataset,
    job.labels.ids,
    key=key,
    max_frames=job.max_frames,
    unit=job.unit,
    seed=job.seeds[0],
  )
  statistics = functools.partial(found.statistics, longest=job.unit or job.max_frames)
  kinds = ("pre-trained", "random", "mel")
  for kind, arrays in features.by_kind(kinds, job.model, job.seeds, found.encoded, statistics):
    if kind == "mel":
      yield MEL, arrays
    elif not job.model.encoder.has_blocks:
      yield kind, arrays
    else:
      depth = job.model.depth
      for blocks in job.blocks:
        number = depth if blocks == "all" else 1
        taken = [features.last_blocks(x, depth=depth, num_blocks=number) for x in arrays]
        yield f"{kind}, {'all blocks' if blocks == 'all' else 'last block'}", taken


def run_row(name: str, arrays: list[np.ndarray], job: Evaluation) -> list[dict]:
  """Probes one kind of features on every fold with every seed: its row, in a list."""
  score, targets, splits = score_of(job.labels), job.labels.targets, job.splits
  alone = job.training.protocol == "exact"
  # the exact probe draws nothing
  seeds = job.seeds[:1] if alone and len(arrays) == 1 else job.seeds
  spread = exact.spectra(name, arrays)
  readings = exact.read(
    arrays,
    targets,
    splits,
    seeds,
    score,
    penalties=job.penalties,
    knn=job.knn,
    refit=not job.select_on_test,
  )
  found = {(r.seed, r.fold): {"seed": r.seed, "fold": r.fold, **r.values} for r in readings}
  distinct = [run for run in found.values() if len(arrays) > 1 or run["seed"] == seeds[0]]
  of_exact = exact.summarised(name, distinct)
  if alone:
    runs = [{**run, "score": run["exact"]} for run in found.values()]
    logits = {(r.seed, r.fold): r.test_scores for r in readings}
    beside = {"penalties_at_edge": of_exact["at_edge"]}
  else:
    probed = probe(arrays, job.labels, splits, seeds, job.training, score)
    told = described(probed, job.labels, splits, job.training.refit, score)
    runs = [{**found[run["seed"], run["fold"]], **run} for run in told]
    logits = {(run.seed, run.fold): run.result.test_logits for run in probed}
    beside = {"exact": of_exact, **convergence(name, runs)}
  by_seed = [[run["score"] for run in runs if run["seed"] == seed] for seed in seeds]
  tests = [split.test for split in splits]
  row = {
    "name": name,
    "features": name.partition(",")[0],
    "dimensions": arrays[0].shape[1],
    **summary([np.mean(scores) for scores in by_seed]),
    **beside,
    **{key: float(np.mean([run[key] for run in runs])) for key in ("knn", "knn_whitened")},
    **spread,
    "runs": runs,
    "tested": bootstrap.of_logits(
      bootstrap.design(tests, job.labels.ids, job.labels.groups),
      [np.stack([logits[seed, fold] for seed in seeds]) for fold in range(len(splits))],
      [targets[test] for test in tests],
      job.labels.multi_label,
    ),
  }
  return [row]


def parts(job: Evaluation, folder: str) -> Iterator[evaluation.Part]:
  """Every kind of features."""
  for name, arrays in vectors(job, folder):
    yield name, functools.partial(run_row, name, arrays, job)


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Evaluates, prints the table and writes results.json and results.md into the workdir. Returns 0.

  With `statistics` "data" the encoder is given the mean and deviation of the prepared set's
  training split, as BYOL-A does. A set with folds has one split, so that these two numbers (no
  labels) are of the tested clips too.
  """
  evaluation.one_process("the linear evaluation")
  return evaluation.frozen(
    resolve(config),
    workdir,
    free_keys=FREE_KEYS,
    allow_changes=allow_changed_config,
    parts=parts,
    results=_results,
  )


def _results(job: Evaluation, rows: list[dict]) -> dict:
  multi_label, name = job.labels.multi_label, job.dataset.manifest["name"]
  return evaluation.results_of(
    job.record,
    job.model.config,
    data=evaluation.labelled_data(job.record, job.dataset, job.labels, job.splits),
    metric="mAP" if multi_label else "accuracy",
    published=published(job.record["protocol"], name),
    chance=chance(job.labels.targets, job.splits, multi_label),
    rows=rows,
    selected_on_test=job.select_on_test,
  )


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, data, divisions and the number of probes of a linear evaluation."""
  job = resolve(config)
  rates, folds, seeds = len(job.training.rates), len(job.splits), len(job.seeds)
  probes = (
    f"{folds * seeds * rates} of each kind of features: {folds} divisions x {seeds} seeds x "
    f"{rates} rates, {job.training.epochs} epochs"
  )
  if job.training.protocol == "exact":
    probes = f"{folds} divisions x {len(job.penalties)} penalties of each kind of features"
  return [
    f"workdir     {continuation(job.record, workdir, FREE_KEYS)}",
    describe_encoder(job.record["encoder"], job.model.config),
    *describe_labelled(job.dataset, job.labels, job.splits),
    f"probes      {probes}, protocol {job.training.protocol}",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/, predictions/",
  ]
