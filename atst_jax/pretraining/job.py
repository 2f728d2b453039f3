"""The job "pretrain": a config becomes a recipe; the loop gets what it needs by name."""

import contextlib
import functools
import math
import os

import jax
from ml_collections import ConfigDict

from atst_jax.artifacts import export
from atst_jax.data.dataset import Dataset
from atst_jax.method.train_step import TrainState
from atst_jax.objectives.registry import get_objective, name_of
from atst_jax.pretraining import initial, recipe
from atst_jax.pretraining.checks import check, is_ragged
from atst_jax.pretraining.loop import Report, loop
from atst_jax.pretraining.online import Online
from atst_jax.pretraining.recovery import Recovery
from atst_jax.runtime import trackers
from atst_jax.runtime.checkpoint import checkpoint_folder
from atst_jax.runtime.checkpoint_folder import newest_config, saved_steps
from atst_jax.runtime.mesh import make_mesh, process_rows, refuse_others
from atst_jax.runtime.session import open_session
from atst_jax.runtime.workdir import CONFIG, among, continuation, read_config, saved_step
from atst_jax.util import config as configs
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

# Keys and sections that may change between a run and its continuation: nothing that is computed
# depends on them. The data's fingerprint tells whether another path holds the same data.
FREE_KEYS = (
  "log.",
  "online.",
  "checkpoint.keep",
  "checkpoint.keep_every",
  "platform",
  "data.path",
  "initial",
  "data.reader",
  "data.threads",
  "guard.step_seconds",
  "guard.start_seconds",
)
# Those that may change too, and are named in a warning: the first five change how sums are rounded,
# the others which damaged clips are replaced, where the run may go back to, and when it ends.
# Not among them is compute.accumulation: every part of a batch draws its own dropout and stochastic
# depth, and has BatchNorm statistics of its own.
NAMED_KEYS = (
  "mesh.",
  "compute.remat",
  "compute.attention",
  "compute.kernels",
  "compute.resize",
  "data.max_damaged",
  "checkpoint.every_steps",
  "guard.rollbacks",
  "guard.collapse",
  "guard.narrow",
)
# Those that may differ between hosts: what a path leads to is compared, not the path.
HOST_KEYS = (*(key for key in FREE_KEYS if key != "online."), "online.path")
INIT_STREAM = 2**32 - 1  # folded into the seed for the initial parameters; steps count from 0


def settle(config: ConfigDict, begun: dict | None = None) -> tuple[ConfigDict, Dataset | None]:
  """The resolved and checked config, and its data. Raises UserError for a mistake in it, or if the
  processes of the job have different ones.

  Args:
    begun: of `recipe.resolve`.
  """
  dataset = Dataset.load(config.data.path) if config.data.source == "records" else None
  config = recipe.resolve(config, dataset, begun)
  check(config, dataset, jax.device_count(), jax.process_count())
  trackers.check(trackers.names(config.log))
  found = configs.flatten(configs.to_json(config))
  labelled = Dataset.described(config.online.path) if config.online.path else None
  evaluated = {s: labelled.fingerprint(s) for s in labelled.splits} if labelled else {}
  same = {key: value for key, value in found.items() if not among(key, HOST_KEYS)}
  refuse_others({**same, "online.path": evaluated})
  return config, dataset


def make_online(config: ConfigDict, mesh) -> Online | None:
  """The online evaluation of a resolved config, if it has one. Raises UserError as `Online`."""
  if not config.online.path:
    return None
  options = {**config.online.to_dict(), "network": config.online.network or config.export}
  settings = export.settings(configs.to_json(config))
  return Online(mesh, settings=settings, seed=config.seed, last_step=config.total_steps, **options)


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Trains until `total_steps` or until asked to stop.

  Returns:
    0 (done) or 75 (run the same command again).

  Raises:
    UserError: a mistake that can be mended.
    FloatingPointError: the run has diverged or collapsed.
  """
  begun = stored_config(workdir, config.checkpoint.folder) if config.initial else None
  config, dataset = settle(config, begun)
  mesh = make_mesh(**config.mesh)
  rows = process_rows(mesh, config.batch_size)
  online = make_online(config, mesh)
  stored = configs.to_json(config)
  with contextlib.ExitStack() as stack:
    session = stack.enter_context(
      open_session(
        workdir,
        folder=config.checkpoint.folder,
        config=stored,
        ignore=FREE_KEYS,
        named=NAMED_KEYS,
        allow_changes=allow_changed_config,
        stored=lambda: stored_config(workdir, config.checkpoint.folder),
        step_seconds=config.guard.step_seconds,
        start_seconds=config.guard.start_seconds,
        memory={
          "batch_size": config.batch_size,
          "remat": config.compute.remat,
          "fsdp": config.mesh.fsdp,
          "accumulation": config.compute.accumulation,
        },
      )
    )
    program = recipe.compile_for(config, mesh, ragged=is_ragged(config, dataset))
    read = functools.partial(recipe.batches, config, dataset, rows=rows)
    fresh = functools.partial(fresh_state, config, program)
    checkpoints = session.checkpoints(
      keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every
    )
    stack.enter_context(contextlib.closing(checkpoints))
    state = checkpoints.restore(program.state)
    if state is None:
      state = fresh()
    start = int(state.step)
    if 0 < start < config.total_steps and config.initial and not checkpoints.any_sound():
      initial.need(config)
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
    train_step = recipe.compile_step(program) if start < config.total_steps else None
    objective = get_objective(config)
    recovery = Recovery(
      workdir,
      checkpoints=checkpoints,
      abstract_state=program.state,
      fresh=fresh,
      read=read,
      outputs=objective.outputs,
      judged=objective.judged,
      patience=config.guard.patience,
      rollbacks=config.guard.rollbacks,
      collapse=config.guard.collapse,
      collapse_steps=config.guard.collapse_steps,
      narrow=config.guard.narrow,
      skipped=int(state.guard.skipped),
    )
    if start < config.total_steps:
      session.note_start(start)
    elif session.changes:
      log.warning("%s: all steps are done; nothing is trained with the other values", workdir)
    writer = session.writer(start, tracked={"names": trackers.names(config.log), "config": stored})
    stack.enter_context(contextlib.closing(writer))
    report = Report(
      writer,
      start,
      total_steps=config.total_steps,
      batch_size=config.batch_size,
      every_steps=config.log.every_steps,
    )
    session.stop.begin()
    code = loop(
      state,
      train_step=train_step,
      read=lambda step: read(start_step=step),
      mesh=mesh,
      total_steps=config.total_steps,
      save_every=config.checkpoint.every_steps,
      checkpoints=checkpoints,
      recovery=recovery,
      report=report,
      online=online,
      session=session,
    )
    del state
    session.watchdog.phase("end")
    checkpoints.reread(program.state)
    return code


def fresh_state(config: ConfigDict, program: recipe.Program) -> TrainState:
  """The state that a resolved config begins with."""
  state = program.init(
    jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), INIT_STREAM)
  )
  return initial.begin(state, initial.load(config)) if config.initial else state


def stored_config(workdir: str, folder: str | None) -> dict | None:
  """The config that the run's newest checkpoint was made with; None if there is no checkpoint.
  Checkpoints of older versions hold no config: the one beside them stands for it.

  Raises UserError if the run has checkpoints elsewhere, or had some that are not there: it would
  begin anew.
  """
  beside = read_config(workdir) if os.path.exists(os.path.join(workdir, CONFIG)) else None
  place = checkpoint_folder(workdir, folder)
  if saved_steps(place):
    if (config := newest_config(place)) is not None:
      return config
    return read_config(place) if storage.is_file(os.path.join(place, CONFIG)) else beside
  if beside is not None:
    before = (beside.get("checkpoint") or {}).get("folder")
    known = checkpoint_folder(workdir, before)
    if saved_steps(known):
      raise UserError(
        f"{workdir}: the checkpoints of this run lie in {known}, and {place} has none; copy them "
        "there, leave --config.checkpoint.folder as it was, or choose a new workdir"
      )
    if before and (saved := saved_step(workdir)):
      raise UserError(
        f"{storage.absolute(place)} holds no checkpoint, but this run has saved one at step "
        f"{saved}; mount or copy the folder, or choose a new workdir"
      )
  return None


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Data, devices, network, steps, memory and files of a pre-training."""
  stored = stored_config(workdir, config.checkpoint.folder)
  config, dataset = settle(config, stored)
  mesh = make_mesh(**config.mesh)
  process_rows(mesh, config.batch_size)
  make_online(config, mesh)
  ragged = is_ragged(config, dataset)
  state = recipe.compile_for(config, mesh, ragged=ragged).state
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  here = sum(
    x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state)
  )
  data = "synthetic noise"
  if dataset is not None:
    clips, split = dataset.num_clips(config.data.split), config.data.split
    epochs = config.total_steps * config.batch_size / clips
    data = (
      f"{dataset.root}, split {split}: {clips} clips in {len(dataset.shards(split))} shards, "
      f"front-end {dataset.frontend.name}; {epochs:.3g} epochs"
    )
  chosen = [key for key, name in trackers.names(config.log).items() if name]
  logs = ", ".join(["metrics.jsonl", "TensorBoard", *chosen])
  flop = recipe.clip_flops(config)
  folder = checkpoint_folder(workdir, config.checkpoint.folder)
  steps = saved_steps(folder)
  goes_on = f"; goes on from step {steps[-1]}" if steps else ""
  evaluates = "nothing while it trains (--config.online.path)"
  if config.online.path:
    evaluates = f"{config.online.path} every {config.online.every_steps} steps"
  teacher = f", teacher {count(state.teacher.params):,}" if state.teacher else ""
  begins = f"with the encoder {config.initial}" if config.initial else "with random parameters"
  axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  belongs = continuation(configs.to_json(config), workdir, FREE_KEYS, NAMED_KEYS, stored=stored)
  return [
    f"workdir     {belongs}{goes_on}",
    f"objective   {name_of(config)}",
    f"data        {data}",
    f"devices     {jax.device_count()} x {jax.devices()[0].device_kind}, mesh {axes}, "
    f"{config.dtype}",
    f"network     {count(state.params):,} parameters ({count(state.params['encoder']):,} of the "
    f"encoder){teacher}",
    f"begins      {begins}",
    f"steps       {config.total_steps} of {config.batch_size} clips "
    f"({config.batch_size // jax.device_count()} on a device), warm-up {config.warmup_steps}; "
    f"views of {config.views.crop_frames} frames{', some shorter' if ragged else ''}",
    f"work        {flop / 1e9:.3g} GFLOP per clip, "
    f"{flop * config.batch_size * config.total_steps / 1e18:.3g} EFLOP",
    f"memory      state {size / 2**20:.0f} MiB, {here / 2**20:.0f} MiB of it on a device; "
    "activations are known once it is compiled (`python -m atst_jax.benchmark step`, `…plan`)",
    f"writes      {folder}: {size / 2**20:.0f} MiB every {config.checkpoint.every_steps} steps, "
    f"{config.checkpoint.keep} kept; {workdir}: {logs} every {config.log.every_steps} steps",
    f"evaluates   {evaluates}",
  ]
