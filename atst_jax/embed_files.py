"""Folders of audio files to vectors with an exported encoder.

  python -m atst_jax.embed --encoder=encoders/base --input=recordings --output=vectors.npz
  python -m atst_jax.embed --encoder=encoders/base --input=list.csv --output=vectors.parquet --blocks=12 --workers=8

The input is a folder of recordings or a manifest CSV with a column `path`; files may have any rate and length. A file
that cannot be used is listed with its reason and does not end the job. After an interruption run it again: what was
computed lies in OUTPUT.part, and the result is the same. Long sounds are cut into chunks whose vectors are averaged.

Exit codes: 0 done, 2 a mistake in what was asked, 74 a store or a disk did not answer, 75 stopped early, run it again.
"""

import collections
import concurrent.futures
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator

import atst_jax
from atst_jax import storage, vectors
from atst_jax.command import Parser, guard, sigterm_as_interrupt
from atst_jax.errors import StoreError, UserError
from atst_jax.logs import log
from atst_jax.model import TAILS, Model, load_model
from atst_jax.waveforms import Mel
from atst_jax.workdir import claim


def prefetch(function: Callable, items: Iterable, workers: int) -> Generator:
  """Yields `function(item)` in order, computed by threads that stay at most 2 · workers items ahead."""
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
  from data_pipeline.audio import read_blocks

  try:
    mel = model.mel_of(lambda: read_blocks(path, model.sample_rate))
    model.check(mel)
  except StoreError:
    raise
  except UserError as error:
    return str(error)
  return mel


def embed_piece(model: Model, ids: list[str], mels: Iterator[Mel | str], done: Callable[[], None], **options):
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
  """(bytes, time of change) of a file: when they differ, so may its contents. A store gives no time."""
  changed = 0
  if not storage.is_remote(path) and os.path.exists(path):
    changed = os.stat(path).st_mtime_ns
  return storage.size(path), changed


def plan(model: Model, sources, options: dict) -> dict[str, list]:
  """Name of each piece -> its sources: a name depends on the encoder, the options and the files, on nothing else."""
  decisive = {key: x for key, x in model.config.items() if key not in ("format", "tail", "provenance")}
  stamps = [stamp(source.path) for source in sources]
  pieces = {}
  for part in vectors.groups(size for size, _ in stamps):
    files = [(source.id, source.path, *known) for source, known in zip(sources[part], stamps[part], strict=True)]
    pieces[vectors.digest([atst_jax.__version__, decisive, options, files])] = sources[part]
  return pieces


def compute(model: Model, pieces: dict[str, list], *, workers: int, options: dict) -> None:
  """Computes and writes the pieces (path -> sources) that are not there, with progress."""
  from data_pipeline.progress import Progress

  missing = {path: files for path, files in pieces.items() if vectors.load_piece(path) is None}
  total, todo = (sum(map(len, part.values())) for part in (pieces, missing))
  if todo < total:
    log.info("%d of %d files were embedded before", total - todo, total)
  paths = (source.path for files in missing.values() for source in files)
  mels, progress = prefetch(lambda path: file_mel(model, path), paths, workers), Progress(todo)
  done = lambda: progress.update(progress.files + 1, progress.clips + 1)
  try:
    for path, files in missing.items():
      vectors.save_piece(path, embed_piece(model, [source.id for source in files], mels, done, **options))
  finally:
    mels.close()
    progress.close()


def main(argv=None) -> int:
  """Returns the exit code; see the module's docstring."""
  parser = Parser("atst_jax.embed", __doc__)
  add = parser.add_argument
  add("--encoder", required=True, help="exported encoder")
  add("--input", required=True, help="folder of recordings, or a manifest CSV")
  add("--output", required=True, help="FILE.npz or FILE.parquet to make, with `id` (N,) and `vector` (N, D)")
  add("--blocks", type=int, default=1, help="how many of the last blocks to concatenate (default 1)")
  add("--tail", choices=TAILS, help="how chunks are averaged; the export's rule by default")
  add("--workers", type=int, default=os.cpu_count() or 1,
      help="threads that decode while the encoder runs (default: as many as processors)")  # fmt: skip
  add("--dry_run", action="store_true", help="tell what would be done")
  with sigterm_as_interrupt():
    return guard(lambda: embed_folder(parser.parse(argv)))


def embed_folder(flags) -> int:
  """What the command does. Returns 0."""
  from data_pipeline.sources import list_sources

  if storage.is_remote(flags.output):
    raise UserError(f"--output={flags.output}: vectors are written to a local file; copy it from there")
  output = os.path.abspath(flags.output)
  if not os.access(os.path.dirname(output), os.W_OK) or not output.endswith(vectors.SUFFIXES):
    raise UserError(f"--output={flags.output}: must be a .npz or .parquet in a folder that exists and can be written")
  if output.endswith(".parquet"):
    vectors.import_parquet(output)
  if flags.workers < 1:
    raise UserError(f"--workers={flags.workers}: at least one is needed")
  model = load_model(flags.encoder)
  if not 1 <= flags.blocks <= model.depth:
    raise UserError(f"--blocks={flags.blocks}: the encoder has {model.depth} blocks")
  sources = list_sources(flags.input).sources
  options = {"num_blocks": flags.blocks, "tail": flags.tail or model.config["tail"]}
  pieces = plan(model, sources, options)
  about = {"job": vectors.digest(list(pieces)), "params_hash": model.config["params_hash"],
           "dimensions": model.width(flags.blocks)}  # fmt: skip
  if (job := vectors.job_of(output)) is not None:
    if job != about["job"]:
      raise UserError(f"--output={flags.output} holds vectors of another job; remove it or choose another name")
    print(f"{flags.output}: is complete, nothing to do")
    return 0
  folder = f"{output}.part"
  pieces = {os.path.join(folder, f"{name}.npz"): files for name, files in pieces.items()}
  if flags.dry_run:
    done = [path for path in pieces if vectors.load_piece(path) is not None]
    print(f"{len(sources)} files to vectors of {about['dimensions']} numbers each in {flags.output}; {len(done)} of "
          f"{len(pieces)} pieces ({sum(len(pieces[path]) for path in done)} files) are done; "
          "nothing written")  # fmt: skip
    return 0
  lock = claim(folder, "output")
  try:
    compute(model, pieces, workers=flags.workers, options=options)
    rejected = [pair for path in pieces for pair in vectors.finished_piece(path).rejected]
    for id, reason in rejected:
      print(f"left out {id}: {reason}", file=sys.stderr)
    if len(rejected) == len(sources):
      raise UserError(f"--input={flags.input}: none of {len(sources)} files could be read")
    write = vectors.write_npz if output.endswith(".npz") else vectors.write_parquet
    write(output, list(pieces), about)
    shutil.rmtree(folder)
  except OSError as error:
    raise StoreError(f"--output={flags.output}: cannot be written ({error.strerror}); make room or choose another "
                     "file, and run the same command again") from error  # fmt: skip
  finally:
    lock.close()
  print(f"{flags.output}: {len(sources) - len(rejected)} vectors of {about['dimensions']} numbers, "
        f"{len(rejected)} files left out")  # fmt: skip
  return 0
