"""Divisions of a data set, by its own columns: clips to train on, to choose the learning rate, and
to score."""

import collections
import re
from typing import NamedTuple

import numpy as np

from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

WAYS = ("auto", "fold", "split", "random")
HOLD_OUTS = ("fold", "tenth")
HELD_OUT = 10  # without a validation split, one training clip in ten


class Split(NamedTuple):
  """Indices into the clips, each sorted."""

  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray


def source_of(id: str) -> str:
  """The file of a clip: `ID` for the piece `ID#0003`, the id itself if the file is one clip."""
  return re.sub(r"#\d{4,}$", "", id)


def make_splits(
  *, ids, groups, targets, folds, splits, label_names, way, num_folds, hold_out, seed, owned=False
) -> list[Split]:
  """Divides a labelled set, once for each fold.

  Args:
    ids: (N,) strings.
    groups: (N,) strings, "" if unknown. Clips of one group (a speaker, a session) stay together.
    targets: (N, C) 0 or 1.
    folds: (N,) ints, -1 if there is none.
    splits: (N,) strings.
    label_names: (C,), for messages.
    way: "fold": each fold is the test set once, the next one (cyclically) chooses, the rest trains.
      "split": the splits `train`, `test` and `valid`; without `valid`, a tenth of the training
      files, stratified by class and drawn from `seed`. "random": `num_folds` folds, stratified by
      class and drawn from `seed`, then as "fold". "auto": "split" if there is a test split, "fold"
      if every clip has one, else "random".
    num_folds: of "random".
    hold_out: with folds, the clips that choose: the next "fold", or a "tenth" of the other clips'
      files (as in EVAR; stratified).
    seed: of the draws.
    owned: the set's owner published its folds and splits. They stay even if they part a group, with
      a line about it. Draws never part one.

  Raises:
    UserError: the columns do not allow it, or a division leaks or misses a class (`check`).
  """
  if hold_out not in HOLD_OUTS:
    raise UserError(f"--config.splits.hold_out={hold_out}: choose one of {', '.join(HOLD_OUTS)}")
  ids, folds, splits = list(ids), np.asarray(folds), np.asarray(splits)
  sources = sources_of(ids, groups)
  way = resolve_way(way, folds, splits)
  if way == "split":
    parts = [_by_split(splits, sources, targets, seed)]
  else:
    if way == "random":
      folds = _deal(sources, targets, num_folds, np.random.default_rng(seed))
    parts = _by_fold(folds, sources, targets, hold_out, seed)
  for number, part in enumerate(parts):
    check(
      part,
      ids=ids,
      groups=groups,
      targets=targets,
      label_names=label_names,
      name=f"division {number + 1} of {len(parts)}",
      owned=owned and way != "random",
    )
  return parts


def sources_of(ids, groups) -> np.ndarray:
  """(N,) int: one number for each group, and for the pieces of each file without a group."""
  names = [
    f"group {group}" if group else f"file {source_of(id)}"
    for id, group in zip(ids, groups, strict=True)
  ]
  return np.unique(names, return_inverse=True)[1]


def resolve_way(way: str, folds: np.ndarray, splits: np.ndarray) -> str:
  """The way, with "auto" resolved. Raises UserError if the columns do not allow it."""
  if way not in WAYS:
    raise UserError(f"--config.splits.way={way}: choose one of {', '.join(WAYS)}")
  found = dict(collections.Counter(splits.tolist()))
  has_folds, has_test = bool((folds >= 0).all()), "test" in found
  if way == "auto":
    if has_folds and has_test:
      raise UserError(
        "the data set has folds and a test split; set --config.splits.way to fold or split"
      )
    if not has_folds and not has_test and len(found) > 1:
      raise UserError(
        f"the data set has the splits {found}, none of them `test`; name one so, or set "
        "--config.splits.way=random to divide all clips anew"
      )
    way = "split" if has_test else "fold" if has_folds else "random"
  if way == "fold" and not has_folds:
    raise UserError(
      f"{int((folds < 0).sum())} of {len(folds)} clips have no fold; prepare the data from a "
      "manifest with a column `fold`, or set --config.splits.way=random"
    )
  if way == "split" and (
    not has_test or "train" not in found or set(found) - {"train", "valid", "test"}
  ):
    raise UserError(
      f"the data set has the splits {found}; needed are `train`, `test` and perhaps `valid`: "
      "prepare it from a manifest with a column `split`, or set --config.splits.way=random"
    )
  return way


def _deal(groups: np.ndarray, targets: np.ndarray, parts: int, rng) -> np.ndarray:
  """(N,) parts in [0, parts): whole groups, shuffled and dealt in turn class by class (of a group's
  first label)."""
  unique, first = np.unique(groups, return_index=True)
  if len(unique) < 2:
    raise UserError(
      "the set holds one file, or one group of files; an evaluation needs two or more, to train on "
      "one and test on another"
    )
  if parts < 2 or parts > len(unique):
    raise UserError(
      f"--config.splits.num_folds={parts}: {len(unique)} files allow 2 to {len(unique)} folds"
    )
  classes = targets[first].argmax(-1)
  shuffled = rng.permutation(len(unique))
  dealt = shuffled[np.argsort(classes[shuffled], kind="stable")]
  part = np.empty(len(unique), int)
  part[dealt] = np.arange(len(unique)) % parts
  return part[np.searchsorted(unique, groups)]


def _hold_out(
  train: np.ndarray, groups: np.ndarray, targets: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """(train, valid): a stratified tenth of the files, without the last one of any class."""
  rng = np.random.default_rng(seed)
  unique, number = np.unique(groups[train], return_inverse=True)
  labels = np.zeros((len(unique), targets.shape[1]), bool)  # (files, C)
  np.logical_or.at(labels, number, targets[train].astype(bool))
  left, held, wanted = labels.sum(0), [], max(1, len(unique) // HELD_OUT)
  shuffled, some_labelled = rng.permutation(len(unique)), False
  labelled = np.asarray(labels.any(-1))
  # those without a label come last
  classes = np.where(labelled, labels.argmax(-1), labels.shape[1])
  order = shuffled[np.argsort(classes[shuffled], kind="stable")]
  # every tenth, then the others
  for index in np.concatenate([order[turn::HELD_OUT] for turn in range(HELD_OUT)]):
    # while none with a label is held, a place is kept for one
    places = wanted - len(held) - (0 if some_labelled or labelled[index] else 1)
    if places > 0 and (left[labels[index]] > 1).all():
      held.append(int(index))
      some_labelled |= bool(labelled[index])
      left = left - labels[index]
  valid = np.isin(groups[train], unique[np.array(held, int)])
  return train[~valid], train[valid]


def _by_split(splits, groups, targets, seed) -> Split:
  train, valid, test = (np.flatnonzero(splits == name) for name in ("train", "valid", "test"))
  if not len(valid):
    train, valid = _hold_out(train, groups, targets, seed)
  return Split(train, valid, test)


def _by_fold(folds, groups, targets, hold_out, seed) -> list[Split]:
  names = np.unique(folds)
  if len(names) < 2:
    raise UserError(
      f"all {len(folds)} clips are in fold {names[0]}; at least 2 folds are needed: set "
      "--config.splits.way=random, or prepare the data with a column `fold`"
    )
  parts = []
  for i, name in enumerate(names):
    test = np.flatnonzero(folds == name)
    if len(names) == 2 or hold_out == "tenth":
      parts.append(Split(*_hold_out(np.flatnonzero(folds != name), groups, targets, seed), test))
    else:
      chooses = folds == names[(i + 1) % len(names)]
      parts.append(Split(np.flatnonzero((folds != name) & ~chooses), np.flatnonzero(chooses), test))
  return parts


def check(split: Split, *, ids, groups, targets, label_names, name, owned=False) -> None:
  """Refuses a division that leaks or cannot be learned. Only logs a group in two parts of the
  owner's own division (`owned`).

  Raises UserError with names and counts if a part is empty, an id, a source file or a group is in
  two parts, a class of the test clips has no training clip, no class of the validation clips has
  one, or fewer than two classes are tested.
  """
  parts = dict(zip(split._fields, split, strict=True))
  sizes = ", ".join(f"{len(part)} {key}" for key, part in parts.items())
  if not all(len(part) for part in split):
    raise UserError(
      f"{name}: a part is empty ({sizes} clips); training, choosing and testing each need clips, "
      "and a group (speaker, recording) stays in one part: add groups or folds, or give some clips "
      "the split `valid`"
    )
  for what, names in (("id", ids), ("source file", list(map(source_of, ids))), ("group", groups)):
    owners = collections.defaultdict(set)
    for key, part in parts.items():
      for i in part:
        owners[names[i]].add(key)
    shared = sorted(
      value for value, keys in owners.items() if len(keys) > 1 and (value or what != "group")
    )
    if shared and owned and what == "group":
      log.warning(
        "%s: %d groups lie in several parts as the set's owner published them, the first is %r "
        "in %s",
        name,
        len(shared),
        shared[0],
        " and ".join(sorted(owners[shared[0]])),
      )
    elif shared:
      raise UserError(
        f"{name} leaks: {len(shared)} {what}{'s' * (len(shared) > 1)} in more than one part, the "
        "first "
        f"is {shared[0]!r} in {' and '.join(sorted(owners[shared[0]]))} ({sizes} clips); give all "
        "pieces of a file, and all clips of a group, the same fold and split"
      )
  tested, trained = targets[split.test].any(0), targets[split.train].any(0)
  missing = [label_names[c] for c in np.flatnonzero(tested & ~trained)]
  if missing:
    raise UserError(
      f"{name}: {len(missing)} of {int(tested.sum())} tested classes have no training clip: "
      f"{', '.join(missing[:10])} ({sizes} clips); a class needs files to train on, to choose by "
      "and to test: add some, or prepare the set again without its clips"
    )
  chosen = targets[split.valid].any(0)
  strange = [label_names[c] for c in np.flatnonzero(chosen & ~trained)]
  if not (chosen & trained).any():
    why = "no clip is trained on" if strange else "there is none"
    raise UserError(
      f"{name}: the {len(split.valid)} validation clips cannot choose anything: of their classes "
      f"{why} ({sizes} clips); give clips of trained classes the split `valid`, or none of them, "
      "and a tenth of the training clips is held out"
    )
  if strange:
    log.warning(
      "%s: %d of %d classes of the validation clips have no training clip, and count as wrong: %s",
      name,
      len(strange),
      int(chosen.sum()),
      ", ".join(strange[:10]),
    )
  if len(label_names) < 2:
    raise UserError(
      f"the set has one class ({label_names[0]}), and an evaluation needs two: a sub-folder of "
      "--input, or a label of the table, for each"
    )
  if tested.sum() < 2:
    raise UserError(
      f"{name}: the test clips hold {int(tested.sum())} class of {len(label_names)}; a probe "
      f"needs 2 ({sizes} clips): give test clips of another class the split or fold"
    )
