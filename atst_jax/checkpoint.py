"""Checkpoints of the train state, labelled by finished updates. The only user of Orbax."""

import os

import jax
import numpy as np
import orbax.checkpoint as ocp

from atst_jax import storage
from atst_jax.errors import UserError


def checkpoint_folder(workdir: str, folder: str | None) -> str:
  """Where a run's checkpoints lie: in its workdir, or in the folder its config names (`checkpoint.folder`)."""
  return folder or os.path.join(workdir, "checkpoints")


class Checkpoints:
  """Asynchronous checkpoints in a folder: the newest `keep`, and every one at a multiple of `keep_every` steps."""

  def __init__(self, folder, *, keep, keep_every):
    self._manager = ocp.CheckpointManager(
      storage.absolute(folder),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_every, cleanup_tmp_directories=True),
    )

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(self, step: int, state) -> None:
    """Starts a save; returns once the arrays are copied. A step that is already there is left alone."""
    if step != self.latest_step():
      self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

  def restore(self, step: int, abstract_state):
    """Restores onto the shapes and shardings of `abstract_state`. Raises UserError naming what does not fit."""
    try:
      return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
      raise UserError(
        f"checkpoint {step} in {self._manager.directory} cannot be restored into this model: {error}"
      ) from error

  def reached_preemption(self, step: int) -> bool:
    """Whether all processes have agreed to stop after this step (needs jax.distributed)."""
    return self._manager.reached_preemption(step)

  def close(self) -> None:
    """Waits for the save in progress."""
    self._manager.wait_until_finished()
    self._manager.close()


def save_tree(path, tree) -> None:
  """Saves a tree of arrays as a folder of its own, for export."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(storage.absolute(path), tree)


def restore_tree(path):
  """A saved tree as numpy arrays, on any devices. Raises UserError if it is not one."""
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      metadata = checkpointer.metadata(storage.absolute(path))
      metadata = getattr(metadata, "item_metadata", metadata)
      metadata = getattr(metadata, "tree", metadata)
      return checkpointer.restore(storage.absolute(path), jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata))
  except (ValueError, KeyError, TypeError, FileNotFoundError, AttributeError) as error:
    raise UserError(f"{path}: cannot be read as exported parameters ({error})") from error


def restore_like(path, expected):
  """A saved tree as numpy arrays, if its names, shapes and types are those of `expected`: known before memory is asked
  for, as the folder may come from anywhere. Raises UserError naming what differs."""
  path = storage.absolute(path)
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      metadata = checkpointer.metadata(path)
      metadata = getattr(metadata, "item_metadata", metadata)
      metadata = getattr(metadata, "tree", metadata)
      wanted, found = (
        {jax.tree_util.keystr(key): f"{tuple(x.shape)} {np.dtype(x.dtype)}" for key, x in
         jax.tree_util.tree_leaves_with_path(tree)} for tree in (expected, metadata))  # fmt: skip
      wrong = [key for key in sorted({*wanted, *found}) if wanted.get(key) != found.get(key)]
      if wrong:
        raise UserError(f"{path}: {len(wrong)} arrays are not those of the encoder in config.json, the first is "
                        f"{wrong[0]}: {found.get(wrong[0], 'absent')}, not {wanted.get(wrong[0], 'absent')}"
                        )  # fmt: skip
      return checkpointer.restore(path, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata))
  except UserError:
    raise
  except Exception as error:  # Orbax, TensorStore and their formats have too many of their own
    reason = " ".join(str(error).split())[:300]
    raise UserError(f"{path}: cannot be read as exported parameters ({type(error).__name__}: {reason})") from error


def restore_encoder(folder, step=None, *, network="teacher"):
  """The encoder of a checkpoint's teacher or student (the newest by default) as numpy arrays, and the step.

  Reads only that part of the state. Raises UserError if there is no checkpoint.
  """
  folder = storage.absolute(folder)
  with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
    steps = manager.all_steps()
  if not steps or (step is not None and step not in steps):
    raise UserError(f"{folder}: no checkpoint{'' if step is None else f' of step {step}'}; there are {sorted(steps)}")
  step = max(steps) if step is None else step
  path = os.path.join(folder, str(step), "default")
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    metadata = checkpointer.metadata(path)
    metadata = getattr(metadata, "item_metadata", metadata)
    state = getattr(metadata, "tree", metadata)
    tree = state["teacher"] if network == "teacher" else state
    part = {"params": {"encoder": tree["params"]["encoder"]}}
    if "encoder" in (tree["batch_stats"] or {}):
      part["batch_stats"] = {"encoder": tree["batch_stats"]["encoder"]}
    part = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), part)
    item = {"teacher": part} if network == "teacher" else part
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    restored = checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=item, restore_args=arguments,
                                                                      partial_restore=True))  # fmt: skip
  restored = restored["teacher"] if network == "teacher" else restored
  return {k: v["encoder"] for k, v in restored.items()}, step
