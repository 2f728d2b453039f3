"""Checkpoints of the train state, labelled by the step. The only user of Orbax."""

import asyncio
import os
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src import asyncio_utils

from atst_jax.runtime import checksums
from atst_jax.runtime.checkpoint_folder import Shelf, entries, listed, newest_good
from atst_jax.runtime.checksums import fetch, fingerprint
from atst_jax.runtime.mesh import from_process_zero
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError
from atst_jax.util.logs import log

ITEM = "default"


def _run_to_the_end(coroutine):
  """Runs a coroutine in an event loop of its own, and everything that it has started.

  Orbax (0.12.8) writes arrays side by side with `asyncio.gather`. When one of them fails, on a
  full disk for example, its own function closes the loop while TensorStore still writes the
  others. Each of those then reports to a closed loop, from a thread of TensorStore: "Exception
  ignored in …: RuntimeError: Event loop is closed". This one waits for them first, so that
  nothing runs any longer when a save has failed.
  """
  loop = asyncio.new_event_loop()
  asyncio.set_event_loop(loop)
  try:
    return loop.run_until_complete(coroutine)
  except BaseException:
    while running := asyncio.all_tasks(loop):
      loop.run_until_complete(asyncio.gather(*running, return_exceptions=True))
    raise
  finally:
    asyncio.set_event_loop(None)
    loop.close()


asyncio_utils._run_sync_via_new_loop = _run_to_the_end


def checkpoint_folder(workdir: str, folder: str | None) -> str:
  """Where a run's checkpoints lie: in its workdir, or in the folder its config names
  (`checkpoint.folder`)."""
  return folder or os.path.join(workdir, "checkpoints")


class Checkpoints:
  """Asynchronous checkpoints that prove themselves, each in a folder named by its step.

  A checkpoint counts once its manifest is there (`checkpoint_folder`), which is written when the
  save has ended. It is used only if every file agrees with the manifest, and every array that was
  read with its mark (`fingerprint`). Older ones are removed after a newer one has been proved: at
  every instant one good checkpoint is there.

  Kept are the newest one, the newest `keep` sound ones, and every one at a multiple of `keep_every`
  steps. Sound are those the training may fall back to (`save`).
  """

  def __init__(self, folder: str, *, keep: int, keep_every: int):
    self.folder = storage.absolute(folder)
    self._shelf = Shelf(self.folder)
    self._keep, self._keep_every = keep, keep_every
    self._checkpointer = ocp.StandardCheckpointer()
    self._prover = ThreadPoolExecutor(1, "checkpoint")
    self._proving: Future | None = None  # of the save in progress
    self._last: int | None = None  # saved or restored
    self._unread = False  # whether that was saved, and not yet read
    from_process_zero(self._shelf.clean)

  def save(self, step: int, state, *, sound: bool) -> bool:
    """Starts a save; returns once the arrays are copied. A step that was saved or restored last is
    left alone.

    Args:
      sound: whether training may fall back to it (`restore(sound_only=True)`).

    Returns:
      False if the state is not finite: it is not saved.

    Raises:
      StoreError: the save before it failed, or there is too little room.
    """
    self.wait()
    if step == self._last:
      return True
    marks, finite = fingerprint(state)
    broken = [name for name, is_finite in jax.device_get(finite).items() if not is_finite]
    if broken:
      log.warning(
        "step %d is not saved: %d arrays are not finite, the first is %s",
        step,
        len(broken),
        broken[0],
      )
      return False
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    from_process_zero(lambda: self._shelf.begin(step, size))
    self._checkpointer.save(os.path.join(self._shelf.path(step), ITEM), state)
    self._last, self._unread = step, True
    self._proving = self._prover.submit(self._prove, step, marks, sound)
    return True

  def poll(self) -> None:
    """Raises StoreError if the save in progress has failed."""
    if self._proving and self._proving.done():
      self.wait()

  def wait(self) -> None:
    """Waits until the save in progress is proved. Raises StoreError if it failed."""
    if self._proving is None:
      return
    proving, self._proving = self._proving, None
    try:
      proving.result()
    except Exception as error:
      reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
      raise StoreError(
        f"the checkpoint of step {self._last} in {self.folder} could not be saved ({reason}); "
        "those before it are whole. Make room or mend the disk, and run the same command again"
      ) from error

  def restore(self, abstract_state, *, sound_only: bool = False):
    """The newest good checkpoint on the shapes and shardings of `abstract_state`, or None if there
    are none at all.

    Those that are damaged are named in a warning, and moved aside if they are newer than the good
    one.

    Raises UserError if there are checkpoints but no good one, or if it does not fit the model,
    naming what does not.
    """
    faults: dict[str, str] = {}
    while True:
      step = from_process_zero(lambda: self._shelf.choose(faults, sound_only=sound_only))
      if step < 0:
        return None
      try:
        state = self._checkpointer.restore(
          os.path.join(self._shelf.path(step), ITEM), abstract_state
        )
      except (ValueError, KeyError, TypeError) as error:
        raise UserError(
          f"checkpoint {step} in {self.folder} cannot be restored into this model: {error}"
        ) from error
      saved, found = checksums.read(self._shelf.path(step))["state"], fetch(fingerprint(state)[0])
      wrong = [name for name in found if found[name] != saved.get(name)]
      if not wrong:
        self._last, self._unread = step, False
        return state
      faults[str(step)] = f"{len(wrong)} arrays are not what was saved, the first is {wrong[0]}"

  def reread(self, abstract_state) -> None:
    """Waits for the last save, reads it back and compares. Raises StoreError if it is not what was
    saved."""
    self.wait()
    last = self._last
    if self._unread and (self.restore(abstract_state), self._last)[1] != last:
      raise StoreError(
        f"the checkpoint of step {last} in {self.folder} does not read back as it was saved; "
        "run the same command again"
      )

  def close(self) -> None:
    """Waits for the save in progress."""
    try:
      self.wait()
    finally:
      self._prover.shutdown()
      self._checkpointer.close()

  def _prove(self, step, marks, sound):
    """In a thread: waits for the save, proves it, and removes what it makes superfluous."""
    self._checkpointer.wait_until_finished()
    if jax.process_index() == 0:
      self._shelf.finish(step, {"sound": sound, "state": fetch(marks)})
      self._shelf.drop_old(step, keep=self._keep, keep_every=self._keep_every)


def save_tree(path, tree) -> None:
  """Saves a tree of arrays as a folder of its own, for export."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(storage.absolute(path), tree)


def restore_like(path, expected):
  """A saved tree as numpy arrays, if its names, shapes and types are those of `expected`: known
  before memory is asked for, as the folder may come from anywhere. Raises UserError naming what
  differs."""
  path = storage.absolute(path)
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      metadata = checkpointer.metadata(path)
      metadata = getattr(metadata, "item_metadata", metadata)
      metadata = getattr(metadata, "tree", metadata)
      wanted, found = (
        {
          jax.tree_util.keystr(key): f"{tuple(x.shape)} {np.dtype(x.dtype)}"
          for key, x in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (expected, metadata)
      )
      wrong = [key for key in sorted({*wanted, *found}) if wanted.get(key) != found.get(key)]
      if wrong:
        raise UserError(
          f"{path}: {len(wrong)} arrays are not those of the encoder in config.json, the first is "
          f"{wrong[0]}: {found.get(wrong[0], 'absent')}, not {wanted.get(wrong[0], 'absent')}"
        )
      return checkpointer.restore(
        path, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata)
      )
  except UserError:
    raise
  except Exception as error:  # Orbax, TensorStore and their formats have too many of their own
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"{path}: cannot be read as exported parameters ({type(error).__name__}: {reason})"
    ) from error


def restore_encoder(folder, step=None, *, network="teacher"):
  """The encoder of a checkpoint's teacher or student (the newest good one by default) as numpy
  arrays, and the step.

  Reads only that part of the state. Raises UserError if there is no good checkpoint, naming what is
  wrong.
  """
  folder = storage.absolute(folder)
  found, faults = entries(folder), {}
  if step is not None:
    found = [entry for entry in found if entry.step == step]
  good = newest_good(folder, found, faults)
  told = listed(faults, "; ")
  if good is None:
    raise UserError(
      f"{folder}: no "
      f"{'good ' if told else ''}checkpoint{'' if step is None else f' of step {step}'}"
      f"{f' ({told})' if told else ''}; there are {sorted(e.step for e in entries(folder))}"
    )
  if told:
    log.warning("%s: checkpoint %d is read, since %s", folder, good.step, told)
  step, path = good.step, os.path.join(folder, good.name, ITEM)
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
    restored = checkpointer.restore(
      path, args=ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
    )
  restored = restored["teacher"] if network == "teacher" else restored
  return {k: v["encoder"] for k, v in restored.items()}, step
