"""The speed of a config's train step, alone and with its input, in a steady state."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from atst_jax.audio.frontend import get_frontend
from atst_jax.data.dataset import MANIFEST, SCHEMA_VERSION, Clip, Dataset, write_json, write_shard
from atst_jax.performance.chips import CHIPS, find_chip
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check, is_ragged
from atst_jax.pretraining.recipe import clip_flops
from atst_jax.runtime.mesh import make_mesh, process_rows, put_batch
from atst_jax.util.errors import UserError

# Steps are timed in windows of at least this length; the device's queue is empty at both ends.
WINDOW_SECONDS = 1.0
WARM_UP = 3  # steps
STEPS = {"total_steps": 10_000, "warmup_steps": 1000}  # they do not change the speed


def resolved(config: ConfigDict, dataset: Dataset | None) -> ConfigDict:
  """The config as in training; with STEPS if its schedule follows from the data."""
  config = config.copy_and_resolve_references()
  for name, steps in STEPS.items():
    if config[name] is None:
      config[name] = steps
  return recipe.resolve(config, dataset)


def _prepare(config: ConfigDict, dataset: Dataset | None):
  """(resolved config, mesh, program)."""
  config = resolved(config, dataset)
  check(config, dataset, jax.device_count(), jax.process_count())
  mesh = make_mesh(**config.mesh)
  return config, mesh, recipe.compile_for(config, mesh, ragged=is_ragged(config, dataset))


def _windows(run: Callable[[int], None], repeats: int) -> list[float]:
  """Seconds per step in each of `repeats` windows; run(n) does n steps and waits for the last."""
  run(WARM_UP)
  started = time.perf_counter()
  run(1)
  steps = max(1, round(WINDOW_SECONDS / (time.perf_counter() - started)))
  seconds = []
  for _ in range(repeats):
    started = time.perf_counter()
    run(steps)
    seconds.append((time.perf_counter() - started) / steps)
  return seconds


def _memory(compiled) -> dict:
  """Bytes on one device: those that it has counted, or else those of the compiled step."""
  used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  analysis = compiled.memory_analysis()
  program = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
  return {
    "peak_memory_bytes": used or program,
    "peak_memory_is": "measured" if used else "of the compiled program",
  }


def _summary(config, seconds: list[float], compiled, peak: float | None) -> dict:
  middle = statistics.median(seconds)
  clips, flops = config.batch_size / middle, clip_flops(config)
  if peak is None and (chip := find_chip(jax.devices()[0].device_kind)):
    peak = CHIPS[chip].peak(config.dtype)
  return {
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "batch_size": config.batch_size,
    "dtype": config.dtype,
    "clips_per_second": clips,
    "ms_per_step": 1e3 * middle,
    "ms_per_step_best": 1e3 * min(seconds),
    "gflop_per_clip": flops / 1e9,
    "tflop_per_second": clips * flops / 1e12,
    "peak_tflops": peak / 1e12 if peak else None,
    "mfu": clips * flops / (peak * jax.device_count()) if peak else None,
    **_memory(compiled),
  }


def measure_step(config: ConfigDict, *, repeats: int, peak: float | None) -> dict:
  """Measures the whole train step, with views, on one batch of noise on the device."""
  config.data.source = "synthetic"
  config, mesh, program = _prepare(config, None)
  rows = process_rows(mesh, config.batch_size)
  batch = put_batch(mesh, next(recipe.batches(config, None, start_step=0, rows=rows)))
  state = program.init(jax.random.key(0))
  started = time.perf_counter()
  step = program.step.lower(state, batch).compile()
  compile_seconds = time.perf_counter() - started

  def run(steps):
    nonlocal state
    for _ in range(steps):
      state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))

  seconds = _windows(run, repeats)
  return {**_summary(config, seconds, step, peak), "compile_seconds": compile_seconds}


def write_noise(root: str, config: ConfigDict, clips: int) -> str:
  """Writes a prepared data set of noise, in place of the config's. Returns root."""
  frontend, rng = get_frontend(config.data.frontend), np.random.default_rng(0)
  mels = [
    rng.normal(-30, 15, (config.data.clip_frames, frontend.n_mels)).astype(np.float16)
    for _ in range(16)
  ]
  shards = config.data.streams
  written: list[dict] = []
  for i in range(shards):
    name = f"train-{i:05d}-of-{shards:05d}.tfrecord"
    part = (Clip(f"{i}-{k}", mels[k % len(mels)]).encode() for k in range(-(-clips // shards)))
    shard = write_shard(os.path.join(root, name), part)
    written.append(
      {
        "file": name,
        "num_clips": shard.num_clips,
        "num_bytes": shard.num_bytes,
        "sha256": shard.sha256,
      }
    )
  split = {
    "num_clips": sum(shard["num_clips"] for shard in written),
    "min_frames": config.data.clip_frames,
    "max_frames": config.data.clip_frames,
    "shards": written,
  }
  write_json(
    os.path.join(root, MANIFEST),
    {
      "schema": SCHEMA_VERSION,
      "name": "noise",
      "frontend": frontend.to_json(),
      "splits": {config.data.split: split},
      "label_names": [],
      "multi_label": False,
      "fold_names": [],
      "folds": [],
      "statistics": {**recipe.SYNTHETIC, "mean": -30.0, "std": 15.0, "split": config.data.split},
    },
  )
  return root


def open_or_write(config: ConfigDict, folder: str, clips: int) -> Dataset:
  """The config's data set, or noise in its place if `clips` is not 0. Raises UserError if there is
  neither."""
  if clips:
    config.data.path = write_noise(folder, config, clips)
  elif not os.path.isdir(config.data.path) and "://" not in config.data.path:
    raise UserError(
      f"{config.data.path} does not exist; set --config.data.path=DIR, or --clips=2048 to measure "
      "with that many clips of noise"
    )
  config.data.source = "records"
  return Dataset.load(config.data.path)


def measure_end_to_end(config: ConfigDict, *, repeats: int, clips: int, peak: float | None) -> dict:
  """Measures the trainer's loop without logs and checkpoints (read, transfer, step), and the share
  of time that waits for data."""
  with tempfile.TemporaryDirectory() as folder:
    dataset = open_or_write(config, folder, clips)
    config, mesh, program = _prepare(config, dataset)
    source = recipe.batches(
      config, dataset, start_step=0, rows=process_rows(mesh, config.batch_size)
    )
    state = program.init(jax.random.key(0))
    step = program.step.lower(state, put_batch(mesh, next(source))).compile()
    waited = []

    def run(steps):
      nonlocal state
      previous = None
      for _ in range(steps):
        started = time.perf_counter()
        local = next(source)
        waited.append(time.perf_counter() - started)
        state, metrics = step(state, put_batch(mesh, local))
        jax.block_until_ready(previous)  # at most two steps are in flight, as in training
        previous = metrics
      jax.block_until_ready((state, metrics))

    seconds = _windows(run, repeats)
    source.close()
    result = _summary(config, seconds, step, peak)
  measured = len(waited) - WARM_UP - 1
  total = sum(seconds) * measured / repeats
  return {
    **result,
    "data_wait": sum(waited[-measured:]) / total,
    "data": config.data.path if not clips else "noise",
  }
