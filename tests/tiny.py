"""A tiny run: the real config files with small numbers, and a tiny prepared dataset."""

import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import numpy as np

from atst_jax.audio.frontend import FRONTENDS
from atst_jax.data.dataset import SCHEMA_VERSION, Clip, write_json, write_shard
from atst_jax.method.subtraction import SECTIONS
from atst_jax.runtime.metric_writer import read_metrics
from atst_jax.util import config as configs

ROOT = pathlib.Path(__file__).parents[1]

OVERRIDES = {
  "data.source": "synthetic",
  "data.clip_frames": "64",
  "data.streams": "4",
  "data.shuffle_window": "5",
  "views.crop_frames": "32",
  "views.group": "2",
  "views.normalization.low": "-100",
  "views.normalization.high": "40",
  "encoder.width": "16",
  "encoder.depth": "2",
  "encoder.heads": "2",
  "encoder.max_frames": "64",
  "heads.hidden": "32",
  "heads.out": "8",
  "batch_size": "16",
  "total_steps": "6",
  "warmup_steps": "2",
  "optimizer.base_lr": "1e-2",
  "teacher.decay_start": "0.9",
  "log.every_steps": "1",
  "checkpoint.every_steps": "6",  # a save takes longer than these steps
}

# For a process of its own: the suite's flags without its eight devices.
ONE_DEVICE = {
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": re.sub(r"--xla_force_host_\S+", "", os.environ.get("XLA_FLAGS", "")).strip(),
}


def make_shallow(encoder) -> None:
  """Two blocks of a transformer, whose last one works for CLS alone, and one of other encoders
  stand for all."""
  if "depth" in encoder:
    encoder["depth"] = 2 if encoder["kind"] == "transformer" else 1


def _values(file, overrides):
  keys = configs.flatten(configs.load(str(ROOT / "configs" / file), SECTIONS))
  values = {k: v for k, v in OVERRIDES.items() if k in keys}
  if keys.get("optimizer.schedule") == "stairs":  # whose steps are longer than these runs
    values["warmup_steps"] = "0"
  return values | {k.replace("__", "."): v for k, v in overrides.items()}


def tiny_config(file="base.py", **overrides):
  """A config file made tiny; overrides are given with `__` for the dots. Keys that the file does
  not have are left."""
  config = configs.load(str(ROOT / "configs" / file), SECTIONS)
  for key, value in _values(file, overrides).items():
    configs.override(config, key, value)
  return config


def tiny_flags(file="base.py", **overrides):
  """The same as command-line flags of `atst_jax.main`."""
  return [
    f"--config={ROOT / 'configs' / file}",
    *[f"--config.{k}={v}" for k, v in _values(file, overrides).items()],
  ]


def job_flags(name, workdir, **values):
  """Flags of `atst_jax.main` for a config of `configs/`; values are given with `__` for dots."""
  return [
    f"--config={ROOT / 'configs' / name}.py",
    f"--workdir={workdir}",
    *[f"--config.{key.replace('__', '.')}={value}" for key, value in values.items()],
  ]


def write_dataset(
  root, *, shards=4, clips_per_shard=(7, 6, 5, 8), frames=(20, 90), seed=0, labels=0
):
  """A prepared dataset of noise: clip `s-i` of shard s; with `labels`, clip i has label i mod
  labels. Returns root."""
  rng = np.random.default_rng(seed)
  found = [[] for _ in range(shards)]
  for s, clips in enumerate(found):
    for i in range(clips_per_shard[s % len(clips_per_shard)]):
      length = int(rng.integers(frames[0], frames[1] + 1))
      mel = rng.normal(-30, 15, (length, 64)).astype(np.float16)
      label, fold = ((i % labels,), i % 3) if labels else ((), -1)
      clips.append(Clip(f"{s}-{i}", mel, label, fold=fold))
  names = [f"class {i}" for i in range(labels)]
  return write_shards(root, {"train": found}, name="tiny", names=names)


def write_shards(root, splits, *, name, names, frontend="atst"):
  """A prepared dataset of {split: clips of each of its shards}, with classes `names`. Returns
  root."""
  os.makedirs(root, exist_ok=True)
  entries = {}
  for split, shards in splits.items():
    written = []
    for i, clips in enumerate(shards):
      file = f"{split}-{i:05d}-of-{len(shards):05d}.tfrecord"
      shard = write_shard(os.path.join(root, file), (clip.encode() for clip in clips))
      sizes = {"num_clips": shard.num_clips, "num_bytes": shard.num_bytes}
      written.append({"file": file, **sizes, "sha256": shard.sha256})
    lengths = [len(clip.mel) for clips in shards for clip in clips]
    entries[split] = {
      "num_clips": len(lengths),
      "min_frames": min(lengths),
      "max_frames": max(lengths),
      "shards": written,
    }
  decibels = {"min": -100.0, "max": 40.0, "mean": -30.0, "std": 15.0}
  write_json(
    os.path.join(root, "dataset.json"),
    {
      "schema": SCHEMA_VERSION,
      "name": name,
      "frontend": FRONTENDS[frontend].to_json(),
      "splits": entries,
      "label_names": list(names),
      "multi_label": any(c.multi_label for shards in splits.values() for s in shards for c in s),
      "fold_names": [],
      "folds": [],
      "statistics": {**decibels, "log_mean": -7.0, "log_std": 3.0, "split": "train"},
    },
  )
  return str(root)


@contextlib.contextmanager
def running(arguments, *, program=("-m", "atst_jax.main"), env=None):
  """A process of `python PROGRAM ARGUMENTS`; whatever happens, it is ended and its pipe closed."""
  with subprocess.Popen(
    [sys.executable, *program, *arguments],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    try:
      yield process
    finally:
      process.kill()


@contextlib.contextmanager
def two_processes(arguments, *, devices=1, program=("-m", "atst_jax.main"), second=()):
  """Both processes of a job on this machine, each with so many CPU devices. `second`: arguments of
  the second alone."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  env = {
    **os.environ,
    **ONE_DEVICE,
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
  }
  arguments = [*arguments, f"--coordinator=localhost:{port}", "--num_processes=2"]
  with (
    running([*arguments, "--process_id=0"], program=program, env=env) as first,
    running([*arguments, *second, "--process_id=1"], program=program, env=env) as second,
  ):
    yield first, second


def wait_for_step(workdir, step: int, process) -> None:
  """Until the run has logged a step. Raises AssertionError with its output if it ends before."""
  deadline = time.time() + 240
  while time.time() < deadline and process.poll() is None:
    records = read_metrics(pathlib.Path(workdir) / "metrics.jsonl")
    if records and records[-1]["step"] >= step:
      return
    time.sleep(0.05)
  process.kill()
  raise AssertionError(f"step {step} was not reached: {process.communicate()[0]}")
