"""The differences between two scenes, and sentences about them: the text of a query."""

import collections
from typing import NamedTuple

import numpy as np

from .scenes import Scene

# `{event}` is the name of a class. A sentence is made of the words of each difference, joined by
# AND.
TEMPLATES = {
  "add": (
    "add {event}",
    "with {event} as well",
    "the same scene, but {event} can be heard too",
    "put {event} into it",
    "{event} joins in",
  ),
  "remove": (
    "remove {event}",
    "without {event}",
    "the same scene, but {event} can no longer be heard",
    "take {event} out of it",
    "{event} falls silent",
  ),
  "louder": (
    "louder {event}",
    "make {event} louder",
    "the same scene, but {event} is louder",
    "turn up {event}",
    "{event} comes closer",
  ),
  "quieter": (
    "quieter {event}",
    "make {event} quieter",
    "the same scene, but {event} is quieter",
    "turn down {event}",
    "{event} moves away",
  ),
}
KINDS = tuple(TEMPLATES)
AND = " and "
SAME_DB = 1.0  # a smaller difference in level is hardly heard, and not said


class Change(NamedTuple):
  """From the first scene to the second."""

  kind: str  # one of KINDS
  event: str  # the label


def changes(query: Scene, target: Scene) -> list[Change]:
  """The differences between the events of two scenes, by label and level; files and times do not
  count.

  As in the published pairs, an event of the background's own class that is added or removed makes
  the background louder or quieter.
  """
  before, after = (_levels(scene) for scene in (query, target))
  found = []
  for label in sorted(before.keys() | after.keys()):
    more, step = len(after[label]) - len(before[label]), 0.0
    if not more:
      # rounded, for a step of exactly SAME_DB is one of 0.9999999999999996 among floats
      step = round(float(np.mean(after[label]) - np.mean(before[label])), 6)
    elif label in (query.name, target.name):
      step = SAME_DB * more
    if abs(step) >= SAME_DB:
      found.append(Change("louder" if step > 0 else "quieter", label))
    elif more:
      found.append(Change("add" if more > 0 else "remove", label))
  return found


def _levels(scene: Scene) -> dict[str, list[float]]:
  levels = collections.defaultdict(list)
  for event in scene.events:
    levels[event.label].append(event.snr_db)
  return levels


def sentence(differences: list[Change], rng: np.random.Generator) -> str:
  """One of the templates for each difference, drawn from `rng`."""
  words = [
    TEMPLATES[change.kind][rng.integers(len(TEMPLATES[change.kind]))].format(
      event=spoken(change.event)
    )
    for change in differences
  ]
  return AND.join(words)


def spoken(label: str) -> str:
  """A class as words: `dog_bark` -> `dog bark`."""
  return label.replace("_", " ").lower()
