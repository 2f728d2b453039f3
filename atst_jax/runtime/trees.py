"""Trees of arrays as folders. Only this module and `checkpoint` use Orbax."""

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src import asyncio_utils

from atst_jax.runtime.checkpoint_folder import TRIAL
from atst_jax.runtime.mesh import first_error, from_process_zero
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError

ITEM = "default"  # the folder of a checkpoint's arrays
PATTERNS = "*?["
# Errors that may pass: of a disk that is full or gone, and the first words of TensorStore's about a
# store.
PASSING = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT)
UNANSWERED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
VISIBLE = 40.0  # s; clients of NFS keep what they know of a folder for 30 (acdirmin)


def _run_to_the_end(coroutine):
  """Runs a coroutine in an event loop of its own, and all tasks that it has started.

  Orbax (0.12.8) writes several arrays at a time with `asyncio.gather`. If one fails, on a full disk
  for example, Orbax's function closes the loop while TensorStore still writes the others. Each of
  these then reports to a closed loop: "Exception ignored in …: RuntimeError: Event loop is closed".
  This function waits for them first, so that nothing runs when a save has failed.
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


def check_path(path: str) -> None:
  """Raises UserError for a path in which Orbax would not find its own files.

  Orbax (0.12.8) finds the parts of a checkpoint by a pattern that contains the folder's own name.
  """
  path = storage.absolute(path)
  if found := [sign for sign in PATTERNS if sign in path]:
    raise UserError(
      f"{path}: holds {' and '.join(found)}, with which Orbax does not find its own files; choose "
      f"a folder without {', '.join(PATTERNS)} in its path"
    )


def try_out(folder: str) -> None:
  """Saves a few numbers in the folder of checkpoints, reads them back in every process, and removes
  them.

  So a fault shows before the first step, not at the first checkpoint. Every process of the job
  calls it. Raises UserError if the numbers do not come back, or not in every process; StoreError if
  a disk or a store does not answer now.
  """
  check_path(folder)
  folder = storage.absolute(folder)
  path = os.path.join(folder, TRIAL)
  made = not storage.is_remote(folder) and not os.path.isdir(folder)
  # Drawn anew, so that no process takes what another job has left for what was saved now.
  number = from_process_zero(lambda: _removed(path) or secrets.randbelow(2**31))
  # By all processes: Orbax counts the saves of each, and waits for those with the same number.
  with _explained(folder), ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, _numbers(number))
  from_process_zero(lambda: _read_back(folder, number))
  unseen = first_error(lambda: _wait_for(folder, number))
  from_process_zero(lambda: _removed(path))
  if made and jax.process_index() == 0:
    with contextlib.suppress(OSError):  # there are checkpoints in it
      os.rmdir(folder)
  if unseen is None:
    return
  process, code = unseen
  if code == StoreError.exit_code:
    raise StoreError(
      f"{folder}: process {process} cannot read there what process 0 saved; run the same command "
      "again"
    )
  raise UserError(
    f"process {process} does not see what process 0 saved in {folder}: choose a folder that all "
    "hosts reach, for example --config.checkpoint.folder=gs://BUCKET/RUN"
  )


@contextlib.contextmanager
def _explained(folder: str) -> Iterator[None]:
  """What a save or a read raises as a StoreError if it may pass, or else as a UserError."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # Orbax, TensorStore and the stores raise many kinds
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
    if getattr(error, "errno", None) in PASSING or reason.startswith(UNANSWERED):
      raise StoreError(
        f"{folder}: does not take what is saved ({reason}); run the same command again"
      ) from error
    raise UserError(
      f"{folder}: arrays that are saved there cannot be read back ({type(error).__name__}: "
      f"{reason}); choose another folder"
    ) from error


def _removed(path: str) -> int:
  storage.remove_folder(path)
  return 0


def _numbers(number: int) -> dict:
  return {"x": np.full(8, number, np.int32)}


def _read_back(folder: str, number: int) -> int:
  with _explained(folder):
    expected = _numbers(number)
    if not np.array_equal(restore_alone(os.path.join(folder, TRIAL), expected)["x"], expected["x"]):
      raise ValueError("other numbers came back")
  return 0


def _wait_for(folder: str, number: int) -> None:
  """As `_read_back`, once this process sees the numbers; process 0 has read them already."""
  if jax.process_index() == 0:
    return
  deadline = time.monotonic() + VISIBLE
  while True:
    try:
      _read_back(folder, number)
      return
    except UserError:
      if time.monotonic() > deadline:
        raise
    time.sleep(0.5)


def _alone() -> ocp.options.MultiprocessingOptions:
  """Options for a read by this process alone."""
  if jax.process_count() == 1:
    return ocp.options.MultiprocessingOptions()
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(primary_host=index, active_processes={index})


def restore_alone(path: str, like):
  """A saved tree, or its part with the structure of `like`, as numpy arrays, read by this process
  alone."""
  item = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
  arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
  with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as checkpointer:
    return checkpointer.restore(
      storage.absolute(path),
      args=ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True),
    )


def save_tree(path, tree) -> None:
  """Saves a tree of arrays as a folder of its own, for export. Raises UserError as `check_path`."""
  check_path(path)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(storage.absolute(path), tree)


def restore_like(path, expected):
  """A saved tree as numpy arrays, if its names, shapes and types are those of `expected`. They are
  checked before memory is taken, as the folder may come from anywhere. Raises UserError with the
  differences."""
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
  except Exception as error:  # Orbax, TensorStore and their formats raise many kinds
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"{path}: cannot be read as exported parameters ({type(error).__name__}: {reason})"
    ) from error


def restore_encoder(path: str, *, network: str) -> dict:
  """{"params": …[, "batch_stats": …]} of the encoder of a checkpoint's teacher or student, as numpy
  arrays.

  Reads only that part of the state. Raises UserError if it cannot be read.
  """
  path = os.path.join(path, ITEM)
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      metadata = checkpointer.metadata(path)
    metadata = getattr(metadata, "item_metadata", metadata)
    state = getattr(metadata, "tree", metadata)
    tree = state["teacher"] if network == "teacher" else state
    part = {"params": {"encoder": tree["params"]["encoder"]}}
    if "encoder" in (tree["batch_stats"] or {}):
      part["batch_stats"] = {"encoder": tree["batch_stats"]["encoder"]}
    restored = restore_alone(path, {"teacher": part} if network == "teacher" else part)
  except Exception as error:  # as in `restore_like`
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {reason})"
    ) from error
  restored = restored["teacher"] if network == "teacher" else restored
  return {k: v["encoder"] for k, v in restored.items()}
