"""`report.html` of a prepared data set: one file, readable offline, that shows what is in it and
what is not."""

import collections
import hashlib
import io
import itertools
import os

import numpy as np
from markupsafe import Markup

from atst_jax.data.dataset import Clip, Dataset
from atst_jax.data.schema import LEVEL_STEP
from atst_jax.util import html_page, storage

PAGE = "report.html"
THUMBNAILS = 24
MOST_BARS = 200


def bars(counts: dict[str, int], unit: str, step: int) -> Markup:
  """A histogram as SVG, from {"lower edge": count} of whole numbers, `step` apart. More than
  MOST_BARS bars are merged."""
  if not counts:
    return Markup("<p>none</p>")
  edges = [int(edge) for edge in counts]
  step *= max(1, -(-(max(edges) - min(edges)) // (step * MOST_BARS)))
  merged: collections.Counter = collections.Counter()
  for text, count in counts.items():
    merged[int(text) // step * step] += count
  low, high, top = min(merged), max(merged) + step, max(merged.values())
  width = max(3, min(24, 800 * step // (high - low)))
  return html_page.render(
    "data/bars.html",
    bars=[
      ((edge - low) // step * width, max(1, 120 * merged[edge] / top), edge, merged[edge])
      for edge in sorted(merged)
    ],
    width=width,
    end=(high - low) // step * width,
    low=low,
    high=high,
    unit=unit,
  )


def image(mel: np.ndarray, frames: int = 601) -> str:
  """The first `frames` of a (T, F) log-mel, down to 80 dB below its maximum, as a data URI."""
  import matplotlib
  import PIL.Image

  mel = mel[:frames].astype(np.float32)
  top = mel.max() if mel.max() > mel.min() else np.inf  # digital silence is black
  levels = np.clip((mel.T[::-1] - top) / 80 + 1, 0, 1)
  picture = PIL.Image.fromarray((255 * levels).astype(np.uint8))
  colors = matplotlib.colormaps["magma"](np.arange(256))[:, :3]
  picture.putpalette((255 * colors).round().astype(np.uint8).tobytes())
  file = io.BytesIO()
  picture.save(file, format="png")
  return html_page.data_uri(file.getvalue(), "image/png")


def sample(dataset: Dataset, number: int) -> list[Clip]:
  """Clips of a few shards, always the same for the same data."""
  shards = [shard for split in dataset.splits for shard in dataset.shards(split)]
  shards.sort(key=lambda shard: hashlib.sha256(shard.sha256.encode()).digest())
  each = -(-number // min(number, len(shards)))
  clips = itertools.chain.from_iterable(
    itertools.islice(dataset.shard_clips(shard), each) for shard in shards
  )
  return list(itertools.islice(clips, number))


def _values(dataset: Dataset) -> dict:
  """What the template shows."""
  manifest, counts, frontend = dataset.manifest, dataset.manifest["counts"], dataset.frontend
  names, splits, rejects = manifest["label_names"], manifest["splits"], manifest["rejects"]
  seconds = frontend.hop_length / frontend.sample_rate
  notes = ", ".join(
    f"{counts[key]} {key.replace('_', ' ')}" for key in ("silent", "clipped", "dc", "split_files")
  )
  summary = f"{counts['listed_files']} files listed, {len(rejects)} not used; of the used: {notes}."
  if groups := manifest.get("groups"):
    summary += f" Divisions keep each {groups['by']} together: {groups['number']} groups."
  return {
    "summary": summary,
    "splits": [
      [
        name,
        part["num_clips"],
        part["num_files"],
        f"{part['num_frames'] * seconds / 3600:.2f}",
        f"{part['min_frames'] * seconds:.2f} to {part['max_frames'] * seconds:.2f}",
        len(part["shards"]),
      ]
      for name, part in splits.items()
    ],
    "frontend": list(frontend.to_json().items()),
    "statistics": [
      [key, f"{value:.6g}" if isinstance(value, float) else value]
      for key, value in (manifest["statistics"] or {}).items()
    ],
    "durations": bars(counts.get("seconds", {}), "s", 1),
    "levels": bars(counts.get("levels", {}), "dB", LEVEL_STEP),
    "rates": sorted(counts["sample_rates"].items(), key=lambda item: int(item[0])),
    "split_names": list(splits),
    "classes": [
      [name, *(part["class_counts"].get(name, 0) for part in splits.values())] for name in names
    ],
    "coverage": [
      [name, row["listed"], row["missing"], row["rejected"]]
      for name, row in counts["coverage"].items()
      if row["missing"] or row["rejected"]
    ],
    "rejects": [[row["id"], row["reason"], row["detail"]] for row in rejects],
    "remarks": [[row["id"], row["remark"], row["detail"]] for row in manifest.get("remarks", [])],
    "clips": [
      (image(c.mel), f"{c.id}: {', '.join(names[i] for i in c.labels)} ({len(c.mel)} frames)")
      for c in sample(dataset, THUMBNAILS)
    ],
  }


def contents(dataset: Dataset) -> Markup:
  """What the page says, without its title."""
  return html_page.render("data/dataset_contents.html", **_values(dataset))


def write_report(root: str) -> str:
  """Writes the page into a prepared folder. Returns its path."""
  path = os.path.join(root, PAGE)
  dataset = Dataset.load(root)
  page = html_page.render(
    "data/dataset_page.html", title=dataset.manifest["name"], **_values(dataset)
  )
  storage.write_text(path, page)
  return path
