"""`dataset.json` from the sidecars of all shards, a few lines for people, and the page."""

import collections
import sys

from atst_jax.audio.channels import CANCELLED
from atst_jax.audio.frontend import FrontEnd
from atst_jax.data.dataset import SCHEMA_VERSION, RecordError
from atst_jax.data.dataset_page import write_report

from ..sources.files import Listing, describe_skipped
from .mel_statistics import merge_statistics

COUNTS = ("silent", "clipped", "dc", "split_files")
REMARKS = {
  "incomplete": "{} files were not read whole:",
  "cancelled": CANCELLED,
  "repeated": "{} clips sound as one of a set before, which is named with them; leave them out of "
  "one set, or an evaluation may train on one and test the other:",
}


def describe(
  *,
  name: str,
  frontend: FrontEnd,
  listing: Listing,
  sidecars: list[dict],
  rejects: list[dict],
  preparation: dict,
) -> dict:
  """The content of `dataset.json`.

  Args:
    sidecars: of the shards that are part of the dataset, in order.
    rejects: {id, reason, detail} of every file that is not in a shard.
    preparation: the plan's keys that are not elsewhere in the manifest.
  """
  rejects = sorted(rejects, key=lambda reject: reject["id"])
  remarks = [remark for s in sidecars for remark in s.get("remarks", [])]
  splits = {}
  for split in sorted({sidecar["split"] for sidecar in sidecars}):
    splits[split] = _split([s for s in sidecars if s["split"] == split], listing.label_names)
  counts = {key: sum(s["counts"].get(key, 0) for s in sidecars) for key in COUNTS}
  return {
    "schema": SCHEMA_VERSION,
    "name": name,
    "frontend": frontend.to_json(),
    "label_names": listing.label_names,
    "multi_label": listing.multi_label,
    "fold_names": listing.fold_names,
    "folds": sorted({source.fold for source in listing.sources if source.fold >= 0}),
    "splits": splits,
    "statistics": merge_statistics(
      (s["statistics"] for s in sidecars if s["split"] == "train"), "train"
    ),
    "rejects": rejects,
    "counts": {
      **counts,
      "listed_files": len(listing.sources),
      "sample_rates": _sum(sidecars, "sample_rates"),
      "seconds": _sum(sidecars, "seconds"),
      "levels": _sum(sidecars, "levels"),
      "reasons": dict(collections.Counter(r["reason"] for r in rejects)),
      "coverage": _coverage(listing, rejects),
      **({"skipped": listing.skipped} if listing.skipped else {}),
    },
    "preparation": preparation,
    **_groups(listing),
    **({"remarks": sorted(remarks, key=lambda one: one["id"])} if remarks else {}),
  }


def _groups(listing: Listing) -> dict[str, dict]:
  """The entry about groups: their number, and how many lie in two of the listing's own splits or
  folds. Nothing if no file is in a group."""
  parts = collections.defaultdict(set)
  for source in listing.sources:
    if source.group:
      parts[source.group].add((source.split, source.fold))
  if not parts:
    return {}
  return {
    "groups": {
      "by": listing.grouped_by,
      "number": len(parts),
      "parted": sum(len(found) > 1 for found in parts.values()),
      "divided_by_owner": listing.divided_by_owner,
    }
  }


def describe_groups(groups: dict) -> list[str]:
  """A line about the groups, if there are any."""
  if not groups:
    return []
  line = f"groups: {groups['number']}, one for each {groups['by']}; divisions keep each together"
  if parted := groups["parted"]:
    line += f"; {parted} lie in several of the set's own folds or splits, "
    if groups["divided_by_owner"]:
      line += "which stay as published"
    else:
      line += "which evaluations refuse: give each group one fold and split"
  return [line]


def sum_counts(parts: list[dict[str, int]]) -> dict[str, int]:
  """{key: sum over the parts}."""
  total = collections.Counter()
  for part in parts:
    total.update(part)
  return dict(total)


def _sum(sidecars: list[dict], key: str) -> dict[str, int]:
  # Sidecars of older versions have no histograms.
  return sum_counts([sidecar.get(key, {}) for sidecar in sidecars])


def totals(parts: list[dict]) -> dict:
  """The numbers of a split in `dataset.json`, from those of its parts."""
  return {
    **{key: sum(part[key] for part in parts) for key in ("num_clips", "num_files", "num_frames")},
    "min_frames": min(part["min_frames"] for part in parts),
    "max_frames": max(part["max_frames"] for part in parts),
    "class_counts": sum_counts([part["class_counts"] for part in parts]),
  }


def _split(sidecars: list[dict], label_names: list[str]) -> dict:
  content = totals(sidecars)
  content["class_counts"] = {name: content["class_counts"].get(name, 0) for name in label_names}
  keys = ("file", "num_clips", "num_bytes", "sha256")
  content["shards"] = [{key: sidecar[key] for key in keys} for sidecar in sidecars]
  return content


def _coverage(listing: Listing, rejects: list[dict]) -> dict[str, dict[str, int]]:
  """Files listed, missing, otherwise rejected and, of a subset, not drawn: per class."""
  reasons = {reject["id"]: reject["reason"] for reject in rejects}
  table = {name: {"listed": 0, "missing": 0, "rejected": 0} for name in listing.label_names}
  for name, number in listing.not_drawn.items():
    table[name] |= {"listed": number, "not_drawn": number}
  for source in listing.sources:
    reason = reasons.get(source.id)
    for name in source.labels:
      table[name]["listed"] += 1
      if reason:
        table[name]["missing" if reason == "missing" else "rejected"] += 1
  return table


def describe_remarks(remarks: list[dict], most: int) -> list[str]:
  """Lines about files that were used though they are incomplete, or their channels cancel."""
  lines = []
  for kind, text in REMARKS.items():
    if not (found := [remark for remark in remarks if remark["remark"] == kind]):
      continue
    lines.append(text.format(len(found)))
    lines += [f"  {remark['id']!r}: {remark['detail']}" for remark in found[:most]]
    if len(found) > most:
      lines.append(f"  and {len(found) - most} more in dataset.json")
  return lines


def report(manifest: dict, *, most: int = 10) -> list[str]:
  """Lines about what was prepared and what was not."""
  frontend, counts, lines = manifest["frontend"], manifest["counts"], []
  for split, content in manifest["splits"].items():
    hours = content["num_frames"] * frontend["hop_length"] / frontend["sample_rate"] / 3600
    size = sum(shard["num_bytes"] for shard in content["shards"]) / 2**20
    lines.append(
      f"{split}: {content['num_clips']} clips of {content['num_files']} files, {hours:.2f} hours, "
      f"{len(content['shards'])} shards, {size:.0f} MiB"
    )
  lines.append(", ".join(f"{counts[key]} {key.replace('_', ' ')}" for key in COUNTS))
  lines += describe_skipped(counts.get("skipped", {}))
  lines += describe_groups(manifest.get("groups", {}))
  lines += describe_remarks(manifest.get("remarks", []), most)
  if manifest["rejects"]:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts["reasons"].items()))
    lines.append(
      f"{len(manifest['rejects'])} of {counts['listed_files']} files rejected: {reasons}"
    )
    for reject in manifest["rejects"][:most]:
      detail = f" ({reject['detail']})" if reject["detail"] else ""
      lines.append(f"  {reject['id']!r}: {reject['reason']}{detail}")
    if len(manifest["rejects"]) > most:
      lines.append(f"  and {len(manifest['rejects']) - most} more in dataset.json")
    absent = {k: (v["missing"] + v["rejected"], v["listed"]) for k, v in counts["coverage"].items()}
    worst = sorted(
      (k for k in absent if absent[k][0]), key=lambda k: (-absent[k][0] / absent[k][1], k)
    )
    if worst:
      lines.append(
        "classes that lack most: "
        + ", ".join(f"{k} {absent[k][0]} of {absent[k][1]}" for k in worst[:most])
      )
  return lines


def print_report(root: str, manifest: dict) -> None:
  """Writes `report.html`, and prints what was prepared and where the page is. The set is complete
  without it: what fails is told."""
  lines = [f"{root}:", *report(manifest)]
  try:
    lines.append(f"more in {write_report(root)}")
  except (RecordError, OSError, ImportError) as error:
    print(f"no report.html: {error}; `prepare verify {root}` looks closer", file=sys.stderr)
  print("\n".join(lines))
