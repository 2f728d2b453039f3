"""Checkpoints of the train state, labelled by the step."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import orbax.checkpoint as ocp

from atst_jax.runtime import checksums
from atst_jax.runtime.checkpoint_folder import (
  CheckpointFolder,
  config_of,
  entries,
  listed,
  newest_good,
)
from atst_jax.runtime.checksums import array_checksums, checksum_on_host, fetch
from atst_jax.runtime.mesh import from_process_zero
from atst_jax.runtime.trees import ITEM, restore_alone
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError
from atst_jax.util.logs import log


def checkpoint_folder(workdir: str, folder: str | None) -> str:
  """The folder of a run's checkpoints: in its workdir, or its config's `checkpoint.folder`."""
  return folder or os.path.join(workdir, "checkpoints")


class Checkpoints:
  """Asynchronous, verified checkpoints, each in a folder named by its step.

  The manifest (`checkpoint_folder`) is written when the save has ended; a checkpoint without one
  does not count. A checkpoint is used only if every file agrees with the manifest, and every read
  array with its checksum (`array_checksums`). Older ones are removed after a newer one has been
  verified, so there is always a good one. The first save of every process is read back and
  compared.

  The newest one, the newest `keep` sound ones, and all at multiples of `keep_every` steps are kept,
  these also when a later start has another `keep_every`. Training may fall back to the sound ones
  (`save`).
  """

  def __init__(
    self,
    folder: str,
    *,
    keep: int,
    keep_every: int,
    config: dict | None = None,
    first_saved: Callable[[int], None] = lambda step: None,
  ):
    """
    Args:
      keep, keep_every: see above.
      config: of the job; it lies in each checkpoint.
      first_saved: called with the step in process 0, by a thread, when the first save has been
        verified.
    """
    self.folder = storage.absolute(folder)
    self._on_disk = CheckpointFolder(self.folder)
    self._keep, self._keep_every = keep, keep_every
    self._config, self._first_saved, self._opened = config, first_saved, False
    self._checkpointer = ocp.StandardCheckpointer()
    self._thread = ThreadPoolExecutor(1, "checkpoint")
    self._saving: Future | None = None  # of the save in progress
    self._last: int | None = None  # saved or restored
    self._unread = False  # whether that was saved, and not yet read
    from_process_zero(self._on_disk.clean)

  def save(self, step: int, state, *, sound: bool) -> bool:
    """Starts a save; returns once the arrays are copied. Does nothing for the step that was saved
    or restored last.

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
    sums, finite = array_checksums(state)
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
    from_process_zero(lambda: self._on_disk.begin(step, size))
    self._checkpointer.save(os.path.join(self._on_disk.path(step), ITEM), state)
    self._last, self._unread = step, True
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    self._saving = self._thread.submit(self._finish, step, abstract, sums, sound)
    return True

  def poll(self) -> None:
    """Raises StoreError if the save in progress has failed."""
    if self._saving and self._saving.done():
      self.wait()

  def wait(self) -> None:
    """Waits until the save in progress is verified. Raises StoreError if it failed."""
    if self._saving is None:
      return
    saving, self._saving = self._saving, None
    try:
      saving.result()
    except Exception as error:
      reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
      raise StoreError(
        f"the checkpoint of step {self._last} in {self.folder} could not be saved ({reason}); "
        "those before it are whole. Make room or mend the disk, and run the same command again"
      ) from error

  def restore(self, abstract_state, *, sound_only: bool = False):
    """The newest good checkpoint in the shapes and shardings of `abstract_state`, or None if there
    are no checkpoints.

    Damaged ones are named in a warning, and moved aside if they are newer than the good one.

    Raises UserError if there are checkpoints but no good one, or if it does not fit the model;
    StoreError if a process does not find what process 0 has found.
    """
    faults: dict[str, str] = {}
    while True:
      step = from_process_zero(lambda: self._on_disk.choose(faults, sound_only=sound_only))
      if step < 0:
        return None
      try:
        state = self._checkpointer.restore(
          os.path.join(self._on_disk.path(step), ITEM), abstract_state
        )
      except (ValueError, KeyError, TypeError) as error:
        if str(error).startswith("NOT_FOUND"):  # TensorStore's word for missing files
          if jax.process_count() > 1:  # the others may have found the files, and wait for this one
            raise StoreError(
              f"checkpoint {step} in {self.folder}: process {jax.process_index()} does not find "
              "arrays that it should hold; run the same command again"
            ) from error
          faults[str(step)] = "arrays that it should hold are not there"
          continue
        reason = " ".join(str(error).split())[:500]
        raise UserError(
          f"checkpoint {step} in {self.folder} cannot be restored into this model: {reason}"
        ) from error
      try:
        saved = checksums.read(self._on_disk.path(step))["state"]
      except checksums.Damaged as fault:  # process 0 has just read it: a folder that NFS remembers
        raise StoreError(
          f"checkpoint {step} in {self.folder}: process {jax.process_index()} cannot read it now "
          f"({fault}); run the same command again"
        ) from fault
      found = fetch(array_checksums(state)[0])
      wrong = [name for name in found if found[name] != saved.get(name)]
      if not wrong:
        self._last, self._unread = step, False
        return state
      faults[str(step)] = f"{len(wrong)} arrays are not what was saved, the first is {wrong[0]}"

  def any_sound(self) -> bool:
    """Whether there is a checkpoint that training may fall back to. Its files are not checked."""
    found = lambda: any(entry.facts["sound"] for entry in entries(self.folder) if entry.facts)
    return bool(from_process_zero(found))

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
      self._thread.shutdown()
      self._checkpointer.close()

  def _finish(self, step, abstract, sums, sound):
    """In a thread: waits for the save, verifies it, and removes old checkpoints."""
    self._checkpointer.wait_until_finished()
    if jax.process_index():
      return
    sums = fetch(sums)
    if not self._opened:
      self._open(step, abstract, sums)
    facts = {"sound": sound, "stays": step % self._keep_every == 0, "state": sums}
    self._on_disk.finish(step, facts, self._config)
    if not self._opened:
      self._opened = True
      self._first_saved(step)
    self._on_disk.drop_old(step, keep=self._keep, keep_every=self._keep_every)

  def _open(self, step, abstract, sums):
    """Reads a save back into this process's memory. Raises ValueError if it is not what was
    saved."""
    found = restore_alone(os.path.join(self._on_disk.path(step), ITEM), abstract)
    named = checksums.named_leaves(found)
    if wrong := [name for name, x in named.items() if checksum_on_host(x) != sums[name]]:
      raise ValueError(f"{len(wrong)} arrays do not read back, the first is {wrong[0]}")


def find_checkpoint(folder: str, step: int | None = None) -> tuple[int, str, dict | None]:
  """(step, path, config) of a good checkpoint, the newest by default; the config is None if an
  older version wrote it.

  Raises UserError, with the faults, if there is none.
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
  path = os.path.join(folder, good.name)
  return good.step, path, config_of(path)
