"""A prepared set of pairs (`python -m data_pipeline.pairs`) as arrays: queries, sentences,
answers."""

import collections
import csv
import hashlib
import os
from typing import NamedTuple

import numpy as np

from atst_jax.data.dataset import Dataset
from atst_jax.downstream import features
from atst_jax.downstream.features import Labels
from atst_jax.downstream.splits import source_of
from atst_jax.util import storage
from atst_jax.util.errors import UserError

PAIRS, MIXTURES = "pairs.csv", "mixtures.csv"
ROLES = ("background", "event")  # of the recordings that a clip is mixed from
COLUMNS = ("id", "id1", "id2", "text", "scene", "split")
SPLITS = ("train", "valid", "test")
HELD_OUT = 10  # without a validation split, one group of pairs in ten


class PairSet(NamedTuple):
  """P pairs. `query` and `target` are rows of the clips, `text` of `texts`."""

  ids: list[str]
  query: np.ndarray  # (P,)
  target: np.ndarray  # (P,)
  text: np.ndarray  # (P,)
  texts: list[str]  # each once, in order
  scenes: np.ndarray  # (P,) strings
  splits: np.ndarray  # (P,) strings
  # of every role: the recordings of both clips of each pair; {} if the set does not say
  recordings: dict[str, list[set[str]]]

  def rows(self, split: str, scene: str | None = None) -> np.ndarray:
    """The pairs of a split, and of a scene if it is named."""
    return np.flatnonzero(
      (self.splits == split) & ((self.scenes == scene) if scene is not None else True)
    )

  def lines(self, clips: list[str]) -> list[str]:
    """A line for each pair, sorted: its ids, scene and sentence. `clips`: ids of the clips."""
    columns = zip(self.ids, self.query, self.target, self.scenes, self.text, strict=True)
    return sorted(
      "\t".join((id, clips[query], clips[target], scene, self.texts[text]))
      for id, query, target, scene, text in columns
    )


def fingerprint(dataset: Dataset) -> str:
  """16 hexadecimal digits over the clips, the pairs with their sentences, and what clips are mixed
  from."""
  digest = hashlib.sha256(features.fingerprint(dataset).encode())
  for name in (PAIRS, MIXTURES):
    path = os.path.join(dataset.root, name)
    if storage.is_file(path):
      digest.update(f"{name} {storage.sha256(path)}".encode())
  return digest.hexdigest()[:16]


def read_pairs(dataset: Dataset, labels: Labels, *, seed: int) -> PairSet:
  """Reads and checks pairs.csv of a prepared set.

  Without a split `valid`, a tenth of the training pairs of every scene becomes one; pairs that
  share a clip stay together.

  Args:
    seed: of that draw.

  Raises:
    UserError: there is no such table; a pair is invalid (it has missing clips, one clip twice, or
      another split than its clips); a recording is mixed into test clips and others; or a split is
      empty.
  """
  table = _read(os.path.join(dataset.root, PAIRS), COLUMNS)
  place = {id: row for row, id in enumerate(labels.ids)}
  for row in table:
    for id in (row["id1"], row["id2"]):
      if id not in place:
        raise UserError(
          f"{dataset.root}: the clip {id!r} of the pair {row['id']!r} is not there; make the "
          "pairs again"
        )
      if row["split"] not in SPLITS or labels.splits[place[id]] != row["split"]:
        raise UserError(
          f"{dataset.root}: the pair {row['id']!r} is in the split {row['split']!r}, its clip "
          f"{id!r} in {labels.splits[place[id]]!r}: that would leak; make the pairs again"
        )
    if row["id1"] == row["id2"]:
      raise UserError(f"{dataset.root}: the pair {row['id']!r} is one clip with itself")
  recordings = _recordings(dataset.root)
  texts = sorted({row["text"] for row in table})
  if "" in texts:
    raise UserError(f"{dataset.root}: a pair has no text; make the pairs again")
  number = {text: i for i, text in enumerate(texts)}
  column = lambda key, values: np.array([values[row[key]] for row in table], np.int32)
  pairs = PairSet(
    ids=[row["id"] for row in table],
    query=column("id1", place),
    target=column("id2", place),
    text=column("text", number),
    texts=texts,
    scenes=np.array([row["scene"] for row in table]),
    splits=np.array([row["split"] for row in table]),
    recordings={
      role: [found.get(row["id1"], set()) | found.get(row["id2"], set()) for row in table]
      for role, found in recordings.items()
    },
  )
  if "valid" not in pairs.splits:
    pairs = pairs._replace(splits=_hold_out(pairs, seed))
  for scene in np.unique(pairs.scenes):
    sizes = {split: len(pairs.rows(split, scene)) for split in SPLITS}
    if not all(sizes.values()):
      raise UserError(
        f"{dataset.root}: the scene {scene!r} has "
        f"{', '.join(f'{n} {s}' for s, n in sizes.items())} "
        "pairs; needed are some of each"
      )
  return pairs


def _read(path: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
  if not storage.is_file(path):
    raise UserError(
      f"{path} does not exist: the set holds no pairs; make them with `python -m "
      "data_pipeline.pairs`"
    )
  with storage.open_text(path, newline="") as file:
    reader = csv.DictReader(file)
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
      raise UserError(f"{path}: no column {', '.join(missing)}; make the pairs again")
    rows = list(reader)
  if not rows or any(row[key] is None for row in rows for key in columns):
    raise UserError(f"{path} is empty or cut short; make the pairs again")
  return rows


def _recordings(root: str) -> dict[str, dict[str, set[str]]]:
  """{role: {clip: the recordings that it is mixed from}}; {} where the set does not say. Raises
  UserError if a recording is mixed into test clips and into others."""
  path = os.path.join(root, MIXTURES)
  if not storage.is_file(path):
    return {}
  owners = collections.defaultdict(set)
  found: dict[str, dict[str, set[str]]] = {role: {} for role in ROLES}
  for row in _read(path, ("clip", "split", "role", "source")):
    owners[row["role"], row["source"]].add(row["split"] == "test")
    if row["role"] in found:
      found[row["role"]].setdefault(row["clip"], set()).add(source_of(row["source"]))
  if shared := sorted(source for (_, source), sides in owners.items() if len(sides) > 1):
    raise UserError(
      f"{root} leaks: {len(shared)} recordings are mixed into test clips and into others, the "
      f"first is {shared[0]!r}; make the pairs again"
    )
  return found


def _hold_out(pairs: PairSet, seed: int) -> np.ndarray:
  """(P,) splits, with a tenth of the groups of training pairs in `valid`, scene by scene."""
  splits = pairs.splits.astype("<U8")
  group = groups(pairs.query, pairs.target)
  for scene in np.unique(pairs.scenes):
    rows = pairs.rows("train", scene)
    unique = np.unique(group[rows])
    held = np.random.default_rng(seed).permutation(unique)[: max(1, len(unique) // HELD_OUT)]
    if len(unique) > 1:
      splits[rows[np.isin(group[rows], held)]] = "valid"
  return splits


def groups(query: np.ndarray, target: np.ndarray) -> np.ndarray:
  """(P,) int: the same number for pairs that share a clip, directly or through other pairs."""
  from scipy.sparse import coo_array
  from scipy.sparse.csgraph import connected_components

  size = int(max(query.max(), target.max())) + 1
  links = coo_array((np.ones(len(query), bool), (query, target)), (size, size))
  return connected_components(links, directed=False)[1][query]
