"""Flags that several commands of the pipeline have, and the bounds of their numbers."""

import argparse
import os

from atst_jax.audio.frontend import FRONTENDS
from atst_jax.util import storage
from atst_jax.util.errors import UserError

from .sources.files import inside
from .sources.inputs import LAYOUTS

LAYOUT = f"{', '.join(LAYOUTS)}; default: by a table's first line, folder for a folder"
ROOT = "folder that a table's paths start from; default: the table's own"
FOLLOW_LINKS = "follow links that lead out of the input's folder (they are refused otherwise)"
BOUNDS: dict[str, tuple[float, float]] = {
  "workers": (1, 4096),
  "num_shards": (0, 99_999),
  "shard_mb": (1e-3, 1e6),
  "seed": (0, 2**63),
}


def add_shards(parser: argparse.ArgumentParser, *, output: str, name: str, seed: str) -> None:
  """Adds the flags of every command that writes shards. The arguments are help texts."""
  add = parser.add_argument
  add("--output", required=True, help=f"{output}; made if need be")
  add("--frontend", required=True, help=", ".join(FRONTENDS))
  add("--name", default="", help=name)
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
  add("--workers", type=int, default=cores, help=f"processes (default {cores})")
  add("--seed", type=int, default=0, help=seed)
  shards = "per split; default: 16, or a multiple of 64 of about --shard_mb each"
  add("--num_shards", type=int, default=0, help=shards)
  add("--shard_mb", type=float, default=48.0, help="size of a shard in MiB")
  add("--dry_run", action="store_true", help="tell what would be done")


def of_shards(args: argparse.Namespace) -> dict:
  """The values of `add_shards`, for `Job`."""
  return {key: getattr(args, key) for key in BOUNDS}


def part_of_plan(args: argparse.Namespace) -> dict:
  """Those values that change the bytes of shards."""
  return {key: getattr(args, key) for key in ("seed", "num_shards", "shard_mb")}


def add_recordings(parser: argparse.ArgumentParser, kind: str, text: str) -> None:
  """Adds --KIND, --KIND_layout and --KIND_root: recordings that are mixed."""
  add = parser.add_argument
  add(f"--{kind}", required=True, help=f"folder, or CSV/TSV manifest, {text}")
  add(f"--{kind}_layout", default="", help=LAYOUT)
  add(f"--{kind}_root", default="", help=ROOT)
  add(f"--{kind}_follow_links", action="store_true", help=FOLLOW_LINKS)


def add_listing(parser: argparse.ArgumentParser) -> None:
  """Adds how an input is read: its layout, links, tables and segments."""
  add = parser.add_argument
  add("--layout", default="", help=LAYOUT)
  add("--root", default="", help=ROOT)
  add("--follow_links", action="store_true", help=FOLLOW_LINKS)
  for name in ("path", "label"):
    add(f"--{name}_column", default="", help=f"a table's own name of the column `{name}`")
  separator = "separates several names in a `label` (default ';')"
  add("--label_separator", default="", help=separator)
  exact = "classes that differ in case or spaces only are different ones"
  add("--exact_labels", action="store_true", help=exact)
  whole = "do not read `start` and `end` of a manifest: its rows are whole files"
  add("--whole_files", action="store_true", help=whole)
  rest = "stretches that no segment covers are prepared too, without a label"
  add("--rest", action="store_true", help=rest)
  context = "seconds added to a segment on both sides"
  add("--context", type=float, default=0.0, help=context)


def of_listing(args: argparse.Namespace) -> dict:
  """The values of `add_listing`, for `list_sources`."""
  keys = ("layout", "root", "follow_links", "path_column", "label_column", "label_separator")
  return {key: getattr(args, key) for key in (*keys, "exact_labels", "whole_files", "rest")}


def check_bounds(args: argparse.Namespace, **bounds: tuple[float, float]) -> None:
  """Raises UserError for a number outside BOUNDS or `bounds`, {flag: (low, high)}."""
  for key, (low, high) in (bounds | BOUNDS).items():
    value = getattr(args, key)
    if not low <= value <= high:
      raise UserError(f"--{key}={value} is not between {low} and {high}")


def check_apart(output: str, **inputs: str) -> None:
  """Raises UserError if the output is the folder of an input, {flag: path}, or lies in it."""
  for flag, path in inputs.items():
    alike = storage.is_remote(path) == storage.is_remote(output)
    if path and alike and storage.is_folder(path) and inside(output, path):
      raise UserError(
        f"--output={output} lies in --{flag}={path}: shards would lie among its recordings; choose "
        "a folder outside"
      )


def names(text: str) -> list[str]:
  """The values of a flag that takes several, with commas between."""
  return [name.strip() for name in text.split(",") if name.strip()]
