"""Fine-tuning: encoder and linear classifier trained together on a labelled set (ATST 3.2 and the
released code).

There is one run for every seed and division (fold). Its folder holds its metrics and its
checkpoints; the newest one has both the last parameters and those of the best validation score. A
stopped job goes on where it was, bit for bit, in whichever run.
"""

import os

import jax
import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts.folder import describe_encoder
from atst_jax.data.labelled_batches import steps_per_epoch
from atst_jax.downstream import bootstrap, evaluation
from atst_jax.downstream.evaluation import describe_labelled
from atst_jax.downstream.finetune.program import compile_for
from atst_jax.downstream.finetune.recipe import Recipe, resolve
from atst_jax.downstream.finetune.runner import Runner, Stopped
from atst_jax.downstream.metrics import chance, summary
from atst_jax.downstream.papers.published import published
from atst_jax.runtime.checkpoint import checkpoint_folder
from atst_jax.runtime.mesh import refuse_others
from atst_jax.runtime.preemption import EXIT_RESUME
from atst_jax.runtime.session import open_session
from atst_jax.runtime.workdir import among, continuation, read_config
from atst_jax.util import storage
from atst_jax.util.config import flatten
from atst_jax.util.logs import log

# Keys that may change between a run and its continuation: they do not change the computation.
FREE_KEYS = ("encoder", "data.path", "log.", "checkpoint.", "platform", "guard.")
# These may change too, with a warning: they change how sums are rounded.
NAMED_KEYS = ("compute.", "mesh.")
# Those that may differ between hosts: hashes say what lies there.
HOST_KEYS = ("encoder", "data.path", "log.", "platform")


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Trains, tests, prints the table and writes results.json and results.md. Returns 0, or 75: run
  the same again.

  Raises UserError for a mistake that can be mended, FloatingPointError when the loss is no longer a
  number.
  """
  recipe = resolve(config)
  told = flatten(recipe.record).items()
  refuse_others({key: value for key, value in told if not among(key, HOST_KEYS)})
  with open_session(
    workdir,
    folder=recipe.checkpoint["folder"],
    config=recipe.record,
    ignore=FREE_KEYS,
    named=NAMED_KEYS,
    allow_changes=allow_changed_config,
    stored=lambda: stored_config(workdir, recipe.checkpoint["folder"]),
    **recipe.guard,
    memory={
      "batch_size": recipe.batch_size,
      "remat": recipe.program["compute"]["remat"],
      "fsdp": recipe.record["mesh"]["fsdp"],
    },
  ) as session:
    program = compile_for(
      recipe.exported,
      recipe.encoder,
      recipe.mesh,
      frames=recipe.frames,
      n_mels=recipe.dataset.frontend.n_mels,
      classes=recipe.labels.targets.shape[1],
      multi_label=recipe.labels.multi_label,
      **recipe.program,
    )
    log.info(
      "%s: %d parameters on %d %s device(s), mesh %s, batch %d of %d frames, %d run(s)",
      workdir,
      sum(x.size for x in jax.tree.leaves(program.state.params)),
      recipe.mesh.size,
      jax.default_backend(),
      dict(recipe.mesh.shape),
      recipe.batch_size,
      recipe.frames,
      len(recipe.splits) * len(recipe.seeds),
    )
    runner, runs = Runner(recipe, program, session), []
    try:
      for seed in recipe.seeds:
        for fold, split in enumerate(recipe.splits):
          runs.append(runner.fit(seed, fold, split))
    except Stopped:
      return EXIT_RESUME
    if jax.process_index() == 0:
      rows = [row_of(recipe, which, [run[which] for run in runs]) for which in ("best", "last")]
      rows = [bootstrap.keep(workdir, row, f"{number}.npz") for number, row in enumerate(rows)]
      evaluation.write_results(workdir, _results(recipe, rows))
  return 0


def stored_config(workdir: str, folder: str | None) -> dict | None:
  """The config of a job's checkpoints; None if there are none."""
  if not any(n.startswith("seed") for n in storage.names(checkpoint_folder(workdir, folder))):
    return None
  return read_config(folder or workdir)


def row_of(recipe: Recipe, which: str, runs: list[dict]) -> dict:
  """The row of the epochs with the "best" validation score, or of the "last" ones, from the results
  of `Runner.fit`."""
  labels, tests = recipe.labels, [split.test for split in recipe.splits]
  by_seed = {seed: [run for run in runs if run["seed"] == seed] for seed in recipe.seeds}
  more = {}
  for key in ("valid", "epoch", "d_prime"):
    values = [run[key] for run in runs if key in run]
    if values:
      more[key] = float(np.mean(values)) if None not in values else None
  logits = [
    np.stack([found[fold]["logits"] for found in by_seed.values()]) for fold in range(len(tests))
  ]
  return {
    "name": f"{recipe.initial}, {which}",
    "features": recipe.initial,
    **summary([np.mean([run["score"] for run in found]) for found in by_seed.values()]),
    **more,
    "runs": [{key: value for key, value in run.items() if key != "logits"} for run in runs],
    "tested": bootstrap.of_logits(
      bootstrap.design(tests, labels.ids, labels.groups),
      logits,
      [labels.targets[test] for test in tests],
      labels.multi_label,
    ),
  }


def _results(recipe: Recipe, rows: list[dict]) -> dict:
  labels, name = recipe.labels, recipe.dataset.manifest["name"]
  return evaluation.results_of(
    recipe.record,
    recipe.exported,
    data=evaluation.labelled_data(recipe.record, recipe.dataset, labels, recipe.splits),
    metric="mAP" if labels.multi_label else "accuracy",
    published=published(recipe.record["protocol"], name),
    chance=chance(labels.targets, recipe.splits, labels.multi_label),
    rows=rows,
    selected_on_test=recipe.select_on_test,
  )


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, data, divisions, runs and their steps of a fine-tuning."""
  recipe = resolve(config)
  splits, seeds = recipe.splits, len(recipe.seeds)
  of_epoch = {steps_per_epoch(len(split.train), recipe.batch_size) for split in splits}
  steps = sorted(recipe.epochs * number for number in of_epoch)
  stored = stored_config(workdir, recipe.checkpoint["folder"])
  belongs = continuation(recipe.record, workdir, FREE_KEYS, NAMED_KEYS, stored=stored)
  return [
    f"workdir     {belongs}",
    describe_encoder(recipe.record["encoder"], recipe.exported),
    *describe_labelled(recipe.dataset, recipe.labels, splits),
    f"runs        {len(splits) * seeds}: {len(splits)} divisions x {seeds} seeds, {recipe.epochs} "
    f"epochs, {' to '.join(map(str, steps))} steps of {recipe.batch_size} clips of "
    f"{recipe.frames} frames each",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md; checkpoints in "
    f"{checkpoint_folder(workdir, recipe.checkpoint['folder'])}",
  ]
