"""The folder of a run: one owner at a time, one config for its whole life, a line for every
start."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

import atst_jax
from atst_jax.data.dataset import write_json
from atst_jax.util import storage
from atst_jax.util.config import changes
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

CONFIG = "config.json"
# What a key that an older version did not have stands for.
REASONS = {"data.order": " (clips came in another, uneven order: docs/shards.md)"}
STARTS = "starts.jsonl"
# that decide what is computed
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def claim(workdir: str, flag: str = "workdir"):
  """Makes the folder and locks it until the returned file is closed. Raises UserError naming `flag`
  and the holder."""
  if storage.is_remote(workdir):
    raise UserError(
      f"--{flag}={workdir}: a store cannot be locked or appended to; choose a folder of this "
      "host, and "
      f"--config.checkpoint.folder={workdir} for the checkpoints"
    )
  try:
    os.makedirs(workdir, exist_ok=True)
    lock = open(os.path.join(workdir, ".lock"), "a+", encoding="utf-8")  # noqa: SIM115
  except OSError as error:
    raise UserError(
      f"--{flag}={workdir}: cannot be written ({error.strerror}); choose another folder"
    ) from error
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    with lock:
      lock.seek(0)
      raise UserError(
        f"--{flag}={workdir} is in use by {lock.read().strip() or 'another process'}; "
        "wait for it, stop it, or choose another folder"
      ) from None
  lock.truncate(0)
  lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
  lock.flush()
  return lock


def read_config(workdir: str) -> dict:
  """The config of the run in a folder. Raises UserError if there is none."""
  path = os.path.join(workdir, CONFIG)
  try:
    config = storage.read_json(path)
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(f"{path} does not exist: {workdir!r} is not the workdir of a run") from None
  except ValueError as error:
    if isinstance(error, UserError):  # a store that does not answer
      raise
    raise UserError(f"{path} is damaged ({error}); restore it, or start in a new workdir") from None
  if not isinstance(config, dict):
    raise UserError(
      f"{path} is damaged (a {type(config).__name__}); restore it, or start in a new workdir"
    )
  return config


def _differences(workdir: str, config: dict, ignore: tuple[str, ...]) -> dict[str, str]:
  """{key: "key: old -> new"} of what has changed since the stored config, without `ignore`."""
  lines = {line.partition(":")[0]: line for line in changes(read_config(workdir), config)}
  lines = {key: line + REASONS.get(key, "") for key, line in lines.items()}
  return {key: line for key, line in lines.items() if not _among(key, ignore)}


def _among(key: str, keys: tuple[str, ...]) -> bool:
  """Whether a key is one of `keys`, or lies in a section of them, which ends with a dot."""
  return any(key.startswith(k) if k.endswith(".") else key == k for k in keys)


def agree(
  workdir: str,
  config: dict,
  *,
  ignore: tuple[str, ...],
  named: tuple[str, ...] = (),
  allow_changes: bool,
  started: bool = True,
) -> None:
  """Stores the config, or compares it with the stored one if the run has started: before, nothing
  depends on it.

  Args:
    ignore: keys, and sections that end with a dot, that change nothing of what is computed.
    named: keys and sections whose change is accepted, and named in a warning.
    allow_changes: whether every change is accepted, and named in a warning.

  Raises:
    UserError: other keys have changed; it lists them.
  """
  if started and storage.is_file(os.path.join(workdir, CONFIG)):
    differences = _differences(workdir, config, ignore)
    refused = [line for key, line in differences.items() if not _among(key, named)]
    if refused and not allow_changes:
      raise UserError(
        f"{workdir} belongs to a run with another config:\n  "
        + "\n  ".join(refused)
        + "\nchoose a new workdir, or pass --allow_changed_config to go on with the new values"
      )
    if differences:
      log.warning(
        "%s: the run goes on with other values: %s", workdir, "; ".join(differences.values())
      )
  try:
    storage.make_folder(workdir)
    write_json(os.path.join(workdir, CONFIG), config)
  except OSError as error:
    raise UserError(
      f"{workdir}: cannot be written ({error.strerror}); choose another folder"
    ) from error


@contextlib.contextmanager
def own(
  workdir: str,
  folder: str | None,
  config: dict,
  *,
  ignore: tuple[str, ...],
  named: tuple[str, ...] = (),
  allow_changes: bool,
  started: Callable[[], bool],
) -> Iterator[None]:
  """Holds the workdir's lock and agrees on the config, in process 0; the others learn whether it
  went well.

  Args:
    folder: of the checkpoints, if not in the workdir: the config lies beside them too.
    ignore, named, allow_changes: of `agree`.
    started: whether the run has begun; asked under the lock.
  """
  error = lock = None
  if jax.process_index() == 0:
    try:
      lock = claim(workdir)
      begun = started()
      for place in filter(None, (folder, workdir)):
        agree(place, config, ignore=ignore, named=named, allow_changes=allow_changes, started=begun)
    except Exception as mistake:  # of any kind: the others wait to hear of it
      error = mistake
  if (
    jax.process_count() > 1 and broadcast_one_to_all(np.int32(error is not None)) and error is None
  ):
    error = UserError("process 0 cannot use the workdir; its message says why")
  try:
    if error:
      raise error
    yield
  finally:
    if lock:
      lock.close()


def keep_programs(workdir: str) -> None:
  """Keeps compiled programs in the workdir, so that a continued run need not compile again;
  JAX_COMPILATION_CACHE_DIR names another folder. Not for CPUs, whose programs fit one kind of
  them."""
  if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # made at run time
    jax.config.update("jax_compilation_cache_dir", os.path.join(workdir, "compiled"))


def record_start(workdir: str, step: int) -> None:
  """Appends when, where and with what a run starts or goes on after `step`; raises OSError if it
  cannot."""
  start = {
    "time": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds").removesuffix("+00:00"),
    "step": step,
    "host": socket.gethostname(),
    "processes": jax.process_count(),
    "devices": jax.device_count(),
    "device": jax.devices()[0].device_kind,
    "python": platform.python_version(),
    "versions": {
      "atst_jax": atst_jax.__version__,
      **{name: importlib.metadata.version(name) for name in PACKAGES},
    },
  }
  with open(os.path.join(workdir, STARTS), "a", encoding="utf-8") as file:
    file.write(json.dumps(start) + "\n")


def read_starts(workdir: str) -> list[dict]:
  """What `record_start` wrote; nothing for runs of versions that did not."""
  path = os.path.join(workdir, STARTS)
  if not os.path.exists(path):
    return []
  with open(path, encoding="utf-8") as file:
    return [json.loads(line) for line in file if line.endswith("\n")]


def continuation(
  config: dict, workdir: str, ignore: tuple[str, ...], named: tuple[str, ...] = ()
) -> str:
  """Whether the run is new or goes on. Raises UserError if it would be refused (`agree`)."""
  if not storage.is_file(os.path.join(workdir, CONFIG)):
    return f"{workdir}: a new run"
  differences = _differences(workdir, config, (*ignore, *named))
  if differences:
    lines = [f"{workdir} belongs to a run with another config:", *differences.values()]
    raise UserError("\n  ".join(lines))
  return f"{workdir}: belongs to this run"


def saved_steps(folder: str) -> list[int]:
  """Steps of the checkpoints in a folder, in order."""
  return sorted(int(name) for name in storage.names(folder) if name.isdigit())
