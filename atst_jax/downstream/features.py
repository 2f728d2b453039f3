"""A labelled set and its features: computed once for each encoder, kept in the workdir."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

import atst_jax
from atst_jax.artifacts.folder import params_hash
from atst_jax.artifacts.model import Model
from atst_jax.audio.frontend import FrontEnd, log_mel
from atst_jax.data.dataset import Clip, Dataset
from atst_jax.method.normalization import LOG_EPS, NEPERS_PER_DB
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log, progress_bar

VECTORS = 2  # how vectors are computed; kept ones of another number are computed again


class Labels(NamedTuple):
  """Labels, folds, splits and groups of the N clips of a data set, in the order of `clips`."""

  ids: list[str]
  targets: np.ndarray  # (N, C) uint8, 0 or 1
  multi_label: bool
  folds: np.ndarray  # (N,), -1: none
  splits: np.ndarray  # (N,) strings
  groups: list[str]  # (N,), "": unknown


def clips(dataset: Dataset) -> Iterator[Clip]:
  """All clips of all splits. Raises RecordError on damage."""
  for split in dataset.splits:
    yield from dataset.clips(split)


def fingerprint(dataset: Dataset) -> str:
  """16 hexadecimal digits over the contents of all splits."""
  parts = [f"{split} {dataset.fingerprint(split)}" for split in dataset.splits]
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def read_labels(dataset: Dataset) -> Labels:
  """Raises UserError if clips of a single-label set have no label, with their number and the first
  id."""
  found = [(c.id, c.labels, c.multi_label, c.fold, c.split, c.group) for c in clips(dataset)]
  ids, labels, multi, folds, splits, groups = zip(*found, strict=True)
  bare = [id for id, label in zip(ids, labels, strict=True) if not label]
  if bare and (not any(multi) or len(bare) == len(ids)):
    raise UserError(
      f"{dataset.root}: {len(bare)} of {len(ids)} clips have no label, the first is {bare[0]!r}; "
      "prepare the data from class folders, or from a manifest with a column `label`"
    )
  targets = np.zeros((len(ids), len(dataset.label_names)), np.uint8)
  for row, label in zip(targets, labels, strict=True):
    row[list(label)] = 1
  return Labels(list(ids), targets, any(multi), np.array(folds), np.array(splits), list(groups))


def task(label_names: list[str], labels: Labels, *more: str) -> str:
  """16 hexadecimal digits of what is asked of the clips, in any order: names and labels; `more`
  where more is asked. The clips may be prepared by any front-end."""
  rows = sorted(
    f"{id}\t{np.flatnonzero(own).tolist()}"
    for id, own in zip(labels.ids, labels.targets, strict=True)
  )
  text = "\n".join([*label_names, "", *rows, *more])
  return hashlib.sha256(text.encode()).hexdigest()[:16]


class Vectors:
  """The vectors of all clips of a set, computed once for each encoder and kept in a folder."""

  def __init__(
    self,
    folder: str,
    dataset: Dataset,
    ids: list[str],
    *,
    key: dict,
    max_frames: int | None,
    unit: int | None = None,
    seed: int | None = None,
  ):
    """Args:
    key: JSON of everything that changes the vectors, besides the encoder and its blocks.
    max_frames: of the central crop; None takes clips whole.
    unit: frames to which every clip is cut or filled, in place of that crop (`mels`).
    seed: of the crops to the unit (`mels`).
    """
    self.folder, self.dataset, self.ids, self.key = folder, dataset, ids, key
    self.max_frames, self.unit, self.seed = max_frames, unit, seed

  def _read(self, name: str) -> Iterator[np.ndarray]:
    return mels(self.dataset, len(self.ids), name, unit=self.unit, seed=self.seed)

  def encoded(self, encoder: Model, name: str, num_blocks: int | None = None) -> np.ndarray:
    """(N, D) float32 of an encoder's last blocks, all of them by default. `name`: for messages."""
    settings = {k: v for k, v in encoder.config.items() if k not in ("provenance", "params_hash")}
    blocks = encoder.depth if num_blocks is None else num_blocks
    key = {**self.key, **settings, "params": params_hash(encoder.variables), "blocks": blocks}
    key["vectors"] = VECTORS
    most = None if self.unit else self.max_frames
    # The rule for long clips is the evaluation's, not the export's.
    encoder = encoder.limited(None)
    compute = lambda: encoder.embed(self._read(name), max_frames=most, num_blocks=num_blocks)
    return cached(self.folder, key, name, self.ids, compute)

  def statistics(self, *, longest: int) -> np.ndarray:
    """(N, 2F) float32, `mel_statistics` of crops of at most `longest` frames."""
    compute = lambda: mel_statistics(self._read("mel"), max_frames=longest)
    return cached(self.folder, {**self.key, "params": "mel"}, "mel", self.ids, compute)


def by_kind(
  wanted: Iterable[str],
  model: Model,
  seeds: list[int],
  encode: Callable[[Model, str], Any],
  statistics: Callable[[], Any],
) -> Iterator[tuple[str, list]]:
  """Yields (kind, vectors): one array if the seed does not change it, else one for each seed.

  Args:
    wanted: some of "pre-trained", "random" (fresh parameters from each seed) and "mel".
    encode: function of an encoder and its name for messages.
    statistics: function that gives vectors of the log-mel, without an encoder.
  """
  for kind in wanted:
    if kind == "pre-trained":
      yield kind, [encode(model, kind)]
    elif kind == "random":
      yield kind, [encode(model.reinitialized(seed), f"random {seed}") for seed in seeds]
    else:
      yield kind, [statistics()]


def with_seeds(arrays: list, seeds: list[int]) -> Iterator[tuple[Any, list[int]]]:
  """Yields (vectors, their seeds) for the arrays of `by_kind`."""
  groups = [seeds] if len(arrays) == 1 else [[seed] for seed in seeds]
  yield from zip(arrays, groups, strict=True)


def mel_statistics(mels: Iterable[np.ndarray], *, max_frames: int) -> np.ndarray:
  """Mean and standard deviation over time of log-mel dB, in the encoder's central crop: (N, 2F)
  float32.

  Args:
    mels: (T, F) dB arrays.
    max_frames: frames of the crop; shorter clips are taken whole.
  """
  out = []
  for mel in mels:
    start = max(len(mel) - max_frames, 0) // 2
    mel = mel[start : start + max_frames].astype(np.float64)
    out.append(np.concatenate([mel.mean(0), mel.std(0)]))
  return np.array(out, np.float32)


def log_statistics(mels: Iterable[np.ndarray]) -> dict[str, float]:
  """`log_mean` and `log_std` of ln(power + 2^-23) over all (T, F) dB arrays, for
  `Model.standardized`."""
  count = total = squares = 0.0
  for mel in mels:
    x = np.logaddexp(NEPERS_PER_DB * mel.astype(np.float64), np.log(LOG_EPS))
    count, total, squares = count + x.size, total + x.sum(), squares + np.square(x).sum()
  mean = total / count
  return {"log_mean": mean, "log_std": (squares / count - mean**2) ** 0.5}


def standardized(model: Model, dataset: Dataset, *, unit: int | None, seed: int | None) -> Model:
  """The encoder with the statistics of a set's training split, which is all clips where folds are.

  Args:
    unit, seed: of `mels`: as in EVAR they are those of clips that are cut or filled.
  """
  if unit is None:
    return model.standardized(dataset.statistics)
  split = dataset.statistics["split"]
  read = mels(dataset, dataset.num_clips(split), "statistics", split=split, unit=unit, seed=seed)
  return model.standardized(log_statistics(read))


def last_blocks(x: np.ndarray, *, depth: int, num_blocks: int) -> np.ndarray:
  """(N, 2·depth·D) of all blocks -> (N, 2·num_blocks·D) of the last ones, [CLS…, mean…] as
  `Model.embed` gives."""
  N = len(x)
  if num_blocks == depth:
    return x
  return np.ascontiguousarray(x.reshape(N, 2, depth, -1)[:, :, depth - num_blocks :].reshape(N, -1))


def cached(
  folder: str, key: dict, name: str, ids: list[str], compute: Callable[[], np.ndarray]
) -> np.ndarray:
  """`compute()`, or its earlier result under the same key, kept in a file of the folder.

  The result is mapped from that file, so features of a large set need no memory, also once for each
  seed.

  Args:
    key: JSON of everything that changes the result.
    name: for messages.
    ids: (N,) of the rows.

  Raises:
    UserError: a row is NaN or infinite; the message names its clip.
  """
  text = json.dumps({**key, "version": atst_jax.__version__}, sort_keys=True)
  path = os.path.join(folder, f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy")
  if (x := _load(path, len(ids))) is not None:
    log.info("%s: features of %d clips read from %s", name, len(ids), path)
    return x
  x = compute()
  bad = np.flatnonzero([not np.isfinite(row).all() for row in x])
  if len(bad):
    raise UserError(
      f"{name}: the embeddings of {len(bad)} of {len(x)} clips are NaN or infinite, the first is "
      "of "
      f"{ids[bad[0]]!r}; the encoder diverged or the clip is damaged: export an earlier checkpoint "
      "(--step), or check the data with `python -m data_pipeline.prepare verify`"
    )
  os.makedirs(folder, exist_ok=True)
  with storage.writing(path) as file:
    np.save(file, x)
  del x
  x = _load(path, len(ids))
  if x is None:
    raise UserError(
      f"{path}: what was written cannot be read back; check the disk and run the same command again"
    )
  return x


def _load(path: str, rows: int) -> np.ndarray | None:
  try:
    x = storage.read_array(path)
  except (FileNotFoundError, ValueError):
    return None
  return x if x.ndim == 2 and len(x) == rows else None


def silence_db(frontend: FrontEnd) -> float:
  """The log-mel of silence in dB."""
  return float(log_mel(np.zeros(frontend.min_samples, np.float32), frontend).max())


def cut_or_fill(
  mel: np.ndarray, frames: int, *, silence: float, rng: np.random.Generator | None
) -> np.ndarray:
  """(T, F) -> (frames, F): shorter clips end in silence; longer ones are cut at the end, or cropped
  at a place drawn from `rng`.

  EVAR fills and crops the waveform, this function the spectrogram; only frames at the edges differ.
  """
  if len(mel) < frames:
    return np.pad(mel, ((0, frames - len(mel)), (0, 0)), constant_values=silence)
  start = rng.integers(len(mel) - frames + 1) if rng else 0
  return mel[start : start + frames]


def mels(
  dataset: Dataset,
  total: int,
  name: str,
  *,
  split: str | None = None,
  unit: int | None = None,
  seed: int | None = None,
) -> Iterator[np.ndarray]:
  """The (T, F) float32 dB arrays of all clips, with a progress bar.

  Args:
    total, name: of the bar.
    split: only the clips of this one.
    unit: frames to which every clip is cut or filled, if given. As in EVAR, longer clips of the
      training and validation splits are cropped at random; those of a test split or with a fold
      (tested in turn) keep their start.
    seed: of these crops; each depends on it and the clip's id. None where folds are drawn: all keep
      their start, since each is tested in turn.
  """
  silence = silence_db(dataset.frontend)
  with progress_bar(total, 0, "clip") as bar:
    bar.set_description(name)
    for clip in dataset.clips(split) if split else clips(dataset):
      mel = clip.mel.astype(np.float32)
      if unit:
        drawn = seed is not None and clip.split != "test" and clip.fold < 0
        digest = hashlib.sha256(f"{seed}:{clip.id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little")) if drawn else None
        mel = cut_or_fill(mel, unit, silence=silence, rng=rng)
      yield mel
      bar.update()
