"""The unit of work: one shard, from its audio files to a TFRecord file and a JSON file about it,
the sidecar."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from atst_jax.audio.decode import Quality, Reject, read_pieces
from atst_jax.audio.formats import GET_PYAV, has_pyav
from atst_jax.audio.frontend import FrontEnd, log_mel
from atst_jax.audio.segments import Piece, read_segments
from atst_jax.data.dataset import Clip, write_json, write_shard
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError

from ..sources.files import Source
from ..sources.rest import REST_SECONDS
from .mel_statistics import is_current
from .tally import Tally

OPTIONAL = ("notes", "left_out")  # in a sidecar only if there are any


@dataclasses.dataclass(frozen=True)
class ShardTask:
  """A shard to be written: its file name, and its files in their order."""

  file: str
  split: str
  sources: tuple[Source, ...]

  @property
  def digest(self) -> str:
    """A digest of the files that the shard is made of."""
    return hashlib.sha256(
      "\0".join((self.file, *(source.id for source in self.sources))).encode()
    ).hexdigest()


def read_file(
  source: Source, *, quality: Quality | None = None, context: float = 0.0, **options
) -> Iterator[tuple[int | None, np.ndarray]]:
  """The pieces of an audio file, or of a segment of one, as `decode.read_pieces`."""
  if source.whole:
    yield from read_pieces(source.path, quality=quality, **options)
    return
  for piece in read_run((source,), context=context, **options):
    if piece.reject is not None:
      raise piece.reject
    if quality is not None:
      quality.add(piece.quality)
    if piece.waveform is not None:
      yield piece.number, piece.waveform


def read_run(sources: Sequence[Source], *, context: float = 0.0, **options) -> Iterator[Piece]:
  """The pieces of several segments of one recording (`segments.read_segments`). The rest that no
  segment covers has no `context`."""
  spans = [(source.start, source.end) for source in sources]
  contexts = [0.0 if source.rest else context for source in sources]
  return read_segments(sources[0].path, spans, context=contexts, **options)


def runs(sources: Iterable[Source]) -> Iterator[tuple[Source, ...]]:
  """Each file by itself, and neighbours that are segments of one recording together."""
  key = lambda source: (source.path, source.id if source.whole else "")
  for _, run in itertools.groupby(sources, key):
    yield tuple(run)


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of all shards. `filters` are the front-end's mel filters: workers need no librosa.
  `read` gives the pieces of a source, with the arguments and errors of `decode.read_pieces`;
  `read_run` those of segments of one recording, as `read_segments`."""

  output: str
  work: str
  frontend: FrontEnd
  filters: np.ndarray
  label_names: tuple[str, ...]
  max_seconds: float
  reject_silent: bool = False
  # ids of files at which a decoder crashed; they are not opened again
  crashers: frozenset[str] = frozenset()
  read: Callable[..., Iterator[tuple[int | None, np.ndarray]]] = read_file
  read_run: Callable[..., Iterator[Piece]] = read_run


def _clip(
  source: Source, number: int | None, waveform: np.ndarray, settings: Settings, tally: Tally
) -> bytes:
  """The encoded clip of a waveform; `number` counts the pieces of a long file."""
  frontend = settings.frontend
  mel = log_mel(waveform, frontend, settings.filters).astype(np.float16)
  tally.add_clip(mel, source, len(waveform) / frontend.sample_rate)
  labels = tuple(settings.label_names.index(name) for name in source.labels)
  id = source.id if number is None else f"{source.id}#{number:04d}"
  return Clip(id, mel, labels, source.multi_label, source.fold, source.split, source.group).encode()


def _clips(source: Source, settings: Settings, tally: Tally) -> Iterator[bytes]:
  """Yields the encoded clips of one file. A file that cannot be used goes to the tally's
  rejects."""
  frontend, quality, pieces, cut = settings.frontend, Quality(), 0, False
  try:
    if source.id in settings.crashers:
      raise Reject("undecodable", "the decoder crashes")
    for number, waveform in settings.read(
      source,
      sample_rate=frontend.sample_rate,
      min_samples=frontend.min_samples,
      max_seconds=settings.max_seconds,
      quality=quality,
    ):
      # The quality is that of the whole file, already at its first piece.
      if settings.reject_silent and quality.silent:
        raise Reject("silent", f"peak {quality.peak:.1g} of full scale")
      cut = number is not None
      clip = _clip(source, number, waveform, settings, tally)
      pieces += 1
      yield clip
    tally.add_file(source, quality, cut)
  except StoreError:
    raise
  except Exception as error:
    if pieces:  # the whole file was checked before its first piece
      raise UserError(
        f"{source.path} changed while it was read; run the same command again"
      ) from error
    tally.reject(source, _as_reject(source, error))


def _as_reject(source: Source, error: Exception) -> Reject:
  """A decoder's error as a reject. Raises UserError for a file that has vanished since the job
  began: files that were missing then are in no shard."""
  if not isinstance(error, Reject):
    return Reject("undecodable", f"{type(error).__name__}: {error}")
  if error.reason == "missing":
    raise UserError(
      f"{source.path} was there when the job began and is gone; bring it back and run the same "
      "command again"
    ) from error
  return error


def _refusal(piece: Piece, source: Source, settings: Settings) -> Reject | None:
  """The reason not to use a piece of a segment, or None."""
  if piece.reject is not None or piece.waveform is None:
    return piece.reject
  if settings.reject_silent and piece.quality.silent:
    return Reject("silent", f"peak {piece.quality.peak:.1g} of full scale")
  if source.rest and len(piece.waveform) < REST_SECONDS * settings.frontend.sample_rate:
    return Reject("too_short")
  return None


def _segments(run: tuple[Source, ...], settings: Settings, tally: Tally) -> Iterator[bytes | None]:
  """Yields the encoded clips of segments of one recording, and None when a segment is done. A
  segment that cannot be used, or a piece of which cannot, goes to the tally's rejects. A fault
  spoils all segments behind it."""
  if any(source.id in settings.crashers for source in run):
    for source in run:
      tally.reject(source, Reject("undecodable", "the decoder crashes"))
      yield None
    return
  frontend, qualities = settings.frontend, [Quality() for _ in run]
  kept = [0] * len(run)
  refused: dict[int, Reject] = {}  # the first one of each segment
  for piece in settings.read_run(
    run,
    sample_rate=frontend.sample_rate,
    min_samples=frontend.min_samples,
    max_seconds=settings.max_seconds,
  ):
    i, source = piece.index, run[piece.index]
    qualities[i].add(piece.quality)
    reject = _refusal(piece, source, settings)
    if reject is None and piece.waveform is not None:
      clip = _clip(source, piece.number, piece.waveform, settings, tally)
      kept[i] += 1
      yield clip
    if reject is not None and i not in refused:
      refused[i] = _as_reject(source, reject)
    if piece.last:
      if i not in refused:
        tally.add_file(source, qualities[i], piece.number is not None)
      else:
        _reject_segment(source, refused[i], kept[i], tally)
      yield None


def _reject_segment(source: Source, reject: Reject, kept: int, tally: Tally) -> None:
  """Tells of a segment that is not used, but for `kept` pieces of it."""
  if source.rest and reject.reason in ("too_short", "beyond_end"):
    tally.left_out += [] if kept else [source.id]
    return
  if kept:
    told = "; ".join(filter(None, (reject.detail, f"{kept} other pieces are kept")))
    reject = Reject(reject.reason, told)
  tally.reject(source, reject, kept)


def _payloads(
  task: ShardTask, settings: Settings, tally: Tally, on_file: Callable[[int, int], None]
) -> Iterator[bytes]:
  on_file(0, 0)
  done = 0
  for run in runs(task.sources):
    clips: Iterable[bytes | None]
    if run[0].whole:
      clips = itertools.chain(_clips(run[0], settings, tally), [None])
    else:
      clips = _segments(run, settings, tally)
    for clip in clips:
      if clip is not None:
        yield clip
        continue
      done += 1
      on_file(done, tally.num_clips)


def write_task(task: ShardTask, settings: Settings, on_file: Callable[[int, int], None]) -> None:
  """Writes a shard and then its sidecar. A shard without a usable file has a sidecar only.

  Args:
    on_file: called with the numbers of files and clips done so far, first with zeros. Its errors
      stop the shard.

  Raises:
    OSError: the output cannot be written. Files that cannot be read are rejects, never errors.
  """
  tally = Tally()
  path = os.path.join(settings.output, task.file)
  shard = write_shard(path, _payloads(task, settings, tally, on_file))
  if not shard.num_clips:
    storage.remove(path)
  content = {**vars(tally), "statistics": tally.statistics.to_json()}
  content = {key: value for key, value in content.items() if value or key not in OPTIONAL}
  write_json(
    sidecar_path(task, settings.work),
    {
      "digest": task.digest,
      "file": task.file,
      "split": task.split,
      "num_bytes": shard.num_bytes,
      "sha256": shard.sha256,
      **content,
    },
  )


def sidecar_path(task: ShardTask, work: str) -> str:
  """The JSON file in the work folder of a finished shard."""
  return os.path.join(work, task.file.removesuffix(".tfrecord") + ".json")


def read_sidecars(tasks: list[ShardTask], output: str, work: str) -> list[dict]:
  """The sidecars of shards that were just finished, in order. Raises UserError if one lacks."""
  found = [read_sidecar(task, output, work) for task in tasks]
  sidecars = [sidecar for sidecar in found if sidecar is not None]
  if len(sidecars) < len(tasks):
    raise UserError(
      f"shards in {output} were removed or changed meanwhile; run the same command again"
    )
  return sidecars


def wait_for_pyav(entries: list[dict]) -> bool:
  """Whether any of these rejects or remarks asks for PyAV, which is there by now."""
  return has_pyav() and any(GET_PYAV in entry["detail"] for entry in entries)


def read_sidecar(task: ShardTask, output: str, work: str) -> dict | None:
  """The sidecar of a finished shard. None if the shard is not finished, is made of other files, has
  another size, or lacks files that PyAV, installed since, can read."""
  try:
    sidecar = json.loads(storage.read_text(sidecar_path(task, work)))
    if sidecar["digest"] != task.digest or not is_current(sidecar["statistics"]):
      return None
    if wait_for_pyav([*sidecar["rejects"], *sidecar.get("remarks", [])]):
      return None
    path = os.path.join(output, task.file)
    size = storage.size(path) if sidecar["num_clips"] else 0
    return sidecar if size == sidecar["num_bytes"] else None
  except StoreError:
    raise
  except (OSError, ValueError, KeyError, TypeError):
    return None
