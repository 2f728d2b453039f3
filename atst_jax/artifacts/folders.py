"""Many files to one file of vectors with an exported encoder, piece by piece, so that an
interruption costs one piece."""

import collections
import concurrent.futures
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator

import atst_jax
from atst_jax.artifacts import vectors
from atst_jax.artifacts.model import Model
from atst_jax.audio.waveforms import Mel
from atst_jax.runtime.workdir import claim
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError
from atst_jax.util.logs import Progress, log


def prefetch(function: Callable, items: Iterable, workers: int) -> Generator:
  """Yields `function(item)` in order, computed by threads that stay at most 2 · workers items
  ahead."""
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    waiting: collections.deque = collections.deque()
    try:
      for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > 2 * workers:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      pool.shutdown(cancel_futures=True)


def file_mel(model: Model, path: str) -> Mel | str:
  """The log-mel of an audio file, or the reason why it cannot be used. Raises StoreError."""
  from atst_jax.audio.decode import read_blocks

  try:
    mel = model.mel_of(lambda: read_blocks(path, model.sample_rate))
    model.check(mel)
  except StoreError:
    raise
  except UserError as error:
    return str(error)
  return mel


def embed_piece(
  model: Model, ids: list[str], mels: Iterator[Mel | str], done: Callable[[], None], **options
):
  """The piece of some files, from as many of `mels`; `done` is called after each file."""
  kept, rejected = [], []

  def usable():
    for id in ids:
      mel = next(mels)
      if isinstance(mel, str):
        rejected.append((id, mel))
      else:
        kept.append(id)
        yield mel
      done()

  return vectors.Piece(kept, model.embed(usable(), **options), rejected)


def stamp(path: str) -> tuple[int, int]:
  """(bytes, time of change) of a file: when they differ, so may its contents. A store gives no
  time."""
  changed = 0
  if not storage.is_remote(path) and os.path.exists(path):
    changed = os.stat(path).st_mtime_ns
  return storage.size(path), changed


def plan(
  model: Model, files: list[tuple[str, str]], options: dict
) -> dict[str, list[tuple[str, str]]]:
  """Name of each piece -> its files, as (id, path). A name depends on the encoder, the options and
  the files alone."""
  decisive = {
    key: x for key, x in model.config.items() if key not in ("format", "tail", "provenance")
  }
  stamps = [stamp(path) for _, path in files]
  pieces = {}
  for part in vectors.groups(size for size, _ in stamps):
    known = [(*file, *seen) for file, seen in zip(files[part], stamps[part], strict=True)]
    pieces[vectors.digest([atst_jax.__version__, decisive, options, known])] = files[part]
  return pieces


def compute(
  model: Model, pieces: dict[str, list[tuple[str, str]]], *, workers: int, options: dict
) -> None:
  """Computes and writes the pieces (path -> files) that are not there, with progress."""
  missing = {piece: files for piece, files in pieces.items() if vectors.load_piece(piece) is None}
  total, todo = (sum(map(len, part.values())) for part in (pieces, missing))
  if todo < total:
    log.info("%d of %d files were embedded before", total - todo, total)
  paths = (path for files in missing.values() for _, path in files)
  mels, progress = prefetch(lambda path: file_mel(model, path), paths, workers), Progress(todo)
  done = lambda: progress.update(progress.files + 1, progress.clips + 1)
  try:
    for piece, files in missing.items():
      vectors.save_piece(piece, embed_piece(model, [id for id, _ in files], mels, done, **options))
  finally:
    mels.close()
    progress.close()


def embed_files(
  model: Model,
  files: list[tuple[str, str]],
  output: str,
  *,
  workers: int,
  options: dict,
  dry_run: bool = False,
) -> str:
  """Writes the vectors of files, given as (id, path), to OUTPUT.npz or OUTPUT.parquet; returns a
  line about it.

  What was computed before an interruption lies in OUTPUT.part and is taken from there.

  Raises:
    UserError: none of the files can be read, or the output belongs to another job.
    StoreError: the output cannot be written.
  """
  pieces = plan(model, files, options)
  about = {
    "job": vectors.digest(list(pieces)),
    "params_hash": model.config["params_hash"],
    "dimensions": model.width(options["num_blocks"]),
    "blocks": options["num_blocks"],
    "tail": options["tail"],
    "length": "whole" if model.max_seconds is None else f"{model.max_seconds:g}",
  }
  if (job := vectors.job_of(output)) is not None:
    if job != about["job"]:
      raise UserError(f"{output} holds vectors of another job; remove it or choose another name")
    return f"{output}: is complete, nothing to do"
  folder = f"{output}.part"
  pieces = {os.path.join(folder, f"{name}.npz"): part for name, part in pieces.items()}
  if dry_run:
    done = [path for path in pieces if vectors.load_piece(path) is not None]
    return (
      f"{len(files)} files to vectors of {about['dimensions']} numbers each in {output}; "
      f"{len(done)} of {len(pieces)} pieces ({sum(len(pieces[path]) for path in done)} files) "
      "are done; nothing written"
    )
  lock = claim(folder, "output")
  try:
    compute(model, pieces, workers=workers, options=options)
    rejected = [pair for path in pieces for pair in vectors.finished_piece(path).rejected]
    for id, reason in rejected:
      print(f"left out {id}: {reason}", file=sys.stderr)
    if len(rejected) == len(files):
      raise UserError(f"none of {len(files)} files could be read")
    write = vectors.write_npz if output.endswith(".npz") else vectors.write_parquet
    write(output, list(pieces), about)
    shutil.rmtree(folder)
  except OSError as error:
    raise StoreError(
      f"{output}: cannot be written ({error.strerror}); make room or choose another file, "
      "and run the same command again"
    ) from error
  finally:
    lock.close()
  written = len(files) - len(rejected)
  return (
    f"{output}: {written} vectors of {about['dimensions']} numbers, {len(rejected)} files left out"
  )
