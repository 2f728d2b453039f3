"""The loop around the train step: data in, metrics and checkpoints out."""

import datetime
import time

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from atst_jax.pretraining.online import Online
from atst_jax.pretraining.recovery import Recovery
from atst_jax.runtime.checkpoint import Checkpoints
from atst_jax.runtime.mesh import put_batch
from atst_jax.runtime.metric_writer import MetricWriter
from atst_jax.runtime.preemption import EXIT_RESUME
from atst_jax.runtime.session import Session
from atst_jax.util.logs import log, progress_bar

LOGGED = (  # metrics of a line, where a step has them: key, name and form
  ("learning_rate", "lr", ".3g"),
  ("weight_decay", "wd", ".3g"),
  ("ema_decay", "ema", ".5f"),
  ("grad_norm", "grad", ".3g"),
)


def loop(
  state,
  *,
  train_step,
  read,
  mesh,
  total_steps: int,
  save_every: int,
  checkpoints: Checkpoints,
  recovery: Recovery,
  report: "Report",
  online: Online | None,
  session: Session,
) -> int:
  """Steps, logs and saves until `total_steps`, or until the session is asked to stop.

  The metrics of a step are fetched after the next one is dispatched.

  Args:
    train_step: (state, batch) -> (state, metrics); the state is donated.
    read: (step) -> iterator of this process's batches from that step on.

  Returns:
    0 (done) or 75 (stopped).
  """
  step = report.last_step
  source, unseen = read(step), []  # (step, metrics) of steps that are not yet looked at
  if online and not _measured(report.writer):
    measure(online, step, state, report, session)
  while step < total_steps:
    started = time.perf_counter()
    local = next(source)
    report.waited += time.perf_counter() - started
    state, metrics = train_step(state, put_batch(mesh, local))
    step += 1
    unseen.append((step, metrics))
    checkpoints.poll()
    stopping = session.stop.agreed()
    regular = step % save_every == 0
    saving = stopping or regular or step == total_steps
    measuring = online is not None and online.due(step)
    bad = None
    # A rollback at a step that is measured comes before, or it would be measured twice.
    while len(unseen) > (0 if saving or measuring else 1) and not bad:
      finished = unseen.pop(0)
      report(*finished)
      session.watchdog.beat(finished[0])
      if recovery.needed(*finished):
        bad = finished
    if saving and not bad:
      sound = regular and recovery.is_sound(metrics)
      if not checkpoints.save(step, state, sound=sound):
        bad = step, metrics
    if bad:
      del state  # before another takes its memory
      session.watchdog.phase("going back")
      step, unseen = bad[0], []
      state = recovery.go_back(*bad)
      source.close()
      source = read(step)
      checkpoints.save(step, state, sound=False)
    if stopping and step < total_steps:
      break
    if online:
      measure(online, step, state, report, session)
  source.close()
  report.bar.close()
  if step < total_steps:
    log.info(
      "stopped after step %d of %d; the same command continues it (exit code %d)",
      step,
      total_steps,
      EXIT_RESUME,
    )
    return EXIT_RESUME
  skipped = int(state.guard.skipped)
  log.info("done: %d steps%s", step, f", {skipped} of them without an update" if skipped else "")
  return 0


def _measured(writer: MetricWriter) -> bool:
  """Whether an earlier start has measured the step of this one; process 0 knows."""
  if jax.process_count() > 1:
    return bool(broadcast_one_to_all(np.int32(writer.measured)))
  return writer.measured


def measure(online: Online, step: int, state, report: "Report", session: Session) -> None:
  """Writes what the online evaluation finds, if it is time; that is no part of the speed."""
  if not online.due(step):
    return
  session.watchdog.phase("online evaluation")
  values = online(step, state)
  if values:
    report.writer.write(step, values)
    report.last_time += values["online_seconds"]


class Report:
  """Turns a step's metrics into log lines and metrics.

  It measures clips/s, and the share of time spent waiting for data, which the loop adds to
  `waited`.
  """

  def __init__(
    self, writer: MetricWriter, step: int, *, total_steps: int, batch_size: int, every_steps: int
  ):
    self.writer, self.waited = writer, 0.0
    self._total_steps, self._batch_size, self._every_steps = total_steps, batch_size, every_steps
    self.bar = progress_bar(total_steps, step, "step")
    self.last_step, self.last_time = step, time.perf_counter()

  def __call__(self, step: int, metrics) -> None:
    """Blocks until the step is done, so that at most two steps are in flight."""
    jax.block_until_ready(metrics)
    self.bar.update(step - self.bar.n)
    if step % self._every_steps and step != self._total_steps:
      return
    now = time.perf_counter()
    seconds, steps = max(now - self.last_time, 1e-9), step - self.last_step
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    values["clips_per_second"] = self._batch_size * steps / seconds
    values["data_wait"] = self.waited / seconds
    values["eta_seconds"] = (self._total_steps - step) * seconds / steps
    self.last_step, self.last_time, self.waited = step, now, 0.0
    self.writer.write(step, values)
    if not self.bar.disable:  # the rest stands in metrics.jsonl
      self.bar.set_postfix(loss=f"{values['loss']:.4f}", std=f"{values['std_student']:.4f}")
      return
    losses = [(k.removeprefix("loss_"), v) for k, v in values.items() if k.startswith("loss")]
    shown = lambda keys: " ".join(
      f"{name} {values[key]:{form}}" for key, name, form in keys if key in values
    )
    spread = [f"{values[key]:.4f}" for key in ("std_student", "std_teacher") if key in values]
    log.info(
      "step %d/%d %s | %s | std %s | %.1f clips/s wait %.1f%% eta %s",
      step,
      self._total_steps,
      " ".join(f"{name} {value:.4f}" for name, value in losses),
      shown(LOGGED),
      "/".join(spread),
      values["clips_per_second"],
      100 * values["data_wait"],
      datetime.timedelta(seconds=round(values["eta_seconds"])),
    )
