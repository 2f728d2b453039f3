"""Pre-training: the loop around the train step."""

import datetime
import math
import os
import time

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all
from ml_collections import ConfigDict

from atst_jax.data.dataset import Dataset
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check, is_ragged
from atst_jax.pretraining.online import Online
from atst_jax.pretraining.recovery import Recovery, fresh_state
from atst_jax.runtime import devices, trackers
from atst_jax.runtime.checkpoint import Checkpoints, checkpoint_folder
from atst_jax.runtime.mesh import make_mesh, process_rows, put_batch
from atst_jax.runtime.metric_writer import MetricWriter
from atst_jax.runtime.preemption import EXIT_RESUME, StopRequest
from atst_jax.runtime.watchdog import Watchdog
from atst_jax.runtime.workdir import (
  CONFIG,
  continuation,
  keep_programs,
  own,
  read_config,
  record_start,
  saved_steps,
)
from atst_jax.util import config as configs
from atst_jax.util import storage
from atst_jax.util.logs import log, progress_bar

# Keys that may change between a run and its continuation: they do not enter what is computed.
FREE_KEYS = (
  "log.",
  "online.",
  "checkpoint.every_steps",
  "checkpoint.keep",
  "compute.",
  "mesh.",
  "platform",
  "data.path",
  "data.max_damaged",
  "data.threads",
  "guard.rollbacks",
  "guard.collapse",
  "guard.step_seconds",
  "guard.start_seconds",
)


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Trains until `total_steps` or until asked to stop. Returns 0 (done) or 75 (run the same command
  again).

  Raises UserError for a mistake that can be mended, FloatingPointError when the run has diverged or
  collapsed.
  """
  devices.check_platform(config.platform)
  dataset = Dataset.load(config.data.path) if config.data.source == "records" else None
  config = recipe.resolve(config, dataset)
  check(config, dataset, jax.device_count(), jax.process_count())
  mesh = make_mesh(**config.mesh)
  rows = process_rows(mesh, config.batch_size)
  trackers.check(trackers.names(config.log))
  online = Online(config, mesh) if config.online.path else None
  with (
    StopRequest(distributed=jax.process_count() > 1, starting=True) as stop,
    own(
      workdir,
      config.checkpoint.folder,
      configs.to_json(config),
      ignore=FREE_KEYS,
      allow_changes=allow_changed_config,
      started=lambda: has_checkpoints(config, workdir),
    ),
    Watchdog(
      workdir,
      index=jax.process_index(),
      step_seconds=config.guard.step_seconds,
      start_seconds=config.guard.start_seconds,
    ) as watchdog,
    devices.naming_memory(config),
  ):
    keep_programs(workdir)
    program = recipe.compile_for(config, mesh, ragged=is_ragged(config, dataset))
    checkpoints = Checkpoints(
      checkpoint_folder(workdir, config.checkpoint.folder),
      keep=config.checkpoint.keep,
      keep_every=config.checkpoint.keep_every,
    )
    state = checkpoints.restore(program.state)
    if state is None:
      state = fresh_state(config, program)
    start = int(state.step)
    log.info(
      "%s: %d parameters on %d %s device(s), mesh %s, batch %d, steps %d to %d",
      workdir,
      sum(x.size for x in jax.tree.leaves(program.state.params)),
      jax.device_count(),
      jax.default_backend(),
      dict(mesh.shape),
      config.batch_size,
      start,
      config.total_steps,
    )
    compiled = recipe.compile_step(program)
    read_from = lambda step: recipe.batches(config, dataset, start_step=step, rows=rows)
    recovery = Recovery(config, dataset, workdir, rows, program, checkpoints)
    writer = make_writer(config, workdir, start)
    stop.begin()
    try:
      code = loop(
        config,
        compiled,
        state,
        read_from,
        mesh,
        checkpoints,
        recovery,
        writer,
        online,
        stop,
        watchdog,
        start,
      )
      del state
      watchdog.phase("end")
      checkpoints.reread(program.state)
      return code
    finally:
      checkpoints.close()
      writer.close()


def make_writer(config, workdir, start) -> MetricWriter:
  """In process 0, where it also notes the start in the workdir, one that writes; a mute one in the
  others."""
  if jax.process_index():
    return MetricWriter(workdir, start_step=start, enabled=False)
  try:
    record_start(workdir, start)
  except OSError as error:
    log.warning("%s: the start cannot be noted (%s)", workdir, error.strerror)
  chosen = trackers.chosen(trackers.names(config.log), workdir, configs.to_json(config))
  return MetricWriter(workdir, start_step=start, trackers=chosen)


def has_checkpoints(config, workdir) -> bool:
  """Whether the run has begun: in its own folder of checkpoints, or in that of the config which the
  workdir holds."""
  folders = {checkpoint_folder(workdir, config.checkpoint.folder)}
  if os.path.exists(os.path.join(workdir, CONFIG)):
    folders.add(
      checkpoint_folder(workdir, (read_config(workdir).get("checkpoint") or {}).get("folder"))
    )
  return any(name.isdigit() for folder in folders for name in storage.names(folder))


def loop(
  config,
  train_step,
  state,
  read_from,
  mesh,
  checkpoints,
  recovery,
  writer,
  online,
  stop,
  watchdog,
  step,
) -> int:
  """Steps, logs and saves. The metrics of a step are fetched after the next one is dispatched."""
  report, source = Report(config, writer, online, watchdog, step), read_from(step)
  report.make_up(step, state)
  unseen = []  # (step, metrics) of steps that are dispatched and not yet looked at
  while step < config.total_steps:
    started = time.perf_counter()
    local = next(source)
    report.waited += time.perf_counter() - started
    state, metrics = train_step(state, put_batch(mesh, local))
    step += 1
    unseen.append((step, metrics))
    checkpoints.poll()
    stopping = stop.agreed()
    regular = step % config.checkpoint.every_steps == 0
    saving = stopping or regular or step == config.total_steps
    bad = None
    while len(unseen) > (0 if saving else 1) and not bad:
      finished = unseen.pop(0)
      report(*finished)
      watchdog.beat(finished[0])
      if recovery.needed(*finished):
        bad = finished
    if (
      saving
      and not bad
      and not checkpoints.save(step, state, sound=regular and int(metrics["bad"]) == 0)
    ):
      bad = step, metrics
    if bad:
      del state  # before another takes its memory
      watchdog.phase("going back")
      step, unseen = bad[0], []
      state = recovery.go_back(*bad)
      source.close()
      source = read_from(step)
      checkpoints.save(step, state, sound=False)
    if stopping and step < config.total_steps:
      break
    report.measure(step, state)
  source.close()
  report.bar.close()
  if step < config.total_steps:
    log.info(
      "stopped after step %d of %d; the same command continues it (exit code %d)",
      step,
      config.total_steps,
      EXIT_RESUME,
    )
    return EXIT_RESUME
  skipped = int(state.guard.skipped)
  log.info("done: %d steps%s", step, f", {skipped} of them without an update" if skipped else "")
  return 0


class Report:
  """Turns a step's metrics into log lines, and measures clips/s and the share of time spent waiting
  for data."""

  def __init__(self, config, writer, online, watchdog, step):
    self.config, self.writer, self.online, self.watchdog, self.waited = (
      config,
      writer,
      online,
      watchdog,
      0.0,
    )
    self.bar = progress_bar(config.total_steps, step, "step")
    self.last_step, self.last_time = step, time.perf_counter()

  def make_up(self, step, state):
    """Measures the step of the start, unless a start before has; process 0 knows."""
    known = self.writer.measured
    if jax.process_count() > 1:
      known = broadcast_one_to_all(np.int32(known))
    if not known:
      self.measure(step, state)

  def measure(self, step, state):
    """Writes what the online evaluation finds, if there is one and it is time; no part of the
    speed."""
    if self.online and self.online.due(step):
      self.watchdog.phase("online evaluation")
      values = self.online(step, state)
      if values:
        self.writer.write(step, values)
        self.last_time += values["online_seconds"]

  def __call__(self, step, metrics):
    """Blocks until the step is done, so that at most two steps are in flight."""
    jax.block_until_ready(metrics)
    self.bar.update(step - self.bar.n)
    if step % self.config.log.every_steps and step != self.config.total_steps:
      return
    now = time.perf_counter()
    seconds, steps = max(now - self.last_time, 1e-9), step - self.last_step
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    values["clips_per_second"] = self.config.batch_size * steps / seconds
    values["data_wait"] = self.waited / seconds
    values["eta_seconds"] = (self.config.total_steps - step) * seconds / steps
    self.last_step, self.last_time, self.waited = step, now, 0.0
    self.writer.write(step, values)
    terms = " ".join(
      f"{k.removeprefix('loss_')} {v:.4f}" for k, v in values.items() if k.startswith("loss")
    )
    log.info(
      "step %d/%d %s | lr %.3g wd %.3g ema %.5f grad %.3g | std %.4f/%.4f | %.1f clips/s wait %.1f%% eta %s",
      step,
      self.config.total_steps,
      terms,
      values["learning_rate"],
      values["weight_decay"],
      values["ema_decay"],
      values["grad_norm"],
      values["std_student"],
      values["std_teacher"],
      values["clips_per_second"],
      100 * values["data_wait"],
      datetime.timedelta(seconds=round(values["eta_seconds"])),
    )


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Data, devices, network, steps, memory and files of a pre-training."""
  dataset = Dataset.load(config.data.path) if config.data.source == "records" else None
  config = recipe.resolve(config, dataset)
  check(config, dataset, jax.device_count(), jax.process_count())
  mesh = make_mesh(**config.mesh)
  process_rows(mesh, config.batch_size)
  trackers.check(trackers.names(config.log))
  logs = ", ".join(
    ["metrics.jsonl", "TensorBoard", *(k for k, name in trackers.names(config.log).items() if name)]
  )
  online = Online(config, mesh) if config.online.path else None
  ragged = is_ragged(config, dataset)
  state = recipe.compile_for(config, mesh, ragged=ragged).state
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  here = sum(
    x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state)
  )
  if dataset is None:
    data = "synthetic noise"
  else:
    clips, split = dataset.num_clips(config.data.split), config.data.split
    epochs = config.total_steps * config.batch_size / clips
    data = (
      f"{dataset.root}, split {split}: {clips} clips in {len(dataset.shards(split))} shards, "
      f"front-end {dataset.frontend.name}; {epochs:.3g} epochs"
    )
  flop = recipe.clip_flops(config)
  folder = checkpoint_folder(workdir, config.checkpoint.folder)
  steps = saved_steps(folder)
  start = f"; goes on from step {steps[-1]}" if steps else ""
  per_device = config.batch_size // jax.device_count()
  return [
    f"workdir     {continuation(config, workdir, FREE_KEYS)}{start}",
    f"data        {data}",
    f"devices     {jax.device_count()} x {jax.devices()[0].device_kind}, mesh "
    f"{' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}, {config.dtype}",
    f"network     {count(state.params):,} parameters ({count(state.params['encoder']):,} of the encoder), "
    f"teacher {count(state.teacher.params):,}",
    f"steps       {config.total_steps} of {config.batch_size} clips ({per_device} on a device), warm-up "
    f"{config.warmup_steps}; views of {config.views.crop_frames} frames{', some shorter' if ragged else ''}",
    f"work        {flop / 1e9:.3g} GFLOP per clip, {flop * config.batch_size * config.total_steps / 1e18:.3g} EFLOP",
    f"memory      state {size / 2**20:.0f} MiB, {here / 2**20:.0f} MiB of it on a device; activations are known once "
    "it is compiled (`python -m atst_jax.benchmark step`, `…plan`)",
    f"writes      {folder}: {size / 2**20:.0f} MiB every {config.checkpoint.every_steps} steps, "
    f"{config.checkpoint.keep} kept; {workdir}: {logs} every {config.log.every_steps} steps",
    "evaluates   nothing while it trains (--config.online.path)"
    if online is None
    else f"evaluates   {config.online.path} every {config.online.every_steps} steps",
  ]
