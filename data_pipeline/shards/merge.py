"""Prepared sets joined into one: the same clips with new ids and the labels of all sets.

  python -m data_pipeline.prepare merge data/a data/b --output=data/ab

The name of its set goes before every clip's id. Labels are matched by name. So are groups that are
of one kind in all sets: a speaker of two sets is one group. Before recordings, and before groups of
different kinds, goes the name of their set. Folds are kept if all sets that have some have the
same. Clips that sound as one of a set before are named. Clips stay in the order of sets and shards:
the shards of the result are those of the inputs, renamed and relabelled.
"""

import dataclasses
import os
from collections.abc import Iterator

from atst_jax.audio.channels import MEAN
from atst_jax.data.dataset import MANIFEST, Clip, Dataset, Shard, write_json, write_shard
from atst_jax.data.schema import SCHEMA_VERSION, TOTALS
from atst_jax.util import storage
from atst_jax.util.cli import Parser
from atst_jax.util.errors import UserError, printable
from atst_jax.util.logs import log

from ..sources.files import BY_FILE, check_labels
from .mel_statistics import merge_statistics
from .summary import print_report, sum_counts, totals
from .tally import Census
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
  dataset: Dataset,
  shard: Shard,
  labels: list[int],
  *,
  multi_label: bool,
  folded: bool,
  same_groups: bool,
) -> Iterator[Clip]:
  """The clips of a shard with their new ids, labels, folds and groups.

  Args:
    labels: `labels[i]` is the new number of label i.
    folded: folds are kept.
    same_groups: names of groups are kept.
  """
  name = dataset.manifest["name"]
  for clip in dataset.shard_clips(shard):
    yield dataclasses.replace(
      clip,
      id=f"{name}/{clip.id}",
      multi_label=multi_label,
      labels=tuple(labels[i] for i in clip.labels),
      fold=clip.fold if folded else -1,
      group=clip.group if same_groups or not clip.group else f"{name}/{clip.group}",
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


def _same_groups(datasets: list[Dataset]) -> bool:
  """Whether groups of one name are one group in all sets: those of one kind, but for recordings,
  which have the names of files."""
  kinds = {dataset.manifest["groups"]["by"] for dataset in datasets if "groups" in dataset.manifest}
  return len(kinds) == 1 and BY_FILE not in min(kinds).split(" or ")


def _folds(datasets: list[Dataset]) -> dict[str, list]:
  """`folds` and `fold_names` of the joined set. Folds that are dropped are told."""
  folded = [dataset for dataset in datasets if dataset.manifest["folds"]]
  found = [{key: one.manifest[key] for key in ("folds", "fold_names")} for one in folded]
  if found and found.count(found[0]) == len(found):
    return found[0]
  if found:
    told = "; ".join(
      f"{dataset.root} has {', '.join(map(str, one['fold_names'] or one['folds']))}"
      for dataset, one in zip(folded, found, strict=True)
    )
    log.warning("the folds are dropped, as those of the sets differ: %s", told)
  return {"folds": [], "fold_names": []}


def _merge(datasets: list[Dataset], output: str, name: str) -> dict:
  label_names, folds = _label_names(datasets), _folds(datasets)
  multi_label = any(dataset.manifest["multi_label"] for dataset in datasets)
  kept = {
    "multi_label": multi_label,
    "folded": bool(folds["folds"]),
    "same_groups": _same_groups(datasets),
  }
  census, splits = Census(dataset.manifest["name"] for dataset in datasets), {}
  try:
    storage.make_folder(output)
  except OSError as error:
    raise UserError(f"--output={output}: cannot be made ({error.strerror})") from error
  for split in sorted({split for dataset in datasets for split in dataset.splits}):
    parts = [dataset for dataset in datasets if split in dataset.splits]
    splits[split] = {
      **totals([dataset.manifest["splits"][split] for dataset in parts]),
      "shards": _write_split(parts, split, output, label_names, census, kept),
    }
  remarks = [*_renamed_entries(datasets, "remarks"), *census.repeated()]
  manifest = {
    "schema": SCHEMA_VERSION,
    "name": name,
    "frontend": datasets[0].frontend.to_json(),
    "label_names": label_names,
    "multi_label": multi_label,
    **folds,
    "splits": splits,
    "statistics": merge_statistics([census.statistics.to_json()], "train"),
    "rejects": _renamed_entries(datasets, "rejects"),
    "counts": _counts([dataset.manifest["counts"] for dataset in datasets]),
    "preparation": {
      "kind": "merge",
      "of": [[d.manifest["name"], [d.fingerprint(s) for s in d.splits]] for d in datasets],
      **_channels(datasets),
    },
    **({"remarks": remarks} if remarks else {}),
    **census.groups([d.manifest["groups"] for d in datasets if "groups" in d.manifest]),
  }
  labelled = all(
    sum(part["class_counts"].values()) >= part["num_clips"] for part in splits.values()
  )
  write_tfds_info(output, manifest, labelled=labelled, folded=census.folded)
  write_json(os.path.join(output, MANIFEST), manifest)
  return manifest


def _channels(datasets: list[Dataset]) -> dict[str, str]:
  """`--channels` of the sets' preparations, which exports follow, unless it is the mean."""
  found = {dataset.manifest["preparation"].get("channels", MEAN) for dataset in datasets}
  if len(found) > 1:
    told = " and ".join(sorted(found))
    log.warning("the sets were prepared with --channels=%s; an encoder will take the mean", told)
    return {}
  return {} if found == {MEAN} else {"channels": found.pop()}


def _write_split(
  datasets: list[Dataset],
  split: str,
  output: str,
  label_names: list[str],
  census: Census,
  kept: dict[str, bool],
) -> list[dict]:
  """Writes the shards of a split; `kept` are options of `renamed`. Returns their entries."""
  parts = [(dataset, shard) for dataset in datasets for shard in dataset.shards(split)]
  entries = []
  for number, (dataset, shard) in enumerate(parts):
    labels = [label_names.index(label) for label in dataset.label_names]
    clips = renamed(dataset, shard, labels, **kept)
    file = f"{split}-{number:05d}-of-{len(parts):05d}.tfrecord"
    payloads = _encoded(clips, dataset.manifest["name"], split, census)
    written = write_shard(os.path.join(output, file), payloads)
    entries.append(
      {
        "file": file,
        "num_clips": written.num_clips,
        "num_bytes": written.num_bytes,
        "sha256": written.sha256,
      }
    )
  return entries


def _renamed_entries(datasets: list[Dataset], key: str) -> list[dict]:
  """The entries of all manifests about single files, with the new ids."""
  return [
    {**entry, "id": f"{dataset.manifest['name']}/{entry['id']}"}
    for dataset in datasets
    for entry in dataset.manifest.get(key, [])
  ]


def _encoded(clips: Iterator[Clip], name: str, split: str, census: Census) -> Iterator[bytes]:
  for clip in clips:
    census.add(name, split, clip)
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
  print_report(args.output, manifest)
  return 0
