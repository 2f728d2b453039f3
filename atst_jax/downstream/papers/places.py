"""Where a score of ours stands in a table: the line of its features, and the column of its task."""

import hashlib
import json
import os
from typing import NamedTuple

from atst_jax.downstream.papers.published import BENCHMARK
from atst_jax.models.encoders import ENCODERS

SIZES = {(384, 12): "ATST Small", (768, 12): "ATST Base"}


class Place(NamedTuple):
  """A line and a column. Features, and tasks, of one name may differ."""

  line: str
  kind: str  # "ours" or "baseline"
  features: str  # hexadecimal digits of what they are computed by
  column: str


def place(results: dict, row: dict, *, views: bool) -> Place:
  """The place of a row of results. `views`: of `describe`."""
  encoder = results["encoder"]
  config = encoder["provenance"].get("config")
  words = row["features"] if results["job"] in ("difference", "retrieval") else row["name"]
  kind, _, part = words.partition(", ")
  system = row.get("system", "")
  ours = kind == "pre-trained" and system in ("", "audio + text")
  name, features = kind, _digits(encoder["frontend"])
  if kind == "pre-trained":
    name, features = describe(results, views=views), encoder["params_hash"][:6]
  elif kind == "random":
    name = f"{_architecture(config['encoder'])}, {kind}" if config else kind
    drawn = [results["config"].get(key) for key in ("seed", "seeds")]
    features = _digits([config["encoder"] if config else encoder["params_hash"], features, *drawn])
  weight = f"weight {row['weight']:g}" if row.get("weight") not in (None, 1) else ""
  line = ", ".join(filter(None, (name, part, "" if ours else system, weight)))
  features = "" if system == "chance" else features
  return Place(line, "ours" if ours else "baseline", features, _column(results, row))


def _digits(value) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]


def _column(results: dict, row: dict) -> str:
  """Other mixtures, and scenes of other pairs, than the published ones are columns of their own."""
  name, job = results["data"]["name"], results["job"]
  if job == "retrieval":
    return " ".join([*([] if name.startswith("apwd") else [name]), row["scene"], row["name"]])
  if job == "difference":
    published = name == BENCHMARK and results["protocol"] == "difference"
    return row["name"] if published else f"{name} {row['name']}"
  return name


def _architecture(encoder: dict) -> str:
  if not ENCODERS[encoder["kind"]].has_blocks:
    return encoder.get("version", encoder["kind"])
  return SIZES.get(
    (encoder["width"], encoder["depth"]), f"ATST {encoder['depth']} x {encoder['width']}"
  )


def describe(results: dict, *, views: bool) -> str:
  """The encoder in words, as far as its provenance says: name, size, λ and steps; with `views` its
  segments in place of λ and steps."""
  encoder = results["encoder"]
  name, provenance = os.path.basename(encoder["path"].rstrip("/")), encoder["provenance"]
  config = provenance.get("config")
  if not config:
    return name
  kind = _architecture(config["encoder"])
  if (objective := config.get("objective", "byol")) != "byol":
    return f"{name}: {kind}, {objective}, {provenance.get('step')} steps"
  if views:
    frontend, frames = encoder["frontend"], config["views"]["crop_frames"]
    seconds = round(frames * frontend["hop_length"] / frontend["sample_rate"], 1)
    segments = {"single": "single segment", "two": "two segments"}[config["views"]["segments"]]
    return f"{name}: {kind}, {segments}, {seconds:g} s"
  return f"{name}: {kind}, λ = {config['difference']['weight']:g}, {provenance.get('step')} steps"
