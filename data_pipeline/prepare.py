"""Prepares audio for training: any folder, manifest or known data set to shards of log-mel clips.

  python -m data_pipeline.prepare --input=DIR_or_MANIFEST --output=DIR --frontend=atst
  python -m data_pipeline.prepare verify DIR    checks counts, sha256 and every record
  python -m data_pipeline.prepare stats DIR     computes the statistics anew and stores them
  python -m data_pipeline.prepare merge DIR DIR … --output=DIR       joins prepared sets
  python -m data_pipeline.prepare repair --input=… --output=DIR …    writes the bad shards of DIR again, and no others

Which clip is in which shard, and every byte, depends on the input and the seed only. Killed at any moment, the same
command continues after the shards that are finished. Exit codes: 0 done, 2 a mistake in a flag, a file or the input,
74 a disk or a store did not answer, 75 stopped early: run the same command again.

Files are ordered by sha256("SEED:ID") and dealt to the shards of their split in turn. Should a shard turn out to have
no usable file, all files rejected so far are set aside and the rest is dealt once more, so that no shard is empty.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Set

from atst_jax import storage
from atst_jax.command import Parser, nearest
from atst_jax.errors import UserError
from atst_jax.frontend import FRONTENDS, get_frontend, mel_filters
from atst_jax.logs import log
from atst_jax.records import MANIFEST, SCHEMA_VERSION, RecordError, write_json
from data_pipeline import beam, jobs, merge, verify
from data_pipeline.files import printable
from data_pipeline.listing import Listing
from data_pipeline.plan import check_plan, deal, find_duplicates, hash_sources, measure, open_output, shard_name
from data_pipeline.report_page import write_report
from data_pipeline.shards import Settings, read_file, read_sidecar, read_sidecars
from data_pipeline.sources import LAYOUTS, list_sources
from data_pipeline.summary import describe, report
from data_pipeline.tfds_info import write_tfds_info
from data_pipeline.workers import write_tasks

MEASURED_FILES = 32  # by --dry_run
REJECTS = "rejects.json"  # in the work folder: files set aside before the files are dealt


def _parser() -> Parser:
  parser = Parser("data_pipeline.prepare", __doc__)
  add = parser.add_argument
  add("--input", default="", help="a folder of audio files, or a CSV/TSV manifest: path,label,fold,split,id,group")
  add("--tfds", default="", help="instead of --input: a data set of TensorFlow Datasets, for example nsynth/full; its "
      "sounds are written to OUTPUT.audio first")  # fmt: skip
  add("--tfds_label", default="", help="feature of its class; by default `label`, for example instrument/family")
  add("--tfds_dir", default=None, help="TFDS's data folder, if not its own")
  add("--output", required=True, help="folder of the shards; made if need be")
  add("--frontend", required=True, help=", ".join(FRONTENDS))
  add("--layout", default="", help=f"{', '.join(LAYOUTS)}; default: folder for a folder, manifest for a file")
  add("--root", default="", help="folder a manifest's paths start from; default: the manifest's own")
  add("--subset", type=int, default=0, help="keep so many training files, drawn by a hash of their ids (0: all)")
  add("--name", default="", help="name of the dataset; default: that of the input")
  add("--workers", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
  add("--runner", default="", help=f"write the shards by Apache Beam instead: {', '.join(beam.RUNNERS)}")
  add("--beam_options", default="", help="pipeline options, passed through, as one quoted string")
  add("--seed", type=int, default=0, help="of the order of the files")
  add("--reject_silent", action="store_true", help="leave out files below -80 dB of full scale")
  add("--reject_duplicates", action="store_true", help="leave out files of the same content as an earlier one (by id)")
  add("--max_seconds", type=float, default=60.0, help="longer files are cut into pieces of this length (1800 at most)")
  add("--num_shards", type=int, default=0, help="per split; default: at least 16, each of about --shard_mb")
  add("--shard_mb", type=float, default=48.0, help="size of a shard in MiB")
  add("--dry_run", action="store_true", help="tell what would be done")
  return parser


def _check(args: argparse.Namespace) -> None:
  if bool(args.input) == bool(args.tfds):
    raise UserError("name what to prepare: either --input=DIR_or_MANIFEST or --tfds=NAME")
  if args.tfds and (args.layout or args.root):
    raise UserError("--layout and --root go with --input, not with --tfds")
  if args.tfds and args.dry_run:
    raise UserError("--dry_run goes with --input: what --tfds brings is known once it is downloaded")
  if (args.tfds_label or args.tfds_dir) and not args.tfds:
    raise UserError("--tfds_label and --tfds_dir need --tfds")
  if args.layout and args.layout not in LAYOUTS:
    raise UserError(
      f"unknown --layout={args.layout}; choose one of {', '.join(LAYOUTS)}{nearest(args.layout, LAYOUTS)}"
    )
  if args.runner and args.runner not in beam.RUNNERS:
    raise UserError(f"unknown --runner={args.runner}; choose one of {', '.join(beam.RUNNERS)}"
                    f"{nearest(args.runner, beam.RUNNERS)}")  # fmt: skip
  if args.beam_options and not args.runner:
    raise UserError(f"--beam_options={args.beam_options} needs --runner, one of {', '.join(beam.RUNNERS)}")
  for key, low, high in (("workers", 1, 4096), ("subset", 0, 10**9), ("num_shards", 0, 99_999), ("shard_mb", 1e-3, 1e6),
                         ("max_seconds", 1, 1800), ("seed", 0, 2**63)):  # fmt: skip
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
    from data_pipeline.tfds_source import export

    args.name = args.name or args.tfds.replace("/", "_")
    args.input = export(args.tfds, f"{args.output.rstrip('/')}.audio", label=args.tfds_label, data_dir=args.tfds_dir)
  listing = list_sources(args.input, layout=args.layout, root=args.root, number=args.subset)
  name = os.path.basename(storage.absolute(args.input))
  name = args.name or printable(os.path.splitext(name)[0] if storage.is_file(args.input) else name)
  prepare_listing(args, listing, name, again=again)


def prepare_listing(args: argparse.Namespace, listing: Listing, name: str, *, read: Callable = read_file,
                    made_of: dict | None = None, again: Set[str] = frozenset()) -> None:  # fmt: skip
  """Writes the shards of a listing, its `dataset.json` and its report. Raises as `prepare`.

  Args:
    args: this command's flags, but what says where the listing comes from.
    listing: the files, or whatever else `read` makes sounds of.
    name: of the set.
    read: waveforms of a source (`shards.read_file`).
    made_of: JSON that says what `read` adds to the files; it becomes part of the plan.
    again: as in `prepare`.
  """
  frontend = get_frontend(args.frontend)
  sources_hash, missing = hash_sources(listing.sources, listing.root)
  preparation = {"kind": listing.kind, "seed": args.seed, "max_seconds": args.max_seconds, "sources": sources_hash,
                 "num_shards": args.num_shards, "shard_mb": args.shard_mb}  # fmt: skip
  preparation |= {key: True for key in ("reject_silent", "reject_duplicates") if getattr(args, key)}
  preparation |= made_of or {}
  if listing.not_drawn:  # their classes are not in the hash of the sources, and number the labels with the others
    preparation["classes"] = hashlib.sha256("\0".join(listing.label_names).encode()).hexdigest()[:16]
  plan = {**preparation, "schema": SCHEMA_VERSION, "name": name, "frontend": f"{frontend.name} {frontend.hash}"}
  check_plan(args.output, plan)
  aside = [{"id": id, "reason": "missing", "detail": ""} for id in missing]
  if len(missing) == len(listing.sources):
    raise UserError(f"none of the {len(aside)} files that {args.input} lists exists, the first would be "
                    f"{listing.sources[0].path}; set --root to the folder its paths start from")  # fmt: skip
  if args.dry_run:
    _print_plan(args, frontend, listing, aside)
    return
  with open_output(args.output, plan) as work:
    aside = _set_aside(args, listing, aside, work)
    sidecars, rejects = _write_shards(args, frontend, listing, aside, work, again, read)
    manifest = describe(name=name, frontend=frontend, listing=listing, sidecars=sidecars, rejects=rejects,
                        preparation=preparation)  # fmt: skip
    _remove_strays(args.output, {sidecar["file"] for sidecar in sidecars})
    labelled, folded = all(s.labels for s in listing.sources), all(s.fold >= 0 for s in listing.sources)
    write_tfds_info(args.output, manifest, labelled=labelled, folded=folded)
    write_json(os.path.join(args.output, MANIFEST), manifest)
  print("\n".join([f"{args.output}:", *report(manifest)]))
  try:
    print(f"more in {write_report(args.output)}")
  except (RecordError, OSError, ImportError) as error:
    print(f"no report.html: {error}; `prepare verify {args.output}` looks closer", file=sys.stderr)
  if "train" not in manifest["splits"]:
    print(f"no split `train`, so no statistics; `python -m data_pipeline.prepare stats --split=NAME {args.output}`")


def _set_aside(args: argparse.Namespace, listing: Listing, missing: list[dict], work: str) -> list[dict]:
  """The files to leave out, as an earlier start of this job found them."""
  path = os.path.join(work, REJECTS)
  if storage.is_file(path):
    return json.loads(storage.read_text(path))["rejects"]
  if not args.reject_duplicates:
    return missing
  log.info("looking for files of the same content")
  aside = missing + find_duplicates(listing.sources, listing.root, workers=args.workers)
  write_json(path, {"rejects": aside})
  return aside


def _deal(args: argparse.Namespace, frontend, listing: Listing, aside: list[dict]):
  ids = {reject["id"] for reject in aside}
  sources = [source for source in listing.sources if source.id not in ids]
  return deal(sources, frontend=frontend, seed=args.seed, shard_mb=args.shard_mb, num_shards=args.num_shards)


def _print_plan(args: argparse.Namespace, frontend, listing: Listing, aside: list[dict]) -> None:
  tasks, seconds = _deal(args, frontend, listing, aside)
  print(f"{len(listing.sources)} files ({listing.kind}), {len(aside)} of them missing, "
        f"{len(listing.label_names)} classes, about {seconds / 3600:.2f} hours; nothing written")  # fmt: skip
  frames = seconds * frontend.sample_rate / frontend.hop_length
  print(f"about {frames * frontend.n_mels * 2 / 2**30:.2f} GiB", end="")
  sample = [source for task in tasks for source in task.sources[:1]][:MEASURED_FILES]
  filters = mel_filters(frontend)
  measure(sample[:1], frontend=frontend, filters=filters)  # what is loaded once does not count
  audio, busy = measure(sample, frontend=frontend, filters=filters)
  print(f" and {seconds * busy / audio / 3600:.2g} core-hours, after {len(sample)} files" if audio else "")
  for split in sorted({task.split for task in tasks}):
    shards = [task for task in tasks if task.split == split]
    print(f"{split}: {sum(len(task.sources) for task in shards)} files to {len(shards)} shards, {shards[0].file} ...")


def _write_shards(
  args, frontend, listing: Listing, aside: list[dict], work: str, again: Set[str], read: Callable
) -> tuple[list[dict], list[dict]]:
  """(sidecars in order, all rejects); skips what is finished, deals a second time if a shard came out empty."""
  for _ in range(2):
    tasks, _ = _deal(args, frontend, listing, aside)
    todo = [task for task in tasks if task.file in again or read_sidecar(task, args.output, work) is None]
    again = frozenset()
    if todo:
      means = args.runner or f"{args.workers} workers"
      log.info("%d of %d shards to write, %s", len(todo), len(tasks), means)
      filters, label_names = mel_filters(frontend), tuple(listing.label_names)
      settings = Settings(args.output, work, frontend, filters, label_names, args.max_seconds, args.reject_silent,
                          read=read)  # fmt: skip
      if args.runner:
        beam.write_tasks(todo, settings, runner=args.runner, options=_split(args.beam_options))
      else:
        write_tasks(todo, settings, workers=args.workers)
    sidecars = read_sidecars(tasks, args.output, work)
    rejects = aside + [reject for sidecar in sidecars for reject in sidecar["rejects"]]
    if all(sidecar["num_clips"] for sidecar in sidecars):
      return sidecars, rejects
    if len(rejects) == len(listing.sources):
      break
    aside = rejects
    write_json(os.path.join(work, REJECTS), {"rejects": aside})
  first = min(rejects, key=lambda reject: reject["id"])
  raise UserError(f"none of the {len(listing.sources)} files can be used; the first is {first['id']!r}: "
                  f"{first['reason']} {first['detail']}".rstrip())  # fmt: skip


def _split(options: str) -> list[str]:
  try:
    return shlex.split(options)
  except ValueError as error:
    raise UserError(f"--beam_options={options}: {error}") from error


def _remove_strays(output: str, files: set[str]) -> None:
  """Removes shards of the first deal that the second one replaced."""
  for name in storage.names(output):
    if shard_name(name) and name not in files:
      storage.remove(os.path.join(output, name))


def _repair(argv: list[str]) -> int:
  """Prepares again with the bad shards among those to be written: each is replaced once its successor is whole."""
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
  parts = {"verify": verify.main, "stats": verify.main_of_statistics, "merge": merge.main, "repair": _repair}
  if argv and argv[0] in parts:
    return jobs.run(lambda: parts[argv[0]](argv[1:]))
  return jobs.run(lambda: prepare(_parser().parse(argv)))


if __name__ == "__main__":
  sys.exit(main())
