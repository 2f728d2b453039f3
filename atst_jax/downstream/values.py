"""The values of an evaluation's config: filled from encoder and data, inside their bounds, and each
with a part to play.

Every config carries all settings of its job, so those that play no part in what is asked are
refused unless they are those of a config file.
"""

import itertools
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from atst_jax.artifacts.folder import embedding_hash
from atst_jax.downstream.features import Labels
from atst_jax.downstream.splits import resolve_way
from atst_jax.util.config import flatten, load, variants
from atst_jax.util.errors import UserError


def _section(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
  section, _, name = key.rpartition(".")
  return (config[section] if section else config), name


def filled(
  config: ConfigDict, exported: dict, fingerprint: str, *more: tuple[str, str, str]
) -> ConfigDict:
  """A copy with the hashes of encoder and data; `more`: (key, hash, key of the hashed thing).
  Raises UserError if another hash is set.

  Args:
    exported: the encoder's config.
  """
  config = config.copy_and_resolve_references()
  standard = (
    ("params_hash", exported["params_hash"], "encoder"),
    ("embedding_hash", embedding_hash(exported), "encoder"),
    ("data.fingerprint", fingerprint, "data.path"),
  )
  for key, value, source in (*standard, *more):
    section, name = _section(config, key)
    if section[name] not in (None, value):
      raise UserError(
        f"--config.{key}={section[name]}, but what --config.{source} names has {value}; leave it "
        "out"
      )
    section[name] = value
  return config


def check_values(
  config: ConfigDict,
  *,
  one_of: Mapping[str, Iterable] | None = None,
  some_of: Mapping[str, Iterable] | None = None,
  positive: Iterable[str] = (),
  ascending: Iterable[str] = (),
) -> None:
  """Raises UserError with key, value and remedy.

  Args:
    one_of: keys whose value is one of these.
    some_of: keys with one or several of these values.
    positive: keys of one or several finite numbers above 0.
    ascending: keys of positive numbers in ascending order.
  """

  def read(key):
    section, name = _section(config, key)
    return section[name]

  for key, choices in (one_of or {}).items():
    if read(key) not in choices:
      raise UserError(f"--config.{key}={read(key)}: choose one of {', '.join(choices)}")
  for key, choices in (some_of or {}).items():
    if not read(key) or not set(read(key)) <= set(choices):
      raise UserError(f"--config.{key}={','.join(read(key))}: choose from {', '.join(choices)}")
  for key in positive:
    values = read(key)
    for value in values if isinstance(values, tuple) else (values,):
      if not 0 < value < float("inf"):
        raise UserError(f"--config.{key}={values}: must be positive and finite")
  for key in ascending:
    values = read(key)
    if not values or values[0] <= 0 or any(b <= a for a, b in itertools.pairwise(values)):
      raise UserError(f"--config.{key}={values}: must be positive and ascending")


def refuse_idle(config: ConfigDict, file: str, keys: tuple[str, ...], why: str) -> None:
  """Raises UserError, with the reason and the remedy `why`, if a setting that plays no part has a
  value of its own.

  Args:
    file: of configs/; the values of its variants of the same job are let pass.
    keys: that play no part, and sections that end with a dot.
  """
  values = flatten(config)
  idle = [key for key in values if key.startswith(keys)]
  known = [flatten(load(f"{file}:{variant}")) for variant in variants(file)]
  changed = [
    [key for key in idle if values[key] != other.get(key)]
    for other in known
    if other["job"] == values["job"]
  ]
  if nearest := min(changed, key=len, default=None):
    raise UserError(f"--config.{nearest[0]}={values[nearest[0]]} {why}")


def refuse_idle_folds(config: ConfigDict, file: str, labels: Labels) -> None:
  """`refuse_idle` of the number of folds, where none are drawn."""
  if resolve_way(config.splits.way, labels.folds, labels.splits) != "random":
    why = "plays no part: the folds or splits of the set are taken; leave it out, or set "
    refuse_idle(config, file, ("splits.num_folds",), f"{why}--config.splits.way=random")
