"""Prepares audio for training: any folder, manifest or known data set to shards of log-mel clips.

  python -m data_pipeline.prepare --input=DIR_or_MANIFEST --output=DIR --frontend=atst
  python -m data_pipeline.prepare verify DIR    checks counts, sha256 and every record
  python -m data_pipeline.prepare stats DIR     computes the statistics anew and stores them
  python -m data_pipeline.prepare merge DIR DIR … --output=DIR       joins prepared sets
  python -m data_pipeline.prepare repair --input=… --output=DIR …    writes the bad shards of DIR again, and no others

Which clip is in which shard, and every byte, depends on the input and the seed only. Killed at any
moment, the same command continues after the shards that are finished. Exit codes: 0 done, 2 a
mistake in a flag, a file or the input, 74 a disk or a store did not answer, 75 stopped early: run
the same command again.
"""

import argparse
import functools
import os
import sys
from collections.abc import Set

from atst_jax.audio.frontend import FRONTENDS, get_frontend
from atst_jax.util import storage
from atst_jax.util.cli import Parser, nearest
from atst_jax.util.errors import UserError

from .shards import beam, merge, verify, workers
from .shards.job import prepare_listing
from .shards.shard import read_file
from .sources.files import printable
from .sources.inputs import LAYOUTS, list_sources


def _parser() -> Parser:
  parser = Parser("data_pipeline.prepare", __doc__)
  add = parser.add_argument
  add(
    "--input",
    default="",
    help="a folder of audio files, or a CSV/TSV manifest: path,label,fold,split,id,group",
  )
  add(
    "--tfds",
    default="",
    help="instead of --input: a data set of TensorFlow Datasets, for example nsynth/full; its "
    "sounds are written to OUTPUT.audio first",
  )
  add(
    "--tfds_label",
    default="",
    help="feature of its class; by default `label`, for example instrument/family",
  )
  add("--tfds_dir", default=None, help="TFDS's data folder, if not its own")
  add("--output", required=True, help="folder of the shards; made if need be")
  add("--frontend", required=True, help=", ".join(FRONTENDS))
  add(
    "--layout",
    default="",
    help=f"{', '.join(LAYOUTS)}; default: folder for a folder, manifest for a file",
  )
  add(
    "--root", default="", help="folder a manifest's paths start from; default: the manifest's own"
  )
  for name in ("path", "label"):
    add(f"--{name}_column", default="", help=f"what a manifest calls the column `{name}`")
  add(
    "--subset",
    type=int,
    default=0,
    help="keep so many training files, drawn by a hash of their ids (0: all)",
  )
  add("--name", default="", help="name of the dataset; default: that of the input")
  add(
    "--workers",
    type=int,
    default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
    help="processes; default: as many as processors of this process",
  )
  add(
    "--runner",
    default="",
    help=f"write the shards by Apache Beam instead: {', '.join(beam.RUNNERS)}",
  )
  add("--beam_options", default="", help="pipeline options, passed through, as one quoted string")
  add("--seed", type=int, default=0, help="of the order of the files")
  add(
    "--repair_headers",
    action="store_true",
    help="read WAVs whose header was never finished (a recorder lost power) to their end",
  )
  add("--reject_silent", action="store_true", help="leave out files below -80 dB of full scale")
  add(
    "--reject_duplicates",
    action="store_true",
    help="leave out files of the same content as an earlier one (by id)",
  )
  add(
    "--max_seconds",
    type=float,
    default=60.0,
    help="longer files are cut into pieces of this length (1800 at most)",
  )
  add(
    "--num_shards",
    type=int,
    default=0,
    help="per split; default: at least 16, each of about --shard_mb",
  )
  add("--shard_mb", type=float, default=48.0, help="size of a shard in MiB")
  add("--dry_run", action="store_true", help="tell what would be done")
  return parser


def _check(args: argparse.Namespace) -> None:
  if bool(args.input) == bool(args.tfds):
    raise UserError("name what to prepare: either --input=DIR_or_MANIFEST or --tfds=NAME")
  if args.tfds and (args.layout or args.root or args.path_column or args.label_column):
    raise UserError("--layout, --root and the columns go with --input, not with --tfds")
  if args.tfds and args.dry_run:
    raise UserError(
      "--dry_run goes with --input: what --tfds brings is known once it is downloaded"
    )
  if (args.tfds_label or args.tfds_dir) and not args.tfds:
    raise UserError("--tfds_label and --tfds_dir need --tfds")
  if args.layout and args.layout not in LAYOUTS:
    raise UserError(
      f"unknown --layout={args.layout}; choose one of {', '.join(LAYOUTS)}{nearest(args.layout, LAYOUTS)}"
    )
  if args.runner and args.runner not in beam.RUNNERS:
    raise UserError(
      f"unknown --runner={args.runner}; choose one of {', '.join(beam.RUNNERS)}"
      f"{nearest(args.runner, beam.RUNNERS)}"
    )
  if args.beam_options and not args.runner:
    raise UserError(
      f"--beam_options={args.beam_options} needs --runner, one of {', '.join(beam.RUNNERS)}"
    )
  for key, low, high in (
    ("workers", 1, 4096),
    ("subset", 0, 10**9),
    ("num_shards", 0, 99_999),
    ("shard_mb", 1e-3, 1e6),
    ("max_seconds", 1, 1800),
    ("seed", 0, 2**63),
  ):
    value = getattr(args, key)
    if not low <= value <= high:
      raise UserError(f"--{key}={value} is not between {low} and {high}")


def prepare(args: argparse.Namespace, again: Set[str] = frozenset()) -> None:
  """Runs the whole job. Raises UserError, Stopped and KeyboardInterrupt.

  Args:
    again: file names of shards that are written although they look finished.
  """
  _check(args)
  get_frontend(args.frontend)
  if args.tfds:
    from .sources.tfds import export

    args.name = args.name or args.tfds.replace("/", "_")
    args.input = export(
      args.tfds, f"{args.output.rstrip('/')}.audio", label=args.tfds_label, data_dir=args.tfds_dir
    )
  listing = list_sources(
    args.input,
    layout=args.layout,
    root=args.root,
    path_column=args.path_column,
    label_column=args.label_column,
    number=args.subset,
  )
  name = os.path.basename(storage.absolute(args.input))
  name = args.name or printable(os.path.splitext(name)[0] if storage.is_file(args.input) else name)
  read = functools.partial(read_file, repair_headers=args.repair_headers)
  made_of = {"repair_headers": True} if args.repair_headers else {}
  prepare_listing(args, listing, name, read=read, made_of=made_of, again=again)


def _repair(argv: list[str]) -> int:
  """Prepares again with the bad shards among those to be written: each is replaced once its
  successor is whole."""
  args = _parser().parse(argv)
  problems, _ = verify.verify(args.output)
  for problem in problems.values():
    print(f"bad: {problem}", file=sys.stderr)
  if problems:
    prepare(args, again={os.path.basename(path) for path in problems})
  else:
    print(f"{args.output}: nothing to repair")
  return 0


def main(argv: list[str] | None = None) -> int:
  """Returns the exit code; see the module's docstring."""
  argv = sys.argv[1:] if argv is None else argv
  parts = {
    "verify": verify.main,
    "stats": verify.main_of_statistics,
    "merge": merge.main,
    "repair": _repair,
  }
  if argv and argv[0] in parts:
    return workers.run(lambda: parts[argv[0]](argv[1:]))
  return workers.run(lambda: prepare(_parser().parse(argv)))


if __name__ == "__main__":
  sys.exit(main())
