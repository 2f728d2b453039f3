"""The tables of both papers as data, to be printed beside ours. Scores are in percent.

A column of the protocols "atst", "finetune" and "evar" is a task (`tasks.TASKS`). A column of
"difference" and "retrieval" is the name of a row of their results, after the scene.
"""

from typing import NamedTuple


class Row(NamedTuple):
  """A method's published scores in percent."""

  name: str
  scores: dict[str, float]  # by column; without those that the paper leaves out
  spreads: dict[str, float]  # half widths of 95 % confidence intervals, where they are given


class Table(NamedTuple):
  """A table of a paper, and the conditions for a comparable run."""

  title: str
  source: str
  protocol: str  # of runs whose scores belong into it
  columns: dict[str, str]  # column -> its heading
  rows: tuple[Row, ...]
  averaged: tuple[str, ...] = ()  # columns whose mean is the last column
  ablation: bool = False  # its rows are pre-trained differently; the other tables compare methods


def _rows(columns, rows: dict[str, tuple[float | None, ...]], spreads=None) -> tuple[Row, ...]:
  known = lambda values: {c: v for c, v in zip(columns, values, strict=True) if v is not None}
  return tuple(
    Row(name, known(scores), known(spreads[name]) if spreads else {})
    for name, scores in rows.items()
  )


ATST = "Li and Li (2022)"
DIFFERENCE = "Takeuchi et al."
FIVE = {
  "audioset": "AS-20K mAP",
  "speech_commands": "SPCV2",
  "voxceleb1": "VOX1",
  "nsynth": "NSYNTH",
  "urbansound8k": "US8K",
}
THREE = {"audioset": "AS-20K mAP", "speech_commands": "SPCV2", "voxceleb1": "VOX1"}
NINE = {
  "esc50": "ESC-50",
  "urbansound8k": "US8K",
  "speech_commands": "SPCV2",
  "voxceleb1": "VOX1",
  "voxforge": "VoxForge",
  "crema_d": "CREMA-D",
  "gtzan": "GTZAN",
  "nsynth": "NSYNTH",
  "surge": "Surge",
}
BENCHMARK = "bgknown_esc50"  # the set of the published scores of "difference"
CONDITIONS = {name: name for name in ("Mix", "(a) 100%", "(b) 50%", "(c) 0%")}
RECALLS = {f"{scene} R@{k}": f"{scene} R@{k}" for scene in ("rain", "traffic") for k in (1, 5, 10)}

TABLES = {
  "atst-1": Table(
    "View creation, linear evaluation of Small",
    f"{ATST}, Table 1",
    "atst",
    FIVE,
    _rows(
      FIVE,
      {
        "BYOL-A, single segment, 1 s": (None, 92.2, 40.1, 74.1, 79.1),
        "ATST Small, single segment, 1 s": (21.0, 94.3, 52.3, 73.8, 79.3),
        "ATST Small, two segments, 1 s": (19.1, 91.3, 50.0, 74.3, 76.6),
        "ATST Small, single segment, 6 s": (25.7, 94.0, 57.3, 73.8, 80.9),
        "ATST Small, two segments, 6 s": (27.9, 93.6, 61.9, 75.3, 82.0),
      },
    ),
    averaged=tuple(FIVE)[1:],
    ablation=True,
  ),
  "atst-2": Table(
    "Linear evaluation",
    f"{ATST}, Table 2",
    "atst",
    FIVE,
    _rows(
      FIVE,
      {
        "TRILL": (None, None, 17.9, None, None),
        "COLA": (None, 62.4, 29.9, 63.4, None),
        "BYOL-A": (None, 92.2, 40.1, 74.1, 79.1),
        "ATST Small": (27.9, 93.6, 61.9, 75.3, 82.0),
        "ATST Base": (33.8, 95.1, 72.0, 75.6, 84.1),
      },
    ),
  ),
  "atst-3": Table(
    "Fine-tuning",
    f"{ATST}, Table 3",
    "finetune",
    THREE,
    _rows(
      THREE,
      {
        "COLA": (None, 95.5, 37.7),
        "Small-SSAST": (30.8, 97.7, 60.9),
        "SSAST-PATCH": (31.0, 98.0, 64.2),
        "SSAST-FRAME": (29.2, 98.1, 80.8),
        "Conformer": (27.6, None, None),
        "ATST Small": (31.5, 97.6, 88.3),
        "ATST Base": (37.4, 98.0, 94.3),
      },
    ),
  ),
  "difference-1": Table(
    "Background-known ESC-50",
    f"{DIFFERENCE}, Table 1",
    "difference",
    CONDITIONS,
    _rows(
      CONDITIONS,
      {
        "λ = 0 (BYOL-A)": (47.25, 55.29, 52.21, 47.92),
        "λ = 0.1": (47.39, 55.54, 52.46, 48.50),
        "λ = 0.2": (47.42, 57.54, 53.37, 48.67),
        "λ = 0.5": (47.33, 58.96, 54.63, 50.50),
        "λ = 0.8": (45.84, 59.96, 55.50, 51.96),
      },
    ),
  ),
  "difference-2": Table(
    "Retrieval with auxiliary information",
    f"{DIFFERENCE}, Table 2",
    "retrieval",
    RECALLS,
    _rows(
      RECALLS,
      {
        "VGGish": (44.5, 72.1, 76.9, 39.1, 62.2, 69.5),
        "λ = 0 (BYOL-A)": (50.23, 71.66, 75.26, 36.86, 58.59, 67.93),
        "λ = 0.1": (51.96, 71.63, 74.83, 37.96, 59.73, 66.9),
        "λ = 0.2": (53.99, 72.06, 76.00, 37.70, 60.06, 68.00),
        "λ = 0.5": (52.76, 71.73, 75.73, 39.73, 60.63, 68.30),
        "λ = 0.8": (51.66, 70.63, 74.86, 39.56, 61.36, 68.16),
      },
    ),
  ),
  "difference-3": Table(
    "Linear evaluation",
    f"{DIFFERENCE}, Table 3",
    "evar",
    NINE,
    _rows(
      NINE,
      {
        "λ = 0 (BYOL-A)": (82.70, 79.43, 93.16, 57.17, 93.39, 61.81, 67.24, 74.80, 37.82),
        "λ = 0.1": (82.12, 79.85, 93.22, 56.90, 93.22, 60.67, 67.24, 76.30, 37.82),
        "λ = 0.2": (82.77, 79.72, 93.15, 56.75, 93.38, 61.21, 67.24, 74.23, 37.68),
        "λ = 0.5": (82.37, 78.99, 92.96, 55.86, 92.78, 60.65, 66.90, 74.76, 38.17),
        "λ = 0.8": (80.80, 78.62, 92.82, 55.19, 92.10, 61.36, 66.78, 74.25, 38.72),
      },
      spreads={
        "λ = 0 (BYOL-A)": (1.76, 0.73, 0.18, 0.97, 0.38, 2.30, 3.93, 0.22, 0.17),
        "λ = 0.1": (1.37, 0.33, 0.16, 0.12, 1.10, 0.00, 0.86, 0.37, 0.02),
        "λ = 0.2": (0.85, 0.48, 0.31, 0.14, 0.09, 1.64, 3.09, 0.39, 0.29),
        "λ = 0.5": (1.56, 0.50, 0.24, 0.03, 0.79, 0.33, 1.48, 0.26, 0.91),
        "λ = 0.8": (2.00, 0.12, 0.23, 0.15, 0.45, 1.45, 1.98, 0.29, 0.92),
      },
    ),
    averaged=tuple(NINE),
  ),
  # of ours alone: runs by the exact probe, a column for each set
  "exact": Table("Linear evaluation by the exact probe", "no paper", "exact", {}, ()),
}


class Published(NamedTuple):
  """A row of a published table, as results.json carries it."""

  protocol: str
  name: str
  source: str
  scores: dict[str, float]


def evaluated_by(task: str) -> list[str]:
  """The protocols of linear evaluation by which a paper gives a score for a task."""
  known = (table.protocol for table in TABLES.values() if task in table.columns)
  return [protocol for protocol in dict.fromkeys(known) if protocol in ("atst", "evar")]


def published(protocol: str, column: str | None = None) -> list[Published]:
  """The rows of a protocol's tables, without ablations; with `column`, those with a score in it."""
  return [
    Published(protocol, row.name, table.source, row.scores)
    for table in TABLES.values()
    if table.protocol == protocol and not table.ablation
    for row in table.rows
    if column is None or column in row.scores
  ]
