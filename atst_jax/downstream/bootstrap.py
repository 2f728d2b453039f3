"""Bootstrap intervals over test clips: of a row's score, and of the difference between two rows on
the same clips.

Test clips are drawn with replacement inside every division. Clips of a group (a speaker, a
recording) are drawn together; a group that several divisions test is drawn once for all of them. Of
the pairs of a retrieval the recordings are drawn (`of_recordings`), of BgKnown's mixtures the
foregrounds alone. On every draw the score is computed anew, as the mean over seeds and over the
divisions of which clips are drawn. The draws depend only on clips and groups, so that rows of the
same test clips are compared on the same draws. The interval is the middle 95 % of the draws
(percentile method, Efron and Tibshirani, 1993). It does not cover another pre-training of the
encoder.
"""

import collections
import hashlib
import itertools
import os
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from atst_jax.downstream import tables
from atst_jax.downstream.metrics import average_precision
from atst_jax.downstream.splits import sources_of
from atst_jax.util import storage

DRAWS = 1000
FEW_DRAWS, LARGE = (
  200,
  2e6,
)  # mAP: so many draws where there are more scores than this of a division
BLOCK = 2**24  # numbers of a block of draws
LEVEL = 95.0  # percent of the draws inside an interval


class Design(NamedTuple):
  """The test clips that are drawn together. A unit is a clip, a group or a recording. A clip counts
  as often as all of its units are drawn: the product."""

  units: tuple[np.ndarray, ...]  # of each division (U, N): units of every test clip, from 0
  # of each division: how many units there are of each kind; each kind is drawn by itself. The last
  # one of a single unit is always drawn.
  numbers: tuple[tuple[int, ...], ...]
  # "clips", "groups", "clips of a single group", or roles: "background and event recordings"
  by: str
  digest: str  # of clips and units; rows of equal digests are compared draw by draw
  joint: bool = False  # divisions share units, and their draws

  def draws(self, division: int, number: int) -> Iterator[np.ndarray]:
    """Yields blocks (b, N) float32 of `number` draws: how often each draws every test clip of a
    division."""
    units, numbers = self.units[division], self.numbers[division]
    rng = np.random.default_rng(0 if self.joint else division)
    size = max(1, BLOCK // units.shape[1])
    for start in range(0, number, size):
      rows = min(size, number - start)
      times = np.concatenate([_times(rng, rows, count) for count in numbers], 1)
      counts = times[:, units[0]].astype(np.float32)
      for more in units[1:]:
        counts *= times[:, more]
      yield counts


def _times(rng: np.random.Generator, rows: int, count: int) -> np.ndarray:
  """(rows, count): how often each of `count` units is drawn, in `count` draws with replacement."""
  drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
  return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)


def _digest(ids: list[list[str]], units: tuple[np.ndarray, ...], of: str = "") -> str:
  digest = hashlib.sha256(of.encode())
  for names, unit in zip(ids, units, strict=True):
    lines = (f"{id}\t{','.join(map(str, u))}" for id, u in zip(names, unit.T, strict=True))
    digest.update("\n".join(lines).encode())
    digest.update(b"\n\n")
  return digest.hexdigest()[:16]


def design(tests: list[np.ndarray], ids: list[str], groups: list[str]) -> Design:
  """The design of a set's divisions.

  Args:
    tests: of each division, the rows of its test clips.
    ids, groups: (N,) of all clips; "" is an unknown group. Pieces of a file stay together too. A
      group that several divisions test is drawn for all of them at once. If a division tests a
      single group, such as one speaker, all draws of groups would be the same: then clips are drawn
      everywhere, and the interval says nothing about other groups.
  """
  sources = sources_of(ids, groups)
  tested = [np.unique(sources[test]) for test in tests]
  joint = len(np.unique(np.concatenate(tested))) < sum(map(len, tested))
  if joint:
    tested = [np.unique(np.concatenate(tested))] * len(tests)
  units = tuple(
    np.searchsorted(known, sources[test])[None] for known, test in zip(tested, tests, strict=True)
  )
  numbers = tuple((len(known),) for known in tested)
  by = (
    "groups"
    if joint or any(u.size > n for u, (n,) in zip(units, numbers, strict=True))
    else "clips"
  )
  if by == "groups" and any(len(np.unique(unit)) == 1 for unit in units):
    units = tuple(np.arange(len(test))[None] for test in tests)
    numbers = tuple((len(test),) for test in tests)
    by, joint = "clips of a single group", False
  named = [[ids[i] for i in test] for test in tests]
  return Design(units, numbers, by, _digest(named, units), joint)


def of_recordings(ids: list[str], used: dict[str, list[set[str]]]) -> Design | None:
  """The design of clips that are mixed from recordings; None where no two share one.

  Recordings of every role are drawn with replacement, and a clip counts as often as the product
  over its recordings (the pigeonhole bootstrap: Owen, 2007). A clip that shares none of a role is
  drawn among the role's recordings, in place of its own. A recording that is in all clips is not
  drawn: nothing can be said of others.

  Beside the role that clips share most, only roles are drawn of which an average clip shares
  recordings with one other clip or more. Another one would make the count of most clips a product
  of two independent counts, whose variance is 3 in place of 1. Without it an interval is too narrow
  by at most sqrt(1 + shared), where `shared` is that average, below 1: by 1.4, if clips that share
  a recording always score alike.

  Args:
    ids: (N,) of one division's test clips.
    used: of every role (background, event), the recordings of each clip.
  """
  counts = {
    role: collections.Counter(itertools.chain.from_iterable(names)) for role, names in used.items()
  }
  partners = {
    role: sum(n * (n - 1) for n in times.values() if n < len(ids)) for role, times in counts.items()
  }
  if not any(partners.values()):
    return None
  most_shared = max(partners, key=lambda role: partners[role])
  roles = [role for role, n in partners.items() if n >= len(ids) or role == most_shared]
  units: list[list[int]] = [[] for _ in ids]
  numbers: list[int] = []
  for role in roles:
    shared = sorted(name for name, count in counts[role].items() if 1 < count < len(ids))
    place = {name: number for number, name in enumerate(shared, sum(numbers))}
    alone = itertools.count(sum(numbers) + len(shared))
    for own, names in zip(units, used[role], strict=True):
      own += sorted(place[name] for name in names if name in place) or [next(alone)]
    numbers.append(next(alone) - sum(numbers))
  # a clip of fewer recordings counts once more by the last unit, which is always drawn
  most, last = max(map(len, units)), sum(numbers)
  columns = np.array([own + [last] * (most - len(own)) for own in units]).T
  digest = _digest([ids], (columns,), f"{numbers}\n")
  return Design((columns,), ((*numbers, 1),), f"{' and '.join(roles)} recordings", digest)


class Tested(NamedTuple):
  """A row's answers for every test clip, and its score on every draw."""

  design: Design
  kept: dict[str, np.ndarray]  # (S, N, …): seeds, test clips of one division after the other
  resampled: np.ndarray  # (B,); NaN where no clip, or no label, is drawn


def _mean(scores: list[np.ndarray]) -> np.ndarray:
  """(B,) of every division -> (B,), the mean over the divisions that have a score; NaN if none
  has."""
  known, total = np.isfinite(scores).sum(0), np.nansum(np.asarray(scores, np.float64), 0)
  return np.divide(total, known, out=np.full_like(total, np.nan), where=known > 0)


def of_hits(design: Design, hits: list[np.ndarray], **kept: np.ndarray) -> Tested:
  """The `Tested` of a score that is the mean over clips.

  Args:
    hits: of each division, (S, N) 0 to 1 for every seed and test clip.
    kept: other arrays to keep, (S, N).
  """
  scores = []
  for number, part in enumerate(hits):
    mean = part.mean(0).astype(np.float32)
    with np.errstate(invalid="ignore"):  # NaN where no clip is drawn
      found = [counts @ mean / counts.sum(-1) for counts in design.draws(number, DRAWS)]
    scores.append(np.concatenate(found))
  kept = {"hits": np.concatenate(hits, 1).astype(np.float32), **kept}
  return Tested(design, kept, _mean(scores))


def of_logits(
  design: Design, logits: list[np.ndarray], targets: list[np.ndarray], multi_label: bool
) -> Tested:
  """The `Tested` of accuracy, or with `multi_label` of mAP.

  Args:
    logits: of each division, (S, N, C).
    targets: of each division, (N, C) 0 or 1.
  """
  if not multi_label:
    predicted = [part.argmax(-1) for part in logits]
    right = [p == t.argmax(-1) for p, t in zip(predicted, targets, strict=True)]
    return of_hits(design, right, predicted=np.concatenate(predicted, 1).astype(np.int32))
  number = FEW_DRAWS if max(part[0].size for part in logits) > LARGE else DRAWS
  scores = []
  for division, (part, target) in enumerate(zip(logits, targets, strict=True)):
    found = []
    for counts in design.draws(division, number):
      found.append(np.mean([_mean_average_precision(counts, seed, target) for seed in part], 0))
    scores.append(np.concatenate(found))
  kept = {"scores": np.concatenate(logits, 1).astype(np.float32)}
  return Tested(design, kept, _mean(scores))


def _mean_average_precision(
  counts: np.ndarray, scores: np.ndarray, targets: np.ndarray
) -> np.ndarray:
  """(B, N) times that clips are drawn, (N, C), (N, C) -> (B,) mAP over the drawn labels; NaN if
  there are none."""
  total, labels = np.zeros(len(counts)), np.zeros(len(counts))
  for label in np.flatnonzero(targets.any(0)):
    found = average_precision(scores[:, label], targets[:, label], counts)
    total += np.nan_to_num(found)
    labels += np.isfinite(found)
  return np.divide(total, labels, out=np.full_like(total, np.nan), where=labels > 0)


def interval(resampled: np.ndarray) -> list[float] | None:
  """[low, high] of the middle 95 % of the draws that have a score."""
  found = resampled[np.isfinite(resampled)]
  if not len(found):
    return None
  ends = (50 - LEVEL / 2, 50 + LEVEL / 2)
  return [float(end) for end in np.percentile(found, ends)]


def keep(workdir: str, row: dict, name: str) -> dict:
  """The row of results.json. Its `Tested` ("tested") is written to `predictions/NAME` of the
  workdir; "test" tells of it."""
  tested: Tested = row["tested"]
  file = os.path.join("predictions", name)
  storage.make_folder(os.path.join(workdir, "predictions"))
  with storage.writing(os.path.join(workdir, file)) as out:
    arrays: dict[str, Any] = {"resampled": tested.resampled, **tested.kept}
    np.savez_compressed(out, **arrays)
  account = {
    "interval": interval(tested.resampled),
    "draws": int(np.isfinite(tested.resampled).sum()),
    "by": tested.design.by,
    "clips": tested.design.digest,
    "file": file,
  }
  return {**{key: value for key, value in row.items() if key != "tested"}, "test": account}


def read_resampled(workdir: str, row: dict) -> np.ndarray:
  """(B,) of a row of results.json. Raises OSError or ValueError if its file is missing or
  damaged."""
  with storage.open_binary(os.path.join(workdir, row["test"]["file"])) as file:
    try:
      with np.load(file, allow_pickle=False) as arrays:
        return arrays["resampled"]
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
      raise ValueError(f"{file.name}: {error}") from error


def comparable(one: dict, other: dict) -> bool:
  """Whether two rows of results were scored on the same draws of the same test clips."""
  first, second = one.get("test"), other.get("test")
  if not first or not second:
    return False
  return all(first[key] == second[key] for key in ("clips", "draws"))


def difference(one: np.ndarray, other: np.ndarray) -> dict:
  """The interval of the first row's score minus the other's over the same draws, and whether it
  excludes 0: only then the rows are called different."""
  found = interval(one - other)
  return {"interval": found, "is_difference": found is not None and not found[0] <= 0 <= found[1]}


def differences(workdir: str, rows: list[dict]) -> list[dict]:
  """For every two comparable rows in a column of the table: the first's score minus the second's,
  and `difference`."""
  found = {number: read_resampled(workdir, row) for number, row in enumerate(rows) if "test" in row}
  return [
    {
      "column": tables.column(rows[i]),
      "of": tables.line(rows[i]),
      "less": tables.line(rows[j]),
      "mean": rows[i]["mean"] - rows[j]["mean"],
      **difference(found[i], found[j]),
    }
    for i, j in itertools.combinations(found, 2)
    if tables.column(rows[i]) == tables.column(rows[j]) and comparable(rows[i], rows[j])
  ]
