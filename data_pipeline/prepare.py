"""Prepares audio for training: any folder, manifest or known data set to shards of log-mel clips.

  python -m data_pipeline.prepare --input=DIR_or_MANIFEST --output=DIR --frontend=atst
  python -m data_pipeline.prepare verify DIR    checks counts, sha256 and every record
  python -m data_pipeline.prepare stats DIR     computes the statistics anew and stores them
  python -m data_pipeline.prepare merge DIR DIR … --output=DIR       joins prepared sets
  python -m data_pipeline.prepare repair --input=… --output=DIR …    writes the bad shards again

Every byte of the shards depends on the input and the seed only. If the job is killed, the same
command continues after the finished shards. Exit codes: 0 done, 2 a mistake in a flag, a file or
the input, 74 a disk or a store did not answer, 75 stopped early: run the same command again.
"""

import argparse
import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Callable, Set

from atst_jax.audio.channels import MEAN, check_channels
from atst_jax.audio.frontend import get_frontend
from atst_jax.util import storage
from atst_jax.util.cli import Parser, nearest
from atst_jax.util.errors import UserError, printable
from atst_jax.util.logs import log

from . import flags
from .shards import beam, merge, verify, workers
from .shards.job import Job, classes_hash
from .shards.plan import hash_sources
from .shards.shard import read_file, read_run
from .shards.summary import print_report
from .sources.files import Listing, describe_skipped
from .sources.inputs import LAYOUTS, TABLE_OPTIONS, list_sources


def _parser() -> Parser:
  parser = Parser("data_pipeline.prepare", __doc__)
  add = parser.add_argument
  add(
    "--input",
    default="",
    help="a folder of audio files, a CSV/TSV manifest: path,label,fold,split,id,group,start,end; "
    "selections of Raven, labels of Audacity",
  )
  add(
    "--tfds",
    default="",
    help="instead of --input: a data set of TensorFlow Datasets, for example nsynth/full; its "
    "sounds are written to OUTPUT.audio first",
  )
  label = "feature of its class; by default `label`, for example instrument/family"
  add("--tfds_label", default="", help=label)
  group = "feature whose values divisions keep together, for example speaker_id; by default none"
  add("--tfds_group", default="", help=group)
  add("--tfds_dir", default=None, help="TFDS's data folder, if not its own")
  flags.add_shards(
    parser,
    output="folder of the shards",
    name="name of the set; default: that of the input",
    seed="of the order of the files",
  )
  flags.add_listing(parser)
  subset = "keep so many training files, drawn by a hash of their ids (0: all)"
  add("--subset", type=int, default=0, help=subset)
  runners = f"write the shards by Apache Beam instead: {', '.join(beam.RUNNERS)}"
  add("--runner", default="", help=runners)
  add("--beam_options", default="", help="pipeline options, passed through, as one quoted string")
  add(
    "--repair_headers",
    action="store_true",
    help="read WAVs whose header was never finished (a recorder lost power) to their end",
  )
  mixed = "of a file: their mean, the loudest, or the number of one (from 1)"
  add("--channels", default=MEAN, help=mixed)
  add("--reject_silent", action="store_true", help="leave out files below -80 dB of full scale")
  duplicates = "leave out files of the same content as an earlier one (by id)"
  add("--reject_duplicates", action="store_true", help=duplicates)
  longest = "longer files are cut into pieces of this length (default 60, 1800 at most)"
  add("--max_seconds", type=float, default=60.0, help=longest)
  return parser


def _check(args: argparse.Namespace) -> None:
  if bool(args.input) == bool(args.tfds):
    raise UserError("name what to prepare: either --input=DIR_or_MANIFEST or --tfds=NAME")
  if args.tfds and any(flags.of_listing(args).values()):
    given = next(key for key, value in flags.of_listing(args).items() if value)
    raise UserError(f"--{given} goes with --input, not with --tfds")
  if args.tfds and args.dry_run:
    raise UserError(
      "--dry_run goes with --input: the files of --tfds are known only after the download"
    )
  if (args.tfds_label or args.tfds_group or args.tfds_dir) and not args.tfds:
    raise UserError("--tfds_label, --tfds_group and --tfds_dir need --tfds")
  for key, known in (("layout", LAYOUTS), ("runner", beam.RUNNERS)):
    value = getattr(args, key)
    if value and value not in known:
      raise UserError(
        f"unknown --{key}={value}; choose one of {', '.join(known)}{nearest(value, known)}"
      )
  if args.beam_options and not args.runner:
    raise UserError(
      f"--beam_options={args.beam_options} needs --runner, one of {', '.join(beam.RUNNERS)}"
    )
  check_channels(args.channels)
  flags.check_apart(args.output, input=args.input)
  flags.check_bounds(args, subset=(0, 10**9), max_seconds=(1, 1800), context=(0, 1800))


def _job(args: argparse.Namespace, listing: Listing, name: str, sources_hash: str) -> Job:
  made_of = {
    **flags.part_of_plan(args),
    "kind": listing.kind,
    "max_seconds": args.max_seconds,
    "sources": sources_hash,
  }
  chosen = ("reject_silent", "reject_duplicates", "repair_headers", "context")
  made_of |= {key: getattr(args, key) for key in chosen if getattr(args, key)}
  made_of |= {"channels": args.channels} if args.channels != MEAN else {}
  # Labels are numbers among all classes, also those of files that were not drawn. The hash of the
  # sources does not have them.
  if listing.not_drawn:
    made_of["classes"] = classes_hash(listing.label_names)
  try:
    beam_options = tuple(shlex.split(args.beam_options))
  except ValueError as error:
    raise UserError(f"--beam_options={args.beam_options}: {error}") from error
  reading = {key: getattr(args, key) for key in ("repair_headers", "channels", "context")}
  return Job(
    output=args.output,
    name=name,
    listing=listing,
    frontend=get_frontend(args.frontend),
    made_of=made_of,
    read=functools.partial(read_file, **reading),
    read_run=functools.partial(read_run, **reading),
    max_seconds=args.max_seconds,
    reject_silent=args.reject_silent,
    reject_duplicates=args.reject_duplicates,
    runner=args.runner,
    beam_options=beam_options,
    **flags.of_shards(args),
  )


def prepare(args: argparse.Namespace, again: Set[str] = frozenset()) -> None:
  """Runs the whole job. Raises UserError, Stopped and KeyboardInterrupt.

  Args:
    again: file names of shards that are written although they look finished.
  """
  _check(args)
  get_frontend(args.frontend)
  if args.tfds:
    from .sources import tfds

    args.name = args.name or args.tfds.replace("/", "_")
    args.input = tfds.export(
      args.tfds,
      f"{args.output.rstrip('/')}.audio",
      label=args.tfds_label,
      group=args.tfds_group,
      data_dir=args.tfds_dir,
    )
    args.label_separator, args.exact_labels = tfds.NO_SEPARATOR, True
  listing = list_sources(args.input, **flags.of_listing(args), number=args.subset)
  if args.tfds:
    listing = dataclasses.replace(listing, grouped_by=args.tfds_group, divided_by_owner=True)
  if args.context and not listing.unannotated and all(s.whole for s in listing.sources):
    raise UserError(
      f"--context={args.context:g} needs segments: a table with `start` and `end`, of Raven or "
      "Audacity"
    )
  for note in listing.notes:
    log.info(note)
  name = os.path.basename(storage.absolute(args.input))
  name = args.name or printable(os.path.splitext(name)[0] if storage.is_file(args.input) else name)
  sources_hash, absent = hash_sources(listing.sources, listing.root)
  job = _job(args, listing, name, sources_hash)
  job.check()
  missing = [{"id": id, "reason": "missing", "detail": ""} for id in absent]
  if len(missing) == len(listing.sources):
    remedy = f"data_pipeline/README.md says where --layout={listing.kind} expects them"
    if listing.kind in TABLE_OPTIONS["root"]:
      remedy = "set --root to the folder its paths start from"
    elif listing.kind == "folder":
      remedy = "it is a link that leads nowhere"
    raise UserError(
      f"none of the {len(missing)} files that {args.input} lists exists, the first would be "
      f"{listing.sources[0].path}; {remedy}"
    )
  if args.dry_run:
    print("\n".join([*job.describe(missing), *describe_skipped(listing.skipped)]))
    return
  manifest = job.write(missing, again=again)
  print_report(args.output, manifest)
  if "train" not in manifest["splits"]:
    print(
      "no split `train`, so no statistics; "
      f"`python -m data_pipeline.prepare stats --split=NAME {args.output}`"
    )


def _repair(argv: list[str]) -> int:
  """Prepares again and writes the bad shards anew. Each stays until its successor is complete."""
  args = _parser().parse(argv)
  problems, _ = verify.verify(args.output)
  for problem in problems.values():
    print(f"bad: {problem}", file=sys.stderr)
  if problems:
    prepare(args, again={os.path.basename(path) for path in problems})
  else:
    print(f"{args.output}: nothing to repair")
  return 0


def _part(name: str, parts: dict[str, Callable]) -> Callable:
  """The part of this name. Raises UserError, with the nearest."""
  if name not in parts:
    raise UserError(
      f"{name} is neither a flag (a folder to prepare is --input=DIR) nor one of "
      f"{', '.join(parts)}{nearest(name, parts)}"
    )
  return parts[name]


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code; see the module's docstring."""
  argv = sys.argv[1:] if argv is None else argv
  parts = {
    "verify": verify.main,
    "stats": verify.main_of_statistics,
    "merge": merge.main,
    "repair": _repair,
  }
  if argv and not argv[0].startswith("-"):
    return workers.run(lambda: _part(argv[0], parts)(argv[1:]))
  return workers.run(lambda: prepare(_parser().parse(argv)))


if __name__ == "__main__":
  sys.exit(main())
