"""The job that writes a listing's shards and its `dataset.json`. All commands that make a set run
it.

Files are ordered by sha256("SEED:ID") and dealt to the shards of their split in turn. If a shard
has no usable file, all files rejected so far are set aside and the others are dealt once more, so
that no shard is empty. Segments of which some pieces are kept are among the others.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Set

from atst_jax.audio.frontend import FrontEnd, mel_filters
from atst_jax.data.dataset import MANIFEST, SCHEMA_VERSION, write_json
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

from ..sources.files import Listing
from . import beam
from .plan import (
  check_plan,
  deal,
  find_duplicates,
  header_seconds,
  measure,
  mel_bytes,
  newer_recording,
  open_output,
  shard_name,
)
from .shard import (
  Settings,
  ShardTask,
  read_file,
  read_run,
  read_sidecar,
  read_sidecars,
  sidecar_path,
  wait_for_pyav,
)
from .summary import describe
from .tfds_info import write_tfds_info
from .workers import CRASHERS, write_tasks

MEASURED_FILES = 32  # by --dry_run
REJECTS = "rejects.json"  # in the work folder: files set aside before the files are dealt


@dataclasses.dataclass(frozen=True)
class Job:
  """A set to be written.

  Attributes:
    output: folder of the set.
    name: of the set.
    listing: the files, or other items that `read` turns into sounds.
    made_of: JSON: of what and how the set is made. A finished shard is kept only if this is the
      same. Part of `dataset.json`.
    read: gives the waveforms of a source (`shard.read_file`).
    read_run: gives those of several segments of one recording (`shard.read_run`).
    seconds_of: seconds of audio of sources (`plan.deal`).
    max_seconds: longer sounds are cut into pieces of this length.
    runner, beam_options: shards are written by Apache Beam, if a runner is named.
  """

  output: str
  name: str
  listing: Listing
  frontend: FrontEnd
  made_of: dict
  seed: int
  workers: int
  num_shards: int
  shard_mb: float
  read: Callable = read_file
  read_run: Callable = read_run
  seconds_of: Callable[[list], float] = header_seconds
  max_seconds: float = float("inf")
  reject_silent: bool = False
  reject_duplicates: bool = False
  runner: str = ""
  beam_options: tuple[str, ...] = ()

  @property
  def plan(self) -> dict:
    """JSON that differs between jobs whose shards differ."""
    return {
      **self.made_of,
      "schema": SCHEMA_VERSION,
      "name": self.name,
      "frontend": f"{self.frontend.name} {self.frontend.hash}",
    }

  def check(self) -> None:
    """Raises UserError for an output folder that holds shards of another plan."""
    check_plan(self.output, self.plan)

  def describe(self, missing: list[dict]) -> list[str]:
    """Lines for --dry_run; `missing` are the rejects known beforehand."""
    tasks, seconds = self._deal(missing)
    lines = [
      f"{len(self.listing.sources)} files ({self.listing.kind}), {len(missing)} of them missing, "
      f"{len(self.listing.label_names)} classes, about {seconds / 3600:.2f} hours; nothing written"
    ]
    size = f"about {mel_bytes(seconds, self.frontend) / 2**30:.2f} GiB"
    sample = [source for task in tasks for source in task.sources[:1]][:MEASURED_FILES]
    filters = mel_filters(self.frontend)
    # Libraries and tables are loaded before time is measured.
    measure(sample[:1], frontend=self.frontend, filters=filters, read=self.read)
    audio, busy = measure(sample, frontend=self.frontend, filters=filters, read=self.read)
    if audio:
      hours = seconds * busy / audio / 3600
      size += f" and {hours:.2g} core-hours, after {len(sample)} files"
    lines.append(size)
    for split in sorted({task.split for task in tasks}):
      shards = [task for task in tasks if task.split == split]
      files = sum(len(task.sources) for task in shards)
      lines.append(f"{split}: {files} files to {len(shards)} shards, {shards[0].file} ...")
    return lines

  def write(
    self,
    missing: Iterable[dict] = (),
    *,
    again: Set[str] = frozenset(),
    add: Callable[[list[dict]], None] = lambda sidecars: None,
  ) -> dict:
    """Writes the shards and then `dataset.json`, which it returns.

    Args:
      missing: rejects that are known beforehand.
      again: file names of shards that are written although they look finished.
      add: called with the sidecars of all shards before `dataset.json` is written.

    Raises:
      UserError: no file can be used, or the output cannot be written.
      StoreError: a store or a disk does not answer.
      Stopped: a worker died, or a signal came; the same job, run again, continues.
    """
    listing = self.listing
    with open_output(self.output, self.plan) as work:
      aside, left_out = self._set_aside([*missing], work)
      sidecars, rejects = self._write_shards(aside, left_out, work, again)
      manifest = describe(
        name=self.name,
        frontend=self.frontend,
        listing=listing,
        sidecars=sidecars,
        rejects=rejects,
        preparation=self.made_of,
      )
      self._remove_strays({sidecar["file"] for sidecar in sidecars})
      add(sidecars)
      labelled = all(source.labels for source in listing.sources)
      folded = all(source.fold >= 0 for source in listing.sources)
      write_tfds_info(self.output, manifest, labelled=labelled, folded=folded)
      write_json(os.path.join(self.output, MANIFEST), manifest)
    return manifest

  def _set_aside(self, missing: list[dict], work: str) -> tuple[list[dict], list[str]]:
    """The rejects to leave out, and the ids of stretches without a clip, which are no rejects: as
    an earlier start of this job found them, unless recordings changed since."""
    path, crashes = os.path.join(work, REJECTS), os.path.join(work, CRASHERS)
    if storage.is_file(crashes) and self._newer(crashes, json.loads(storage.read_text(crashes))):
      storage.remove(crashes)
    if storage.is_file(path):
      found = json.loads(storage.read_text(path))
      rejects, left_out = found["rejects"], found.get("left_out", [])
      ids = [reject["id"] for reject in rejects]
      for reject in rejects:
        if reject["reason"] == "duplicate":
          ids.append(reject["detail"].removeprefix("of "))  # of `find_duplicates`
      if not wait_for_pyav(rejects) and not self._newer(path, ids + left_out):
        return rejects, left_out
      storage.remove(path)
    if not self.reject_duplicates:
      return missing, []
    log.info("looking for files of the same content")
    listing = self.listing
    aside = missing + find_duplicates(listing.sources, listing.root, workers=self.workers)
    write_json(path, {"rejects": aside})
    return aside, []

  def _newer(self, file: str, ids: Iterable[str]) -> str:
    """`newer_recording` of the sources with these ids."""
    named = set(ids)
    return newer_recording(file, [source for source in self.listing.sources if source.id in named])

  def _deal(self, aside: list[dict], left_out: Iterable[str] = ()) -> tuple[list[ShardTask], float]:
    ids = {reject["id"] for reject in aside}.union(left_out)
    return deal(
      [source for source in self.listing.sources if source.id not in ids],
      frontend=self.frontend,
      seed=self.seed,
      shard_mb=self.shard_mb,
      num_shards=self.num_shards,
      seconds_of=self.seconds_of,
    )

  def _write_shards(
    self, aside: list[dict], left_out: list[str], work: str, again: Set[str]
  ) -> tuple[list[dict], list[dict]]:
    """(sidecars in order, all rejects). Skips finished shards; deals a second time if a shard is
    empty."""
    for _ in range(2):
      tasks, _ = self._deal(aside, left_out)
      changed = self._older(tasks, work)
      unfinished = lambda task: read_sidecar(task, self.output, work) is None
      todo = [task for task in tasks if task.file in again | changed or unfinished(task)]
      again = frozenset()
      if todo:
        means = self.runner or f"{self.workers} workers"
        log.info("%d of %d shards to write, %s", len(todo), len(tasks), means)
        self._write_tasks(todo, work)
      sidecars = read_sidecars(tasks, self.output, work)
      rejects = aside + [reject for sidecar in sidecars for reject in sidecar["rejects"]]
      if all(sidecar["num_clips"] for sidecar in sidecars):
        return sidecars, rejects
      if not any(sidecar["num_clips"] for sidecar in sidecars):
        break
      aside = [reject for reject in rejects if not reject.get("kept")]
      left_out = left_out + [id for sidecar in sidecars for id in sidecar.get("left_out", ())]
      told = {"left_out": left_out} if left_out else {}
      write_json(os.path.join(work, REJECTS), {"rejects": aside, **told})
    first = min(rejects, key=lambda reject: reject["id"])
    raise UserError(
      f"none of the {len(self.listing.sources)} files can be used; the first is {first['id']!r}: "
      f"{first['reason']} {first['detail']}".rstrip()
    )

  def _older(self, tasks: list[ShardTask], work: str) -> Set[str]:
    """File names of the shards that are older than what they are made of."""
    older = {task.file for task in tasks if newer_recording(sidecar_path(task, work), task.sources)}
    if older:
      log.info("%d shards are older than their recordings, and are written again", len(older))
    return older

  def _write_tasks(self, tasks: list[ShardTask], work: str) -> None:
    settings = Settings(
      self.output,
      work,
      self.frontend,
      mel_filters(self.frontend),
      tuple(self.listing.label_names),
      self.max_seconds,
      self.reject_silent,
      read=self.read,
      read_run=self.read_run,
    )
    if self.runner:
      beam.write_tasks(tasks, settings, runner=self.runner, options=[*self.beam_options])
    else:
      write_tasks(tasks, settings, workers=self.workers)

  def _remove_strays(self, files: set[str]) -> None:
    """Removes shards of the first deal that the second one replaced."""
    for name in storage.names(self.output):
      if shard_name(name) and name not in files:
        storage.remove(os.path.join(self.output, name))


def classes_hash(label_names: list[str]) -> str:
  """A digest of a set's classes, in their order."""
  return hashlib.sha256("\0".join(label_names).encode()).hexdigest()[:16]
