"""One owner of a folder at a time: by a lock of the file system, or by a file that names the owner
where there are no locks (some network file systems)."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket

from atst_jax.util import storage
from atst_jax.util.logs import log

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # what flock says of a lock of another


class Held(Exception):
  """The folder has an owner: the words say who."""


class Lock:
  """Owns a folder until it is closed.

  The file `.lock` is locked, and says whose it is. Where the file system has no locks, `.owner`
  names host, process and the time at which the process started. That of a process which has ended
  on this host is taken over. Of another host's process it cannot be known; whoever knows that it
  has ended removes the file.
  """

  def __init__(self, folder: str):
    """Raises Held, and OSError if the folder cannot be written."""
    self._owner: str | None = None
    self._file = open(os.path.join(folder, ".lock"), "a+", encoding="utf-8")  # noqa: SIM115
    try:
      self._take(folder)
    except BaseException:
      self._file.close()
      raise

  def _take(self, folder: str) -> None:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in HELD:
        self._file.seek(0)
        raise Held(self._file.read().strip() or "another process") from None
      path = os.path.join(folder, ".owner")
      _take_file(path)
      self._owner = path
      log.warning(
        "%s: its file system has no locks (%s); %s names the owner instead",
        folder,
        error.strerror,
        path,
      )
    self._file.truncate(0)
    self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    self._file.flush()

  def close(self) -> None:
    """The folder is free again."""
    if self._owner is not None:
      with contextlib.suppress(OSError):
        os.unlink(self._owner)
      self._owner = None
    self._file.close()


def _take_file(path: str) -> None:
  """Writes this process's name into a file, if none is there of a process that lives. Raises
  Held."""
  ours = {
    "host": socket.gethostname(),
    "process": os.getpid(),
    "started": started(os.getpid()),
    "since": datetime.datetime.now().isoformat(" ", "seconds"),
  }
  for _ in range(2):
    try:
      with open(path, "x", encoding="utf-8") as file:
        file.write(json.dumps(ours))
      return
    except FileExistsError:
      owner = _owner_in(path)
      if owner is not None and _may_live(owner):
        elsewhere = owner["host"] != ours["host"]
        known = f"; if that process has ended, remove {path}" if elsewhere else ""
        raise Held(
          f"process {owner['process']} on {owner['host']} since {owner['since']}{known}"
        ) from None
      with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
  raise Held("a process that starts at this moment")


def _owner_in(path: str) -> dict | None:
  """What `_take_file` wrote; None if it is gone, or was never finished."""
  try:
    owner = storage.read_json(path)
  except (FileNotFoundError, ValueError):
    return None
  wanted = {"host": str, "process": int, "started": str, "since": str}
  is_owner = isinstance(owner, dict) and all(
    isinstance(owner.get(key), kind) for key, kind in wanted.items()
  )
  return owner if is_owner else None


def _may_live(owner: dict) -> bool:
  """Whether an owner may still be at work: another host's may always."""
  return owner["host"] != socket.gethostname() or started(owner["process"]) == owner["started"]


def started(process: int) -> str:
  """When a process of this host started, in the system's own count; "" if there is none.

  Where the system does not tell (no /proc), it is "unknown" of every process that lives.
  """
  try:
    with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
      return file.read().rpartition(")")[2].split()[19]
  except OSError:
    pass
  if os.path.isdir("/proc/self"):
    return ""
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return ""
  except PermissionError:
    pass
  return "unknown"
