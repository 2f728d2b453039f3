"""Pre-training: the loop around the train step."""

import functools
import os
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from atst_jax import config as configs
from atst_jax import train_step as method
from atst_jax.checkpoint import Checkpoints
from atst_jax.ema import ema
from atst_jax.errors import UserError
from atst_jax.frontend import get_frontend
from atst_jax.input_pipeline import check_streams, record_batches, synthetic_batches
from atst_jax.logs import MetricWriter, log, progress_bar
from atst_jax.mesh import batch_sharding, make_mesh, process_rows, put_batch, replicated, state_shardings
from atst_jax.optimizer import cosine_schedule, make_optimizer
from atst_jax.preemption import EXIT_RESUME, StopRequest
from atst_jax.records import Dataset
from atst_jax.workdir import agree, claim

# Keys that may change between a run and its continuation: they do not enter what is computed.
FREE_KEYS = ("log.", "checkpoint.", "mesh.", "platform", "data.path")
INIT_STREAM = 2**32 - 1  # folded into the seed for the initial parameters; steps count from 0
SYNTHETIC = {"min": -100.0, "max": 40.0}  # dB, the range of the synthetic source's noise


def resolve(config: ConfigDict, dataset: Dataset | None) -> ConfigDict:
  """Fills the placeholders of a pre-training config from the data: steps, normalisation, fingerprint.

  total_steps and warmup_steps follow from total_epochs and warmup_epochs unless they are set.

  Raises UserError where something is missing or does not fit the data.
  """
  config = config.copy_and_resolve_references()
  frontend = get_frontend(config.data.frontend)
  if dataset is not None:
    if dataset.frontend.hash != frontend.hash:
      raise UserError(
        f"{dataset.root} was prepared with the front-end {dataset.frontend.name!r} ({dataset.frontend.hash}), "
        f"data.frontend is {frontend.name!r} ({frontend.hash}); prepare it again with "
        f"--frontend={frontend.name} or set --config.data.frontend={dataset.frontend.name}"
      )
    config.data.fingerprint = dataset.fingerprint(config.data.split)
  statistics = dataset.statistics if dataset else SYNTHETIC
  for key, name in (("low", "min"), ("high", "max")):
    if config.views[key] is None:
      config.views[key] = float(statistics[name])
  clips = dataset.num_clips(config.data.split) if dataset else None
  for name in ("total", "warmup"):
    if config[f"{name}_steps"] is None:
      if clips is None or config[f"{name}_epochs"] is None:
        raise UserError(
          f"{name}_steps is not set and cannot follow from {name}_epochs="
          f"{config[f'{name}_epochs']} with the {config.data.source!r} source; set --config.{name}_steps=…"
        )
      config[f"{name}_steps"] = round(config[f"{name}_epochs"] * clips / config.batch_size)
  return config


def check(config: ConfigDict, dataset: Dataset | None, devices: int, processes: int) -> None:
  """Raises UserError for numbers that cannot work, before anything is compiled."""
  group, crop, encoder = config.views.group, config.views.crop_frames, config.encoder
  batch = config.batch_size
  if batch % devices:
    raise UserError(f"batch_size {batch} is not divisible by {devices} devices; use a multiple of {devices}")
  if group < 2 or batch // devices % group:
    raise UserError(f"views.group {group} must be at least 2 and divide the {batch // devices} clips of a device "
                    f"(batch_size {batch} on {devices} devices)")  # fmt: skip
  if not 1 < crop <= min(config.data.clip_frames, encoder.max_frames):
    raise UserError(f"views.crop_frames {crop} must be at most data.clip_frames {config.data.clip_frames} and "
                    f"encoder.max_frames {encoder.max_frames}")  # fmt: skip
  if encoder.width % encoder.heads:
    raise UserError(f"encoder.width {encoder.width} is not divisible by encoder.heads {encoder.heads}")
  choices = {"views.segments": (config.views.segments, ("two", "single")),
             "difference.mix_domain": (config.difference.mix_domain, ("normalized", "energy")),
             "encoder.kind": (encoder.kind, tuple(method.ENCODERS)), "dtype": (config.dtype, ("auto", *DTYPES)),
             "data.source": (config.data.source, ("records", "synthetic"))}  # fmt: skip
  for key, (value, allowed) in choices.items():
    if value not in allowed:
      raise UserError(f"--config.{key}={value}: choose one of {', '.join(allowed)}")
  ranges = {
    "difference.weight": (config.difference.weight, 0, 1),
    "views.mixup_ratio": (config.views.mixup_ratio, 0, 1),
    "difference.gamma_min": (config.difference.gamma_min, 0, config.difference.gamma_max),
    "difference.gamma_max": (config.difference.gamma_max, config.difference.gamma_min, 1),
    "teacher.decay_start": (config.teacher.decay_start, 0, 1),
    "encoder.drop_path": (encoder.drop_path, 0, 0.99),
    "warmup_steps": (config.warmup_steps, 0, config.total_steps),
    "total_steps": (config.total_steps, 1, 2**31),
  }
  for key, (value, low, high) in ranges.items():
    if not low <= value <= high:
      raise UserError(f"--config.{key}={value}: must lie between {low} and {high}")
  if dataset is not None:
    clips = dataset.num_clips(config.data.split)
    if clips < batch:
      raise UserError(f"{dataset.root} holds {clips} clips, less than one batch of {batch}; lower batch_size")
    shards = len(dataset.shards(config.data.split))
    check_streams(batch_size=batch, streams=config.data.streams, shards=shards, processes=processes)


DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(name: str):
  """`auto` is bfloat16 on accelerators and float32 on the CPU."""
  return DTYPES[name if name != "auto" else "float32" if jax.default_backend() == "cpu" else "bfloat16"]


def build(config: ConfigDict, *, ragged: bool):
  """(init(key) -> state, train_step(state, batch) -> (state, metrics)) of a resolved config; nothing is compiled."""
  network = method.make_network(
    encoder=config.encoder,
    heads=config.heads,
    joint_views=config.joint_views,
    difference_weight=config.difference.weight,
    dtype=compute_dtype(config.dtype),
  )
  tx, schedules = make_optimizer(total_steps=config.total_steps, warmup_steps=config.warmup_steps,
                                 batch_size=config.batch_size, **config.optimizer)  # fmt: skip
  decay = cosine_schedule(config.teacher.decay_start, config.teacher.decay_end, total_steps=config.total_steps)
  parts = {"network": network, "tx": tx, "teacher": ema(decay)}
  init = functools.partial(method.init_state, frames=config.views.crop_frames, group=config.views.group,
                           n_mels=get_frontend(config.data.frontend).n_mels, **parts)  # fmt: skip
  step = method.make_train_step(
    schedules={**schedules, "ema_decay": decay},
    seed=config.seed,
    ragged=ragged,
    views=config.views.to_dict(),
    difference=config.difference.to_dict(),
    **parts,
  )
  return init, step


def batches(config: ConfigDict, dataset: Dataset | None, *, start_step: int, rows):
  """The iterator of this process's rows, from `start_step` on."""
  common = {"clip_frames": config.data.clip_frames, "batch_size": config.batch_size, "seed": config.seed,
            "start_step": start_step, "rows": rows}  # fmt: skip
  if dataset is None:
    return synthetic_batches(n_mels=get_frontend(config.data.frontend).n_mels, **common)
  return record_batches(dataset, split=config.data.split, streams=config.data.streams,
                        shuffle_window=config.data.shuffle_window, **common)  # fmt: skip


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Trains until `total_steps` or until asked to stop. Returns 0 (done) or 75 (run the same command again)."""
  if config.platform != "auto" and jax.default_backend() != config.platform:
    raise UserError(f"platform {config.platform!r} is asked for, but JAX found {jax.default_backend()!r}; install JAX "
                    f"for it (pip install -e .[cuda] or .[tpu]) or set --config.platform=auto")  # fmt: skip
  dataset = Dataset.load(config.data.path) if config.data.source == "records" else None
  config = resolve(config, dataset)
  check(config, dataset, jax.device_count(), jax.process_count())
  mesh = make_mesh(**config.mesh)
  first = jax.process_index() == 0
  lock = claim(workdir) if first else None
  if first:
    agree(workdir, configs.to_json(config), ignore=FREE_KEYS, allow_changes=allow_changed_config)

  ragged = dataset is not None and dataset.min_frames(config.data.split) < config.views.crop_frames
  init, train_step = build(config, ragged=ragged)
  key = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
  abstract = jax.eval_shape(init, key)
  shardings = state_shardings(mesh, abstract)
  checkpoints = Checkpoints(os.path.join(workdir, "checkpoints"), keep=config.checkpoint.keep,
                            keep_every=config.checkpoint.keep_every)  # fmt: skip
  start = checkpoints.latest_step()
  if start is None:
    start, state = 0, jax.jit(init, out_shardings=shardings)(key)
  else:
    placed = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    state = checkpoints.restore(start, placed)
  parameters = sum(x.size for x in jax.tree.leaves(abstract.params))
  log.info(
    "%s: %d parameters on %d %s device(s), mesh %s, batch %d, steps %d to %d",
    workdir,
    parameters,
    jax.device_count(),
    jax.default_backend(),
    dict(mesh.shape),
    config.batch_size,
    start,
    config.total_steps,
  )

  compiled = jax.jit(train_step, in_shardings=(shardings, batch_sharding(mesh)),
                     out_shardings=(shardings, replicated(mesh)), donate_argnums=0)  # fmt: skip
  source = batches(config, dataset, start_step=start, rows=process_rows(mesh, config.batch_size))
  writer = MetricWriter(workdir, start_step=start, enabled=first)
  try:
    with StopRequest() as stop:
      code = loop(config, compiled, state, source, mesh, checkpoints, writer, stop, start)
  finally:
    checkpoints.close()
    writer.close()
    if lock:
      lock.close()
  return code


def loop(config, train_step, state, source, mesh, checkpoints, writer, stop, step) -> int:
  """Steps, logs and saves. The metrics of a step are fetched after the next one is dispatched."""
  distributed = jax.process_count() > 1
  report = Report(config, writer, step)
  previous = None
  while step < config.total_steps:
    started = time.perf_counter()
    local = next(source)
    report.waited += time.perf_counter() - started
    state, metrics = train_step(state, put_batch(mesh, local))
    if previous:
      report(*previous)
    step += 1
    previous = (step, metrics)
    stopping = checkpoints.reached_preemption(step) if distributed else stop.requested
    if stopping or step % config.checkpoint.every_steps == 0 or step == config.total_steps:
      checkpoints.save(step, state)
    if stopping:
      break
  if previous:
    report(*previous)
  report.bar.close()
  if step < config.total_steps:
    log.info("stopped after step %d of %d; the same command continues it (exit code %d)", step, config.total_steps,
             EXIT_RESUME)  # fmt: skip
    return EXIT_RESUME
  log.info("done: %d steps", step)
  return 0


class Report:
  """Turns a step's metrics into log lines, and measures clips/s and the share of time spent waiting for data."""

  def __init__(self, config, writer, step):
    self.config, self.writer, self.waited = config, writer, 0.0
    self.bar = progress_bar(config.total_steps, step, "step")
    self.last_step, self.last_time = step, time.perf_counter()

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
    terms = " ".join(f"{k.removeprefix('loss_')} {v:.4f}" for k, v in values.items() if k.startswith("loss"))
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
      time.strftime("%H:%M:%S", time.gmtime(values["eta_seconds"])),
    )
    if not values["loss"] == values["loss"]:
      raise FloatingPointError(f"the loss is NaN at step {step}; the last checkpoint is from before")
