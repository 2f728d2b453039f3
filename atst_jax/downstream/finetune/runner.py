"""Runs of fine-tuning, one after the other: trained, or continued from a checkpoint, and tested."""

import contextlib
import datetime
import math
import time

import jax
import numpy as np

from atst_jax.data.labelled_batches import ClipReader, all_clips, steps_per_epoch, train_clips
from atst_jax.downstream.evaluation import score_of
from atst_jax.downstream.finetune.program import Program, learning_rates
from atst_jax.downstream.finetune.recipe import Recipe
from atst_jax.downstream.finetune.step import FinetuneState
from atst_jax.downstream.metrics import d_prime
from atst_jax.downstream.splits import Split
from atst_jax.models.encoders import fresh_variables, make_encoder
from atst_jax.runtime.mesh import process_rows, put_batch
from atst_jax.runtime.preemption import EXIT_RESUME
from atst_jax.runtime.session import Session
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log, progress_bar

INIT_STREAM = 2**32 - 1  # folded into the seed for the initial head; steps count from 0


class Stopped(Exception):
  """The job was asked to stop, and has saved."""


class Runner:
  """Fits one run after the other with the same compiled functions."""

  def __init__(self, recipe: Recipe, program: Program, session: Session):
    self.recipe, self.program, self.session = recipe, program, session
    self.mesh, self.labels, self.score = recipe.mesh, recipe.labels, score_of(recipe.labels)
    self.reader = ClipReader(recipe.dataset, recipe.frames)
    self.rows = process_rows(recipe.mesh, recipe.batch_size)

  def _beginning(self, seed: int):
    """The encoder's variables at the start: the exported ones, or fresh ones with `initial`
    "random"."""
    exported = self.recipe.exported
    if self.recipe.initial == "pre-trained":
      return self.recipe.encoder
    frames, n_mels = exported["chunk_frames"], exported["frontend"]["n_mels"]
    return fresh_variables(make_encoder(exported["encoder"]), frames, n_mels, seed)

  def fit(self, seed: int, fold: int, split: Split) -> dict[str, dict]:
    """Trains one run, or goes on with it, and tests it: for "best" and "last" a run of
    results.json, with the test clips' `logits`. Raises Stopped."""
    recipe, name = self.recipe, f"seed{seed}-division{fold}"
    self.session.watchdog.phase("start")
    steps = steps_per_epoch(len(split.train), recipe.batch_size)
    with contextlib.closing(
      self.session.checkpoints(name, keep=recipe.checkpoint["keep"])
    ) as checkpoints:
      state = checkpoints.restore(self.program.state)
      if state is None:
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), INIT_STREAM)
        state = self.program.init(key, self._beginning(seed))
      start = int(state.step)
      with contextlib.closing(self.session.writer(start, name)) as writer:
        state = self.train(state, start, steps, seed, split, checkpoints, writer, name)
    networks = {
      "best": (state.best.params, state.best.batch_stats),
      "last": (state.params, state.batch_stats),
    }
    epochs = {"best": int(state.best.epoch), "last": recipe.epochs}
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
        "learning_rate": recipe.schedule["base_lr"],
        "logits": logits,
      }
      if self.labels.multi_label:
        out[which] |= sensitivity(logits, targets)
    told = [f"{which} {run['score']:.4f} (epoch {run['epoch']})" for which, run in out.items()]
    log.info("%s: %s", name, ", ".join(told))
    return out

  def train(self, state, step, steps, seed, split, checkpoints, writer, name) -> FinetuneState:
    """Trains to the last epoch. The metrics of a step are fetched after the next one is
    dispatched."""
    recipe = self.recipe
    rates, total = learning_rates(steps, **recipe.schedule), recipe.epochs * steps
    clips = train_clips(
      split.train, batch_size=recipe.batch_size, seed=seed, start_step=step, rows=self.rows
    )
    source = self.reader.batches(clips, self.labels.targets)
    report, previous = TrainingLog(recipe, writer, name, total, step), None
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
      if not rest and (epoch % recipe.evaluate_every_epochs == 0 or step == total):
        refuse_nan(step, metrics)
        score = self.validate(state, split)
        writer.write(step, {"valid": score})
        log.info("%s: epoch %d/%d: validation %.4f", name, epoch, recipe.epochs, score)
        if np.float32(score) > float(state.best.score):
          state = self.program.keep_best(state, np.float32(score), np.int32(epoch))
      checkpoints.poll()
      stopping = self.session.stop.agreed()
      if stopping or step == total or (not rest and epoch % recipe.checkpoint["every_epochs"] == 0):
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
    """(M, C) logits of clips, in their order. Raises UserError with the first clip whose logits are
    not finite."""
    self.session.watchdog.phase("evaluation")
    clips = all_clips(index, batch_size=self.recipe.batch_size, rows=self.rows)
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


def sensitivity(logits: np.ndarray, targets: np.ndarray) -> dict[str, float | None]:
  """{"d_prime"} of several labels, None where it is infinite; {} if no label divides the clips."""
  if (targets.any(0) == targets.all(0)).all():
    return {}
  found = d_prime(logits, targets)
  return {"d_prime": found if math.isfinite(found) else None}


def refuse_nan(step, metrics):
  """Raises FloatingPointError if the step's loss or gradient is not finite."""
  values = {k: float(metrics[k]) for k in ("loss", "grad_norm")}
  if not all(map(math.isfinite, values.values())):
    raise FloatingPointError(
      f"step {step}: {values}; nothing is saved from here on. A lower optimizer.base_lr may "
      "help; `python -m data_pipeline.prepare verify` finds damaged clips"
    )


class TrainingLog:
  """Turns a step's metrics into log lines, and measures clips/s."""

  def __init__(self, recipe: Recipe, writer, name: str, total: int, step: int):
    self.recipe, self.writer, self.name, self.total = recipe, writer, name, total
    self.bar = progress_bar(total, step, "step")
    self.last_step, self.last_time = step, time.perf_counter()

  def __call__(self, step, metrics):
    """Blocks until the step is done, so that at most two steps are in flight."""
    jax.block_until_ready(metrics)
    self.bar.update(step - self.bar.n)
    if step % self.recipe.log_every_steps and step != self.total:
      return
    refuse_nan(step, metrics)
    now = time.perf_counter()
    seconds, steps = max(now - self.last_time, 1e-9), step - self.last_step
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    values["clips_per_second"] = self.recipe.batch_size * steps / seconds
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
