"""The job that writes a listing's shards, its `dataset.json` and its report; `prepare` and the
mixers call it.

Files are ordered by sha256("SEED:ID") and dealt to the shards of their split in turn. Should a
shard turn out to have no usable file, all files rejected so far are set aside and the rest is dealt
once more, so that no shard is empty.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Set

from atst_jax.audio.formats import has_pyav, needs_pyav
from atst_jax.audio.frontend import get_frontend, mel_filters
from atst_jax.data.dataset import MANIFEST, SCHEMA_VERSION, RecordError, write_json
from atst_jax.data.dataset_page import write_report
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

from ..sources.listing import Listing
from . import beam
from .plan import check_plan, deal, find_duplicates, hash_sources, measure, open_output, shard_name
from .shard import Settings, read_file, read_sidecar, read_sidecars
from .summary import describe, describe_skipped, report
from .tfds_info import write_tfds_info
from .workers import write_tasks

MEASURED_FILES = 32  # by --dry_run
REJECTS = "rejects.json"  # in the work folder: files set aside before the files are dealt


def prepare_listing(
  args: argparse.Namespace,
  listing: Listing,
  name: str,
  *,
  read: Callable = read_file,
  made_of: dict | None = None,
  again: Set[str] = frozenset(),
) -> None:
  """Writes the shards of a listing, its `dataset.json` and its report.

  Args:
    args: the flags of `data_pipeline.prepare` but for those that choose the files: --layout,
      --root, --subset, --tfds…. `input` is read for messages only.
    listing: the files, or whatever else `read` makes sounds of.
    name: of the set.
    read: waveforms of a source (`shards.read_file`).
    made_of: JSON that says what `read` adds to the files; it becomes part of the plan.
    again: file names of shards that are written although they look finished.

  Raises:
    UserError: for a plan that is not that of `args.output`, files none of which exists or can be
      used.
    StoreError: a store or a disk that does not answer.
    Stopped: a worker that died.
    KeyboardInterrupt: after a signal; the same job, run again, continues.
  """
  frontend = get_frontend(args.frontend)
  sources_hash, missing = hash_sources(listing.sources, listing.root)
  preparation = {
    "kind": listing.kind,
    "seed": args.seed,
    "max_seconds": args.max_seconds,
    "sources": sources_hash,
    "num_shards": args.num_shards,
    "shard_mb": args.shard_mb,
  }
  preparation |= {key: True for key in ("reject_silent", "reject_duplicates") if getattr(args, key)}
  preparation |= made_of or {}
  # a set that lacks these files is finished without PyAV, and another with it
  if any(needs_pyav(source.path) for source in listing.sources):
    preparation["pyav"] = has_pyav()
  # their classes are not in the hash of the sources, and number the labels with the others
  if listing.not_drawn:
    preparation["classes"] = hashlib.sha256("\0".join(listing.label_names).encode()).hexdigest()[
      :16
    ]
  plan = {
    **preparation,
    "schema": SCHEMA_VERSION,
    "name": name,
    "frontend": f"{frontend.name} {frontend.hash}",
  }
  check_plan(args.output, plan)
  aside = [{"id": id, "reason": "missing", "detail": ""} for id in missing]
  if len(missing) == len(listing.sources):
    raise UserError(
      f"none of the {len(aside)} files that {args.input} lists exists, the first would be "
      f"{listing.sources[0].path}; set --root to the folder its paths start from"
    )
  if args.dry_run:
    _print_plan(args, frontend, listing, aside)
    return
  with open_output(args.output, plan) as work:
    aside = _set_aside(args, listing, aside, work)
    sidecars, rejects = _write_shards(args, frontend, listing, aside, work, again, read)
    manifest = describe(
      name=name,
      frontend=frontend,
      listing=listing,
      sidecars=sidecars,
      rejects=rejects,
      preparation=preparation,
    )
    _remove_strays(args.output, {sidecar["file"] for sidecar in sidecars})
    labelled, folded = (
      all(s.labels for s in listing.sources),
      all(s.fold >= 0 for s in listing.sources),
    )
    write_tfds_info(args.output, manifest, labelled=labelled, folded=folded)
    write_json(os.path.join(args.output, MANIFEST), manifest)
  print("\n".join([f"{args.output}:", *report(manifest)]))
  try:
    print(f"more in {write_report(args.output)}")
  except (RecordError, OSError, ImportError) as error:
    print(f"no report.html: {error}; `prepare verify {args.output}` looks closer", file=sys.stderr)
  if "train" not in manifest["splits"]:
    print(
      f"no split `train`, so no statistics; `python -m data_pipeline.prepare stats --split=NAME {args.output}`"
    )


def _set_aside(
  args: argparse.Namespace, listing: Listing, missing: list[dict], work: str
) -> list[dict]:
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
  return deal(
    sources, frontend=frontend, seed=args.seed, shard_mb=args.shard_mb, num_shards=args.num_shards
  )


def _print_plan(args: argparse.Namespace, frontend, listing: Listing, aside: list[dict]) -> None:
  tasks, seconds = _deal(args, frontend, listing, aside)
  print(
    f"{len(listing.sources)} files ({listing.kind}), {len(aside)} of them missing, "
    f"{len(listing.label_names)} classes, about {seconds / 3600:.2f} hours; nothing written"
  )
  if listing.skipped:
    print(describe_skipped(listing.skipped))
  frames = seconds * frontend.sample_rate / frontend.hop_length
  print(f"about {frames * frontend.n_mels * 2 / 2**30:.2f} GiB", end="")
  sample = [source for task in tasks for source in task.sources[:1]][:MEASURED_FILES]
  filters = mel_filters(frontend)
  measure(sample[:1], frontend=frontend, filters=filters)  # what is loaded once does not count
  audio, busy = measure(sample, frontend=frontend, filters=filters)
  print(
    f" and {seconds * busy / audio / 3600:.2g} core-hours, after {len(sample)} files"
    if audio
    else ""
  )
  for split in sorted({task.split for task in tasks}):
    shards = [task for task in tasks if task.split == split]
    print(
      f"{split}: {sum(len(task.sources) for task in shards)} files to {len(shards)} shards, {shards[0].file} ..."
    )


def _write_shards(
  args, frontend, listing: Listing, aside: list[dict], work: str, again: Set[str], read: Callable
) -> tuple[list[dict], list[dict]]:
  """(sidecars in order, all rejects); skips what is finished, deals a second time if a shard came
  out empty."""
  for _ in range(2):
    tasks, _ = _deal(args, frontend, listing, aside)
    todo = [
      task for task in tasks if task.file in again or read_sidecar(task, args.output, work) is None
    ]
    again = frozenset()
    if todo:
      means = args.runner or f"{args.workers} workers"
      log.info("%d of %d shards to write, %s", len(todo), len(tasks), means)
      filters, label_names = mel_filters(frontend), tuple(listing.label_names)
      settings = Settings(
        args.output,
        work,
        frontend,
        filters,
        label_names,
        args.max_seconds,
        args.reject_silent,
        read=read,
      )
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
  raise UserError(
    f"none of the {len(listing.sources)} files can be used; the first is {first['id']!r}: "
    f"{first['reason']} {first['detail']}".rstrip()
  )


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
