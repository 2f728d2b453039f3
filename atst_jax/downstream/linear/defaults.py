"""Settings that play no part in what is asked are refused, unless they are those of a config file:
every config carries them."""

from ml_collections import ConfigDict

from atst_jax.downstream.features import Labels
from atst_jax.downstream.splits import resolve_way
from atst_jax.util.config import flatten, load, variants
from atst_jax.util.errors import UserError


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
