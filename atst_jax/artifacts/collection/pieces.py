"""Work on many files in pieces: what was computed before an interruption remains, and processes
that see the same folder may share it.

The pieces of OUTPUT lie in OUTPUT.part until all are there and become the output.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import atst_jax
from atst_jax.runtime.workdir import claim
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError

PIECE_FILES = 256
PIECE_BYTES = 64 << 20


class Work(NamedTuple):
  """What is to be made, and whose share is this.

  Attributes:
    output: the file.
    pieces: path of each piece -> its items; a name is a hash of all that decides its contents.
    process: number, and count, of the processes that share the pieces.
  """

  output: str
  pieces: dict[str, list]
  process: tuple[int, int]

  @property
  def job(self) -> str:
    """16 hexadecimal digits over all that decides the output."""
    return digest([os.path.basename(path).partition(".")[0] for path in self.pieces])

  @property
  def folder(self) -> str:
    """Of the pieces."""
    return f"{self.output}.part"

  @property
  def share(self) -> dict[str, list]:
    """The pieces of this process."""
    return dict(itertools.islice(self.pieces.items(), self.process[0], None, self.process[1]))

  def told(self, is_done: Callable[[str], bool]) -> str:
    """How much is there, for a dry run."""
    done = [path for path in self.pieces if is_done(path)]
    files = sum(len(self.pieces[path]) for path in done)
    return f"{len(done)} of {len(self.pieces)} pieces ({files} files) are done; nothing written"


def digest(value) -> str:
  """16 hexadecimal digits over any JSON."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def stamp(path: str) -> tuple[int, int]:
  """(bytes, time of change) of a file: when they differ, so may its contents. A store gives no
  time."""
  changed = 0
  if not storage.is_remote(path) and os.path.exists(path):
    changed = os.stat(path).st_mtime_ns
  return storage.size(path), changed


def groups(sizes: Iterable[int]) -> Iterator[slice]:
  """Cuts files of so many bytes into pieces of at most PIECE_FILES files and, unless it is one,
  PIECE_BYTES."""
  start, total, end = 0, 0, 0
  for end, size in enumerate(sizes):
    if end > start and (end - start == PIECE_FILES or total + size > PIECE_BYTES):
      yield slice(start, end)
      start, total = end, 0
    total += size
  yield slice(start, end + 1)


def plan(
  output: str,
  ending: str,
  items: list,
  paths: list[str],
  *decisive,
  process: tuple[int, int] = (0, 1),
) -> Work:
  """Cuts items into pieces.

  Args:
    output: file to make.
    ending: of the names of pieces.
    items: tuples of JSON.
    paths: of their files.
    decisive: any JSON that decides what the pieces hold, beside the version, items and files.
    process: as of `Work`.
  """
  stamps = [stamp(path) for path in paths]
  pieces = {}
  for part in groups(size for size, _ in stamps):
    known = [(*item, *seen) for item, seen in zip(items[part], stamps[part], strict=True)]
    name = digest([atst_jax.__version__, *decisive, known])
    pieces[os.path.join(f"{output}.part", f"{name}{ending}")] = items[part]
  return Work(output, pieces, process)


def run(
  work: Work,
  *,
  compute: Callable[[dict[str, list]], None],
  is_complete: Callable[[], bool],
  join: Callable[[], str],
) -> str:
  """Computes this process's share. Whichever process sees all pieces done joins them, and removes
  them. Returns a line about it.

  Args:
    work: what is to be made.
    compute: writes those of the given pieces that are not there.
    is_complete: whether the output is there; raises UserError if it is another job's.
    join: writes the output from all pieces; returns a line about it.

  Raises:
    StoreError: something cannot be written.
  """
  number, count = work.process
  own = work.folder if count == 1 else os.path.join(work.folder, f"{number}-of-{count}")
  try:
    with contextlib.closing(claim(own, "output")):
      compute(work.share)
      if count == 1:
        return _joined(work, join)
    return _join_if_last(work, is_complete, join)
  except OSError as error:
    raise StoreError(
      f"{work.output}: cannot be written ({error.strerror}); make room or choose another file, "
      "and run the same command again"
    ) from error


def _joined(work: Work, join: Callable[[], str]) -> str:
  line = join()
  shutil.rmtree(work.folder)
  return line


def _join_if_last(work: Work, is_complete: Callable[[], bool], join: Callable[[], str]) -> str:
  number, count = work.process
  done = f"{work.output}: process {number} of {count} has done its share"
  if is_complete():
    return done
  missing = sum(not os.path.exists(path) for path in work.pieces)
  if missing:
    return f"{done}; {missing} of {len(work.pieces)} pieces are left to the others"
  try:
    lock = claim(work.folder, "output")
  except UserError:  # another process joins at this moment
    return done
  with contextlib.closing(lock):
    if is_complete():
      shutil.rmtree(work.folder, ignore_errors=True)
      return done
    return _joined(work, join)
