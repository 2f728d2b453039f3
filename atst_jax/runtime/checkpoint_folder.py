"""A folder of checkpoints: one folder for each, named by its step.

In it, `default/` is Orbax's, `config.json` is the job's config, and `manifest.json` holds the
SHA-256 of every file and the facts of the checkpoint. The manifest is written when the save has
ended. Until then, and while a checkpoint is being removed, there is a file `unfinished`. So a
checkpoint that a killed process leaves is complete or marked as incomplete, also in a store, where
nothing can be renamed.
"""

import json
import os
from typing import NamedTuple

from atst_jax.runtime import checksums
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError
from atst_jax.util.lock import remove_abandoned
from atst_jax.util.logs import log

UNFINISHED = "unfinished"
CONFIG = "config.json"
SPARE = 1.1  # free bytes for each byte of the state: for the format, and other files
TRIAL = ".atst_trial"  # the folder of `trees.try_out`; nobody else has this name


class Entry(NamedTuple):
  """A folder among the checkpoints. The step is that of its manifest (`facts`), or else its
  name."""

  step: int
  name: str
  facts: dict | None
  fault: str


def entries(folder: str) -> list[Entry]:
  """Every checkpoint of a folder, the newest first. Their files are not checked."""
  found = []
  for name in filter(str.isdigit, storage.names(folder)):
    try:
      facts = checksums.read(os.path.join(folder, name))
      if not (
        isinstance(facts.get("step"), int)
        and isinstance(facts.get("state"), dict)
        and "sound" in facts
      ):
        raise checksums.Damaged(f"{checksums.NAME} is not that of a checkpoint")
      # The checksum of a step is its value (`checksums.array_checksums`).
      if (step := facts["state"].get("step", facts["step"])) != facts["step"]:
        raise checksums.Damaged(
          f"{checksums.NAME} says step {facts['step']}, and its state is that of {step}"
        )
      found.append(Entry(facts["step"], name, facts, ""))
    except checksums.Damaged as fault:
      found.append(Entry(int(name), name, None, str(fault)))
  return sorted(found, key=lambda e: (e.step, e.name == str(e.step)), reverse=True)


def saved_steps(folder: str) -> list[int]:
  """Steps of the checkpoints in a folder, in order, without the remains of a save that never
  ended."""
  names = filter(str.isdigit, storage.names(folder))
  return sorted(int(name) for name in names if not _never_ended(os.path.join(folder, name)))


def _never_ended(path: str) -> bool:
  found = storage.names(path)
  return UNFINISHED in found and checksums.NAME not in found


def newest_good(folder: str, found: list[Entry], faults: dict[str, str]) -> Entry | None:
  """The first good entry. Those before it are added to `faults`, {name: what is wrong}."""
  for entry in found:
    if entry.name in faults:
      continue
    try:
      if entry.fault:
        raise checksums.Damaged(entry.fault)
      checksums.check(os.path.join(folder, entry.name))
      return entry
    except checksums.Damaged as fault:
      faults[entry.name] = str(fault)
  return None


def config_of(path: str) -> dict | None:
  """The config of a checkpoint's job; None if it cannot be read, or an older version wrote none."""
  try:
    config = storage.read_json(os.path.join(path, CONFIG))
  except StoreError:
    raise
  except (OSError, ValueError):
    return None
  return config if isinstance(config, dict) else None


def newest_config(folder: str) -> dict | None:
  """The config of a folder's newest finished checkpoint whose config is as it was saved; None as in
  `config_of`."""
  for entry in entries(folder):
    path = os.path.join(folder, entry.name)
    if entry.facts and _is_as_saved(os.path.join(path, CONFIG), entry.facts["files"].get(CONFIG)):
      return config_of(path)
  return None


def _is_as_saved(path: str, file: list | None) -> bool:
  """Whether a file has the digest of its [size, digest] in a manifest, if it is in there."""
  try:
    return file is None or storage.sha256(path) == file[1]
  except OSError:
    return False


def listed(faults: dict[str, str], between: str) -> str:
  """ "NAME: FAULT" of every fault, `between` between them."""
  return between.join(f"{name}: {fault}" for name, fault in faults.items())


class CheckpointFolder:
  """The folder of the checkpoints, as process 0 changes it."""

  def __init__(self, folder: str):
    self.folder = folder

  def path(self, name) -> str:
    """Path of a checkpoint, by its step or its folder's name."""
    return os.path.join(self.folder, str(name))

  def clean(self) -> int:
    """Removes the remains of killed saves and removals."""
    remove_abandoned(self.folder)
    for name in storage.names(self.folder):
      path = self.path(name)
      if name.isdigit() and storage.is_file(os.path.join(path, UNFINISHED)):
        # With a manifest all files are there: a save had ended, or a removal had just begun.
        if storage.is_file(os.path.join(path, checksums.NAME)):
          storage.remove(os.path.join(path, UNFINISHED))
        else:
          log.info("%s: an unfinished checkpoint is removed", path)
          storage.remove_folder(path)
      elif name.isdigit() and not self._holds_anything(path):
        storage.remove_folder(path)  # a process was killed before it could mark the folder
      elif ".orbax-checkpoint-tmp" in name or name == TRIAL:
        storage.remove_folder(path)
    return 0

  @staticmethod
  def _holds_anything(path: str) -> bool:
    return any(not name.startswith(UNFINISHED) for name in storage.names(path))

  def begin(self, step: int, size: int) -> int:
    """Makes room for a save of `size` bytes under its final name. Raises StoreError if the disk has
    too little."""
    storage.make_folder(self.folder)
    if (free := storage.free_bytes(self.folder)) < size * SPARE:
      raise StoreError(
        f"{self.folder}: a checkpoint needs {size * SPARE / 2**20:.1f} MiB, {free / 2**20:.1f} "
        "are free; make room and run the same command again. The checkpoints there are whole"
      )
    if storage.names(self.path(step)):
      self.set_aside(str(step))
    storage.make_folder(self.path(step))
    storage.write_text(os.path.join(self.path(step), UNFINISHED), "")
    return 0

  def finish(self, step: int, facts: dict, config: dict | None = None) -> None:
    """Writes the manifest of a save; from then on the checkpoint counts."""
    if config is not None:
      storage.write_text(os.path.join(self.path(step), CONFIG), json.dumps(config, indent=1))
    checksums.write(self.path(step), {"step": step, **facts}, ignore=(UNFINISHED,))
    storage.remove(os.path.join(self.path(step), UNFINISHED))

  def drop_old(self, step: int, *, keep: int, keep_every: int) -> None:
    """Removes the checkpoints before `step`, except the newest `keep` sound ones and those that
    stay for good (`_stays`)."""
    found = [entry for entry in entries(self.folder) if entry.facts and entry.step <= step]
    sound = [entry for entry in found if entry.facts and entry.facts["sound"]]
    kept = {entry.name for entry in found[:1] + sound[:keep]}
    for entry in found:
      if entry.name not in kept and not self._stays(entry, keep_every):
        storage.write_text(os.path.join(self.path(entry.name), UNFINISHED), "")
        storage.remove(os.path.join(self.path(entry.name), checksums.NAME))
        storage.remove_folder(self.path(entry.name))

  def _stays(self, entry: Entry, keep_every: int) -> bool:
    """Whether a finished checkpoint stays for good: its manifest says so, whatever this start's
    `keep_every` is. Older versions did not say; there this start's decides, or its config's."""
    facts = entry.facts or {}
    if (stays := facts.get("stays")) is not None:
      return bool(stays)
    if not entry.step % keep_every:
      return True
    try:
      made_with = (config_of(self.path(entry.name)) or {})["checkpoint"]["keep_every"]
      return not entry.step % made_with
    except (KeyError, TypeError, ZeroDivisionError):
      return False

  def choose(self, faults: dict[str, str], *, sound_only: bool) -> int:
    """The step of the newest good checkpoint that is not in `faults`; -1 if there are no
    checkpoints. A wrong name is mended.

    Damaged ones are added to `faults`, named in a warning and moved aside.

    Raises UserError if there are checkpoints but no good one.
    """
    found = [
      e for e in entries(self.folder) if not sound_only or e.facts is None or e.facts["sound"]
    ]
    good = newest_good(self.folder, found, faults)
    if good is None:
      if not faults:
        return -1
      raise UserError(
        f"{self.folder}: no checkpoint is good:\n  "
        + listed(faults, "\n  ")
        + "\nbring one back, or move them away to begin anew"
      )
    if faults:
      log.warning(
        "%s: going on from checkpoint %d, since %s", self.folder, good.step, listed(faults, "; ")
      )
    for name in faults:
      if storage.names(self.path(name)):
        self.set_aside(name)
    if good.name != str(good.step):
      log.warning(
        "%s is the checkpoint of step %d, and is renamed to that", self.path(good.name), good.step
      )
      storage.move_folder(self.path(good.name), self.path(good.step))
    return good.step

  def set_aside(self, name: str) -> None:
    """Renames a damaged checkpoint, whose name the next save of that step needs. It is kept for
    inspection."""
    aside = self.path(f"{name}.damaged")
    storage.remove_folder(aside)
    storage.move_folder(self.path(name), aside)
