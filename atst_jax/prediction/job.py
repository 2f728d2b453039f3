"""Many recordings to one file of labels, in pieces."""

import collections
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from atst_jax.artifacts.classifiers.head import Head
from atst_jax.artifacts.classifiers.scoring import head_of, score
from atst_jax.artifacts.collection import pieces
from atst_jax.artifacts.collection.listening import Listener
from atst_jax.artifacts.model import Model
from atst_jax.audio.channels import MEAN
from atst_jax.prediction.rows import Row, Selection, select, write
from atst_jax.prediction.sounds import Recording, Sound, Unusable, Windows, check_length, sounds
from atst_jax.util import storage
from atst_jax.util.errors import UserError, printable
from atst_jax.util.logs import Progress, log

BLOCK = 256  # sounds that are scored at a time, at most,
BLOCK_FRAMES = 1 << 18  # and their frames, 67 MB


class Settings(NamedTuple):
  """What is asked of every recording; `channels` as of `Listener`."""

  selection: Selection
  windows: Windows | None
  channels: str = MEAN

  def to_json(self) -> list:
    """All that decides the rows."""
    labels = self.selection.labels.tolist()
    asked = [labels, self.selection.top, self.selection.least, self.windows]
    return [*asked, self.channels] if self.channels != MEAN else asked


class Tally(NamedTuple):
  """What a piece counted."""

  sounds: int = 0
  unlabelled: int = 0  # no label of them is told
  cropped: int = 0  # longer than the classifier hears
  rejected: tuple[tuple[str, str], ...] = ()  # (id, reason)

  def plus(self, other: "Tally") -> "Tally":
    """The sums."""
    return Tally(
      self.sounds + other.sounds,
      self.unlabelled + other.unlabelled,
      self.cropped + other.cropped,
      self.rejected + other.rejected,
    )


def predict_files(
  model: Model,
  recordings: list[Recording],
  output: str,
  settings: Settings,
  *,
  workers: int,
  process: tuple[int, int] = (0, 1),
  dry_run: bool = False,
) -> str:
  """Writes the labels of recordings to OUTPUT, and to OUTPUT.json what they are of and what could
  not be used; returns a line about it.

  What was computed before an interruption lies in OUTPUT.part and is taken from there.

  Args:
    workers: threads that decode.
    process: (number, count) of processes that share the folder OUTPUT.part. Each computes its
      share of the pieces; whichever sees all of them done writes the output.

  Raises:
    UserError: a model without a head, windows that it does not hear, an output of another job, or
      none of the recordings can be read.
    StoreError: the output cannot be written.
  """
  head = head_of(model)
  if settings.windows:
    check_length(model, head, *settings.windows)
  told_apart = ("format", "channels", "provenance", "programs")
  decisive = {key: x for key, x in model.config.items() if key not in told_apart}
  told = [*settings.to_json(), model.dtype]
  paths = [recording.path for recording in recordings]
  work = pieces.plan(output, ".jsonl", recordings, paths, decisive, told, process=process)
  if _is_complete(work):
    return f"{output}: is complete, nothing to do"
  if dry_run:
    return (
      f"{len(recordings)} recordings to labels of {len(head.labels)} in {output}; "
      f"{work.told(lambda path: _tally(path) is not None)}"
    )
  return pieces.run(
    work,
    compute=lambda share: _compute(model, head, share, settings, workers),
    is_complete=lambda: _is_complete(work),
    join=lambda: _join(work, model, head, settings, paths),
  )


def _is_complete(work: pieces.Work) -> bool:
  """Whether the output is there, as this job makes it. Raises UserError if another file is."""
  if not os.path.exists(work.output):
    return False
  known = None
  with contextlib.suppress(OSError, ValueError):
    known = storage.read_json(_account_of(work.output))
  made = {"job": work.job, "bytes": os.path.getsize(work.output)}
  if not isinstance(known, dict) or not made.items() <= known.items():
    raise UserError(
      f"--output={work.output} exists and is not what this command makes; remove it or choose "
      "another name"
    )
  return True


def _account_of(output: str) -> str:
  """The file that says what an output is of: its forms have no room for it."""
  return f"{output}.json"


def _compute(
  model: Model, head: Head, share: dict[str, list[Recording]], settings: Settings, workers: int
) -> None:
  """Writes those of the pieces (path -> recordings) that are not there, with progress."""
  missing = {path: part for path, part in share.items() if _tally(path) is None}
  todo, total = (sum(map(len, some.values())) for some in (missing, share))
  if todo < total:
    log.info("%d of %d recordings were read before", total - todo, total)
  progress = Progress(todo)
  listener = Listener(model.sample_rate, settings.channels)
  try:
    for path, part in missing.items():
      _write_piece(path, model, head, listener, part, settings, workers, progress)
  finally:
    progress.close()
    listener.tell()


def _join(work: pieces.Work, model: Model, head: Head, settings: Settings, paths: list[str]) -> str:
  """Writes the output from all pieces. Returns a line about it."""
  tally = Tally()
  for path in work.pieces:
    tally = tally.plus(_finished(path))
  for id, reason in tally.rejected:
    print(f"left out {id}: {reason}", file=sys.stderr)
  if not tally.sounds:
    raise UserError(f"none of {len(paths)} recordings could be read")
  rows = itertools.chain.from_iterable(map(_rows, work.pieces))
  with storage.writing(work.output, "w", encoding="utf-8", newline="") as file:
    write(work.output, file, rows, frontend=model.frontend, paths=paths)
    file.flush()
    account = {
      "job": work.job,
      "bytes": os.fstat(file.fileno()).st_size,
      "params_hash": model.config["params_hash"],
      "head": model.config["head"]["params_hash"],
      "dtype": model.dtype,
      "channels": settings.channels,
      "windows": settings.windows and settings.windows._asdict(),
      **tally._asdict(),
    }
    text = json.dumps(account, indent=1, ensure_ascii=False)
    storage.write_text(_account_of(work.output), f"{text}\n")  # before the output has its name
  return f"{work.output}: {_told(model, head, tally, settings)}"


def _told(model: Model, head: Head, tally: Tally, settings: Settings) -> str:
  """What was done, in words."""
  kind = "windows" if settings.windows else "sounds"
  words = [f"{tally.sounds} {kind}"]
  if tally.unlabelled:
    words.append(f"{tally.unlabelled} of them without a label")
  if tally.cropped:
    seconds = model.frontend.samples_of(head.max_frames) / model.sample_rate
    part = "central" if head.crop == "center" else "first"
    words.append(
      f"{tally.cropped} longer than {seconds:g} s, of which the {part} {seconds:g} s were heard "
      "(--window hears all)"
    )
  return ", ".join([*words, f"{len(tally.rejected)} left out"])


def _write_piece(
  path: str,
  model: Model,
  head: Head,
  listener: Listener,
  recordings: list[Recording],
  settings: Settings,
  workers: int,
  progress: Progress,
) -> None:
  """Writes the rows of some recordings, whole or not at all, and behind them a tally."""
  begun = progress.files
  tally = Tally()
  found = sounds(model, head, listener, recordings, settings.windows, workers)
  with contextlib.closing(found), storage.writing(path, "w", encoding="utf-8") as file:
    for block in _blocks(found):
      usable = [sound for sound in block if isinstance(sound, Sound)]
      unusable = [one for one in block if isinstance(one, Unusable)]
      rejected = tuple((one.id, printable(one.reason)) for one in unusable)
      unlabelled = 0
      logits = score(model, (sound.clip for sound in usable))
      for sound, scores in zip(usable, logits, strict=True):
        probabilities = head.probabilities(scores)
        places = select(head, settings.selection, scores, probabilities)
        unlabelled += not places
        recording = recordings[sound.recording].path
        for place in places:
          told = (head.labels[place], float(probabilities[place]), head.threshold(place))
          file.write(json.dumps([recording, *sound.part, *told]) + "\n")
      cropped = sum(sound.frames > head.max_frames for sound in usable)
      tally = tally.plus(Tally(len(usable), unlabelled, cropped, rejected))
      progress.update(begun + block[-1].recording, progress.clips + len(block))
    file.write(json.dumps(tally._asdict()) + "\n")
  progress.update(begun + len(recordings), progress.clips)


def _blocks(found: Iterator[Sound | Unusable]) -> Iterator[list[Sound | Unusable]]:
  """Yields them by BLOCK, or fewer that have BLOCK_FRAMES: memory is bounded by a block."""
  block: list[Sound | Unusable] = []
  frames = 0
  for one in found:
    block.append(one)
    frames += len(one.clip) if isinstance(one, Sound) else 0
    if len(block) == BLOCK or frames >= BLOCK_FRAMES:
      yield block
      block, frames = [], 0
  if block:
    yield block


def _lines(path: str) -> Iterator:
  with open(path, encoding="utf-8") as file:
    yield from map(json.loads, file)


def _rows(path: str) -> Iterator[Row]:
  """The rows of a piece."""
  return (Row(*line) for line in _lines(path) if isinstance(line, list))


def _tally(path: str) -> Tally | None:
  """The tally of a piece, or None where there is none or it is damaged."""
  try:
    (last,) = collections.deque(_lines(path), maxlen=1)
    return Tally(**{**last, "rejected": tuple(map(tuple, last["rejected"]))})
  except (OSError, ValueError, TypeError, KeyError):
    return None


def _finished(path: str) -> Tally:
  """The tally of a piece that was written before. Raises UserError if it is gone since."""
  tally = _tally(path)
  if tally is None:
    raise UserError(f"{path} was removed or damaged meanwhile; run the same command again")
  return tally
