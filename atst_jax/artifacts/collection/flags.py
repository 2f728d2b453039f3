"""The flags of commands that take many recordings to one file with an exported model."""

import os
from argparse import Namespace

from atst_jax.audio.channels import check_channels
from atst_jax.audio.formats import is_audio
from atst_jax.runtime.devices import DTYPES
from atst_jax.util import storage
from atst_jax.util.checkout import pipeline
from atst_jax.util.cli import Parser
from atst_jax.util.errors import UserError, printable
from atst_jax.util.logs import log


def add_flags(parser: Parser, workers: str) -> None:
  """Adds --channels, --dtype, --num_processes, --process_id, --workers (threads that do so) and
  --dry_run."""
  add = parser.add_argument
  add(
    "--channels",
    help="several channels become one: their mean, the loudest, or one of them by its number from "
    "1; as in the data that the export was trained on by default",
  )
  add(
    "--dtype",
    choices=DTYPES,
    default="float32",
    help="of the encoder's products (default float32); auto: bfloat16, but float32 on a CPU",
  )
  add("--num_processes", type=int, default=1, help="processes that share the files (default 1)")
  add("--process_id", type=int, default=0, help="which of them this is, from 0")
  parser.add_workers(workers)


def check_flags(flags: Namespace) -> tuple[int, int]:
  """(number, count) of the processes. Raises UserError for what `add_flags`'s flags cannot be."""
  if flags.channels is not None:
    check_channels(flags.channels)
  if flags.workers < 1:
    raise UserError(f"--workers={flags.workers}: at least one is needed")
  if not 0 <= flags.process_id < flags.num_processes:
    raise UserError(
      f"--process_id={flags.process_id}: must be from 0 to below --num_processes="
      f"{flags.num_processes}"
    )
  return flags.process_id, flags.num_processes


def local_output(path: str, what: str) -> str:
  """The absolute path of --output, a file that can be made. `what` is in it. Raises UserError."""
  if storage.is_remote(path):
    raise UserError(f"--output={path}: {what} are written to a local file; copy it from there")
  output = os.path.abspath(path)
  if not os.access(os.path.dirname(output), os.W_OK):
    raise UserError(f"--output={path}: must lie in a folder that exists and can be written")
  return output


def is_recording(path: str) -> bool:
  """Whether --input is one recording, not a folder or a table."""
  return is_audio(path) and storage.is_file(path)


def files_of(path: str) -> list[tuple[str, str]]:
  """(id, path) of the recordings that --input names: a folder, one recording, or a table of whole
  files. Raises UserError."""
  if is_recording(path):
    return [(id_of(path), path)]
  return [(source.id, source.path) for source in sources_of(path, "list_files")]


def id_of(path: str) -> str:
  """The id of one recording that --input names."""
  return printable(os.path.basename(path))


def sources_of(path: str, read: str = "list_sources") -> list:
  """The `Source`s that --input names, a folder or a table, by a function of
  `data_pipeline.sources.inputs`. What they say of splits and labels does not matter. Raises
  UserError."""
  options = {}
  if storage.is_folder(path):
    options["layout"] = "folder"
  elif storage.is_file(path) and pipeline("sources.segments").kind_of(path) == "manifest":
    options["label_separator"] = ";"
  listing = getattr(pipeline("sources.inputs"), read)(path, exact_labels=True, **options)
  for line in listing.told():
    log.info(line)
  return listing.sources
