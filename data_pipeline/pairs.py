"""Pairs of clips with a sentence that tells them apart, for retrieval with auxiliary information.

  python -m data_pipeline.pairs --foreground=ESC-50 --foreground_layout=esc50 --background=FSD50K \
    --background_layout=fsd50k --scenes=Rain --events=dog,thunderstorm --output=data/pairs
    --frontend=difference
  python -m data_pipeline.pairs --jams=apwd-dataset/datasets --foreground=ESC-50 --background=FSD50K …

Writes a prepared set (a clip for each half of a pair, labelled with its events) and beside it

  pairs.csv     id, id1 and id2 (the query's and the answer's clip), text, kind, event, scene, split
  mixtures.csv  every recording in every clip: where it starts, its level and gain

Recordings of test pairs are in no other pair, and those for validation in no training pair. Every
byte depends on the input and the flags only, not on workers or restarts: the same command continues
where it was stopped. Needs pip install -e .[mixtures]. Exit codes: those of data_pipeline.prepare.
"""

import argparse
import collections
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import sys

from atst_jax.audio.frontend import FRONTENDS, FrontEnd, get_frontend, mel_filters
from atst_jax.data.dataset import MANIFEST, SCHEMA_VERSION, write_json
from atst_jax.util import storage
from atst_jax.util.cli import Parser
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

from .mixing import jams
from .mixing.loudness import loudness_meter
from .mixing.pair_draw import Pair, Ranges, draw_pairs
from .mixing.recordings import SPLITS, list_recordings
from .mixing.scenes import Scene, read_scene
from .shards import workers
from .shards.plan import MIN_SHARDS, check_plan, hash_order, open_output
from .shards.shard import Settings, ShardTask, read_sidecar, read_sidecars
from .shards.summary import describe, report
from .shards.tfds_info import write_tfds_info
from .shards.workers import write_tasks
from .sources.inputs import LAYOUTS
from .sources.listing import Listing

PAIRS, MIXTURES = "pairs.csv", "mixtures.csv"
PAIR_COLUMNS = ("id", "id1", "id2", "text", "kind", "event", "scene", "split")
MIXTURE_COLUMNS = (
  "clip",
  "split",
  "role",
  "label",
  "source",
  "source_time",
  "time",
  "duration",
  "heard",
  "snr_db",
  "lufs",
  "gain_db",
)


def _parser() -> Parser:
  parser, ranges = Parser("data_pipeline.pairs", __doc__), Ranges()
  add = parser.add_argument
  add(
    "--foreground", required=True, help="folder or manifest of the events' recordings, in classes"
  )
  add(
    "--background", required=True, help="folder or manifest of the backgrounds; a class is a scene"
  )
  add("--output", required=True, help="folder of the prepared set; made if need be")
  add("--frontend", required=True, help=", ".join(FRONTENDS))
  add(
    "--foreground_layout",
    default="",
    help=f"{', '.join(LAYOUTS)}; default: folder for a folder, manifest for a file",
  )
  add("--background_layout", default="", help="the same of the backgrounds")
  add("--events", default="", help="classes of the foreground, with commas between; default: all")
  add("--scenes", default="", help="classes of the background; default: all")
  add(
    "--jams", default="", help="the published pairs instead of drawn ones: a folder of .jams files"
  )
  for split, number in (("train", 45_000), ("valid", 5_000), ("test", 1_000)):
    add(f"--{split}_pairs", type=int, default=number, help="of every scene")
  add(
    "--eval_fold",
    type=int,
    default=-1,
    help="fold of the test's recordings, where there are folds; default: the last",
  )
  add("--seconds", type=float, default=ranges.seconds, help="of a clip")
  add(
    "--backgrounds", type=int, default=ranges.backgrounds, help="recordings mixed into a background"
  )
  add("--lufs", type=_interval, default=ranges.lufs, help="LOW,HIGH of a background's loudness")
  add("--snr", type=_interval, default=ranges.snr, help="LOW,HIGH of events above it, in dB")
  add(
    "--level_change",
    type=_interval,
    default=ranges.level_change,
    help="LOW,HIGH in dB of louder and quieter",
  )
  add(
    "--shared_events",
    type=int,
    default=ranges.shared_events,
    help="that both clips have besides, at most",
  )
  add(
    "--same_takes",
    action="store_true",
    help="these are the same recordings at the same time in both",
  )
  add("--name", default="", help="name of the data set; default: pairs, with --jams apwd")
  add(
    "--workers",
    type=int,
    default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
    help="processes; default: as many as processors of this process",
  )
  add("--seed", type=int, default=0, help="of the draws, and of the order of the clips")
  add(
    "--num_shards",
    type=int,
    default=0,
    help="per split; default: at least 16, each of about --shard_mb",
  )
  add("--shard_mb", type=float, default=48.0, help="size of a shard in MiB")
  add("--dry_run", action="store_true", help="tell what would be done")
  return parser


def _interval(text: str) -> tuple[float, float]:
  low, high = (float(part) for part in text.split(","))
  if not -math.inf < low <= high < math.inf:
    raise ValueError
  return low, high


_interval.__name__ = "LOW,HIGH"  # argparse names it in its message


def _check(args: argparse.Namespace) -> None:
  for key, low, high in (
    ("workers", 1, 4096),
    ("num_shards", 0, 99_999),
    ("shard_mb", 1e-3, 1e6),
    ("seconds", 1, 600),
    ("train_pairs", 0, 10**7),
    ("valid_pairs", 0, 10**7),
    ("test_pairs", 0, 10**7),
    ("backgrounds", 1, 100),
    ("shared_events", 0, 100),
    ("seed", 0, 2**63),
  ):
    value = getattr(args, key)
    if not low <= value <= high:
      raise UserError(f"--{key}={value} is not between {low} and {high}")
  if args.level_change[0] < 1:
    raise UserError(f"--level_change={args.level_change}: below 1 dB nobody hears a difference")
  loudness_meter(1000)  # it is missing now rather than in an hour


def _names(text: str) -> list[str]:
  return [name.strip() for name in text.split(",") if name.strip()]


def _pairs(args: argparse.Namespace, frontend: FrontEnd) -> list[Pair]:
  if args.jams:
    pairs, same = jams.read_pairs(
      args.jams, jams.find_recordings(args.foreground, args.background), seed=args.seed
    )
    if same:
      print(
        f"{len(same)} pairs are left out, as nothing tells them apart; the first is {same[0]}",
        file=sys.stderr,
      )
    return pairs
  options = {"eval_fold": args.eval_fold, "seed": args.seed}
  foreground = list_recordings(
    args.foreground,
    flag="foreground",
    layout=args.foreground_layout,
    classes=_names(args.events),
    **options,
  )
  background = list_recordings(
    args.background,
    flag="background",
    layout=args.background_layout,
    classes=_names(args.scenes),
    **options,
  )
  ranges = Ranges(
    rate=frontend.sample_rate,
    **{
      field.name: getattr(args, field.name)
      for field in dataclasses.fields(Ranges)
      if field.name != "rate"
    },
  )
  counts = {split: getattr(args, f"{split}_pairs") for split in SPLITS}
  return draw_pairs(foreground, background, counts=counts, ranges=ranges, seed=args.seed)


def check_disjoint(pairs: list[Pair]) -> None:
  """Raises UserError if a recording is in test pairs and in others."""
  owners = collections.defaultdict(set)
  for pair in pairs:
    for part in (*pair.query.parts, *pair.target.parts):
      owners[part.path].add("test" if pair.query.split == "test" else "train")
  if shared := sorted(path for path, splits in owners.items() if len(splits) > 1):
    raise UserError(
      f"the division leaks: {len(shared)} recordings are in test pairs and in others, the first is "
      f"{shared[0]}; give it one split in its manifest"
    )


def deal(
  scenes: list[Scene], frontend: FrontEnd, *, seed: int, shard_mb: float, num_shards: int
) -> list[ShardTask]:
  """Deals the clips of every split to its shards, in an order by hash."""
  tasks = []
  for split in sorted({scene.split for scene in scenes}):
    ordered = hash_order([scene for scene in scenes if scene.split == split], seed)
    frames = sum(scene.seconds for scene in ordered) * frontend.sample_rate / frontend.hop_length
    wanted = num_shards or max(
      MIN_SHARDS, math.ceil(frames * frontend.n_mels * 2 / (shard_mb * 2**20))
    )
    count = min(wanted, len(ordered))
    tasks += [
      ShardTask(f"{split}-{i:05d}-of-{count:05d}.tfrecord", split, tuple(ordered[i::count]))
      for i in range(count)
    ]
  return tasks


def _plan_hash(pairs: list[Pair]) -> str:
  """sha256 over all that is mixed, by name, and the sizes of the recordings."""
  sizes = {part.path: 0 for pair in pairs for part in (*pair.query.parts, *pair.target.parts)}
  sizes = {path: storage.size(path) for path in sizes}
  digest = hashlib.sha256()
  for pair in pairs:
    for scene in (pair.query, pair.target):
      parts = [
        (part.source, sizes[part.path], *dataclasses.astuple(part)[2:]) for part in scene.parts
      ]
      row = [
        scene.id,
        scene.split,
        scene.name,
        scene.seconds,
        scene.rate,
        scene.lufs,
        pair.text,
        parts,
      ]
      digest.update(json.dumps(row).encode())
  return digest.hexdigest()


def _print_plan(pairs: list[Pair], frontend: FrontEnd) -> None:
  scenes = [scene for pair in pairs for scene in (pair.query, pair.target)]
  files = {(part.background, part.path) for scene in scenes for part in scene.parts}
  backgrounds = sum(background for background, _ in files)
  seconds = sum(scene.seconds for scene in scenes)
  gib = seconds * frontend.sample_rate / frontend.hop_length * frontend.n_mels * 2 / 2**30
  counts = collections.Counter((pair.scene, pair.query.split) for pair in pairs)
  for name in sorted({pair.scene for pair in pairs}):
    print(f"{name}: {', '.join(f'{counts[name, split]} {split}' for split in SPLITS)}")
  print(
    f"{len(pairs)} pairs of {len(files) - backgrounds} foregrounds and {backgrounds} backgrounds, about "
    f"{seconds / 3600:.2f} hours and {gib:.2f} GiB; nothing written"
  )


def make(args: argparse.Namespace) -> None:
  """Runs the whole job. Raises UserError, Stopped and KeyboardInterrupt."""
  _check(args)
  frontend = get_frontend(args.frontend)
  args.name = args.name or ("apwd" if args.jams else "pairs")
  pairs = _pairs(args, frontend)
  if not pairs:
    raise UserError("no pair to write: the numbers of pairs are 0")
  check_disjoint(pairs)
  scenes = [scene for pair in pairs for scene in (pair.query, pair.target)]
  preparation = {
    "kind": "pairs",
    "seed": args.seed,
    "scenes": _plan_hash(pairs),
    "num_shards": args.num_shards,
    "shard_mb": args.shard_mb,
  }
  plan = {
    **preparation,
    "schema": SCHEMA_VERSION,
    "name": args.name,
    "frontend": f"{frontend.name} {frontend.hash}",
  }
  check_plan(args.output, plan)
  if args.dry_run:
    _print_plan(pairs, frontend)
    return
  listing = Listing(scenes, "pairs", root=args.foreground)
  with open_output(args.output, plan) as work:
    tasks = deal(
      scenes, frontend, seed=args.seed, shard_mb=args.shard_mb, num_shards=args.num_shards
    )
    todo = [task for task in tasks if read_sidecar(task, args.output, work) is None]
    if todo:
      log.info("%d of %d shards to write, %d workers", len(todo), len(tasks), args.workers)
      settings = Settings(
        args.output,
        work,
        frontend,
        mel_filters(frontend),
        tuple(listing.label_names),
        math.inf,
        read=read_scene,
      )
      write_tasks(todo, settings, workers=args.workers)
    sidecars = read_sidecars(tasks, args.output, work)
    rejects = [reject for sidecar in sidecars for reject in sidecar["rejects"]]
    if empty := [sidecar["file"] for sidecar in sidecars if not sidecar["num_clips"]]:
      raise UserError(
        f"no clip of {empty[0]} could be mixed; the first fault is {rejects[0]['id']!r}: "
        f"{rejects[0]['reason']} ({rejects[0]['detail']})"
      )
    manifest = describe(
      name=args.name,
      frontend=frontend,
      listing=listing,
      sidecars=sidecars,
      rejects=rejects,
      preparation=preparation,
    )
    notes = {id: note for sidecar in sidecars for id, note in sidecar["notes"].items()}
    kept = [pair for pair in pairs if pair.query.id in notes and pair.target.id in notes]
    write_table(os.path.join(args.output, PAIRS), PAIR_COLUMNS, map(_pair_row, kept))
    rows = (
      row for scene in scenes if scene.id in notes for row in _mixture_rows(scene, notes[scene.id])
    )
    write_table(os.path.join(args.output, MIXTURES), MIXTURE_COLUMNS, rows)
    write_tfds_info(args.output, manifest, labelled=False, folded=False)
    write_json(os.path.join(args.output, MANIFEST), manifest)
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


def write_table(path: str, columns: tuple[str, ...], rows) -> None:
  """Writes a CSV file, whole or not at all."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows(rows)
  storage.write_text(path, text.getvalue())


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code; see the module's docstring."""
  return workers.run(lambda: make(_parser().parse(argv)))


if __name__ == "__main__":
  sys.exit(main())
