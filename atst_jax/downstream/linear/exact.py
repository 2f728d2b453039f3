"""What the rows of a linear evaluation have by every protocol: the scores of the exact probe and of
nearest neighbours, and the spectrum of the vectors.

The exact probe (`ridge`) is also a protocol, the default for sets that are not in the papers. On
small sets the papers' optimisers do not reach the directions in which the classes differ.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from atst_jax.artifacts.collection import neighbours
from atst_jax.downstream import features, ridge
from atst_jax.downstream.features import Labels
from atst_jax.downstream.metrics import Spectrum, knn_scores, spectrum, summary
from atst_jax.downstream.splits import Split, source_of, sources_of
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

CHOSEN_ON = ("folds", "groups", "valid")


class Reading(NamedTuple):
  """Of one seed on one division. `values`: those of `told`, `knn` and `knn_whitened`."""

  seed: int
  fold: int
  values: dict
  test_scores: np.ndarray  # (M, C) of the exact probe


def chosen_on(
  wanted: str | None, labels: Labels, splits: list[Split], *, exact: bool, on_test: bool
) -> tuple[str, np.ndarray | None]:
  """What chooses the exact probe's penalty, one of CHOSEN_ON, and `groups` for `ridge.evaluate`.

  Args:
    wanted: what the config asks for. By default the probe of the protocol "exact" leaves out the
      folds of its known clips in turn, or their groups where they lie in a single fold; where
      there are no groups either, and beside other protocols, the validation clips choose.
    labels, splits: of the set; clips that are not tested are known.
    exact: the protocol is "exact".
    on_test: the test clips choose.

  Raises:
    UserError: folds or groups are asked for, and the known clips of a division lie in one.
  """
  groups = sources_of(labels.ids, labels.groups)
  nothing = np.zeros_like(groups)
  named = {
    "folds": labels.folds if (labels.folds >= 0).all() else nothing,
    "groups": groups if any(labels.groups) else nothing,
  }
  counts = {
    key: min(len(np.unique(values[np.concatenate(split[:2])])) for split in splits)
    for key, values in named.items()
  }
  if wanted is None:
    several = [key for key, count in counts.items() if count > 1]
    wanted = several[0] if several and exact and not on_test else "valid"
  if wanted not in CHOSEN_ON:
    raise UserError(f"--config.exact.chosen_on={wanted}: choose one of {', '.join(CHOSEN_ON)}")
  if wanted == "valid":
    return wanted, None
  if on_test:
    raise UserError(
      f"--config.exact.chosen_on={wanted}: with --config.select_on_test the test clips choose; "
      "leave one of them out"
    )
  if counts[wanted] < 2:
    raise UserError(
      f"--config.exact.chosen_on={wanted}: the clips that are not tested lie in one of the "
      f"{wanted}, so that none can be left out; take --config.exact.chosen_on=valid, or prepare "
      f"the set with a column `{wanted.removesuffix('s')}`"
    )
  if wanted == "folds":
    _tell_of_parted(groups, labels, splits)
  _tell_of_lonely(wanted, named[wanted], labels, splits)
  return wanted, named[wanted]


def _tell_of_lonely(wanted: str, parts: np.ndarray, labels: Labels, splits: list[Split]) -> None:
  """Warns of labels whose known clips lie in a single part of those that are left out in turn: a
  probe that leaves it out has not seen them, whatever the penalty."""
  lonely = {}
  for split in splits:
    known = np.concatenate(split[:2])
    left_out = ridge.parts_of(parts[known])
    places = [np.unique(left_out[has > 0]) for has in labels.targets[known].T]
    for label in (i for i, where in enumerate(places) if len(where) == 1):
      lonely[label] = labels.ids[known[labels.targets[known, label] > 0][0]]
  if lonely:
    log.warning(
      "%d of %d labels have clips in one part of the %s alone, the first is that of %r: with that "
      "left out it is never recognised, and does not help to choose the penalty",
      len(lonely),
      labels.targets.shape[1],
      wanted,
      lonely[min(lonely)],
    )


def _tell_of_parted(groups: np.ndarray, labels: Labels, splits: list[Split]) -> None:
  """Warns of groups of known clips that lie in several folds: a probe that leaves one fold out has
  heard them. The folds stay as they are."""
  known = np.unique(np.concatenate([part for split in splits for part in split[:2]]))
  pairs = np.unique(np.stack([groups[known], labels.folds[known]]), axis=1)  # (2, M)
  found, times = np.unique(pairs[0], return_counts=True)
  parted = found[times > 1]
  if len(parted):
    first = int(np.flatnonzero(groups == parted[0])[0])
    log.warning(
      "%d of %d groups (%d of %d clips that are not tested) lie in several folds, the first is %r; "
      "the folds are kept, and the penalty may be chosen too small for unheard groups: "
      "--config.exact.chosen_on=groups leaves whole groups out",
      len(parted),
      len(found),
      int(np.isin(groups[known], parted).sum()),
      len(known),
      labels.groups[first] or source_of(labels.ids[first]),
    )


def read(
  arrays: list[np.ndarray],
  targets: np.ndarray,
  splits: list[Split],
  seeds: list[int],
  score: Callable[[np.ndarray, np.ndarray], float],
  *,
  penalties: tuple[float, ...],
  knn: int,
  refit: bool,
  groups: np.ndarray | None = None,
) -> list[Reading]:
  """The readings of (N, D) vectors on every division. Vectors that do not depend on the seed are
  read once.

  Args:
    targets: (N, C) of all clips.
    score: of (scores, targets).
    penalties: of `ridge.evaluate`.
    knn: neighbours, at most as many as there are known clips.
    refit: the validation clips are known as well, once they have chosen.
    groups: of `ridge.evaluate`.
  """
  readings = []
  for x, group in features.with_seeds(arrays, seeds):
    for fold, split in enumerate(splits):
      found = ridge.evaluate(x, targets, split, score, penalties, refit=refit, groups=groups)
      values = {**told(found), **_neighbours(x, targets, split, score, knn, refit)}
      readings += [Reading(seed, fold, values, found.test_scores) for seed in group]
  return readings


def told(found: ridge.Result) -> dict:
  """The entries of results.json about an exact probe: `exact` (its score), `penalty`,
  `penalty_at_edge` and `penalty_valid_scores`."""
  return {
    "exact": found.score,
    "penalty": found.penalty,
    "penalty_at_edge": found.at_edge,
    "penalty_valid_scores": list(found.valid_scores),
  }


def _neighbours(x, targets, split: Split, score, knn: int, refit: bool) -> dict:
  known = np.union1d(split.train, split.valid) if refit else split.train
  white = neighbours.whitening(x[known])

  def vote(space):
    votes = knn_scores(
      space(x[known]), targets[known], space(x[split.test]), k=min(knn, len(known))
    )
    return score(votes, targets[split.test])

  return {
    "knn": vote(lambda x: x),
    "knn_whitened": vote(lambda x: (x - white.mean) @ white.directions),
  }


def spectra(name: str, arrays: list[np.ndarray]) -> dict:
  """The spectrum of a row's arrays (N, D) as JSON, the mean over arrays (one for each seed of a
  random encoder).

  Raises:
    UserError: all vectors of an array are the same.
  """
  found = [spectrum(x) for x in arrays]
  if not all(s.participation_ratio for s in found):
    raise UserError(
      f"{name}: the vectors of all {len(arrays[0])} clips are the same, so nothing can be read off "
      "them: the encoder has collapsed; export an earlier checkpoint (--step)"
    )
  means = {key: np.mean([getattr(s, key) for s in found], axis=0) for key in Spectrum._fields}
  values = {key: value.tolist() for key, value in means.items()}
  log.info(
    "%s: %.0f %% of the variance lies in one direction, 90 %% in %.0f, 99 %% in %.0f of %d; "
    "participation ratio %.1f, effective rank %.1f",
    name,
    100 * values["shares"][0],
    values["directions_90"],
    values["directions_99"],
    arrays[0].shape[1],
    values["participation_ratio"],
    values["effective_rank"],
  )
  return values


def summarised(name: str, runs: list[dict]) -> dict:
  """The exact probe's score over the seeds of `runs`; each seed has read every division. Warns if
  the grid of penalties was too short."""
  edges = [run["penalty"] for run in runs if run["penalty_at_edge"]]
  if edges:
    log.warning(
      "%s: the exact probe's penalty is at the end of its grid in %d of %d runs (%s); extend "
      "--config.exact.penalties",
      name,
      len(edges),
      len(runs),
      ", ".join(f"{penalty:g}" for penalty in sorted(set(edges))),
    )
  seeds = sorted({run["seed"] for run in runs})
  of_seed = lambda seed: np.mean([run["exact"] for run in runs if run["seed"] == seed])
  return {**summary([of_seed(seed) for seed in seeds]), "at_edge": len(edges)}
