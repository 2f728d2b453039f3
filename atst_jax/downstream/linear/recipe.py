"""Resolves the config of a linear evaluation: opens encoder and data, fills and checks values.
Computes the vectors that are probed."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts.model import Model, load_model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import features
from atst_jax.downstream.evaluation import divide
from atst_jax.downstream.features import Labels
from atst_jax.downstream.linear import evar_probe, exact
from atst_jax.downstream.linear.probing import Training
from atst_jax.downstream.papers.published import evaluated_by
from atst_jax.downstream.papers.tasks import TASKS, known_rates
from atst_jax.downstream.splits import Split, resolve_way
from atst_jax.downstream.values import check_values, filled, refuse_idle, refuse_idle_folds
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

BLOCKS = ("all", "last")
PROTOCOLS = ("exact", "atst", "evar")
CROPS = ("center", "unit")
MEL = "mel mean and std"
FILE = "configs/linear.py"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A linear evaluation, resolved: what it opens, and its settings by name."""

  record: dict  # the resolved config as JSON
  encoder: Model  # as exported
  standardized: bool  # by the statistics of the set
  dataset: Dataset
  labels: Labels
  splits: list[Split]
  seeds: list[int]
  blocks: tuple[str, ...]
  max_frames: int  # of the central crop
  unit: int | None  # frames to which clips are cut or filled, in place of that crop
  knn: int
  penalties: tuple[float, ...]  # of the exact probe
  groups: np.ndarray | None  # of `ridge.evaluate`, that choose among them
  training: Training
  select_on_test: bool

  @functools.cached_property
  def model(self) -> Model:
    """The encoder that is evaluated. For the statistics of clips that are cut or filled all of them
    are read, once."""
    if not self.standardized:
      return self.encoder
    seed = self.crop_seed
    return features.standardized(self.encoder, self.dataset, unit=self.unit, seed=seed)

  @property
  def crop_seed(self) -> int | None:
    """Of the crops to the unit (`features.mels`)."""
    way = self.record["splits"]["way"]
    drawn = resolve_way(way, self.labels.folds, self.labels.splits) == "random"
    return None if drawn else self.seeds[0]


def resolve(config: ConfigDict) -> Evaluation:
  """Opens encoder and data, fills the placeholders from them, and checks values. Raises UserError
  with key, value and remedy."""
  model, dataset = load_model(config.encoder), Dataset.load(config.data.path)
  dataset.check_frontend(model.frontend, config.encoder)
  config = filled(config, model.config, features.fingerprint(dataset))
  name = dataset.manifest["name"]
  unit, task = model.encoder.unit_protocol, TASKS.get(name)
  papers = evaluated_by(name)
  if not config.protocol and papers == ["evar"]:
    log.info("%s: the published scores are by EVAR's protocol: configs/linear.py:evar", name)
  config.protocol = config.protocol or ("atst" if "atst" in papers else "exact")
  by_unit = unit and config.protocol == "evar"
  config.crop = config.crop or ("unit" if by_unit else "center")
  config.statistics = config.statistics or ("data" if by_unit else "encoder")
  _check(config)
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
      "table of tasks; say to how many seconds clips are cut or filled, or set "
      "--config.crop=center"
    )
  if config.select_on_test:
    config.probe.refit = False
  if config.protocol == "evar" and config.probe.refit:
    raise UserError(
      "--config.protocol=evar stops early by its validation clips, which a refit would train on; "
      "take --config=configs/linear.py:evar, which has its rates, epochs and batch"
    )
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
  refuse_idle_folds(config, FILE, labels)
  groups = None
  if config.job == "linear":  # the drawn clips of few labels choose
    config.exact.chosen_on, groups = exact.chosen_on(
      config.exact.chosen_on,
      labels,
      splits,
      exact=config.protocol == "exact",
      on_test=config.select_on_test,
    )
  frames = lambda seconds: model.frontend.num_frames(round(seconds * model.frontend.sample_rate))
  if config.statistics == "data":
    model.standardized(dataset.statistics)  # refuses an encoder that does not
  return Evaluation(
    record=configs.to_json(config),
    encoder=model,
    standardized=config.statistics == "data",
    dataset=dataset,
    labels=labels,
    splits=splits,
    seeds=[config.seed + i for i in range(config.seeds)],
    blocks=tuple(config.blocks),
    max_frames=frames(config.max_seconds),
    unit=frames(config.unit_seconds) if config.crop == "unit" else None,
    knn=config.knn,
    penalties=tuple(config.exact.penalties),
    groups=groups,
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


def _check(config: ConfigDict) -> None:
  """Raises UserError for settings that the crop or the protocol has no use for."""
  if config.unit_seconds and config.crop != "unit":
    raise UserError(
      f"--config.unit_seconds={config.unit_seconds:g} plays no part with --config.crop="
      f"{config.crop}, which cuts clips to max_seconds; leave it out, or set --config.crop=unit"
    )
  if config.protocol == "exact":
    refuse_idle(
      config,
      FILE,
      ("probe.",),
      "plays no part by the protocol exact, whose probe is solved in closed form; leave it out, or "
      "set --config.protocol=atst or evar",
    )
  elif config.protocol == "atst":
    why = "is of the protocol evar, which stops early; leave it out, or set --config.protocol=evar"
    refuse_idle(config, FILE, ("probe.patience", "probe.monitor"), why)
  if config.job == "few" and config.protocol != "exact":
    why = "plays no part: few labels are read by the protocol that is asked for alone; leave it out"
    refuse_idle(config, FILE, ("few.penalty", "exact."), f"{why}, or set --config.protocol=exact")
  if config.crop == "unit":
    why = "plays no part with --config.crop=unit, which cuts clips to unit_seconds; leave it out"
    refuse_idle(config, FILE, ("max_seconds",), f"{why}, or set --config.crop=center")


def vectors(job: Evaluation, folder: str) -> Iterator[tuple[str, list[np.ndarray]]]:
  """Yields (name of the row, features): one (N, D) array if the seed does not change it, else one
  for each seed."""
  key = {
    "data": job.record["data"]["fingerprint"],
    "frontend": job.model.frontend.hash,
    "max_frames": job.max_frames,
    "crop": job.record["crop"],
  }
  if job.unit:
    key |= {"unit": job.unit, "seed": job.crop_seed}
  found = features.Vectors(
    folder,
    job.dataset,
    job.labels.ids,
    key=key,
    max_frames=job.max_frames,
    unit=job.unit,
    seed=job.crop_seed,
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
