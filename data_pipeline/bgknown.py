"""Builds a benchmark of sounds in known backgrounds, BgKnown, from any two sets of recordings.

  python -m data_pipeline.bgknown --foreground=ESC-50 --foreground_layout=esc50 \
    --background=FSD50K --background_layout=fsd50k --output=data/bgknown_esc50 --frontend=difference

Every foreground is mixed into a crop of a background. OUTPUT gets four prepared sets of the same
clips, in the same order and with the same ids and labels: `mix`, and the backgrounds alone, `a` (as
mixed), `b` (half of it overlaps) and `c` (what comes after it). `mixtures.csv` holds every file,
offset, SNR and gain. Evaluate with configs/bgknown.py.

The test sounds of each set are those of its split `test`; else of the folds --test_folds; else two
fifths of its recordings, by a hash of their names. No recording is on both sides, unless a set's
owner parted it.

Every byte depends on the inputs, the flags and the seed only, not on the workers. If the job is
killed, the same command continues it. Exit codes are those of data_pipeline.prepare. Needs
pyloudnorm (pip install -e .[mixtures]).
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys

from atst_jax.audio.decode import Reject
from atst_jax.audio.frontend import get_frontend
from atst_jax.data.dataset import write_json
from atst_jax.util import storage
from atst_jax.util.cli import Parser
from atst_jax.util.errors import UserError

from . import flags
from .mixing import mixtures
from .mixing.loudness import loudness_meter
from .mixing.mixtures import CONDITIONS, Mixture, Reader, Recipe, write_audio
from .mixing.recordings import check_classes, check_disjoint, list_set, long_enough
from .mixing.sides import divided
from .shards import workers
from .shards.job import Job
from .shards.plan import hash_sources, newer_recording
from .shards.summary import print_report
from .sources.files import Listing, Source

TABLE, PLAN = "mixtures.csv", "bgknown.json"
# Flags by whose defaults the set is the paper's.
PUBLISHED = ("seconds", "snr", "test_folds", "per_clip", "foreground_labels", "background_labels")


def _parser() -> Parser:
  parser = Parser("data_pipeline.bgknown", __doc__)
  add = parser.add_argument
  for kind in ("foreground", "background"):
    flags.add_recordings(parser, kind, f"of the {kind}s")
    only = "only files of these classes, separated by commas; default: all"
    add(f"--{kind}_labels", default="", help=only)
  flags.add_shards(
    parser,
    output="folder of the four sets",
    name="name of the sets; default: bgknown_ and the name of the foreground's layout, of ESC-50 "
    "mixed otherwise than in the paper that of the background's too",
    seed="of the draws, and of the order of the clips",
  )
  length = "length of all sounds; backgrounds must have twice that"
  add("--seconds", type=float, default=5.0, help=length)
  add("--snr", default="0,3", help="dB, from,to: foreground over background, uniform")
  loud = "loudness of every background (a), before mixtures that would clip are turned down"
  add("--background_lufs", type=float, default=-23.0, help=loud)
  folds = "folds of the test, if there is no split `test`; the others train"
  add("--test_folds", default="4,5", help=folds)
  several = "mixtures for each foreground, with backgrounds of their own"
  add("--per_clip", type=int, default=1, help=several)
  sounds = "write the sounds too: OUTPUT/audio/CONDITION/NUMBER.wav, 16 bits"
  add("--write_audio", action="store_true", help=sounds)
  return parser


def _recipe(args: argparse.Namespace) -> Recipe:
  """Raises UserError for values out of their range."""
  flags.check_bounds(args, seconds=(0.5, 60.0), per_clip=(1, 9999), background_lufs=(-60.0, 0.0))
  try:
    low, high = map(float, args.snr.split(","))
    if not -60 <= low <= high <= 60:
      raise ValueError
  except ValueError:
    raise UserError(
      f"--snr={args.snr}: two numbers from -60 to 60 dB, the smaller first, for example 0,3"
    ) from None
  rate = get_frontend(args.frontend).sample_rate
  return Recipe(rate, args.seconds, (low, high), args.background_lufs, args.seed)


def _listing(args: argparse.Namespace, kind: str) -> Listing:
  """The files of a set, each with the split "train", "valid" or "test". Raises UserError."""
  value = lambda name: getattr(args, f"{kind}{name}")
  listing = list_set(
    value(""),
    kind,
    layout=value("_layout"),
    root=value("_root"),
    follow_links=value("_follow_links"),
  )
  sources = listing.sources
  if wanted := flags.names(value("_labels")):
    check_classes(listing, wanted, f"{kind}_labels")
    sources = [source for source in sources if set(wanted) & set(source.labels)]
  folds, owned = flags.names(args.test_folds), listing.divided_by_owner
  return dataclasses.replace(listing, sources=divided(sources, folds, kind, owned=owned))


def _name(args: argparse.Namespace, foreground: Listing, background: Listing) -> str:
  """The sets' name by default. Published scores stand beside `bgknown_esc50`: a set of ESC-50 that
  is not made as the paper's has another name."""
  parser, name = _parser(), f"bgknown_{foreground.kind}"
  changed = any(getattr(args, key) != parser.get_default(key) for key in PUBLISHED)
  if foreground.kind == "esc50" and (changed or background.kind != "fsd50k"):
    return f"{name}_in_{background.kind}"
  return name


def check(rows: list[Mixture]) -> None:
  """Raises UserError if a file is on both sides."""
  check_disjoint(
    (f"{kind} {getattr(row, kind)!r}", row.split)
    for row in rows
    for kind in ("foreground", "background")
  )


def _draw(job) -> Mixture | dict:
  """A mixture, or a reject in its place."""
  source, id, pool, recipe = job
  try:
    return mixtures.draw(source, id, pool, recipe)
  except Reject as error:
    return {"id": id, "reason": error.reason, "detail": error.detail}


def _draw_all(
  args, foreground: Listing, pools: dict[str, list[Source]], recipe: Recipe
) -> tuple[list[Mixture], list[dict]]:
  """(mixtures, rejects), in the order of the foregrounds' ids."""
  jobs = []
  for source in foreground.sources:
    pool = pools["test" if source.split == "test" else "train"]
    for number in range(args.per_clip):
      id = source.id if args.per_clip == 1 else f"{source.id}#{number:04d}"
      jobs.append((source, id, pool, recipe))
  rows, rejects = [], []
  for found in workers.each(_draw, jobs, workers=args.workers):
    (rows if isinstance(found, Mixture) else rejects).append(found)
  return rows, rejects


def _table(
  args, plan: dict, foreground: Listing, pools: dict[str, list[Source]], recipe: Recipe
) -> tuple[list[Mixture], list[dict]]:
  """Draws the mixtures, or reads the table that an earlier start of this job wrote."""
  path = os.path.join(args.output, PLAN)
  if storage.is_file(path):
    found = json.loads(storage.read_text(path))
    if found["plan"] != plan:
      different = [key for key in plan if plan[key] != found["plan"].get(key)]
      raise UserError(
        f"--output={args.output} was made with other {', '.join(different)}; choose another "
        "--output, or delete that folder"
      )
    text = storage.read_text(os.path.join(args.output, TABLE))
    if hashlib.sha256(text.encode()).hexdigest() != found["sha256"]:
      raise UserError(
        f"{args.output}/{TABLE} was changed since it was written; delete --output={args.output}"
      )
    if newer := newer_recording(path, foreground.sources + pools["train"] + pools["test"]):
      raise UserError(
        f"recordings changed since they were measured, as {newer}; delete --output={args.output}"
      )
    return mixtures.from_table(text), found["rejects"]
  rows, rejects = _draw_all(args, foreground, pools, recipe)
  if not rows:
    raise UserError(
      f"no foreground can be used; the first is {rejects[0]['id']!r}: {rejects[0]['reason']} "
      f"{rejects[0]['detail']}"
    )
  text = mixtures.to_table(rows)
  storage.make_folder(args.output)
  storage.write_text(os.path.join(args.output, TABLE), text)
  digest = hashlib.sha256(text.encode()).hexdigest()
  write_json(path, {"plan": plan, "rejects": rejects, "sha256": digest})
  return rows, rejects


def build(args: argparse.Namespace) -> None:
  """Runs the whole job. Raises UserError, Stopped and KeyboardInterrupt."""
  recipe = _recipe(args)
  flags.check_apart(args.output, foreground=args.foreground, background=args.background)
  loudness_meter(recipe.sample_rate)  # raises now, not after an hour, if pyloudnorm is missing
  foreground, background = _listing(args, "foreground"), _listing(args, "background")
  folds = {str(source.fold) for source in (*foreground.sources, *background.sources)}
  unknown = sorted(set(flags.names(args.test_folds)) - folds)
  if unknown and args.test_folds != _parser().get_default("test_folds"):
    raise UserError(f"--test_folds={args.test_folds}: neither set has a fold {unknown[0]}")
  if both := {s.path for s in foreground.sources} & {s.path for s in background.sources}:
    raise UserError(
      f"{len(both)} files are foreground and background, the first is {min(both)}; choose by "
      "--foreground_labels and --background_labels"
    )
  if any(not source.labels for source in foreground.sources):
    raise UserError(
      f"--foreground={args.foreground}: files without a class; name a set with labels"
    )
  seconds, all_backgrounds = 2 * args.seconds, len(background.sources)
  usable = long_enough(background.sources, seconds, args.workers)
  background = dataclasses.replace(background, sources=usable)
  test = [source for source in usable if source.split == "test"]
  pools = {"train": [source for source in usable if source.split != "test"], "test": test}
  print(
    f"{len(foreground.sources)} foregrounds; backgrounds of {seconds:g} s or more: "
    f"{len(pools['train'])} to train, {len(pools['test'])} to test, "
    f"{all_backgrounds - len(usable)} left out"
  )
  if not pools["train"] or not pools["test"]:
    raise UserError(
      f"no background of {seconds:g} s on one side; set --seconds to half of what there is"
    )
  if args.dry_run:
    return
  plan = dataclasses.asdict(recipe) | {"per_clip": args.per_clip, "snr_db": list(recipe.snr_db)}
  for kind, listing in (("foreground", foreground), ("background", background)):
    plan[kind] = hash_sources(listing.sources, listing.root)[0]
  rows, rejects = _table(args, plan, foreground, pools, recipe)
  check(rows)
  for reject in rejects:
    print(f"left out {reject['id']!r}: {reject['reason']} ({reject['detail']})", file=sys.stderr)
  backgrounds = {source.id: source.path for source in usable}
  name = args.name or _name(args, foreground, background)
  _write_sets(args, name, foreground, rows, backgrounds, recipe)
  if args.write_audio:
    folder = os.path.join(args.output, "audio")
    foregrounds = {source.id: source.path for source in foreground.sources}
    write_audio(folder, rows, foregrounds, backgrounds, recipe, workers=args.workers)
  print(f"{args.output}: {len(rows)} mixtures, {len(rejects)} foregrounds left out")


def _write_sets(
  args,
  name: str,
  foreground: Listing,
  rows: list[Mixture],
  backgrounds: dict[str, str],
  recipe: Recipe,
) -> None:
  """The prepared set of every condition. Raises UserError if they are not of the same clips."""
  sources = {source.id: source for source in foreground.sources}
  named = [
    dataclasses.replace(sources[m.foreground], id=m.id, fold=-1, split=m.split) for m in rows
  ]
  listing = Listing(
    sorted(named, key=lambda source: source.id),
    "bgknown",
    root=foreground.root,
    grouped_by=foreground.grouped_by,
    divided_by_owner=foreground.divided_by_owner,
  )
  sources_hash, _ = hash_sources(listing.sources, listing.root)
  for condition in CONDITIONS:
    job = Job(
      output=os.path.join(args.output, condition),
      name=name,
      listing=listing,
      frontend=get_frontend(args.frontend),
      made_of={
        **flags.part_of_plan(args),
        "kind": "bgknown",
        "max_seconds": 60.0,
        "sources": sources_hash,
        "condition": condition,
        "mixtures": hashlib.sha256(mixtures.to_table(rows).encode()).hexdigest(),
      },
      read=Reader(condition, {row.id: row for row in rows}, backgrounds, recipe),
      **flags.of_shards(args),
    )
    job.check()
    manifest = job.write()
    print_report(job.output, manifest)
    if rejects := manifest["rejects"]:
      raise UserError(
        f"{job.output}: {len(rejects)} mixtures could not be made, the first is "
        f"{rejects[0]['id']!r}: {rejects[0]['reason']} {rejects[0]['detail']}; bring its files "
        f"back, delete --output={args.output} and run the same command again"
      )


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code; see the module's docstring."""
  return workers.run(lambda: build(_parser().parse(argv)))


if __name__ == "__main__":
  sys.exit(main())
