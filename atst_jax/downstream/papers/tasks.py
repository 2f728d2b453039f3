"""The tasks of both papers as data: the settings of the protocols. Published scores are in
`published`.

Names are those of `data_pipeline`'s layouts, which a prepared set has.
"""

from typing import NamedTuple


class Task(NamedTuple):
  """A data set as the papers evaluate on it; `title` is its name in their tables."""

  title: str
  classes: int
  unit_seconds: float  # EVAR's protocol cuts or fills clips to it
  # of ATST's linear evaluation, for a batch of 256 (released scripts); () where none is
  rates: tuple[float, ...] = ()
  evar_rate: float | None = None  # of BYOL-A v2's linear evaluation (its README)


TASKS = {
  "audioset": Task("AS-20K", 527, 10.0, (0.5, 1.0, 2.0, 4.0)),
  "urbansound8k": Task("US8K", 10, 4.0, (2e-3,), 3e-5),
  "speech_commands": Task("SPCV2", 35, 1.0, (2e-3,), 3e-5),
  "voxceleb1": Task("VOX1", 1251, 8.2, (0.02, 0.05, 0.1), 4e-5),
  "nsynth": Task("NSYNTH", 11, 4.0, (2.5e-4, 5e-4, 1e-3), 1e-3),
  "esc50": Task("ESC-50", 50, 5.0, evar_rate=1e-3),
  "esc10": Task("ESC-10", 10, 5.0),
  "voxforge": Task("VoxForge", 6, 5.8, evar_rate=1e-4),
  "crema_d": Task("CREMA-D", 6, 2.5, evar_rate=3e-4),
  "gtzan": Task("GTZAN", 10, 30.0, evar_rate=1e-3),
  "surge": Task("Surge", 88, 4.0, evar_rate=3e-5),
  "fsd50k": Task("FSD50K", 200, 7.6358),
  "fsdd": Task("FSDD", 10, 1.0),
}


def known_rates(protocol: str, name: str) -> tuple[float, ...]:
  """The learning rates that the authors of a protocol ("atst" or "evar") name for a task; () if
  they name none."""
  if name not in TASKS:
    return ()
  task = TASKS[name]
  return task.rates if protocol == "atst" else (task.evar_rate,) if task.evar_rate else ()
