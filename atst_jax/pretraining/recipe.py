"""A pre-training config made concrete: filled in from the data, checked, and built into
functions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from atst_jax.audio.frontend import FRONTENDS, get_frontend
from atst_jax.data.dataset import Dataset
from atst_jax.data.input_pipeline import record_batches, synthetic_batches
from atst_jax.method.optimizer import make_optimizer
from atst_jax.method.train_step import TrainState
from atst_jax.models.encoders import make_encoder
from atst_jax.objectives.registry import check_sections, get_objective
from atst_jax.pretraining import initial
from atst_jax.pretraining.guard import guarded, init_guard
from atst_jax.runtime.devices import (
  DTYPES,
  compiler_options,
  precisely,
  resolve_dtype,
  resolve_fused,
)
from atst_jax.runtime.mesh import batch_sharding, replicated, state_shardings
from atst_jax.util.config import flatten
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

# Statistics of the synthetic source's noise, in dB and (log_) nepers.
SYNTHETIC = {"min": -100.0, "max": 40.0, "log_mean": -6.0, "log_std": 7.0}
CONSTANTS = {
  "min_max": {"low": "min", "high": "max"},
  "standard": {"mean": "log_mean", "std": "log_std"},
  "half_standard": {"mean": "log_mean", "std": "log_std"},
}


def resolve(config: ConfigDict, dataset: Dataset | None, begun: dict | None = None) -> ConfigDict:
  """Fills the placeholders of a pre-training config from the data: steps, normalisation,
  fingerprint.

  total_steps and warmup_steps follow from total_epochs and warmup_epochs unless they are set.
  `begun` is that of `initial.resolve`.

  Raises UserError where something is missing or does not fit the data.
  """
  config = config.copy_and_resolve_references()
  frontend = get_frontend(config.data.frontend)
  if dataset is not None:
    remedy, other = f"prepare it again with --frontend={frontend.name}", dataset.frontend.name
    if other in FRONTENDS and other != frontend.name:
      remedy += f" or set --config.data.frontend={other}"
    dataset.refuse_other(frontend, "data.frontend is", remedy)
    fingerprint = dataset.fingerprint(config.data.split)
    if config.data.fingerprint not in (None, fingerprint):
      raise UserError(
        f"--config.data.fingerprint={config.data.fingerprint}, but {dataset.root} has "
        f"{fingerprint}; leave it out"
      )
    config.data.fingerprint = fingerprint
  config.dtype = resolve_dtype(config.dtype)
  initial.resolve(config, begun)
  statistics = dataset.statistics if dataset else SYNTHETIC
  normalization = config.views.normalization
  for key, name in CONSTANTS.get(normalization.kind, {}).items():
    if key not in normalization:
      raise UserError(
        f"views.normalization has no {key!r}, which kind {normalization.kind!r} needs; start from "
        "a config of that kind (configs/base.py: min_max, configs/byola.py: standard, "
        "configs/ssast.py: half_standard)"
      )
    if normalization[key] is None:
      normalization[key] = float(statistics[name])
  clips = dataset.num_clips(config.data.split) if dataset else None
  for name in ("total", "warmup"):
    if config[f"{name}_steps"] is None:
      if clips is None or config[f"{name}_epochs"] is None:
        raise UserError(
          f"{name}_steps is not set and cannot follow from {name}_epochs="
          f"{config[f'{name}_epochs']} with the {config.data.source!r} source; set "
          f"--config.{name}_steps=…"
        )
      steps = config[f"{name}_epochs"] * clips / max(config.batch_size, 1)
      if not math.isfinite(steps):
        raise UserError(f"--config.{name}_epochs={config[f'{name}_epochs']}: must be finite")
      config[f"{name}_steps"] = round(steps)
    elif config[f"{name}_epochs"] is not None:
      log.info(
        "%s_steps=%d is set; %s_epochs=%s is not used",
        name,
        config[f"{name}_steps"],
        name,
        config[f"{name}_epochs"],
      )
    config[f"{name}_epochs"] = None
  return config


def build(config: ConfigDict, *, ragged: bool, fused: tuple[str, str] | None = None):
  """(init(key) -> state, train_step(state, batch) -> (state, metrics)) of a resolved config;
  nothing is compiled. `fused` is attention and kernels for devices that are not there."""
  objective = get_objective(config)
  attention, kernels = fused or resolve_fused(
    config.compute.attention,
    config.compute.kernels,
    dtype=config.dtype,
    unsuited=make_encoder(config.encoder).unsuited(),
  )
  tx, schedules = make_optimizer(
    total_steps=config.total_steps,
    warmup_steps=config.warmup_steps,
    batch_size=config.batch_size,
    **config.optimizer,
  )
  fresh, step = objective.build(
    tx=tx,
    schedules=schedules,
    n_mels=get_frontend(config.data.frontend).n_mels,
    ragged=ragged,
    dtype=DTYPES[config.dtype],
    attention=attention,
    kernels=kernels,
    remat=config.compute.remat,
  )
  guard = config.guard
  init = lambda key: fresh(key)._replace(guard=init_guard(guard.window))
  step = guarded(
    step,
    judged=objective.judged,
    warmup_steps=config.warmup_steps,
    outputs=objective.outputs,
    spike=guard.spike,
    collapse_std=guard.collapse_std,
    collapse_rank=guard.collapse_rank,
  )
  return precisely(init, config.dtype), precisely(step, config.dtype)


class Program(NamedTuple):
  """A resolved config's functions for a mesh, jitted; `state` and `batch` are abstract, with their
  shardings."""

  init: Callable  # (key) -> state
  step: Any  # jitted: (state, batch) -> (state, metrics); the state is donated
  state: TrainState
  batch: dict


def compile_for(
  config: ConfigDict, mesh: Mesh, *, ragged: bool, fused: tuple[str, str] | None = None
) -> Program:
  """What training runs; compiled when it is first called, or by `lower(…).compile()`, where the
  mesh's devices may be a described topology."""
  init, train_step = build(config, ragged=ragged, fused=fused)
  abstract = jax.eval_shape(init, jax.random.key(0))
  shardings, rows = state_shardings(mesh, abstract), batch_sharding(mesh)
  state = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
  )
  shape = (config.batch_size, config.data.clip_frames, get_frontend(config.data.frontend).n_mels)
  batch = {
    "mel": jax.ShapeDtypeStruct(shape, jnp.float16, sharding=rows),
    "length": jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=rows),
  }
  step = jax.jit(
    train_step,
    in_shardings=(shardings, rows),
    out_shardings=(shardings, replicated(mesh)),
    donate_argnums=0,
    compiler_options=compiler_options(mesh.devices.flat[0], config.dtype),
  )
  return Program(jax.jit(init, out_shardings=shardings), step, state, batch)


def compile_step(program: Program):
  """The compiled step. Unlike a jitted function it can not be compiled again: other shapes or types
  are a TypeError.

  Raises TypeError if a part of the state (teacher, optimizer, BatchNorm statistics) or a metric is
  not float32, where it would stop moving or lose what it adds up.
  """
  lowered = program.step.lower(program.state, program.batch)
  wrong = [
    f"{jax.tree_util.keystr(path)} is {x.dtype}"
    for path, x in jax.tree_util.tree_leaves_with_path(lowered.out_info)
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype != jnp.float32
  ]
  if wrong:
    raise TypeError(f"{len(wrong)} results of the step are not float32, the first: {wrong[0]}")
  return lowered.compile()


def batches(
  config: ConfigDict, dataset: Dataset | None, *, start_step: int, rows, with_ids: bool = False
):
  """The iterator of this process's rows, from `start_step` on, with the clips' ids if asked for."""
  common = {
    "clip_frames": config.data.clip_frames,
    "batch_size": config.batch_size,
    "seed": config.seed,
    "start_step": start_step,
    "rows": rows,
    "with_ids": with_ids,
  }
  if dataset is None:
    return synthetic_batches(n_mels=get_frontend(config.data.frontend).n_mels, **common)
  return record_batches(
    dataset,
    split=config.data.split,
    streams=config.data.streams,
    shuffle_window=config.data.shuffle_window,
    max_damaged=config.data.max_damaged,
    threads=config.data.threads,
    reader=config.data.reader,
    **common,
  )


def clip_flops(config) -> float:
  """Model FLOPs of one update per clip of the batch, of the config's objective."""
  check_sections(config, flatten(config))
  return get_objective(config).flops(get_frontend(config["data"]["frontend"]).n_mels)
