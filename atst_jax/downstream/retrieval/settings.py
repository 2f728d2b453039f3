"""A retrieval's config, filled in and checked, with the opened encoder, data and text model."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts.model import Model, load_model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import features
from atst_jax.downstream.features import Labels
from atst_jax.downstream.retrieval import text
from atst_jax.downstream.retrieval.adapters import SYSTEMS
from atst_jax.downstream.retrieval.pair_set import PairSet, fingerprint, read_pairs
from atst_jax.downstream.values import check_values, filled
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError

FEATURES = ("pre-trained", "random", "mel")


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """A resolved retrieval: opened files, and settings by name."""

  record: dict  # the resolved config as JSON
  model: Model
  dataset: Dataset
  labels: Labels
  pairs: PairSet
  galleries: dict[str, tuple[np.ndarray, np.ndarray]]  # of every scene (`galleries`)
  words: text.TextEncoder
  pooling: str
  seeds: list[int]
  num_blocks: int
  max_frames: int
  features: tuple[str, ...]
  systems: tuple[str, ...]
  joint: bool  # one pair of adapters for all scenes
  recall_at: tuple[int, ...]
  standardize: bool
  sizes: dict  # of the adapters: hidden, width, temperature
  training: dict  # the other keyword arguments of `adapters.fit`


def resolve(config: ConfigDict) -> Retrieval:
  """Opens encoder, data and text model, fills the placeholders from them, and checks values. Raises
  UserError with key, value and remedy."""
  model, dataset = load_model(config.encoder), Dataset.load(config.data.path)
  words = text.load_text_encoder(config.text.model)
  dataset.check_frontend(model.frontend, config.encoder)
  hashed = ("text.hash", words.hash, "text.model")
  config = filled(config, model.config, fingerprint(dataset), hashed)
  config.statistics = config.statistics or ("data" if model.encoder.unit_protocol else "encoder")
  check_values(
    config,
    one_of={
      "protocol": ("retrieval",),
      "statistics": ("encoder", "data"),
      "blocks": ("last", "all"),
      "scenes": ("each", "joint"),
      "gallery": ("scene", "all"),
      "text.pooling": text.POOLINGS,
    },
    some_of={"features": FEATURES, "systems": SYSTEMS},
    ascending=("recall_at",),
    positive=(
      *("seeds", "max_seconds"),
      *(f"train.{key}" for key in ("epochs", "batch_size", "learning_rate")),
      *(f"adapter.{key}" for key in ("hidden", "width", "temperature")),
    ),
  )
  if config.train.batch_size < 2:
    raise UserError(
      f"--config.train.batch_size={config.train.batch_size}: a pair needs another as its negative"
    )
  if not 0 <= config.train.label_weight < float("inf"):
    raise UserError(
      f"--config.train.label_weight={config.train.label_weight}: must be 0 or more, and finite"
    )
  labels = features.read_labels(dataset)
  pairs = read_pairs(dataset, labels, seed=config.seed)
  recall, rate = tuple(config.recall_at), model.frontend.sample_rate
  return Retrieval(
    record=configs.to_json(config),
    model=model.standardized(dataset.statistics) if config.statistics == "data" else model,
    dataset=dataset,
    labels=labels,
    pairs=pairs,
    galleries=galleries(pairs, of_all=config.gallery == "all", recall_at=recall),
    words=words,
    pooling=config.text.pooling,
    seeds=[config.seed + i for i in range(config.seeds)],
    num_blocks=1 if config.blocks == "last" else model.depth,
    max_frames=model.frontend.num_frames(round(config.max_seconds * rate)),
    features=tuple(config.features),
    systems=tuple(config.systems),
    joint=config.scenes == "joint",
    recall_at=recall,
    standardize=config.adapter.standardize,
    sizes={key: config.adapter[key] for key in ("hidden", "width", "temperature")},
    training=config.train.to_dict(),
  )


def galleries(
  pairs: PairSet, *, of_all: bool, recall_at: tuple[int, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{scene: (test pairs with the queries, clips that are candidates)}, each an answer once; with
  `of_all` candidates are those of all scenes. Raises UserError for too few of them."""
  out = {}
  for scene in np.unique(pairs.scenes).tolist():
    asked = pairs.rows("test", scene)
    out[scene] = asked, np.unique(pairs.target[pairs.rows("test") if of_all else asked])
    size = len(out[scene][1])
    if size < max(recall_at):
      raise UserError(
        f"--config.recall_at={recall_at}: the scene {scene!r} has a gallery of {size} answers; "
        f"make more test pairs, or leave out K above {size}"
      )
  return out
