"""`report.html` of a prepared data set: one file, readable offline, that shows what is in it and
what is not."""

import collections
import functools
import hashlib
import html
import io
import itertools
import os

import numpy as np

from atst_jax.data.dataset import Clip, Dataset
from atst_jax.data.schema import LEVEL_STEP
from atst_jax.util import html_page, storage
from atst_jax.util.html_page import data_uri, page, paragraph

PAGE = "report.html"
THUMBNAILS = 24
MOST_BARS = 200
IMAGE_STYLE = "width:210px;height:96px;display:block;image-rendering:pixelated"


def bars(counts: dict[str, int], unit: str, step: int) -> str:
  """A histogram as SVG, from {"lower edge": count} of whole numbers, `step` apart; coarser if there
  are very many."""
  if not counts:
    return "<p>none</p>"
  edges = [int(edge) for edge in counts]
  step *= max(1, -(-(max(edges) - min(edges)) // (step * MOST_BARS)))
  merged = collections.Counter()
  for text, count in counts.items():
    merged[int(text) // step * step] += count
  counts = {str(edge): merged[edge] for edge in sorted(merged)}
  edges = sorted(merged)
  number = (edges[-1] - edges[0]) // step + 1
  width, top = max(3, min(24, 800 // number)), max(counts.values())
  parts = []
  for edge in edges:
    height = max(1, 120 * counts[str(edge)] / top)
    x = (edge - edges[0]) // step * width
    parts.append(
      f'<rect x="{x}" y="{130 - height:.1f}" width="{width - 1}" height="{height:.1f}" fill="#3b6ea5">'
      f"<title>{edge} {unit}: {counts[str(edge)]}</title></rect>"
    )
  labels = [(0, edges[0]), (number * width - 1, edges[-1] + step)]
  parts += [
    f'<text x="{x}" y="146" font-size="12" text-anchor="{anchor}">{value} {unit}</text>'
    for (x, value), anchor in zip(labels, ("start", "end"), strict=True)
  ]
  return f'<svg viewBox="0 0 {max(number * width, 220)} 150" width="{max(number * width, 220)}">{"".join(parts)}</svg>'


def image(clip: Clip) -> str:
  """The first 6 s of a clip's log-mel, 80 dB below its maximum, as an element of a page."""
  import matplotlib
  import PIL.Image

  mel = clip.mel[:601].astype(np.float32)
  picture = PIL.Image.fromarray(
    (255 * np.clip((mel.T[::-1] - mel.max()) / 80 + 1, 0, 1)).astype(np.uint8)
  )
  picture.putpalette(
    (255 * matplotlib.colormaps["magma"](np.arange(256))[:, :3]).round().astype(np.uint8).tobytes()
  )
  file = io.BytesIO()
  picture.save(file, format="png")
  return f'<img alt="" style="{IMAGE_STYLE}" src="{data_uri(file.getvalue(), "image/png")}">'


def thumbnail(clip: Clip, label_names: list[str]) -> str:
  """A clip's image with its id and labels."""
  caption = html.escape(
    f"{clip.id}: {', '.join(label_names[i] for i in clip.labels)} ({len(clip.mel)} frames)"
  )
  return f'<figure>{image(clip)}<figcaption style="width:210px">{caption}</figcaption></figure>'


def sample(dataset: Dataset, number: int) -> list[Clip]:
  """Clips of a few shards, always the same for the same data."""
  shards = [shard for split in dataset.splits for shard in dataset.shards(split)]
  shards.sort(key=lambda shard: hashlib.sha256(shard.sha256.encode()).digest())
  each = -(-number // min(number, len(shards)))
  clips = itertools.chain.from_iterable(
    itertools.islice(dataset.shard_clips(shard), each) for shard in shards
  )
  return list(itertools.islice(clips, number))


def contents(dataset: Dataset) -> str:
  """What the page says, as HTML without a title."""
  manifest, counts = dataset.manifest, dataset.manifest["counts"]
  table = functools.partial(html_page.table, rest=" in dataset.json")
  frontend = dataset.frontend
  seconds = frontend.hop_length / frontend.sample_rate
  splits = [
    [
      name,
      part["num_clips"],
      part["num_files"],
      f"{part['num_frames'] * seconds / 3600:.2f}",
      f"{part['min_frames'] * seconds:.2f} to {part['max_frames'] * seconds:.2f}",
      len(part["shards"]),
    ]
    for name, part in manifest["splits"].items()
  ]
  balance = [
    [name, *(part["class_counts"].get(name, 0) for part in manifest["splits"].values())]
    for name in manifest["label_names"]
  ]
  coverage = [
    [name, row["listed"], row["missing"], row["rejected"]]
    for name, row in counts["coverage"].items()
    if row["missing"] or row["rejected"]
  ]
  statistics = [
    [key, f"{value:.6g}" if isinstance(value, float) else value]
    for key, value in (manifest["statistics"] or {}).items()
  ]
  sections = {
    "Splits": table(["split", "clips", "files", "hours", "seconds", "shards"], splits, numbers=5),
    "Front-end": table(["parameter", "value"], [[k, v] for k, v in frontend.to_json().items()]),
    "Statistics of the training split (dB; log_: nepers)": table(
      ["", "value"], statistics, numbers=1
    ),
    "Durations": bars(counts.get("seconds", {}), "s", 1),
    "Levels (mean of a clip's log-mel)": bars(counts.get("levels", {}), "dB", LEVEL_STEP),
    "Sample rates": table(
      ["Hz", "files"], sorted(counts["sample_rates"].items(), key=lambda x: int(x[0])), numbers=1
    ),
    "Classes": table(["class", *manifest["splits"]], balance, numbers=len(manifest["splits"]))
    if balance
    else "",
    "Coverage, where files are missing": table(
      ["class", "listed", "missing", "rejected"], coverage, numbers=3
    )
    if coverage
    else "",
    "Rejects": table(
      ["id", "reason", "detail"], [[r["id"], r["reason"], r["detail"]] for r in manifest["rejects"]]
    )
    if manifest["rejects"]
    else "<p>none</p>",
    "Some clips": "".join(
      thumbnail(clip, manifest["label_names"]) for clip in sample(dataset, THUMBNAILS)
    ),
  }
  notes = ", ".join(
    f"{counts[key]} {key.replace('_', ' ')}" for key in ("silent", "clipped", "dc", "split_files")
  )
  summary = f"{counts['listed_files']} files listed, {len(manifest['rejects'])} not used; of the used: {notes}."
  body = "".join(f"<h3>{name}</h3>{text}" for name, text in sections.items() if text)
  return paragraph(summary) + body


def write_report(root: str) -> str:
  """Writes the page into a prepared folder. Returns its path."""
  path = os.path.join(root, PAGE)
  dataset = Dataset.load(root)
  storage.write_text(path, page(dataset.manifest["name"], contents(dataset)))
  return path
