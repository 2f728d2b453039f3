"""One owner of a folder at a time: by a lock of the file system, or, if it has none (some network
file systems), by a file that names the owner. Removes temporary files of processes that have
ended."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time

from atst_jax.util.logs import log

HELD = (errno.EWOULDBLOCK, errno.EAGAIN)  # flock's errors about a lock of another
PATIENCE = 5.0  # seconds after which an unfinished owner's file is nobody's

TEMPORARY = re.compile(r".+\.tmp-[0-9a-f]{32}")  # names of `storage.temporary_name`

_owned: dict[str, dict] = {}  # files that name this process, and their content


class Held(Exception):
  """The folder has an owner; the message names it."""


class Lock:
  """Owns a folder until it is closed. Removes unfinished files of killed processes there.

  The file `.lock` is locked, and names the owner. If the file system has no locks, `.owner` names
  host, process and the time at which the process started. It is taken over if that process was on
  this host and has ended. About processes of other hosts nothing is known: a person who knows that
  one has ended removes the file.
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
    remove_abandoned(folder)

  def _take(self, folder: str) -> None:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in HELD:
        self._file.seek(0)
        raise Held(self._file.read().strip() or "another process") from None
      path = os.path.abspath(os.path.join(folder, ".owner"))
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
      _give_back(self._owner)
      self._owner = None
    self._file.close()


def mark(file):
  """Marks an open temporary file, or a folder's descriptor, as one whose process lives, until it is
  closed. Returns it."""
  with contextlib.suppress(OSError):  # no locks
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  return file


def remove_abandoned(folder: str) -> None:
  """Removes temporary files and folders of ended processes (`mark`) from a folder and from the
  folders in it. Without locks nothing is known of the processes: all stay."""
  for path in [entry.path for entry in _entries(folder)]:
    if TEMPORARY.fullmatch(os.path.basename(path)):
      _remove_unmarked(path)
    else:
      for entry in _entries(path):
        if TEMPORARY.fullmatch(entry.name):
          _remove_unmarked(entry.path)


def remove_unfinished(path: str) -> None:
  """As `remove_abandoned`, for one file or folder that was to be made."""
  folder, name = os.path.split(os.path.abspath(path))
  for entry in _entries(folder):
    if entry.name.startswith(f"{name}.tmp-") and TEMPORARY.fullmatch(entry.name):
      _remove_unmarked(entry.path)


def _entries(folder: str) -> list[os.DirEntry]:
  try:
    with os.scandir(folder) as found:
      return list(found)
  except OSError:  # no folder
    return []


def _remove_unmarked(path: str) -> None:
  with contextlib.suppress(OSError):
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
      fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if os.path.isdir(path):
        shutil.rmtree(path)
      else:
        os.unlink(path)
    finally:
      os.close(number)


def release() -> None:
  """Removes the files that name this process, before it ends by `os._exit`: another host could not
  know that it has ended."""
  for path in list(_owned):
    _give_back(path)


def _give_back(path: str) -> None:
  ours = _owned.pop(path, None)
  with contextlib.suppress(OSError, ValueError):
    if ours is not None and _read(path) == ours:
      os.unlink(path)


def _take_file(path: str, depth: int = 0) -> None:
  """Writes this process's name into a file, unless it names a process that may live. Raises Held.

  Of several processes that begin at once, one makes the file. The file of an ended process is
  replaced by the owner of a second file, `.next`, which is taken in the same way. So two processes
  cannot both replace it, nor remove each other's.
  """
  ours = {
    "host": socket.gethostname(),
    "process": os.getpid(),
    "started": started(os.getpid()),
    "since": datetime.datetime.now().isoformat(" ", "seconds"),
  }
  made = _create(path, ours)
  while not made:
    if not _has_dead_owner(path):  # it is gone
      made = _create(path, ours)
    elif depth == 2:
      raise Held("processes that start at this moment")
    else:
      made = _replace(path, ours, depth)
  _owned[path] = ours


def _create(path: str, ours: dict) -> bool:
  """Writes a file that is not there; False if it is."""
  try:
    file = open(path, "x", encoding="utf-8")  # noqa: SIM115
  except FileExistsError:
    return False
  try:
    _write(file, ours)
  except OSError:  # a full disk
    with contextlib.suppress(OSError):
      os.unlink(path)
    raise
  return True


def _write(file, ours: dict) -> None:
  with file:
    file.write(json.dumps(ours))
    file.flush()
    os.fsync(file.fileno())


def _replace(path: str, ours: dict, depth: int) -> bool:
  """Puts our name in the place of an ended process; False if the file is gone. Raises Held."""
  following = f"{path}.next"
  _take_file(following, depth + 1)
  try:
    if not _has_dead_owner(path):
      return False
    _write(open(f"{path}.new", "w", encoding="utf-8"), ours)  # noqa: SIM115
    os.replace(f"{path}.new", path)
    return True
  finally:
    _give_back(following)


def _has_dead_owner(path: str) -> bool:
  """Whether a file names a process that has ended; False if there is no file. Raises Held if it may
  live."""
  deadline = time.monotonic() + PATIENCE
  while (owner := _owner_in(path)) is None:
    if not os.path.lexists(path):
      return False
    if time.monotonic() > deadline:
      return True
    time.sleep(0.05)
  elsewhere = owner["host"] != socket.gethostname()
  if not elsewhere and started(owner["process"]) != owner["started"]:
    return True
  known = f"; if that process has ended, remove {path}" if elsewhere else ""
  raise Held(f"process {owner['process']} on {owner['host']} since {owner['since']}{known}")


def _read(path: str):
  with open(path, encoding="utf-8") as file:
    return json.load(file)


def _owner_in(path: str) -> dict | None:
  """The content of `_create`; None if the file is gone, or not finished."""
  try:
    owner = _read(path)
  except (FileNotFoundError, ValueError):
    return None
  wanted = {"host": str, "process": int, "started": str, "since": str}
  is_owner = isinstance(owner, dict) and all(
    isinstance(owner.get(key), kind) for key, kind in wanted.items()
  )
  return owner if is_owner else None


def started(process: int) -> str:
  """When a process of this host started, in the system's own count; "" if it does not live (a
  zombie does not).

  Without /proc it is "unknown" for every process that lives.
  """
  try:
    with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
      fields = file.read().rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
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
