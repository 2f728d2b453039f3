"""Few labels: the linear evaluation with 1, 2, 4, … labelled clips of every class.

For each number the labelled clips are drawn several times, and the same test clips are scored after
every draw. The clips of a class come from as many groups (speakers, recordings) as possible. With
several labels, clips are drawn until every label has the number, the rarest label first; a clip
counts for each of its labels.

The exact probe uses only the drawn clips, also to choose its penalty (`drawing`). The papers'
protocols choose their rate on all validation clips of the division: they use more labels.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts.folder import describe_encoder
from atst_jax.downstream import bootstrap, evaluation, features, ridge
from atst_jax.downstream.evaluation import describe_labelled, score_of
from atst_jax.downstream.features import Labels
from atst_jax.downstream.linear import recipe
from atst_jax.downstream.linear.drawing import choose_penalty, draw
from atst_jax.downstream.linear.job import FREE_KEYS
from atst_jax.downstream.linear.probing import probe
from atst_jax.downstream.metrics import chance, knn_scores, summary
from atst_jax.downstream.splits import Split, sources_of
from atst_jax.downstream.values import check_values
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluation of few labels, resolved."""

  linear: recipe.Evaluation
  numbers: tuple[int, ...]  # clips per class
  left_out: tuple[int, ...]  # numbers that no class has
  draws: int
  penalty: float  # if the drawn clips cannot choose one
  sources: np.ndarray  # (N,) int: clips of a group have the same

  @property
  def record(self) -> dict:
    """The resolved config as JSON."""
    return self.linear.record

  def pool(self, split: Split) -> np.ndarray:
    """Rows that labelled clips are drawn from."""
    exact = self.linear.training.protocol == "exact"
    return np.union1d(split.train, split.valid) if exact else split.train

  def counts(self) -> np.ndarray:
    """(divisions, C) clips of every class that can be drawn."""
    targets = self.linear.labels.targets
    return np.array([targets[self.pool(split)].sum(0) for split in self.linear.splits])


def resolve(config: ConfigDict) -> Evaluation:
  """The linear evaluation's `resolve`, and the settings of the draws. Raises UserError with key,
  value and remedy."""
  check_values(config, ascending=("few.clips",), positive=("few.draws", "few.penalty"))
  if not all(isinstance(number, int) for number in config.few.clips):
    raise UserError(f"--config.few.clips={config.few.clips}: must be whole numbers of clips")
  for key, value in (
    ("select_on_test", config.select_on_test),
    ("probe.refit", config.probe.refit),
  ):
    if value:
      raise UserError(
        f"--config.{key}={value}: few labels would be known beside many; set --config.{key}=false"
      )
  linear = recipe.resolve(config)
  few = Evaluation(
    linear=linear,
    numbers=tuple(config.few.clips),
    left_out=(),
    draws=config.few.draws,
    penalty=config.few.penalty,
    sources=sources_of(linear.labels.ids, linear.labels.groups),
  )
  most = int(few.counts().max())
  numbers = tuple(number for number in few.numbers if number <= most)
  if not numbers:
    raise UserError(
      f"--config.few.clips={few.numbers}: no class has more than {most} clips to draw from; add "
      "smaller numbers"
    )
  left_out = few.numbers[len(numbers) :]
  return dataclasses.replace(few, numbers=numbers, left_out=left_out)


class Drawn(NamedTuple):
  """The result of a probe of drawn clips on the test clips of a division."""

  seed: int
  number: int  # of the draw
  logits: np.ndarray  # (M, C)
  chosen: dict  # {"penalty"} or {"learning_rate"}


def _exact(x, split: Split, drawn: list[np.ndarray], seeds, few: Evaluation) -> list[Drawn]:
  job, found = few.linear, []
  score, targets, test = score_of(job.labels), job.labels.targets, x[split.test]
  for number, rows in enumerate(drawn):
    known, y, sources = x[rows], targets[rows], few.sources[rows]
    penalty = choose_penalty(known, y, sources, job.penalties, score, default=few.penalty)
    (predict,) = ridge.fit(known, y, [penalty])
    logits = predict(test).astype(np.float32)
    found += [Drawn(seed, number, logits, {"penalty": penalty}) for seed in seeds]
  return found


def _trained(x, split: Split, drawn: list[np.ndarray], seeds, few: Evaluation) -> list[Drawn]:
  """A probe by a protocol of the papers; the validation clips choose the rate."""
  job = few.linear
  divisions = [Split(rows, split.valid, split.test) for rows in drawn]
  runs = probe([x], job.labels, divisions, seeds, job.training, score_of(job.labels))
  return [
    Drawn(run.seed, run.fold, run.result.test_logits, {"learning_rate": run.result.rate})
    for run in runs
  ]


def run_rows(name: str, arrays: list[np.ndarray], few: Evaluation) -> list[dict]:
  """The rows of one kind of features, one for each number of clips."""
  return [_row(name, arrays, number, few) for number in few.numbers]


def _row(name: str, arrays: list[np.ndarray], number: int, few: Evaluation) -> dict:
  job = few.linear
  labels, targets, score = job.labels, job.labels.targets, score_of(job.labels)
  exact = job.training.protocol == "exact"
  # the exact probe draws nothing
  seeds = job.seeds[:1] if exact and len(arrays) == 1 else job.seeds
  read, runs, logits = _exact if exact else _trained, [], []
  for fold, split in enumerate(job.splits):
    draws = range(few.draws)
    rngs = [np.random.default_rng([job.record["seed"], fold, index]) for index in draws]
    drawn = [draw(targets, few.pool(split), few.sources, number, rng) for rng in rngs]
    found = [
      one
      for x, group in features.with_seeds(arrays, seeds)
      for one in _with_neighbours(x, split, drawn, read(x, split, drawn, group, few), job)
    ]
    for one, near in found:
      runs.append(
        {
          "draw": one.number,
          "seed": one.seed,
          "fold": fold,
          "clips": len(drawn[one.number]),
          "score": score(one.logits, targets[split.test]),
          "knn": near,
          **one.chosen,
        }
      )
    logits.append(np.stack([one.logits for one, _ in found]))
  over = lambda key, index: np.mean([run[key] for run in runs if run["draw"] == index])
  spread = summary([over("score", index) for index in range(few.draws)])
  tests = [split.test for split in job.splits]
  return {
    "name": f"{number} clip{'s' * (number > 1)}",
    "features": name,
    "clips_per_class": number,
    "dimensions": arrays[0].shape[1],
    **{key: spread[key] for key in ("mean", "std", "ci95")},
    "per_draw": spread["per_seed"],
    "knn": float(np.mean([run["knn"] for run in runs])),
    "clips": float(np.mean([run["clips"] for run in runs])),
    "runs": runs,
    "tested": bootstrap.of_logits(
      bootstrap.design(tests, labels.ids, labels.groups),
      logits,
      [targets[test] for test in tests],
      labels.multi_label,
    ),
  }


def _with_neighbours(
  x, split: Split, drawn: list[np.ndarray], found: list[Drawn], job: recipe.Evaluation
) -> Iterator[tuple[Drawn, float]]:
  """Yields each of `found` with the score of its draw's nearest neighbours."""
  score, targets, test = score_of(job.labels), job.labels.targets, split.test
  near = []
  for rows in drawn:
    k = min(job.knn, len(rows))
    near.append(score(knn_scores(x[rows], targets[rows], x[test], k=k), targets[test]))
  for one in found:
    yield one, near[one.number]


def parts(few: Evaluation, folder: str) -> Iterator[evaluation.Part]:
  """Every kind of features."""
  for name, arrays in recipe.vectors(few.linear, folder):
    yield name, functools.partial(run_rows, name, arrays, few)


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Evaluates, prints the table and writes results.json and results.md into the workdir. Returns
  0."""
  evaluation.one_process("this evaluation")
  few = resolve(config)
  for sentence in shortages(few):
    log.warning("%s", sentence)
  return evaluation.frozen(
    few,
    workdir,
    free_keys=FREE_KEYS,
    allow_changes=allow_changed_config,
    parts=parts,
    results=_results,
  )


def shortages(few: Evaluation) -> list[str]:
  """A sentence for each number of clips that a class does not have."""
  counts, found = few.counts(), []
  for number in few.numbers:
    short = ((counts > 0) & (counts < number)).any(0)
    if short.any():
      least = int(counts[counts > 0].min())
      found.append(
        f"{number} clips: {int(short.sum())} of {counts.shape[1]} classes have fewer (the least "
        f"{least}); all of theirs are drawn."
      )
  if few.left_out:
    numbers = ", ".join(map(str, few.left_out))
    found.append(f"{numbers} clips: no class has more than {int(counts.max())}; left out.")
  return found


def _notes(few: Evaluation, rows: list[dict]) -> list[str]:
  labels: Labels = few.linear.labels
  notes = shortages(few)
  if labels.multi_label:
    sizes = {row["clips_per_class"]: row["clips"] for row in rows}
    drawn = ", ".join(f"{size:.0f} clips for {number}" for number, size in sizes.items())
    notes.append(f"Clips are drawn until every label has as many, the rarest first: {drawn}.")
  if few.linear.training.protocol == "exact":
    notes.append("The drawn clips choose the penalty; no other label is known.")
  else:
    valid = [len(split.valid) for split in few.linear.splits]
    notes.append(f"Besides the drawn clips, {min(valid)} validation clips choose the rate.")
  return notes


def _results(few: Evaluation, rows: list[dict]) -> dict:
  job, multi_label = few.linear, few.linear.labels.multi_label
  results = evaluation.results_of(
    job.record,
    job.model.config,
    data=evaluation.labelled_data(job.record, job.dataset, job.labels, job.splits),
    metric="mAP" if multi_label else "accuracy",
    published=[],
    chance=chance(job.labels.targets, job.splits, multi_label),
    rows=rows,
  )
  protocol = f"few labels, {job.training.protocol}"
  return {**results, "protocol": protocol, "notes": _notes(few, rows)}


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, data, divisions, and how many clips are drawn."""
  few = resolve(config)
  job = few.linear
  numbers = ", ".join(map(str, few.numbers))
  return [
    f"workdir     {evaluation.belongs(job.record, workdir, FREE_KEYS)}",
    describe_encoder(job.record["encoder"], job.encoder.config),
    *describe_labelled(job.dataset, job.labels, job.splits),
    f"draws       {few.draws} of {numbers} clips per class in each division, protocol "
    f"{job.training.protocol}",
    *[f"            {sentence}" for sentence in shortages(few)],
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/, predictions/",
  ]
