"""The four prepared sets of `data_pipeline.bgknown`: mixtures, and their backgrounds alone."""

import os

import numpy as np

from atst_jax.data.dataset import Dataset
from atst_jax.downstream import features
from atst_jax.util import storage
from atst_jax.util.errors import UserError

# folder of the set -> the paper's name
CONDITIONS = {"mix": "Mix", "a": "(a) 100%", "b": "(b) 50%", "c": "(c) 0%"}


def load(root: str) -> dict[str, Dataset]:
  """The four sets of `data_pipeline.bgknown`. Raises UserError unless they are of the same
  mixtures."""
  if not storage.is_folder(os.path.join(root, "mix")):
    raise UserError(
      f"--config.data.path={root} holds no folder `mix`: it is not a set of known backgrounds; "
      "make one with `python -m data_pipeline.bgknown`"
    )
  sets = {condition: Dataset.load(os.path.join(root, condition)) for condition in CONDITIONS}
  made_of = {key: dataset.manifest["preparation"].get("mixtures") for key, dataset in sets.items()}
  if (
    len({*made_of.values()}) > 1
    or None in made_of.values()
    or len({d.frontend.hash for d in sets.values()}) > 1
  ):
    raise UserError(
      f"the sets in {root} are not of the same mixtures or front-end: {made_of}; make them again "
      "with `python -m data_pipeline.bgknown`"
    )
  return sets


def read_labels(sets: dict[str, Dataset]) -> features.Labels:
  """The labels of the mixtures. Raises UserError if a set has other clips, or another order."""
  found = {condition: features.read_labels(dataset) for condition, dataset in sets.items()}
  for condition, labels in found.items():
    if labels.ids != found["mix"].ids or not np.array_equal(labels.targets, found["mix"].targets):
      raise UserError(
        f"{sets[condition].root} holds other clips or labels than {sets['mix'].root}; make the "
        "sets again with `python -m data_pipeline.bgknown`"
      )
  return found["mix"]


def fingerprint(sets: dict[str, Dataset]) -> str:
  """16 hexadecimal digits of each of the four sets."""
  return "-".join(features.fingerprint(dataset) for dataset in sets.values())
