"""Many files to one file of vectors with an exported encoder, in pieces."""

import itertools
import sys
from collections.abc import Callable, Iterator

import numpy as np

from atst_jax.artifacts.collection import pieces, vectors
from atst_jax.artifacts.collection.listening import Listener
from atst_jax.artifacts.collection.sounds import (
  FRAMES,
  WHOLE,
  WINDOWS,
  Rows,
  Sound,
  check_rows,
  settings_hash,
  sounds_of,
)
from atst_jax.artifacts.model import Model
from atst_jax.audio.channels import MEAN
from atst_jax.util.errors import UserError, printable
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
          self.rejected.append((id, printable(sound.mel)))
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


def compute(
  model: Model,
  share: dict[str, list[tuple[str, str]]],
  *,
  workers: int,
  rows: Rows,
  channels: str,
  options: dict,
) -> None:
  """Computes and writes the pieces (path -> files) that are not there, with progress."""
  listener = Listener(model.sample_rate, channels)
  missing = {piece: files for piece, files in share.items() if vectors.load_piece(piece) is None}
  total, todo = (sum(map(len, part.values())) for part in (share, missing))
  if todo < total:
    log.info("%d of %d files were embedded before", total - todo, total)
  paths = (path for files in missing.values() for _, path in files)
  ahead = max(1, AHEAD_FRAMES // model.frontend.num_frames(round(rows.window * model.sample_rate)))
  read = lambda path: sounds_of(model, listener, path, rows)
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
    listener.tell()


def embed_files(
  model: Model,
  files: list[tuple[str, str]],
  output: str,
  *,
  workers: int,
  options: dict,
  rows: Rows = WHOLE_FILES,
  channels: str = MEAN,
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
    channels: as of `Listener`.
    process: (number, count) of processes that share the folder OUTPUT.part. Each computes its
      share of the pieces; whichever sees all of them done writes the output.

  Raises:
    UserError: none of the files can be read, or the output belongs to another job.
    StoreError: the output cannot be written.
  """
  check_rows(model, rows)
  told_apart = ("format", "tail", "channels", "provenance", "programs", "head")
  decisive = {key: x for key, x in model.config.items() if key not in told_apart}
  told = {**options, **rows._asdict(), "dtype": model.dtype}
  told |= {"channels": channels} if channels != MEAN else {}
  paths = [path for _, path in files]
  work = pieces.plan(output, ".npz", files, paths, decisive, told, process=process)
  about = {
    "job": work.job,
    "params_hash": model.config["params_hash"],
    "settings": settings_hash(model),
    "dimensions": model.width(options["num_blocks"]),
    "blocks": options["num_blocks"],
    "tail": options["tail"],
    "length": "whole" if model.max_seconds is None else f"{model.max_seconds:g}",
    "dtype": model.dtype,
    "channels": channels,
    "rows": rows.kind,
  }
  if rows.kind == WINDOWS:
    about |= {"window": rows.window, "hop": rows.hop}
  elif rows.kind == FRAMES:
    about["dimensions"] = model.encoder.width
  if _is_complete(output, about):
    return f"{output}: is complete, nothing to do"
  if dry_run:
    what = "" if rows.kind == WHOLE else f"the {rows.kind} of "
    return (
      f"{what}{len(files)} files to vectors of {about['dimensions']} numbers each in {output}; "
      f"{work.told(lambda path: vectors.load_piece(path) is not None)}"
    )
  return pieces.run(
    work,
    compute=lambda share: compute(
      model, share, workers=workers, rows=rows, channels=channels, options=options
    ),
    is_complete=lambda: _is_complete(output, about),
    join=lambda: _join(work, about, len(files)),
  )


def _is_complete(output: str, about: dict) -> bool:
  """Raises UserError if the output is another job's."""
  job = vectors.job_of(output)
  if job not in (None, about["job"]):
    raise UserError(f"{output} holds vectors of another job; remove it or choose another name")
  return job is not None


def _join(work: pieces.Work, about: dict, files: int) -> str:
  """Writes the output from all pieces. Returns a line about it."""
  paths = list(work.pieces)
  rejected = vectors.rejected_of(paths)
  for id, reason in rejected:
    print(f"left out {id}: {reason}", file=sys.stderr)
  rows = sum(len(ids) for path in paths for ids in vectors.ids_of(path))
  if not rows:
    raise UserError(f"none of {files} files could be read")
  write = vectors.write_npz if work.output.endswith(".npz") else vectors.write_parquet
  write(work.output, paths, about)
  what = "" if about["rows"] == WHOLE else f" of {about['rows']}"
  return (
    f"{work.output}: {rows} vectors{what} of {about['dimensions']} numbers, {len(rejected)} files "
    "left out"
  )
