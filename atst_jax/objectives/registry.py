"""The objectives, by the name that `config.objective` gives them. This is the only place that knows
them."""

from collections.abc import Mapping

from atst_jax.objectives.byol import Byol
from atst_jax.objectives.cola import Cola
from atst_jax.objectives.objective import Objective
from atst_jax.objectives.ssast import Ssast
from atst_jax.objectives.trill import Trill
from atst_jax.objectives.wav2vec import Wav2vec
from atst_jax.util.errors import UserError

OBJECTIVES: dict[str, type[Objective]] = {
  "byol": Byol,
  "cola": Cola,
  "trill": Trill,
  "ssast": Ssast,
  "wav2vec": Wav2vec,
}
FORMERLY = "byol"  # of configs of older versions, which have no such key


def name_of(config: Mapping) -> str:
  """The objective of a run's config, of any version."""
  return config.get("objective", FORMERLY)


def get_objective(config: Mapping) -> Objective:
  """The objective of a resolved config. Raises UserError for one that is not known."""
  name = name_of(config)
  if name not in OBJECTIVES:
    raise UserError(f"--config.objective={name}: choose one of {', '.join(OBJECTIVES)}")
  return OBJECTIVES[name](config)


def check_sections(config: Mapping, flat: Mapping) -> None:
  """Raises UserError for a key of the objective that is missing, or one of another's, which nothing
  would read.

  Args:
    flat: the config's dotted keys.
  """
  objective = get_objective(config)
  there = lambda key: key in flat or any(k.startswith(f"{key}.") for k in flat)
  missing = [key for key in objective.owns if not there(key)]
  if missing:
    raise UserError(
      f"--config.objective={objective.name} needs {', '.join(missing)}; start from "
      f"{objective.start_from}"
    )
  objective.check_section()
  for name, other in OBJECTIVES.items():
    theirs = (*other.owns, *((name,) if other.settings else ()))
    unread = [key for key in theirs if there(key) and key not in objective.owns]
    if unread and name != objective.name:
      raise UserError(
        f"the config has {', '.join(unread)}, which --config.objective={objective.name} does not "
        f"read; leave them out, or set --config.objective={name}"
      )
