"""The sides of a set of recordings: one to train on, one to test."""

import collections
import dataclasses

from atst_jax.util.errors import UserError

from ..sources.files import Source
from ..sources.owner_lists import split_of
from .recordings import check_disjoint, recording_of

SHARES = {"train": 0.6, "test": 0.4}  # as three and two of five folds


def divided(
  sources: list[Source], test_folds: list[str], kind: str, *, owned: bool = False
) -> list[Source]:
  """The sources with their side as their split: by the set's split `test`; else by its folds; else
  two fifths are tested, by a hash of their recordings (`recording_of`).

  Args:
    test_folds: those of the test.
    kind: of the recordings, for messages.
    owned: the set's owner made its divisions: they stay, even if they part a recording.

  Raises:
    UserError: a side is empty, or a recording has files on both.
  """
  if any(source.split == "test" for source in sources):
    side = lambda source: source.split
  elif all(source.fold >= 0 for source in sources):
    side = lambda source: "test" if str(source.fold) in test_folds else "train"
  else:
    side = lambda source: split_of(f"bgknown {recording_of(source)}", SHARES)
  sources = [dataclasses.replace(source, split=side(source)) for source in sources]
  counts = collections.Counter(source.split for source in sources)
  if not counts["train"] or not counts["test"] or set(counts) - {"train", "valid", "test"}:
    raise UserError(
      f"--{kind}: files by split {dict(counts)}, needed are `train` and `test` (and perhaps "
      f"`valid`); its folds are {sorted({s.fold for s in sources})}, --test_folds="
      f"{','.join(test_folds)}"
    )
  if not owned:
    check_disjoint((f"{kind} {recording_of(source)!r}", source.split) for source in sources)
  return sources
