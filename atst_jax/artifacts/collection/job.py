"""Many files to one file of vectors with an exported encoder, piece by piece, so that an
interruption costs one piece."""

import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator

import numpy as np

import atst_jax
from atst_jax.artifacts.collection import vectors
from atst_jax.artifacts.collection.sounds import (
  FRAMES,
  WHOLE,
  WINDOWS,
  Rows,
  Sound,
  check_rows,
  sounds_of,
)
from atst_jax.artifacts.model import Model
from atst_jax.runtime.workdir import claim
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError
from atst_jax.util.logs import Progress, log
from atst_jax.util.prefetch import prefetch_each

BLOCK_ROWS = 1024  # vectors that are computed before they are written
AHEAD_FRAMES = 30_000  # of the windows of a file that wait for the encoder
WHOLE_FILES = Rows()


class _Usable:
  """The sounds of a piece's files that can be embedded; the others are listed."""

  def __init__(self, ids: list[str], files: Iterator[Iterator[Sound]], done: Callable[[], None]):
    self._ids, self._files, self._done = ids, files, done
    self.rejected: list[tuple[str, str]] = []

  def __iter__(self) -> Iterator[tuple[str, Sound]]:
    for id in self._ids:
      for sound in next(self._files):
        if isinstance(sound.mel, str):
          self.rejected.append((id, sound.mel))
        else:
          yield id, sound
      self._done()


def embed_piece(
  model: Model,
  ids: list[str],
  files: Iterator[Iterator[Sound]],
  done: Callable[[], None],
  *,
  rows: Rows,
  **options,
) -> vectors.Piece:
  """The piece of some files, computed while its blocks are read.

  Args:
    ids: of the files.
    files: the sounds of these files, and of later ones.
    done: called after each file.
    rows: what gets a vector.
    options: of `Model.embed`.
  """
  usable = _Usable(ids, files, done)
  if rows.kind == FRAMES:
    return vectors.Piece(_frame_blocks(model, iter(usable)), usable.rejected)
  return vectors.Piece(_blocks(model, iter(usable), rows, options), usable.rejected)


def _blocks(model, sounds, rows: Rows, options) -> Iterator[vectors.Block]:
  labels: list[tuple[str, float, float]] = []

  def mels():
    for id, sound in itertools.islice(sounds, BLOCK_ROWS):
      labels.append((id, sound.start, sound.end))
      yield sound.mel

  while True:
    found = model.embed(mels(), **options)
    if not labels:
      return
    spans = np.array([label[1:] for label in labels]) if rows.kind == WINDOWS else None
    yield vectors.Block([label[0] for label in labels], spans, found)
    labels.clear()


def _frame_blocks(model, sounds) -> Iterator[vectors.Block]:
  seconds = model.hop * model.frontend.hop_length / model.sample_rate
  for id, sound in sounds:
    count = 0
    for part in model.frame_blocks(sound.mel):
      numbers = np.arange(count, count + len(part))
      yield vectors.Block([id] * len(part), np.stack([numbers, numbers + 1], 1) * seconds, part)
      count += len(part)


def stamp(path: str) -> tuple[int, int]:
  """(bytes, time of change) of a file: when they differ, so may its contents. A store gives no
  time."""
  changed = 0
  if not storage.is_remote(path) and os.path.exists(path):
    changed = os.stat(path).st_mtime_ns
  return storage.size(path), changed


def named_pieces(items: list, paths: list[str], *decisive) -> dict[str, list]:
  """Cuts items into pieces: name -> its items. A name depends on the version, on what is
  `decisive` (JSON), on the items (tuples of JSON) and on their files at `paths` alone."""
  stamps = [stamp(path) for path in paths]
  pieces = {}
  for part in vectors.groups(size for size, _ in stamps):
    known = [(*item, *seen) for item, seen in zip(items[part], stamps[part], strict=True)]
    pieces[vectors.digest([atst_jax.__version__, *decisive, known])] = items[part]
  return pieces


def plan(
  model: Model, files: list[tuple[str, str]], options: dict
) -> dict[str, list[tuple[str, str]]]:
  """Name of each piece -> its files, as (id, path). A name depends on the encoder, the options and
  the files alone."""
  decisive = {
    key: x for key, x in model.config.items() if key not in ("format", "tail", "provenance")
  }
  return named_pieces(files, [path for _, path in files], decisive, options)


def compute(
  model: Model, pieces: dict[str, list[tuple[str, str]]], *, workers: int, rows: Rows, options: dict
) -> None:
  """Computes and writes the pieces (path -> files) that are not there, with progress."""
  missing = {piece: files for piece, files in pieces.items() if vectors.load_piece(piece) is None}
  total, todo = (sum(map(len, part.values())) for part in (pieces, missing))
  if todo < total:
    log.info("%d of %d files were embedded before", total - todo, total)
  paths = (path for files in missing.values() for _, path in files)
  ahead = max(1, AHEAD_FRAMES // model.frontend.num_frames(round(rows.window * model.sample_rate)))
  read = lambda path: sounds_of(model, path, rows)
  files = prefetch_each(read, paths, workers=workers, ahead=min(ahead, 64) if rows.window else 1)
  progress = Progress(todo)
  done = lambda: progress.update(progress.files + 1, progress.clips + 1)
  try:
    for piece, part in missing.items():
      ids = [id for id, _ in part]
      vectors.save_piece(piece, embed_piece(model, ids, files, done, rows=rows, **options))
  finally:
    files.close()
    progress.close()


def embed_files(
  model: Model,
  files: list[tuple[str, str]],
  output: str,
  *,
  workers: int,
  options: dict,
  rows: Rows = WHOLE_FILES,
  process: tuple[int, int] = (0, 1),
  dry_run: bool = False,
) -> str:
  """Writes the vectors of files, given as (id, path), to OUTPUT.npz or OUTPUT.parquet; returns a
  line about it.

  What was computed before an interruption lies in OUTPUT.part and is taken from there.

  Args:
    workers: threads that decode.
    options: `num_blocks` and `tail` of `Model.embed`.
    rows: what of a file gets a vector.
    process: (number, count) of processes that share the folder OUTPUT.part. Each computes its
      share of the pieces; whichever sees all of them done writes the output.

  Raises:
    UserError: none of the files can be read, or the output belongs to another job.
    StoreError: the output cannot be written.
  """
  check_rows(model, rows)
  pieces = plan(model, files, {**options, **rows._asdict(), "dtype": model.dtype})
  about = {
    "job": vectors.digest(list(pieces)),
    "params_hash": model.config["params_hash"],
    "dimensions": model.width(options["num_blocks"]),
    "blocks": options["num_blocks"],
    "tail": options["tail"],
    "length": "whole" if model.max_seconds is None else f"{model.max_seconds:g}",
    "dtype": model.dtype,
    "rows": rows.kind,
  }
  if rows.kind == WINDOWS:
    about |= {"window": rows.window, "hop": rows.hop}
  elif rows.kind == FRAMES:
    about["dimensions"] = model.encoder.width
  if _is_complete(output, about):
    return f"{output}: is complete, nothing to do"
  folder = f"{output}.part"
  pieces = {os.path.join(folder, f"{name}.npz"): part for name, part in pieces.items()}
  if dry_run:
    done = [path for path in pieces if vectors.load_piece(path) is not None]
    what = "" if rows.kind == WHOLE else f"the {rows.kind} of "
    return (
      f"{what}{len(files)} files to vectors of {about['dimensions']} numbers each in {output}; "
      f"{len(done)} of {len(pieces)} pieces ({sum(len(pieces[path]) for path in done)} files) "
      "are done; nothing written"
    )
  number, count = process
  share = dict(itertools.islice(pieces.items(), number, None, count))
  own = folder if count == 1 else os.path.join(folder, f"{number}-of-{count}")
  try:
    with contextlib.closing(claim(own, "output")):
      compute(model, share, workers=workers, rows=rows, options=options)
      if count == 1:
        return _join(output, pieces, about, len(files))
    return _join_if_last(output, pieces, about, files, process)
  except OSError as error:
    raise StoreError(
      f"{output}: cannot be written ({error.strerror}); make room or choose another file, "
      "and run the same command again"
    ) from error


def _is_complete(output: str, about: dict) -> bool:
  """Raises UserError if the output is another job's."""
  job = vectors.job_of(output)
  if job not in (None, about["job"]):
    raise UserError(f"{output} holds vectors of another job; remove it or choose another name")
  return job is not None


def _join(output: str, pieces: dict, about: dict, files: int) -> str:
  """Writes the output from all pieces, and removes them. Returns a line about it."""
  rejected = vectors.rejected_of(list(pieces))
  for id, reason in rejected:
    print(f"left out {id}: {reason}", file=sys.stderr)
  rows = sum(len(ids) for path in pieces for ids in vectors.ids_of(path))
  if not rows:
    raise UserError(f"none of {files} files could be read")
  write = vectors.write_npz if output.endswith(".npz") else vectors.write_parquet
  write(output, list(pieces), about)
  shutil.rmtree(os.path.dirname(next(iter(pieces))))
  what = "" if about["rows"] == WHOLE else f" of {about['rows']}"
  return (
    f"{output}: {rows} vectors{what} of {about['dimensions']} numbers, {len(rejected)} files left "
    "out"
  )


def _join_if_last(output, pieces, about, files, process) -> str:
  """What a process does after its share: it joins all shares if there is none left to wait for."""
  number, count = process
  done = f"{output}: process {number} of {count} has done its share"
  if _is_complete(output, about):
    return done
  missing = sum(not os.path.exists(path) for path in pieces)
  if missing:
    return f"{done}; {missing} of {len(pieces)} pieces are left to the others"
  try:
    lock = claim(os.path.dirname(next(iter(pieces))), "output")
  except UserError:  # another process joins at this moment
    return done
  with contextlib.closing(lock):
    if _is_complete(output, about):
      shutil.rmtree(os.path.dirname(next(iter(pieces))), ignore_errors=True)
      return done
    return _join(output, pieces, about, len(files))
