"""The tasks of both papers as data: what belongs to a protocol and what was published, to be printed beside ours.

Names are those of `data_pipeline`'s layouts, which a prepared set carries. Scores are in percent: accuracy, or mAP.
"""

from typing import NamedTuple


class Task(NamedTuple):
  title: str
  classes: int
  way: str  # of dividing: "fold" or "split"
  unit_seconds: float  # clips are cut or filled to it in EVAR's protocol
  rates: tuple[float, ...] = ()  # of ATST's linear evaluation, for a batch of 256 (released scripts); () where none is
  metric: str = "accuracy"


TASKS = {
  "audioset": Task("AS-20K", 527, "split", 10.0, (0.5, 1.0, 2.0, 4.0), "mAP"),
  "urbansound8k": Task("US8K", 10, "fold", 4.0, (2e-3,)),
  "speech_commands": Task("SPCV2", 35, "split", 1.0, (2e-3,)),
  "voxceleb1": Task("VOX1", 1251, "split", 8.2, (0.02, 0.05, 0.1)),
  "nsynth": Task("NSYNTH", 11, "split", 4.0, (2.5e-4, 5e-4, 1e-3)),
  "esc50": Task("ESC-50", 50, "fold", 5.0),
  "esc10": Task("ESC-10", 10, "fold", 5.0),
  "voxforge": Task("VoxForge", 6, "split", 5.8),
  "crema_d": Task("CREMA-D", 6, "split", 2.5),
  "gtzan": Task("GTZAN", 10, "split", 30.0),
  "surge": Task("Surge", 88, "split", 4.0),
  "fsd50k": Task("FSD50K", 200, "split", 7.6358, metric="mAP"),
  "fsdd": Task("FSDD", 10, "fold", 1.0),
}


class Published(NamedTuple):
  """A row of a published table."""

  protocol: str  # "atst", "evar" or "finetune"
  name: str
  source: str
  scores: dict[str, float]  # of the tasks it has


def _rows(protocol: str, source: str, tasks: tuple[str, ...], rows: dict[str, tuple[float | None, ...]]):
  for name, scores in rows.items():
    yield Published(protocol, name, source, {t: s for t, s in zip(tasks, scores, strict=True) if s is not None})


ATST = "Li and Li (2022)"
DIFFERENCE = "Takeuchi et al., Table 3"
PUBLISHED = (
  *_rows("atst", f"{ATST}, Table 2", ("audioset", "speech_commands", "voxceleb1", "nsynth", "urbansound8k"), {
    "TRILL": (None, None, 17.9, None, None),
    "COLA": (None, 62.4, 29.9, 63.4, None),
    "BYOL-A": (None, 92.2, 40.1, 74.1, 79.1),
    "ATST Small": (27.9, 93.6, 61.9, 75.3, 82.0),
    "ATST Base": (33.8, 95.1, 72.0, 75.6, 84.1),
  }),
  *_rows("finetune", f"{ATST}, Table 3", ("audioset", "speech_commands", "voxceleb1"), {
    "COLA": (None, 95.5, 37.7),
    "Small-SSAST": (30.8, 97.7, 60.9),
    "SSAST-PATCH": (31.0, 98.0, 64.2),
    "SSAST-FRAME": (29.2, 98.1, 80.8),
    "Conformer": (27.6, None, None),
    "ATST Small": (31.5, 97.6, 88.3),
    "ATST Base": (37.4, 98.0, 94.3),
  }),
  *_rows("evar", DIFFERENCE, ("esc50", "urbansound8k", "speech_commands", "voxceleb1", "voxforge", "crema_d", "gtzan",
                              "nsynth", "surge"), {
    "λ = 0 (BYOL-A)": (82.70, 79.43, 93.16, 57.17, 93.39, 61.81, 67.24, 74.80, 37.82),
    "λ = 0.1": (82.12, 79.85, 93.22, 56.90, 93.22, 60.67, 67.24, 76.30, 37.82),
    "λ = 0.2": (82.77, 79.72, 93.15, 56.75, 93.38, 61.21, 67.24, 74.23, 37.68),
    "λ = 0.5": (82.37, 78.99, 92.96, 55.86, 92.78, 60.65, 66.90, 74.76, 38.17),
    "λ = 0.8": (80.80, 78.62, 92.82, 55.19, 92.10, 61.36, 66.78, 74.25, 38.72),
  }),
)  # fmt: skip


def published(protocol: str, task: str) -> list[Published]:
  """The rows of a protocol's tables that have a score of the task."""
  return [row for row in PUBLISHED if row.protocol == protocol and task in row.scores]
