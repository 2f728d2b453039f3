"""Flags that several commands of the pipeline have, and the bounds of their numbers."""

import argparse
import os

from atst_jax.audio.frontend import FRONTENDS
from atst_jax.util.errors import UserError

from .sources.inputs import LAYOUTS

LAYOUT = f"{', '.join(LAYOUTS)}; default: folder for a folder, manifest for a file"
ROOT = "folder a manifest's paths start from; default: the manifest's own"
BOUNDS: dict[str, tuple[float, float]] = {
  "workers": (1, 4096),
  "num_shards": (0, 99_999),
  "shard_mb": (1e-3, 1e6),
  "seed": (0, 2**63),
}


def add_shards(parser: argparse.ArgumentParser, *, output: str, name: str, seed: str) -> None:
  """Adds what every command that writes shards asks. The texts say what differs."""
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
  """What `add_shards` asked, for `Job`."""
  return {key: getattr(args, key) for key in BOUNDS}


def part_of_plan(args: argparse.Namespace) -> dict:
  """What of it decides over the bytes of shards."""
  return {key: getattr(args, key) for key in ("seed", "num_shards", "shard_mb")}


def add_recordings(parser: argparse.ArgumentParser, kind: str, text: str) -> None:
  """Adds --KIND, --KIND_layout and --KIND_root: recordings that are mixed."""
  parser.add_argument(f"--{kind}", required=True, help=f"folder, or CSV/TSV manifest, {text}")
  parser.add_argument(f"--{kind}_layout", default="", help=LAYOUT)
  parser.add_argument(f"--{kind}_root", default="", help=ROOT)


def check_bounds(args: argparse.Namespace, **bounds: tuple[float, float]) -> None:
  """Raises UserError for a number outside BOUNDS or `bounds`, {flag: (low, high)}."""
  for key, (low, high) in (bounds | BOUNDS).items():
    value = getattr(args, key)
    if not low <= value <= high:
      raise UserError(f"--{key}={value} is not between {low} and {high}")


def names(text: str) -> list[str]:
  """The values of a flag that takes several, with commas between."""
  return [name.strip() for name in text.split(",") if name.strip()]
