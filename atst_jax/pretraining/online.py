"""Online evaluation: what can be read off the encoder while it trains, every few thousand steps, in
seconds.

A ridge probe (`ridge`), k nearest neighbours and the effective rank of a labelled set's vectors
from the last block, as an export of that step would give them. The same probe on the mean and
standard deviation of the log-mel stands beside it. Nothing of it enters the training: a run with it
and one without end bit for bit alike.
"""

import functools
import time
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from atst_jax.artifacts.model import Model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import ridge
from atst_jax.downstream.evaluation import divide, score_of
from atst_jax.downstream.features import clips, mel_statistics, read_labels
from atst_jax.downstream.metrics import knn_scores, spectrum
from atst_jax.downstream.splits import Split
from atst_jax.models.chunking import batch_rows
from atst_jax.runtime.mesh import process_rows, put_batch, replicated
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log


class Chunks(NamedTuple):
  """Clips cut into M chunks: batches that hold this process's rows, and whose vectors they are."""

  batches: list[dict]  # mel (rows, T, F) float16 dB, peak, length, mean_over (rows,)
  clip: np.ndarray  # (M,) index of the clip
  weight: np.ndarray  # (M,) of the chunk's vector in the clip's


def choose(targets: np.ndarray, splits: list[Split], most: int | None, *, seed: int) -> np.ndarray:
  """At most `most` rows, sorted: equally many of every class (a clip's first label) in every part
  of the divisions, as far as there are so many; drawn from `seed`."""
  N = len(targets)
  part = np.full((N, len(splits)), -1)
  for number, split in enumerate(splits):
    for code, rows in enumerate(split):
      part[rows, number] = code
  order = np.random.default_rng(seed).permutation(N)
  cell = np.unique(np.column_stack([targets.argmax(-1), part]), axis=0, return_inverse=True)[
    1
  ].ravel()[order]
  by_cell = np.argsort(cell, kind="stable")
  place = np.empty(N, int)  # of a clip among those of its cell
  place[by_cell] = np.arange(N) - np.searchsorted(cell[by_cell], cell[by_cell])
  return np.sort(order[np.argsort(place, kind="stable")][:most])


def restrict(split: Split, rows: np.ndarray, targets: np.ndarray) -> Split:
  """A division of all clips as one of the chosen rows, whose targets are given. Raises UserError if
  a part of it is left without a label."""
  parts = Split(*(np.flatnonzero(np.isin(rows, part)) for part in split))
  if not all(targets[part].any() for part in parts):
    raise UserError(
      f"--config.online.clips={len(rows)} are too few: a part of a division has no labelled clip "
      f"left ({', '.join(f'{len(part)} {name}' for name, part in parts._asdict().items())})"
    )
  return parts


class Online:
  """`online(step, state)` returns what it measures; `due(step)` says whether it is time."""

  def __init__(
    self,
    mesh: Mesh,
    *,
    settings: dict,
    seed: int,
    last_step: int,
    path: str,
    network: str,
    every_steps: int,
    clips: int | None,
    max_seconds: float,
    knn: int,
    ridge: tuple[float, ...],
    splits: dict,
  ):
    """Reads the labelled set, in every process.

    Args:
      settings: of the encoder (`export.settings`).
      seed: of the division and the choice of clips.
      last_step: of the run.
      path, every_steps, …: the keys of a config's `online` section; `network` is settled.

    Raises:
      UserError: it has another front-end, no labels, or cannot be divided.
    """
    self.mesh, self.network = mesh, network
    self._every_steps, self._last_step = every_steps, last_step
    self._max_seconds, self._knn, self._ridge = max_seconds, knn, ridge
    self.model = Model({**settings, "frontend": settings["frontend"].to_json()}, None, None)
    frontend = self.model.frontend
    dataset = Dataset.load(path)
    remedy = f"prepare it again with --frontend={frontend.name}, or leave out --config.online.path"
    dataset.refuse_other(frontend, "data.frontend is", remedy)
    labels = read_labels(dataset)
    try:
      divisions = divide(dataset, labels, seed=seed, **splits)
    except UserError as error:
      text = str(error).replace("--config.splits.", "--config.online.splits.")
      raise UserError(f"--config.online.path={path}: {text}") from error
    self.rows = choose(labels.targets, divisions, clips, seed=seed)
    self.targets = labels.targets[self.rows]
    self.metric = "map" if labels.multi_label else "accuracy"
    self.score = score_of(labels)
    self.splits = [restrict(split, self.rows, self.targets) for split in divisions]
    mels = self._read(dataset, set(self.rows.tolist()))
    self.chunks = self._cut(mels)
    self._embed = jax.jit(
      functools.partial(self.model.pooled, num_blocks=1), out_shardings=replicated(mesh)
    )
    self.baseline = self._probe(mel_statistics(mels, max_frames=len(max(mels, key=len))))
    log.info(
      "online evaluation of the %s on %d of the %d clips of %s every %d steps, %d division(s); "
      "ridge probe on mean and std of the log-mel: %s %.4f",
      network,
      len(self.rows),
      len(labels.ids),
      path,
      every_steps,
      len(divisions),
      self.metric,
      self.baseline,
    )

  def _read(self, dataset: Dataset, rows: set[int]) -> list[np.ndarray]:
    """(T, F) float16 dB of the chosen clips, of longer ones the central `max_seconds`."""
    most = self.model.frontend.num_frames(round(self._max_seconds * self.model.sample_rate))
    found = []
    for row, clip in enumerate(clips(dataset)):
      if row in rows:
        start = max(len(clip.mel) - most, 0) // 2
        # not a view, which would keep the whole record
        found.append(clip.mel[start : start + most].copy())
        if len(found[-1]) < self.model.shortest:
          raise UserError(
            f"--config.online.path={dataset.root}: {clip.id!r} has {len(found[-1])} frames, this "
            f"encoder needs at least {self.model.shortest}; leave the clip out"
          )
    return found

  def _cut(self, mels: list[np.ndarray]) -> Chunks:
    found = [
      (index, float(mel.max()), *chunk)
      for index, mel in enumerate(mels)
      for chunk in self.model.chunks(mel, self.model.config["tail"])
    ]
    clip, peak, chunks, mean_over, weight = zip(*found, strict=True)
    size, devices = len(max(chunks, key=len)), self.mesh.size
    rows = devices * min(batch_rows(size), -(-len(chunks) // devices))
    mine, batches = range(*process_rows(self.mesh, rows)), []
    for first in range(0, len(chunks), rows):
      batch: dict[str, np.ndarray] = {
        "mel": np.zeros((len(mine), size, self.model.frontend.n_mels), np.float16),
        "peak": np.zeros(len(mine), np.float32),
        **{key: np.zeros(len(mine), np.int32) for key in ("length", "mean_over")},
      }
      for row, index in enumerate(range(first + mine.start, min(first + mine.stop, len(chunks)))):
        batch["mel"][row, : len(chunks[index])] = chunks[index]
        batch["peak"][row], batch["length"][row] = peak[index], len(chunks[index])
        batch["mean_over"][row] = mean_over[index]
      batches.append(batch)
    return Chunks(batches, np.array(clip), np.array(weight, np.float32))

  def embed(self, state) -> np.ndarray:
    """(N, D) float32 of the chosen clips, in every process, from a train state wherever it lies on
    the mesh."""
    source = state.teacher if self.network == "teacher" else state
    variables = {"params": source.params["encoder"]}
    if "encoder" in source.batch_stats:
      variables["batch_stats"] = source.batch_stats["encoder"]
    vectors = [
      np.asarray(self._embed(variables, **put_batch(self.mesh, batch)))
      for batch in self.chunks.batches
    ]
    weight, index = self.chunks.weight, self.chunks.clip
    sums = np.zeros((len(self.targets), vectors[0].shape[1]), np.float32)
    np.add.at(sums, index, weight[:, None] * np.concatenate(vectors)[: len(index)])
    return sums / np.bincount(index, weight)[:, None].astype(np.float32)

  def _probe(self, x: np.ndarray) -> float:
    """The ridge probe's score, mean over the divisions."""
    scores = [
      ridge.evaluate(x, self.targets, split, self.score, self._ridge)[0] for split in self.splits
    ]
    return float(np.mean(scores))

  def _neighbours(self, x: np.ndarray) -> float:
    found = []
    for train, valid, test in self.splits:
      known = np.concatenate([train, valid])
      votes = knn_scores(x[known], self.targets[known], x[test], k=min(self._knn, len(known)))
      found.append(self.score(votes, self.targets[test]))
    return float(np.mean(found))

  def due(self, step: int) -> bool:
    """Before the first step, after every `every_steps` of them, and after the last."""
    return step % self._every_steps == 0 or step == self._last_step

  def __call__(self, step: int, state) -> dict[str, float]:
    """Measures the state after `step` updates; every process has to call it.

    Returns in process 0 the scores `online_ridge_…`, `online_knn_…` and `online_mel_…` (accuracy or
    map), the vectors' `online_effective_rank`, `online_participation_ratio` and
    `online_directions_99` (`metrics.Spectrum`), and the `online_seconds` that it took; NaN where
    vectors are not finite. Other processes only take part in embedding, and return {}.
    """
    jax.block_until_ready(state.step)  # the step itself is not what is timed
    started = time.perf_counter()
    x = self.embed(state)
    if jax.process_index():
      return {}
    finite = bool(np.isfinite(x).all())
    if not finite:
      log.warning(
        "step %d: the vectors of %d of %d clips of the online evaluation are NaN or infinite",
        step,
        len(x) - int(np.isfinite(x).all(-1).sum()),
        len(x),
      )
    spread = spectrum(x) if finite else None
    values = {
      f"online_ridge_{self.metric}": self._probe(x) if finite else np.nan,
      f"online_knn_{self.metric}": self._neighbours(x) if finite else np.nan,
      f"online_mel_{self.metric}": self.baseline,
      "online_effective_rank": spread.effective_rank if spread else np.nan,
      "online_participation_ratio": spread.participation_ratio if spread else np.nan,
      "online_directions_99": spread.directions_99 if spread else np.nan,
    }
    values["online_seconds"] = time.perf_counter() - started
    scores = [values[f"online_{name}_{self.metric}"] for name in ("ridge", "knn", "mel")]
    log.info(
      "step %d: %s of the ridge probe %.4f, of neighbours %.4f, of mel statistics %.4f | rank "
      "%.1f, 99 %% of the variance in %.0f directions | %.1f s",
      step,
      self.metric,
      *scores,
      values["online_effective_rank"],
      values["online_directions_99"],
      values["online_seconds"],
    )
    return values
