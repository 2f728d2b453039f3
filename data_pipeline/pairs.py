"""Pairs of clips with a sentence that tells them apart, for retrieval with auxiliary information.

  python -m data_pipeline.pairs --foreground=ESC-50 --foreground_layout=esc50 --background=FSD50K \
    --background_layout=fsd50k --scenes=Rain --events=dog,thunderstorm --output=data/pairs \
    --frontend=difference
  python -m data_pipeline.pairs --jams=apwd-dataset/datasets --foreground=ESC-50 \
    --background=FSD50K --output=data/apwd --frontend=difference

Writes a prepared set (a clip for each half of a pair, labelled with its events) and beside it

  pairs.csv     id, id1 and id2 (the query's and the answer's clip), text, kind, event, scene, split
  mixtures.csv  every recording in every clip: where it starts, its level and gain

Recordings of test pairs are in no other pair, and those for validation in no training pair. Every
byte depends on the input and the flags only, not on workers or restarts. The same command continues
a stopped job. Needs pip install -e .[mixtures]. Exit codes: those of data_pipeline.prepare.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import math
import os
import sys

from atst_jax.audio.frontend import FrontEnd, get_frontend
from atst_jax.util import storage
from atst_jax.util.cli import Parser
from atst_jax.util.errors import UserError

from . import flags
from .mixing import jams
from .mixing.drawn_pairs import Pair, Ranges, draw_pairs
from .mixing.loudness import loudness_meter
from .mixing.recordings import SPLITS, check_disjoint, list_recordings, table_text
from .mixing.scenes import Scene, read_scene
from .shards import workers
from .shards.job import Job
from .shards.plan import mel_bytes
from .shards.summary import report
from .sources.files import Listing

PAIRS, MIXTURES = "pairs.csv", "mixtures.csv"
PAIR_COLUMNS = ("id", "id1", "id2", "text", "kind", "event", "scene", "split")
MIXTURE_COLUMNS = (
  *("clip", "split", "role", "label", "source", "source_time"),
  *("time", "duration", "heard", "snr_db", "lufs", "gain_db"),
)


# Flags that go with --jams.
OF_JAMS = (
  *("jams", "foreground", "background", "foreground_follow_links", "background_follow_links"),
  *("output", "frontend", "name", "dry_run", "verbosity", *flags.BOUNDS),
)


def _parser() -> Parser:
  parser, ranges = Parser("data_pipeline.pairs", __doc__), Ranges()
  add = parser.add_argument
  flags.add_recordings(parser, "foreground", "of the events, in classes")
  flags.add_recordings(parser, "background", "of the backgrounds; a class is a scene")
  flags.add_shards(
    parser,
    output="folder of the prepared set",
    name="name of the set; default: pairs, with --jams apwd",
    seed="of the draws, and of the order of the clips",
  )
  add("--events", default="", help="classes of the foreground, with commas between; default: all")
  add("--scenes", default="", help="classes of the background; default: all")
  published = "the published pairs instead of drawn ones: a folder of .jams files"
  add("--jams", default="", help=published)
  for split, number in (("train", 45_000), ("valid", 5_000), ("test", 1_000)):
    add(f"--{split}_pairs", type=int, default=number, help="of every scene")
  fold = "fold of the test's recordings, if there are folds; default: the last"
  add("--eval_fold", type=int, default=-1, help=fold)
  interval = {"type": _interval, "metavar": "LOW,HIGH"}
  for name, kind, text in (
    ("seconds", {"type": float}, "of a clip"),
    ("backgrounds", {"type": int}, "recordings mixed into a background"),
    ("lufs", interval, "of a background's loudness"),
    ("snr", interval, "of events above it, in dB"),
    ("level_change", interval, "in dB, of louder and quieter"),
    ("shared_events", {"type": int}, "events that both clips have, at most"),
  ):
    default = getattr(ranges, name)
    add(f"--{name}", default=default, help=f"{text} (default {default})", **kind)
  same = "these are the same recordings at the same time in both"
  add("--same_takes", action="store_true", help=same)
  return parser


def _interval(text: str) -> tuple[float, float]:
  low, high = (float(part) for part in text.split(","))
  if not -math.inf < low <= high < math.inf:
    raise ValueError
  return low, high


_interval.__name__ = "LOW,HIGH"  # argparse names it in its message


def _check(args: argparse.Namespace) -> None:
  parser = _parser()
  given = [key for key, value in vars(args).items() if value != parser.get_default(key)]
  if args.jams and (unused := [key for key in given if key not in OF_JAMS]):
    raise UserError(
      f"--{unused[0]} goes with drawn pairs, not with --jams, whose files say what is mixed"
    )
  numbers = {f"{split}_pairs": (0, 10**7) for split in SPLITS}
  flags.check_bounds(
    args, seconds=(1, 600), backgrounds=(1, 100), shared_events=(0, 100), **numbers
  )
  flags.check_apart(
    args.output, foreground=args.foreground, background=args.background, jams=args.jams
  )
  if args.level_change[0] < 1:
    raise UserError(f"--level_change={args.level_change}: below 1 dB nobody hears a difference")
  loudness_meter(1000)  # raises now, not in an hour, if pyloudnorm is missing


def _pairs(args: argparse.Namespace, frontend: FrontEnd) -> list[Pair]:
  if args.jams:
    links = {"foreground": args.foreground_follow_links, "background": args.background_follow_links}
    recordings = jams.find_recordings(args.foreground, args.background, follow_links=links)
    pairs, same = jams.read_pairs(args.jams, recordings, seed=args.seed)
    if same:
      print(
        f"{len(same)} pairs are left out, as nothing tells them apart; the first is {same[0]}",
        file=sys.stderr,
      )
    return pairs
  foreground, background = (
    list_recordings(
      getattr(args, flag),
      flag=flag,
      layout=getattr(args, f"{flag}_layout"),
      root=getattr(args, f"{flag}_root"),
      follow_links=getattr(args, f"{flag}_follow_links"),
      classes=flags.names(getattr(args, classes)),
      classes_flag=classes,
      eval_fold=args.eval_fold,
      seed=args.seed,
    )
    for flag, classes in (("foreground", "events"), ("background", "scenes"))
  )
  drawn = [field.name for field in dataclasses.fields(Ranges) if field.name != "rate"]
  ranges = Ranges(rate=frontend.sample_rate, **{name: getattr(args, name) for name in drawn})
  counts = {split: getattr(args, f"{split}_pairs") for split in SPLITS}
  return draw_pairs(foreground, background, counts=counts, ranges=ranges, seed=args.seed)


def _scenes(pairs: list[Pair]) -> list[Scene]:
  return [scene for pair in pairs for scene in (pair.query, pair.target)]


def _plan_hash(pairs: list[Pair]) -> str:
  """sha256 over all that is mixed, by name, and the sizes of the recordings."""
  sizes = {path: storage.size(path) for path in {p.path for s in _scenes(pairs) for p in s.parts}}
  digest = hashlib.sha256()
  for pair in pairs:
    for scene in (pair.query, pair.target):
      about = (scene.id, scene.split, scene.name, scene.seconds, scene.rate, scene.lufs, pair.text)
      parts = [
        (part.source, sizes[part.path], *dataclasses.astuple(part)[2:]) for part in scene.parts
      ]
      digest.update(json.dumps([*about, parts]).encode())
  return digest.hexdigest()


def _describe(pairs: list[Pair], frontend: FrontEnd) -> list[str]:
  """Lines for --dry_run."""
  scenes = _scenes(pairs)
  files = {(part.background, part.path) for scene in scenes for part in scene.parts}
  backgrounds = sum(background for background, _ in files)
  seconds = sum(scene.seconds for scene in scenes)
  counts = collections.Counter((pair.scene, pair.query.split) for pair in pairs)
  lines = [
    f"{name}: {', '.join(f'{counts[name, split]} {split}' for split in SPLITS)}"
    for name in sorted({pair.scene for pair in pairs})
  ]
  return [
    *lines,
    f"{len(pairs)} pairs of {len(files) - backgrounds} foregrounds and {backgrounds} backgrounds, "
    f"about {seconds / 3600:.2f} hours and {mel_bytes(seconds, frontend) / 2**30:.2f} GiB; "
    "nothing written",
  ]


def make(args: argparse.Namespace) -> None:
  """Runs the whole job. Raises UserError, Stopped and KeyboardInterrupt."""
  _check(args)
  frontend = get_frontend(args.frontend)
  pairs = _pairs(args, frontend)
  if not pairs:
    raise UserError("no pair to write: the numbers of pairs are 0")
  scenes = _scenes(pairs)
  check_disjoint((part.path, scene.split) for scene in scenes for part in scene.parts)
  job = Job(
    output=args.output,
    name=args.name or ("apwd" if args.jams else "pairs"),
    listing=Listing(scenes, "pairs", root=args.foreground),
    frontend=frontend,
    made_of={**flags.part_of_plan(args), "kind": "pairs", "scenes": _plan_hash(pairs)},
    read=read_scene,
    seconds_of=lambda scenes: sum(scene.seconds for scene in scenes),
    **flags.of_shards(args),
  )
  job.check()
  if args.dry_run:
    print("\n".join(_describe(pairs, frontend)))
    return
  kept: list[Pair] = []

  def write_tables(sidecars: list[dict]) -> None:
    notes = {id: note for sidecar in sidecars for id, note in sidecar.get("notes", {}).items()}
    kept.extend(pair for pair in pairs if pair.query.id in notes and pair.target.id in notes)
    mixed = [
      row for scene in scenes if scene.id in notes for row in _mixture_rows(scene, notes[scene.id])
    ]
    for name, columns, rows in (
      (PAIRS, PAIR_COLUMNS, map(_pair_row, kept)),
      (MIXTURES, MIXTURE_COLUMNS, mixed),
    ):
      storage.write_text(os.path.join(args.output, name), table_text(columns, rows))

  manifest = job.write(add=write_tables)
  print("\n".join([f"{args.output}: {len(kept)} pairs", *report(manifest)]))


def _pair_row(pair: Pair) -> tuple:
  kinds, events = zip(*pair.changes, strict=True)
  return (
    pair.id,
    pair.query.id,
    pair.target.id,
    pair.text,
    "+".join(kinds),
    ";".join(events),
    pair.scene,
    pair.query.split,
  )


def _mixture_rows(scene: Scene, notes: list[list[float]]):
  for part, (gain, heard) in zip(scene.parts, notes, strict=True):
    yield (
      scene.id,
      scene.split,
      "background" if part.background else "event",
      part.label,
      part.source,
      part.source_time,
      part.time,
      part.duration,
      heard,
      part.snr_db,
      scene.lufs,
      gain,
    )


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code; see the module's docstring."""
  return workers.run(lambda: make(_parser().parse(argv)))


if __name__ == "__main__":
  sys.exit(main())
