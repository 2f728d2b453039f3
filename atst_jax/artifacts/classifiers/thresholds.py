"""From which probability on a label is given: chosen on validation clips, label by label, where a
sound may have several. Where it has one, the likeliest label is given."""

import dataclasses
from typing import NamedTuple

import numpy as np

from atst_jax.artifacts.classifiers.head import Head
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

NO_CLIP = 0.5  # of a label that no validation clip has, or whose clips nothing tells from others


class Thresholds(NamedTuple):
  """One number for each label, and which labels the clips could not choose for."""

  values: tuple[float, ...]
  rule: str  # "best F1" or "precision 0.9"
  without_clips: list[int]  # labels that no validation clip has, whose threshold is NO_CLIP
  # labels whose best threshold takes all validation clips, so that it says nothing; theirs is
  # NO_CLIP too. An exact probe gives 0 to clips that have a label and to most others alike.
  taking_all: list[int]
  # labels for which no threshold reaches the precision: theirs is the one that comes nearest
  short: list[int]


def check_precision(precision: float | None, flag: str, *, multi_label: bool = True) -> None:
  """Raises UserError for what is no share of the given labels that shall be right, and where a
  sound has one label, so that no threshold is asked."""
  if precision is None:
    return
  if not 0 < precision <= 1:
    raise UserError(f"{flag}={precision:g}: must lie above 0 and be at most 1")
  if not multi_label:
    raise UserError(
      f"{flag}={precision:g}: chooses thresholds, and where each sound has one label, as here, the "
      "likeliest is given without one; leave it out, and ask `predict` with --min"
    )


def with_thresholds(
  head: Head, probabilities: np.ndarray, targets: np.ndarray, precision: float | None
) -> Head:
  """The head of several labels for a sound with the thresholds that `choose` finds, and an account
  of them under `about["thresholds"]`. What clips could not choose is told in the log."""
  found = choose(probabilities, targets, precision)
  names = lambda places: [head.labels[place] for place in places]
  account = {
    "rule": found.rule,
    "clips": len(targets),
    "without_clips": names(found.without_clips),
    "taking_all": names(found.taking_all),
    "short_of_precision": names(found.short),
  }
  for places, text in (
    (found.without_clips, f"no validation clip, and the threshold {NO_CLIP:g}"),
    (
      found.taking_all,
      "no threshold that parts the validation clips: the best one would give them to every sound; "
      f"theirs is {NO_CLIP:g}",
    ),
    (found.short, f"no threshold of {found.rule}, and the one that comes nearest"),
  ):
    if places:
      first = ", ".join(names(places)[:5])
      log.warning(
        "%d of %d labels have %s, the first are %s", len(places), len(head.labels), text, first
      )
  about = {**head.about, "thresholds": account}
  return dataclasses.replace(head, thresholds=found.values, about=about)


def described(section: dict) -> str:
  """How labels are given by a head, the section of config.json, in words."""
  if not section["multi_label"]:
    return "the likeliest is given"
  account = section["about"].get("thresholds", {"rule": "no known rule", "clips": "unknown"})
  return f"thresholds by {account['rule']} on {account['clips']} validation clips"


def choose(probabilities: np.ndarray, targets: np.ndarray, precision: float | None) -> Thresholds:
  """The threshold of every label that has the best F1, or the lowest one, which finds most clips,
  that has the `precision`.

  A threshold lies in the middle between the last probability that it takes and the next one. One
  that takes all clips, with and without the label, is none, unless they have the precision.

  Args:
    probabilities: (N, C) of validation clips.
    targets: (N, C) 0 or 1.
    precision: above 0, at most 1; None: the best F1.
  """
  values, without, all_taken, short = [], [], [], []
  for label, (scores, hits) in enumerate(zip(probabilities.T, targets.T, strict=True)):
    if not hits.any():
      values.append(NO_CLIP)
      without.append(label)
      continue
    value, reached = _threshold(scores.astype(np.float64), hits, precision)
    takes_all = (scores >= value).all() and not hits.all()
    if takes_all and (precision is None or not reached):
      value = NO_CLIP
      all_taken.append(label)
    elif not reached:
      short.append(label)
    values.append(value)
  rule = "best F1" if precision is None else f"precision {precision:g}"
  return Thresholds(tuple(values), rule, without, all_taken, short)


def _threshold(scores, hits, precision: float | None) -> tuple[float, bool]:
  """The threshold of one label, and whether it has the precision that was asked for."""
  order = np.argsort(-scores, kind="stable")
  ranked, right = scores[order], np.cumsum(hits[order].astype(bool))
  last = np.append(ranked[1:] < ranked[:-1], True)  # clips of one probability are taken together
  taken = np.flatnonzero(last) + 1
  found = right[taken - 1]
  if precision is None:
    best, reached = int(np.argmax(2 * found / (taken + right[-1]))), True
  else:
    share = found / taken
    enough = np.flatnonzero(share >= precision)
    reached = bool(len(enough))
    best = int(enough[-1]) if reached else int(np.argmax(share))
  lowest = ranked[taken[best] - 1]
  below = ranked[taken[best]] if taken[best] < len(ranked) else lowest
  return float((lowest + below) / 2), reached
