"""Fine-tuning: encoder and linear classifier trained together on a labelled set (ATST 3.2 and the
released code).

One run for every seed and division (fold), each in a folder of its own: its checkpoints, of which
the newest holds both the last parameters and those that the validation clips liked best, and its
metrics. A job that was stopped goes on where it was, bit for bit, whatever run that was in.
"""

import contextlib
import datetime
import math
import os
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts.folder import describe_encoder, read
from atst_jax.data.dataset import Dataset
from atst_jax.data.labelled_batches import ClipReader, all_clips, steps_per_epoch, train_clips
from atst_jax.downstream import features
from atst_jax.downstream.evaluation import (
  describe_labelled,
  divide,
  results_of,
  score_of,
  write_results,
)
from atst_jax.downstream.finetune import recipe
from atst_jax.downstream.finetune.step import FinetuneState
from atst_jax.downstream.metrics import d_prime, summary
from atst_jax.downstream.splits import Split
from atst_jax.models.encoders import make_encoder
from atst_jax.runtime.checkpoint import checkpoint_folder
from atst_jax.runtime.devices import check_platform
from atst_jax.runtime.mesh import make_mesh, process_rows, put_batch
from atst_jax.runtime.preemption import EXIT_RESUME
from atst_jax.runtime.session import Session, open_session
from atst_jax.runtime.workdir import continuation, read_config
from atst_jax.util import config as configs
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log, progress_bar

# Keys that may change between a run and its continuation: they do not enter what is computed.
FREE_KEYS = ("encoder", "data.path", "log.", "checkpoint.", "platform", "guard.")
# Those that may change too, and are named in a warning: they change how sums are rounded.
NAMED_KEYS = ("compute.", "mesh.")
INIT_STREAM = 2**32 - 1  # folded into the seed for the initial head; steps count from 0


class Stopped(Exception):
  """The job was asked to stop, and has saved."""


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Trains, tests, prints the table and writes results.json and results.md. Returns 0, or 75: run
  the same again.

  Raises UserError for a mistake that can be mended, FloatingPointError when the loss is no longer a
  number.
  """
  check_platform(config.platform)
  exported, encoder, _ = read(config.encoder)
  dataset = Dataset.load(config.data.path)
  mesh = make_mesh(**config.mesh)
  config = recipe.resolve(config, exported, dataset, mesh.size)
  labels = features.read_labels(dataset)
  splits = divide(config, dataset, labels)
  for split in splits:
    steps_per_epoch(len(split.train), config.batch_size)
  frames = recipe.clip_frames(config, dataset)
  folder = checkpoint_folder(workdir, config.checkpoint.folder)
  with open_session(
    workdir,
    folder=config.checkpoint.folder,
    config=configs.to_json(config),
    ignore=FREE_KEYS,
    named=NAMED_KEYS,
    allow_changes=allow_changed_config,
    stored=lambda: (
      read_config(config.checkpoint.folder or workdir)
      if any(name.startswith("seed") for name in storage.names(folder))
      else None
    ),
    starting=True,
    step_seconds=config.guard.step_seconds,
    start_seconds=config.guard.start_seconds,
    memory={
      "batch_size": config.batch_size,
      "remat": config.compute.remat,
      "fsdp": config.mesh.fsdp,
    },
  ) as session:
    program = recipe.compile_for(
      config, exported, encoder, mesh, frames=frames, labels=labels, n_mels=dataset.frontend.n_mels
    )
    log.info(
      "%s: %d parameters on %d %s device(s), mesh %s, batch %d of %d frames, %d run(s)",
      workdir,
      sum(x.size for x in jax.tree.leaves(program.state.params)),
      mesh.size,
      jax.default_backend(),
      dict(mesh.shape),
      config.batch_size,
      frames,
      len(splits) * config.seeds,
    )
    reader, runs = ClipReader(dataset, frames), []
    runner = Runner(config, program, mesh, reader, labels, session)
    try:
      for seed in range(config.seed, config.seed + config.seeds):
        for fold, split in enumerate(splits):
          runs.append(runner.fit(beginning(config, exported, encoder, seed), seed, fold, split))
    except Stopped:
      return EXIT_RESUME
    if jax.process_index() == 0:
      results = results_of(config, exported, dataset, labels, splits, rows_of(config, runs))
      write_results(workdir, results)
  return 0


def beginning(config: ConfigDict, exported: dict, encoder, seed: int):
  """The encoder's variables that training starts from: the exported ones, or under `initial`
  "random" fresh ones."""
  if config.initial == "pre-trained":
    return encoder
  noise = np.zeros((1, exported["chunk_frames"], exported["frontend"]["n_mels"]), np.float32)
  return jax.jit(make_encoder(exported["encoder"]).init)(
    jax.random.key(seed, impl="threefry2x32"), noise
  )


def rows_of(config: ConfigDict, runs: list[dict[str, dict]]) -> list[dict]:
  """The rows of results.json: the epochs that validation liked best, and the last ones."""
  rows = []
  for which in ("best", "last"):
    found = [run[which] for run in runs]
    seeds = sorted({run["seed"] for run in found})
    scores = [np.mean([run["score"] for run in found if run["seed"] == seed]) for seed in seeds]
    more = {}
    for key in ("valid", "epoch", "d_prime"):
      values = [run[key] for run in found if key in run]
      if values:
        more[key] = float(np.mean(values)) if None not in values else None
    rows.append(
      {
        "name": f"{config.initial}, {which}",
        "features": config.initial,
        **summary(scores),
        **more,
        "runs": found,
      }
    )
  return rows


class Runner:
  """Fits one run after the other with the same compiled functions."""

  def __init__(self, config, program, mesh, reader, labels, session: Session):
    self.config, self.program, self.mesh, self.session = config, program, mesh, session
    self.reader, self.labels, self.score = reader, labels, score_of(labels)
    self.rows = process_rows(mesh, config.batch_size)

  def fit(self, encoder, seed: int, fold: int, split: Split) -> dict[str, dict]:
    """Trains one run, or goes on with it, and tests it: what `rows_of` takes. Raises Stopped."""
    config, name = self.config, f"seed{seed}-division{fold}"
    self.session.watchdog.phase("start")
    steps = steps_per_epoch(len(split.train), config.batch_size)
    with contextlib.closing(
      self.session.checkpoints(name, keep=config.checkpoint.keep)
    ) as checkpoints:
      state = checkpoints.restore(self.program.state)
      if state is None:
        state = self.program.init(
          jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), INIT_STREAM), encoder
        )
      start = int(state.step)
      with contextlib.closing(self.session.writer(start, name)) as writer:
        state = self.train(state, start, steps, seed, split, checkpoints, writer, name)
    networks = {
      "best": (state.best.params, state.best.batch_stats),
      "last": (state.params, state.batch_stats),
    }
    epochs = {"best": int(state.best.epoch), "last": round(config.epochs)}
    targets = self.labels.targets[split.test]
    out = {}
    for which, network in networks.items():
      logits = self.predict(*network, split.test)
      valid = float(state.best.score) if which == "best" else self.validate(state, split)
      out[which] = {
        "seed": seed,
        "fold": fold,
        "score": self.score(logits, targets),
        "valid": valid,
        "epoch": epochs[which],
        "learning_rate": config.optimizer.base_lr,
      }
      if self.labels.multi_label:
        measure = d_prime(logits, targets)
        out[which]["d_prime"] = measure if math.isfinite(measure) else None
    told = [f"{which} {run['score']:.4f} (epoch {run['epoch']})" for which, run in out.items()]
    log.info("%s: %s", name, ", ".join(told))
    return out

  def train(self, state, step, steps, seed, split, checkpoints, writer, name) -> FinetuneState:
    """Goes on to the last epoch. The metrics of a step are fetched after the next one is
    dispatched."""
    config = self.config
    rates, total = recipe.learning_rates(config, steps), round(config.epochs) * steps
    clips = train_clips(
      split.train, batch_size=config.batch_size, seed=seed, start_step=step, rows=self.rows
    )
    source = self.reader.batches(clips, self.labels.targets)
    report, previous = Report(config, writer, name, total, step), None
    while step < total:
      state, metrics = self.program.step(
        state, put_batch(self.mesh, next(source)), rates[step], np.uint32(seed)
      )
      self.session.stop.begin()  # the step is compiled now
      if previous:
        report(*previous)
        self.session.watchdog.beat(previous[0])
      previous = (step + 1, metrics | {"learning_rate": rates[step]})
      step += 1
      epoch, rest = divmod(step, steps)
      if not rest and (epoch % config.evaluate_every_epochs == 0 or step == total):
        refuse_nan(step, metrics)
        score = self.validate(state, split)
        writer.write(step, {"valid": score})
        log.info("%s: epoch %d/%d: validation %.4f", name, epoch, round(config.epochs), score)
        if np.float32(score) > float(state.best.score):
          state = self.program.keep_best(state, np.float32(score), np.int32(epoch))
      checkpoints.poll()
      stopping = self.session.stop.agreed()
      if stopping or step == total or (not rest and epoch % config.checkpoint.every_epochs == 0):
        refuse_nan(step, metrics)  # a state that is not finite must never replace a good checkpoint
        if not checkpoints.save(step, state, sound=True):
          raise FloatingPointError(
            f"step {step}: the state is not finite; a lower optimizer.base_lr may help"
          )
      if stopping and step < total:
        report(*previous)
        log.info(
          "%s: stopped after step %d of %d; the same command continues it (exit code %d)",
          name,
          step,
          total,
          EXIT_RESUME,
        )
        raise Stopped
    if previous:
      report(*previous)
    report.bar.close()
    source.close()
    return state

  def validate(self, state, split) -> float:
    """The score (0 to 1) of the split's validation clips, by the state's parameters. Raises
    UserError as `predict`."""
    return self.score(
      self.predict(state.params, state.batch_stats, split.valid), self.labels.targets[split.valid]
    )

  def predict(self, params, batch_stats, index) -> np.ndarray:
    """(M, C) logits of clips, in their order. Raises UserError naming the first whose logits are
    not finite."""
    self.session.watchdog.phase("evaluation")
    clips = all_clips(index, batch_size=self.config.batch_size, rows=self.rows)
    parts = [
      np.asarray(self.program.predict(params, batch_stats, put_batch(self.mesh, batch)))
      for batch in self.reader.batches(clips, self.labels.targets)
    ]
    logits = np.concatenate(parts)[: len(index)]
    bad = np.flatnonzero(~np.isfinite(logits).all(-1))
    if len(bad):
      raise UserError(
        f"the logits of {len(bad)} of {len(index)} clips are NaN or infinite, the first is of "
        f"{self.labels.ids[index[bad[0]]]!r}; check the data with `python -m data_pipeline.prepare "
        "verify`"
      )
    return logits


def refuse_nan(step, metrics):
  """Raises FloatingPointError if the step's loss or gradient is not finite."""
  values = {k: float(metrics[k]) for k in ("loss", "grad_norm")}
  if not all(map(math.isfinite, values.values())):
    raise FloatingPointError(
      f"step {step}: {values}; nothing is saved from here on. A lower optimizer.base_lr may "
      "help; `python -m data_pipeline.prepare verify` finds damaged clips"
    )


class Report:
  """Turns a step's metrics into log lines, and measures clips/s."""

  def __init__(self, config, writer, name, total, step):
    self.config, self.writer, self.name, self.total = config, writer, name, total
    self.bar = progress_bar(total, step, "step")
    self.last_step, self.last_time = step, time.perf_counter()

  def __call__(self, step, metrics):
    """Blocks until the step is done, so that at most two steps are in flight."""
    jax.block_until_ready(metrics)
    self.bar.update(step - self.bar.n)
    if step % self.config.log.every_steps and step != self.total:
      return
    refuse_nan(step, metrics)
    now = time.perf_counter()
    seconds, steps = max(now - self.last_time, 1e-9), step - self.last_step
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    values["clips_per_second"] = self.config.batch_size * steps / seconds
    eta = (self.total - step) * seconds / steps
    self.last_step, self.last_time = step, now
    self.writer.write(step, values)
    log.info(
      "%s: step %d/%d loss %.4f | lr %.3g grad %.3g | %.1f clips/s eta %s",
      self.name,
      step,
      self.total,
      values["loss"],
      values["learning_rate"],
      values["grad_norm"],
      values["clips_per_second"],
      datetime.timedelta(seconds=round(eta)),
    )


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, data, divisions, runs and their steps of a fine-tuning."""
  check_platform(config.platform)
  exported, _, _ = read(config.encoder)
  dataset = Dataset.load(config.data.path)
  config = recipe.resolve(config, exported, dataset, jax.device_count())
  splits, lines = describe_labelled(config, dataset)
  steps = sorted(
    {
      round(config.epochs) * steps_per_epoch(len(split.train), config.batch_size)
      for split in splits
    }
  )
  return [
    f"workdir     {continuation(configs.to_json(config), workdir, FREE_KEYS, NAMED_KEYS)}",
    describe_encoder(config.encoder, exported),
    *lines,
    f"runs        {len(splits) * config.seeds}: {len(splits)} divisions x {config.seeds} seeds, {config.epochs} "
    f"epochs, {' to '.join(map(str, steps))} steps of {config.batch_size} clips of "
    f"{recipe.clip_frames(config, dataset)} frames each",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md; checkpoints in "
    f"{checkpoint_folder(workdir, config.checkpoint.folder)}",
  ]
