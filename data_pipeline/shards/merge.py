"""Prepared sets joined into one: the same clips with new ids and the labels of all sets.

  python -m data_pipeline.prepare merge data/a data/b --output=data/ab

The name of its set goes before every clip's id. Labels are matched by name. Folds are kept if only
one set has them. Clips stay in the order of sets and shards: the shards of the result are those of
the inputs, renamed and relabelled.
"""

import dataclasses
import os
from collections.abc import Iterator

from atst_jax.data.dataset import MANIFEST, Clip, Dataset, Shard, write_json, write_shard
from atst_jax.data.schema import SCHEMA_VERSION, TOTALS
from atst_jax.util import storage
from atst_jax.util.cli import Parser
from atst_jax.util.errors import UserError

from ..sources.files import check_labels, printable
from .mel_statistics import MelStatistics, merge_statistics
from .summary import print_page, report, sum_counts, totals
from .tfds_info import write_tfds_info

KEYS = ("name", "multi_label", "folds", "fold_names", "rejects", "counts")
COUNTERS = ("sample_rates", "seconds", "levels", "reasons")


def check(datasets: list[Dataset], output: str) -> None:
  """Raises UserError for sets that do not fit together, or an output that is not empty."""
  if len(datasets) < 2:
    raise UserError("merge needs two prepared sets or more")
  first = datasets[0]
  for dataset in datasets[1:]:
    if dataset.frontend.hash != first.frontend.hash:
      raise UserError(
        f"{first.root} has the front-end {first.frontend.name!r}, {dataset.root} "
        f"{dataset.frontend.name!r}; prepare both with one"
      )
  for dataset in datasets:
    lacking = [key for key in KEYS if key not in dataset.manifest]
    lacking += [
      f"{key} of {name}"
      for name, part in dataset.manifest["splits"].items()
      for key in (*TOTALS, "class_counts")
      if key not in part
    ]
    if lacking:
      raise UserError(
        f"{dataset.root}: {MANIFEST} lacks {', '.join(lacking)}; prepare the set again"
      )
  names = [dataset.manifest["name"] for dataset in datasets]
  if len(set(names)) < len(names):
    raise UserError(
      f"the sets are named {', '.join(names)}; names must differ, as they go before the ids: "
      "prepare one again with --name"
    )
  if storage.names(output):
    raise UserError(f"--output={output} holds something; choose another folder, or empty it")


def renamed(
  dataset: Dataset, shard: Shard, labels: list[int], *, multi_label: bool, fold: bool
) -> Iterator[Clip]:
  """The clips of a shard with their new ids and labels; `labels[i]` is the new number of label
  i."""
  for clip in dataset.shard_clips(shard):
    yield dataclasses.replace(
      clip,
      id=f"{dataset.manifest['name']}/{clip.id}",
      multi_label=multi_label,
      labels=tuple(labels[i] for i in clip.labels),
      fold=clip.fold if fold else -1,
      group=f"{dataset.manifest['name']}/{clip.group}" if clip.group else "",
    )


def merge(roots: list[str], output: str, name: str, *, exact_labels: bool = False) -> dict:
  """Writes the joined set; `dataset.json` comes last. Returns it. Raises UserError.

  Args:
    exact_labels: classes may differ in case or spaces only.
  """
  datasets = [Dataset.load(root) for root in roots]
  check(datasets, output)
  if not exact_labels:
    check_labels(_label_names(datasets))
  try:
    return _merge(datasets, output, name)
  except BaseException:  # so that the same command can be run again
    for file in storage.names(output):
      storage.remove(os.path.join(output, file))
    raise


def _label_names(datasets: list[Dataset]) -> list[str]:
  return sorted({label for dataset in datasets for label in dataset.label_names})


def _merge(datasets: list[Dataset], output: str, name: str) -> dict:
  label_names = _label_names(datasets)
  multi_label = any(dataset.manifest["multi_label"] for dataset in datasets)
  folded = [dataset for dataset in datasets if dataset.manifest["folds"]]
  statistics, splits = MelStatistics(), {}
  try:
    storage.make_folder(output)
  except OSError as error:
    raise UserError(f"--output={output}: cannot be made ({error.strerror})") from error
  for split in sorted({split for dataset in datasets for split in dataset.splits}):
    parts = [
      (dataset, shard)
      for dataset in datasets
      if split in dataset.splits
      for shard in dataset.shards(split)
    ]
    shards = []
    for number, (dataset, shard) in enumerate(parts):
      labels = [label_names.index(label) for label in dataset.label_names]
      clips = renamed(dataset, shard, labels, multi_label=multi_label, fold=folded == [dataset])
      file = f"{split}-{number:05d}-of-{len(parts):05d}.tfrecord"
      written = write_shard(
        os.path.join(output, file), _encoded(clips, statistics if split == "train" else None)
      )
      shards.append(
        {
          "file": file,
          "num_clips": written.num_clips,
          "num_bytes": written.num_bytes,
          "sha256": written.sha256,
        }
      )
    splits[split] = {
      **totals([d.manifest["splits"][split] for d in datasets if split in d.splits]),
      "shards": shards,
    }
  only = folded[0].manifest if len(folded) == 1 else {"fold_names": [], "folds": []}
  manifest = {
    "schema": SCHEMA_VERSION,
    "name": name,
    "frontend": datasets[0].frontend.to_json(),
    "label_names": label_names,
    "multi_label": multi_label,
    "fold_names": only["fold_names"],
    "folds": only["folds"],
    "splits": splits,
    "statistics": merge_statistics([statistics.to_json()], "train"),
    "rejects": _renamed_entries(datasets, "rejects"),
    "counts": _counts([dataset.manifest["counts"] for dataset in datasets]),
    "preparation": {
      "kind": "merge",
      "of": [[d.manifest["name"], [d.fingerprint(s) for s in d.splits]] for d in datasets],
    },
    **({"remarks": remarks} if (remarks := _renamed_entries(datasets, "remarks")) else {}),
    **_groups([d.manifest["groups"] for d in datasets if "groups" in d.manifest]),
  }
  labelled = all(
    sum(part["class_counts"].values()) >= part["num_clips"] for part in splits.values()
  )
  write_tfds_info(output, manifest, labelled=labelled, folded=False)
  write_json(os.path.join(output, MANIFEST), manifest)
  return manifest


def _renamed_entries(datasets: list[Dataset], key: str) -> list[dict]:
  """The entries of all manifests about single files, with the new ids."""
  return [
    {**entry, "id": f"{dataset.manifest['name']}/{entry['id']}"}
    for dataset in datasets
    for entry in dataset.manifest.get(key, [])
  ]


def _groups(parts: list[dict]) -> dict[str, dict]:
  """The entry `groups` of the joined set."""
  if not parts:
    return {}
  return {
    "groups": {
      "by": " or ".join(sorted({part["by"] for part in parts})),
      "number": sum(part["number"] for part in parts),
      "parted": sum(part["parted"] for part in parts),
      "divided_by_owner": all(part["divided_by_owner"] for part in parts),
    }
  }


def _encoded(clips: Iterator[Clip], statistics: MelStatistics | None) -> Iterator[bytes]:
  for clip in clips:
    if statistics is not None:
      statistics.add(clip.mel)
    yield clip.encode()


def _counts(parts: list[dict]) -> dict:
  numbers = {key for part in parts for key, value in part.items() if isinstance(value, int)}
  skipped = sum_counts([part.get("skipped", {}) for part in parts])
  coverage = {}
  for part in parts:
    for label, row in part.get("coverage", {}).items():
      coverage[label] = sum_counts(
        [coverage.get(label, {"listed": 0, "missing": 0, "rejected": 0}), row]
      )
  return {
    **{key: sum(part.get(key, 0) for part in parts) for key in sorted(numbers)},
    **{key: sum_counts([part.get(key, {}) for part in parts]) for key in COUNTERS},
    "coverage": coverage,
    **({"skipped": skipped} if skipped else {}),
  }


def main(argv: list[str]) -> int:
  """`prepare merge`: returns 0. Raises UserError."""
  parser = Parser("data_pipeline.prepare merge", __doc__)
  parser.add_argument("datasets", nargs="+")
  parser.add_argument("--output", required=True, help="folder to make")
  parser.add_argument("--name", default="", help="name of the result; by default its folder's")
  exact = "classes may differ in case or spaces only"
  parser.add_argument("--exact_labels", action="store_true", help=exact)
  args = parser.parse(argv)
  name = args.name or printable(os.path.basename(os.path.abspath(args.output)))
  manifest = merge(args.datasets, args.output, name, exact_labels=args.exact_labels)
  print("\n".join([f"{args.output}:", *report(manifest)]))
  print_page(args.output)
  return 0
