"""Which file goes into which shard, and whether an output folder belongs to the same plan."""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from atst_jax.audio.decode import Reject, duration
from atst_jax.audio.frontend import FrontEnd, log_mel
from atst_jax.data.dataset import MANIFEST, write_json
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError
from atst_jax.util.lock import Held, Lock

from ..sources.files import Source
from .shard import ShardTask, read_file

WORK = ".work"  # inside the output: the plan, and a sidecar for every finished shard
PLAN = "plan.json"
OWNER = (".lock", ".owner")  # files of `util.lock`
MIN_SHARDS = 16  # so that 16 processes or streams can read any set
SHARDS = 64  # a larger set has a multiple of it, so that any usual number of readers divides it
SIZED_FILES = 64  # headers read to estimate the size of a split


Named = TypeVar("Named", bound=Source)


def hash_order(sources: list[Named], seed: int) -> list[Named]:
  """Sorts by a hash of seed and id: a random order that depends on nothing else."""
  return sorted(sources, key=lambda s: (hashlib.sha256(f"{seed}:{s.id}".encode()).digest(), s.id))


def header_seconds(ordered: list[Source]) -> float:
  """Estimated seconds of audio: of segments by their table, of files by the headers of the first
  ones."""
  known = sum(max(source.end - source.start, 0) for source in ordered if source.end < math.inf)
  others = [source for source in ordered if source.end == math.inf]
  seconds = []
  for source in others[:SIZED_FILES]:
    with contextlib.suppress(Reject):
      seconds.append(max(duration(source.path) - source.start, 0))
  return known + len(others) * sum(seconds) / max(1, len(seconds))


def mel_bytes(seconds: float, frontend: FrontEnd) -> float:
  """Bytes of so many seconds of sound as float16 log-mel spectrograms."""
  return seconds * frontend.sample_rate / frontend.hop_length * frontend.n_mels * 2


def choose_num_shards(num_bytes: float, files: int, *, shard_mb: float, num_shards: int) -> int:
  """Shards of a split: `num_shards` if not 0, else by size; never more than files."""
  filled = math.ceil(num_bytes / (shard_mb * 2**20))
  chosen = MIN_SHARDS if filled <= MIN_SHARDS else math.ceil(filled / SHARDS) * SHARDS
  return min(num_shards or chosen, files)


def measure(
  sources: list[Source], *, frontend: FrontEnd, filters: np.ndarray, read: Callable = read_file
) -> tuple[float, float]:
  """(seconds of audio, seconds of one core) for preparing a few files: decoding, resampling,
  log-mel."""
  audio, started = 0.0, time.process_time()
  for source in sources:
    with contextlib.suppress(Reject):
      for _, waveform in read(
        source, sample_rate=frontend.sample_rate, min_samples=frontend.min_samples
      ):
        log_mel(waveform, frontend, filters)
        audio += len(waveform) / frontend.sample_rate
  return audio, time.process_time() - started


def deal(
  sources: list[Named],
  *,
  frontend: FrontEnd,
  seed: int,
  shard_mb: float,
  num_shards: int,
  seconds_of: Callable[[list], float] = header_seconds,
) -> tuple[list[ShardTask], float]:
  """Deals the files of every split to its shards in turn. Segments of one recording stay together:
  it is decoded once.

  Args:
    seconds_of: seconds of audio of a split's files, in hash order.

  Returns:
    The shards, and the seconds of audio of all.
  """
  tasks, total = [], 0.0
  for split in sorted({source.split for source in sources}):
    own = [source for source in sources if source.split == split]
    runs = {run[0].id: run for run in _recordings(own)}
    firsts = [source for source in own if source.whole] + [run[0] for run in runs.values()]
    ordered = hash_order(firsts, seed)
    seconds = seconds_of(_with_runs(ordered, runs))
    total += seconds
    num_bytes = mel_bytes(seconds, frontend)
    count = choose_num_shards(num_bytes, len(ordered), shard_mb=shard_mb, num_shards=num_shards)
    for i in range(count):
      held = _with_runs(ordered[i::count], runs)
      tasks.append(ShardTask(shard_file(split, i, count), split, tuple(held)))
  return tasks, total


def _with_runs(firsts: list[Named], runs: dict[str, list[Named]]) -> list[Named]:
  """Each source, followed by the other segments of its recording."""
  return [source for first in firsts for source in runs.get(first.id, (first,))]


def _recordings(sources: list[Named]) -> Iterator[list[Named]]:
  """Yields the segments of each recording in the order of reading: reversed ones, then by their
  end."""
  segments = collections.defaultdict(list)
  for source in sources:
    if not source.whole:
      segments[source.path].append(source)
  for found in segments.values():
    yield sorted(found, key=lambda s: (s.start < s.end, s.end, s.start, s.id))


def shard_file(split: str, number: int, count: int) -> str:
  """The file name of a shard, in TFDS's form."""
  return f"{split}-{number:05d}-of-{count:05d}.tfrecord"


def hash_sources(sources: list[Source], root: str) -> tuple[str, list[str]]:
  """(sha256 over names, labels and sizes of all files, ids of those that are missing)."""
  digest, missing = hashlib.sha256(), []
  paths = [*dict.fromkeys(source.path for source in sources)]
  sizes = dict(zip(paths, storage.sizes(paths, root), strict=True))
  prefix = os.path.join(root, "")
  relative = lambda path: (
    path.removeprefix(prefix) if path.startswith(prefix) else os.path.relpath(path, root)
  )
  for source in sources:
    size = sizes[source.path]
    if size < 0:
      missing.append(source.id)
    name = os.fsencode(relative(source.path)).hex()
    row = [source.id, name, size, source.labels, source.multi_label, source.fold, source.split]
    row += [source.group] if source.group else []  # absent from an older version's
    row += [] if source.whole else [source.start, source.end]
    digest.update(json.dumps(row).encode())
  return digest.hexdigest(), missing


def find_duplicates(sources: list[Source], root: str, *, workers: int) -> list[dict]:
  """Rejects for files, or equal segments, of the same content as an earlier one. Only files of
  equal size are read.

  Clips of other splits are earlier than those of the training split, so that a test set stays
  whole; then the id decides.

  Args:
    workers: threads that read and hash.
  """
  sources = sorted(sources, key=lambda source: (source.split == "train", source.id))
  paths = [*dict.fromkeys(source.path for source in sources)]
  sizes = dict(zip(paths, storage.sizes(paths, root), strict=True))
  counts = collections.Counter(sizes.values())
  common = {size for size, count in counts.items() if count > 1 and size > 0}
  suspects = [source for source in sources if sizes[source.path] in common]

  def content(source):
    with contextlib.suppress(OSError):  # a file that cannot be read is a reject of its own, later
      return storage.sha256(source.path)
    return source.id

  first, rejects = {}, []
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    first_of = {source.path: source for source in suspects}
    digests = dict(zip(first_of, pool.map(content, first_of.values()), strict=True))
    for source in suspects:
      kept = first.setdefault((digests[source.path], source.start, source.end), source.id)
      if kept != source.id:
        rejects.append({"id": source.id, "reason": "duplicate", "detail": f"of {kept}"})
  return rejects


def newer_recording(file: str, sources: Iterable[Source]) -> str:
  """The path of a recording that is newer than a file made of it, and may have changed since; ""
  if none is. Stores do not tell, nor does a time in the future."""
  made, now = _modified(file), time.time()
  if math.isnan(made):
    return ""
  paths = dict.fromkeys(path for source in sources for path in source.recordings)
  return next((path for path in paths if made < _modified(path) < now), "")


def _modified(path: str) -> float:
  """Seconds since 1970; NaN, which is neither older nor newer, where nothing tells."""
  try:
    return math.nan if storage.is_remote(path) else os.stat(path).st_mtime
  except OSError:
    return math.nan


def check_plan(output: str, plan: dict) -> None:
  """Raises UserError, with what differs, if an output folder holds shards of another plan."""
  if storage.is_file(output):
    raise UserError(f"--output={output} is a file; name a folder")
  if not any(shard_name(name) for name in storage.names(output)):
    return
  remedy = "choose another --output, or delete that folder"
  found = _stored(os.path.join(output, WORK, PLAN), lambda value: value)
  found = found or _stored(os.path.join(output, MANIFEST), plan_of)
  if found is None:
    raise UserError(f"--output={output} holds shards, and nothing says what of; {remedy}")
  for key in sorted(plan.keys() | found.keys()):
    if plan.get(key) != found.get(key):
      what = "other input files (names, labels, sizes or their number)"
      if key != "sources":
        what = f"{key} {found.get(key)!r}, now it is {plan.get(key)!r}"
      raise UserError(f"--output={output} was prepared with {what}; {remedy}")


def _stored(path: str, plan_in: Callable[[dict], dict]) -> dict | None:
  try:
    return plan_in(json.loads(storage.read_text(path)))
  except StoreError:
    raise
  except (ValueError, KeyError, TypeError, OSError):
    return None


def plan_of(manifest: dict) -> dict:
  """The plan that a `dataset.json` was made with."""
  frontend = manifest["frontend"]
  return {
    **manifest["preparation"],
    "schema": manifest["schema"],
    "name": manifest["name"],
    "frontend": f"{frontend['name']} {frontend['hash']}",
  }


def shard_name(name: str) -> re.Match | None:
  """Matches the file names of shards."""
  return re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*-\d{5,}-of-\d{5,}\.tfrecord", name)


@contextlib.contextmanager
def _owned(work: str, output: str) -> Iterator[None]:
  """Lets one job prepare at a time. Stores have no locks: two jobs there write the same bytes."""
  if storage.is_remote(work):
    yield
    return
  try:
    lock = Lock(work)
  except Held as owner:
    raise UserError(
      f"--output={output} is in use by {owner}; wait for it, stop it, or choose another folder"
    ) from None
  with contextlib.closing(lock):
    yield


def remove_temporary(output: str) -> None:
  """Removes the files that a process had begun when it was killed."""
  for name in storage.names(output):
    if re.fullmatch(r".+\.(tfrecord|json|html|txt)\.tmp-[0-9a-f]+", name):
      storage.remove(os.path.join(output, name))


@contextlib.contextmanager
def open_output(output: str, plan: dict) -> Iterator[str]:
  """Creates and locks the output folder, stores the plan, removes temporary files. Yields the work
  folder.

  Raises UserError if the folder cannot be written or another process prepares into it.
  """
  work = os.path.join(output, WORK)
  with contextlib.ExitStack() as stack:
    try:
      storage.make_folder(work)
      stack.enter_context(_owned(work, output))
    except OSError as error:
      raise UserError(
        f"cannot write to --output={output}: {error.strerror}; choose another folder"
      ) from error
    continued = _stored(os.path.join(work, PLAN), lambda value: value) == plan
    for name in storage.names(work):  # of another plan, all files are removed
      if not name.startswith(OWNER) and not (continued and name.endswith(".json")):
        storage.remove(os.path.join(work, name))
    remove_temporary(output)
    write_json(os.path.join(work, PLAN), plan)
    yield work
