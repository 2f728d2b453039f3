"""Builds a benchmark of sounds in known backgrounds, BgKnown, from any two sets of recordings.

  python -m data_pipeline.bgknown --foreground=ESC-50 --foreground_layout=esc50 \
    --background=FSD50K --background_layout=fsd50k --output=data/bgknown_esc50 --frontend=difference

Every foreground is mixed into a crop of a background. OUTPUT gets four prepared sets of the same
clips, in the same order and with the same ids and labels: `mix`, and the backgrounds alone, `a` (as
mixed), `b` (half of it overlaps) and `c` (what comes after it). `mixtures.csv` holds every file,
offset, SNR and gain. Evaluate with configs/bgknown.py.

What is tested: the foregrounds and the backgrounds of a split `test`; else of the folds
--test_folds; else, where a set has neither, two fifths of its files by a hash of their ids. No
background, and no foreground, is on both sides.

Every byte depends on the inputs, the flags and the seed only, not on the workers. Killed at any
moment, the same command continues. Exit codes are those of data_pipeline.prepare. Needs pyloudnorm
(pip install -e .[mixtures]).
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import sys

from atst_jax.audio.decode import Reject, duration
from atst_jax.audio.frontend import FRONTENDS, get_frontend
from atst_jax.data.dataset import Dataset, write_json
from atst_jax.util import storage
from atst_jax.util.cli import Parser
from atst_jax.util.errors import UserError

from .mixing import known_background
from .mixing.known_background import CONDITIONS, Mixture, Reader, Recipe
from .mixing.loudness import loudness_meter
from .mixing.rendering import each, write_audio
from .shards import workers
from .shards.job import prepare_listing
from .shards.plan import hash_sources
from .sources.files import Source
from .sources.inputs import LAYOUTS, list_sources
from .sources.listing import Listing, split_of

TABLE, PLAN = "mixtures.csv", "bgknown.json"
LONGEST = 1800.0  # seconds of a background, which is decoded as a whole
SHARES = {"train": 0.6, "test": 0.4}  # as three and two of five folds


def _parser() -> Parser:
  parser = Parser("data_pipeline.bgknown", __doc__)
  add = parser.add_argument
  for kind in ("foreground", "background"):
    add(f"--{kind}", required=True, help="a folder of audio files, or a CSV/TSV manifest")
    add(
      f"--{kind}_layout",
      default="",
      help=f"{', '.join(LAYOUTS)}; default: folder for a folder, manifest for a file",
    )
    add(
      f"--{kind}_root",
      default="",
      help="folder a manifest's paths start from; default: the manifest's own",
    )
    add(
      f"--{kind}_labels",
      default="",
      help="only files of these classes, separated by commas; default: all",
    )
  add("--output", required=True, help="folder of the four sets; made if need be")
  add("--frontend", required=True, help=", ".join(FRONTENDS))
  add(
    "--name",
    default="",
    help="name of the sets; default: bgknown_ and the name of the foreground's layout",
  )
  add(
    "--seconds",
    type=float,
    default=5.0,
    help="length of all sounds; backgrounds must have twice that",
  )
  add("--snr", default="0,3", help="dB, from,to: foreground over background, uniform")
  add(
    "--background_lufs",
    type=float,
    default=-23.0,
    help="loudness of every background (a), before what would clip is turned down",
  )
  add(
    "--test_folds",
    default="4,5",
    help="where there are folds and no split `test`; the others train",
  )
  add(
    "--per_clip",
    type=int,
    default=1,
    help="mixtures for each foreground, with backgrounds of their own",
  )
  add("--seed", type=int, default=0, help="of the draws, and of the order of the clips")
  add(
    "--workers",
    type=int,
    default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
    help="processes; default: as many as processors of this process",
  )
  add(
    "--num_shards",
    type=int,
    default=0,
    help="per split; default: at least 16, each of about --shard_mb",
  )
  add("--shard_mb", type=float, default=48.0, help="size of a shard in MiB")
  add(
    "--write_audio",
    action="store_true",
    help="write the sounds too: OUTPUT/audio/CONDITION/NUMBER.wav, 16 bits",
  )
  add("--dry_run", action="store_true", help="tell what would be done")
  return parser


def _recipe(args: argparse.Namespace) -> Recipe:
  """Raises UserError for values that cannot be."""
  for key, low, high in (
    ("seconds", 0.5, 60.0),
    ("per_clip", 1, 9999),
    ("workers", 1, 4096),
    ("seed", 0, 2**63),
    ("background_lufs", -60.0, 0.0),
    ("num_shards", 0, 99_999),
    ("shard_mb", 1e-3, 1e6),
  ):
    value = getattr(args, key)
    if not low <= value <= high:
      raise UserError(f"--{key}={value} is not between {low} and {high}")
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
  try:
    listing = list_sources(value(""), layout=value("_layout"), root=value("_root"))
  except UserError as error:
    text = str(error).replace("--input=", f"--{kind}=")
    raise UserError(
      text.replace("--layout", f"--{kind}_layout").replace("--root", f"--{kind}_root")
    ) from None
  sources = listing.sources
  if wanted := {name.strip() for name in value("_labels").split(",") if name.strip()}:
    if unknown := sorted(wanted - set(listing.label_names)):
      raise UserError(
        f"--{kind}_labels: {value('')} has no class {', '.join(unknown)}; it has "
        f"{', '.join(listing.label_names[:60])}"
      )
    sources = [source for source in sources if wanted & set(source.labels)]
  return dataclasses.replace(listing, sources=divided(sources, args.test_folds, kind))


def divided(sources: list[Source], test_folds: str, kind: str) -> list[Source]:
  """The sources with the side they are on as their split. Raises UserError if one of the sides is
  empty."""
  folds = {fold.strip() for fold in test_folds.split(",")}
  if any(source.split == "test" for source in sources):
    side = lambda source: source.split
  elif all(source.fold >= 0 for source in sources):
    side = lambda source: "test" if str(source.fold) in folds else "train"
  else:
    side = lambda source: split_of(f"bgknown {source.id}", SHARES)
  sources = [dataclasses.replace(source, split=side(source)) for source in sources]
  counts = collections.Counter(source.split for source in sources)
  if not counts["train"] or not counts["test"] or set(counts) - {"train", "valid", "test"}:
    raise UserError(
      f"--{kind}: files by split {dict(counts)}, needed are `train` and `test` (and perhaps `valid`); "
      f"its folds are {sorted({s.fold for s in sources})}, --test_folds={test_folds}"
    )
  return sources


def long_enough(sources: list[Source], seconds: float, workers: int) -> list[Source]:
  """Those of `seconds` to LONGEST by their headers."""

  def fits(source):
    try:
      return seconds <= duration(source.path) <= LONGEST
    except Reject:
      return False

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    return [source for source, keep in zip(sources, pool.map(fits, sources), strict=True) if keep]


def check(mixtures: list[Mixture]) -> None:
  """Raises UserError if a file is on both sides, or is foreground here and background there."""
  owners = collections.defaultdict(set)
  for mixture in mixtures:
    side = "test" if mixture.split == "test" else "train"
    for kind, id in (("foreground", mixture.foreground), ("background", mixture.background)):
      owners[kind, id].add(side)
  if leaks := sorted(key for key, sides in owners.items() if len(sides) > 1):
    raise UserError(
      f"{len(leaks)} files are in training and test mixtures, the first is {leaks[0][0]} {leaks[0][1]!r}"
    )


def _draw(job) -> Mixture | dict:
  """A mixture, or the reject that it became."""
  source, id, pool, recipe = job
  try:
    return known_background.draw(source, id, pool, recipe)
  except Reject as error:
    return {"id": id, "reason": error.reason, "detail": error.detail}


def _draw_all(
  args, foreground: Listing, pools: dict[str, list[Source]], recipe: Recipe
) -> tuple[list, list[dict]]:
  """(mixtures, rejects), in the order of the foregrounds' ids."""
  name = lambda source, number: source.id if args.per_clip == 1 else f"{source.id}#{number:04d}"
  pool = lambda source: pools["test" if source.split == "test" else "train"]
  jobs = [
    (source, name(source, number), pool(source), recipe)
    for source in foreground.sources
    for number in range(args.per_clip)
  ]
  done = list(each(_draw, jobs, workers=args.workers))
  return [row for row in done if isinstance(row, Mixture)], [
    row for row in done if isinstance(row, dict)
  ]


def _table(
  args, plan: dict, foreground: Listing, pools, recipe: Recipe
) -> tuple[list[Mixture], list[dict]]:
  """Draws the mixtures, or reads the table that an earlier start of this job wrote."""
  path = os.path.join(args.output, PLAN)
  if storage.is_file(path):
    found = json.loads(storage.read_text(path))
    if found["plan"] != plan:
      different = [key for key in plan if plan[key] != found["plan"].get(key)]
      raise UserError(
        f"--output={args.output} was made with other {', '.join(different)}; choose another --output, or "
        "delete that folder"
      )
    text = storage.read_text(os.path.join(args.output, TABLE))
    if hashlib.sha256(text.encode()).hexdigest() != found["sha256"]:
      raise UserError(
        f"{args.output}/{TABLE} was changed since it was written; delete --output={args.output}"
      )
    return known_background.from_table(text), found["rejects"]
  mixtures, rejects = _draw_all(args, foreground, pools, recipe)
  if not mixtures:
    raise UserError(
      f"no foreground can be used; the first is {rejects[0]['id']!r}: {rejects[0]['reason']} "
      f"{rejects[0]['detail']}"
    )
  text = known_background.to_table(mixtures)
  storage.make_folder(args.output)
  storage.write_text(os.path.join(args.output, TABLE), text)
  digest = hashlib.sha256(text.encode()).hexdigest()
  write_json(path, {"plan": plan, "rejects": rejects, "sha256": digest})
  return mixtures, rejects


def build(args: argparse.Namespace) -> None:
  """Runs the whole job. Raises UserError, Stopped and KeyboardInterrupt."""
  recipe = _recipe(args)
  loudness_meter(recipe.sample_rate)  # it is missing now rather than after an hour
  foreground, background = _listing(args, "foreground"), _listing(args, "background")
  if both := {s.path for s in foreground.sources} & {s.path for s in background.sources}:
    raise UserError(
      f"{len(both)} files are foreground and background, the first is {min(both)}; choose by "
      "--foreground_labels and --background_labels"
    )
  if any(not source.labels for source in foreground.sources):
    raise UserError(
      f"--foreground={args.foreground}: files without a class; name a set with labels"
    )
  usable = long_enough(background.sources, 2 * args.seconds, args.workers)
  pools = {
    "test": [s for s in usable if s.split == "test"],
    "train": [s for s in usable if s.split != "test"],
  }
  print(
    f"{len(foreground.sources)} foregrounds; backgrounds of {2 * args.seconds:g} s or more: {len(pools['train'])} "
    f"to train, {len(pools['test'])} to test, {len(background.sources) - len(usable)} left out"
  )
  if not pools["train"] or not pools["test"]:
    raise UserError(
      f"no background of {2 * args.seconds:g} s on one side; set --seconds to half of what there is"
    )
  if args.dry_run:
    return
  plan = dataclasses.asdict(recipe) | {"per_clip": args.per_clip, "snr_db": list(recipe.snr_db)}
  for kind, listing in (
    ("foreground", foreground),
    ("background", dataclasses.replace(background, sources=usable)),
  ):
    plan[kind] = hash_sources(listing.sources, listing.root)[0]
  mixtures, rejects = _table(args, plan, foreground, pools, recipe)
  check(mixtures)
  for reject in rejects:
    print(f"left out {reject['id']!r}: {reject['reason']} ({reject['detail']})", file=sys.stderr)
  path_of = {
    kind: {source.id: source.path for source in sources}
    for kind, sources in (("foreground", foreground.sources), ("background", usable))
  }
  _write_sets(args, foreground, mixtures, path_of["background"], recipe)
  if args.write_audio:
    folder = os.path.join(args.output, "audio")
    write_audio(
      folder, mixtures, path_of["foreground"], path_of["background"], recipe, workers=args.workers
    )
  print(f"{args.output}: {len(mixtures)} mixtures, {len(rejects)} foregrounds left out")


def _write_sets(
  args, foreground: Listing, mixtures: list[Mixture], backgrounds: dict, recipe: Recipe
) -> None:
  """The prepared set of every condition. Raises UserError if they are not of the same clips."""
  sources = {source.id: source for source in foreground.sources}
  named = [
    dataclasses.replace(sources[m.foreground], id=m.id, fold=-1, split=m.split) for m in mixtures
  ]
  listing = Listing(sorted(named, key=lambda source: source.id), "bgknown", root=foreground.root)
  name = args.name or f"bgknown_{foreground.kind}"
  digest = hashlib.sha256(known_background.to_table(mixtures).encode()).hexdigest()
  rows = {mixture.id: mixture for mixture in mixtures}
  for condition in CONDITIONS:
    output = os.path.join(args.output, condition)
    flags = argparse.Namespace(
      **vars(args) | {"output": output, "input": args.foreground, "max_seconds": 60.0},
      reject_silent=False,
      reject_duplicates=False,
      runner="",
      beam_options="",
    )
    reader = Reader(condition, rows, backgrounds, recipe)
    made_of = {"condition": condition, "mixtures": digest}
    prepare_listing(flags, listing, name, read=reader, made_of=made_of)
    made = Dataset.load(output)
    if rejects := made.manifest["rejects"]:
      raise UserError(
        f"{output}: {len(rejects)} mixtures could not be made, the first is {rejects[0]['id']!r}: "
        f"{rejects[0]['reason']} {rejects[0]['detail']}; bring its files back, delete "
        f"--output={args.output} and run the same command again"
      )


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code; see the module's docstring."""
  return workers.run(lambda: build(_parser().parse(argv)))


if __name__ == "__main__":
  sys.exit(main())
