"""What a `dataset.json` may hold. It may come from anywhere, so everything that is used is checked
here first."""

import re

SCHEMA_VERSION = 1
SPLIT = r"[A-Za-z][A-Za-z0-9_]{0,63}"  # it becomes a part of file names
MOST_DECIBELS = 1e6  # of statistics: float16 ends at 65504
RECORD_BYTES = 16  # of a record's frame: no file holds more records than a sixteenth of its bytes
STATISTICS = ("min", "max", "mean", "std", "log_mean", "log_std")
# among the counts; the others are whole numbers
TABLES = ("seconds", "levels", "sample_rates", "reasons", "skipped")
LEVEL_STEP = 5  # dB, of the histogram of clips' levels
# of a split; whole numbers, of which these are needed
NEEDED = ("min_frames", "max_frames")
TOTALS = ("num_clips", "num_files", "num_frames", *NEEDED)


def is_number(value, *kinds: type) -> bool:
  """Whether a JSON value is a finite number of these kinds: to Python True is 1, and NaN is
  JSON."""
  return type(value) in kinds and abs(value) < float("inf")


def _is_counts(value) -> bool:
  return isinstance(value, dict) and all(is_number(count, int) for count in value.values())


def _is_text(value) -> bool:
  """Whether it can be written again: JSON can escape halves of characters, which UTF-8 cannot
  hold."""
  return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _are_names(value) -> bool:
  return isinstance(value, list) and all(map(_is_text, value))


def _check_split(name: str, split: dict) -> None:
  if not re.fullmatch(SPLIT, name):
    raise ValueError(f"split {name!r} is not a word of letters, digits and '_'")
  for shard in split["shards"]:
    file, clips, size = shard["file"], shard["num_clips"], shard["num_bytes"]
    if not re.fullmatch(r"[^/\\\x00]+\.tfrecord", file):
      raise ValueError(f"the shard {file!r} is not the name of a .tfrecord in the folder")
    if (
      not is_number(clips, int)
      or not is_number(size, int)
      or not 1 <= clips <= size // RECORD_BYTES
    ):
      raise ValueError(f"the shard {file!r} has {clips!r} clips in {size!r} bytes")
    if not re.fullmatch(r"[0-9a-f]{64}", shard["sha256"]):
      raise ValueError(f"the shard {file!r} has the sha256 {shard['sha256']!r}")
  if missing := [key for key in NEEDED if key not in split]:
    raise ValueError(f"the split {name!r} has no {missing[0]}")
  for key in TOTALS:
    if key in split and not (is_number(split[key], int) and split[key] >= 0):
      raise ValueError(f"the split {name!r} has {key} {split[key]!r}")
  if not _is_counts(split.get("class_counts", {})):
    raise ValueError(f"the split {name!r} has class_counts that are no counts")


def _check_counts(counts: dict) -> None:
  for key, value in counts.items():
    if not (
      all(map(_is_counts, value.values()))
      if key == "coverage"
      else _is_counts(value)
      if key in TABLES
      else is_number(value, int)
    ):
      raise ValueError(f"counts: {key} holds something else than whole numbers")
  for key in ("seconds", "levels", "sample_rates"):
    if not all(re.fullmatch(r"-?[0-9]{1,12}", edge) for edge in counts.get(key, {})):
      raise ValueError(f"counts: {key} is no histogram")


def check_manifest(manifest: dict) -> None:
  """Raises ValueError, KeyError, TypeError or AttributeError for what the rest of the code could
  not work with.

  Names of shards and splits stay in the folder; no number asks for memory that no file backs.
  """
  for name, split in manifest["splits"].items():
    _check_split(name, split)
  for key in ("label_names", "fold_names"):
    if not _are_names(manifest.get(key, []) if key == "fold_names" else manifest[key]):
      raise TypeError(f"{key} is not a list of names")
  statistics = manifest.get("statistics") or {}
  if not isinstance(statistics, dict):
    raise TypeError(f"statistics is a {type(statistics).__name__}, not a table")
  for key in STATISTICS:
    if key in statistics and not (
      is_number(statistics[key], int, float) and abs(statistics[key]) < MOST_DECIBELS
    ):
      raise ValueError(f"the statistics say {key} {statistics[key]!r}")
  if not _is_text(manifest.get("name", "")):
    raise TypeError("name is not a text")
  kinds = {"multi_label": bool, "folds": list, "rejects": list, "remarks": list}
  for key, kind in kinds.items():
    if key in manifest and not isinstance(manifest[key], kind):
      raise TypeError(f"{key} is a {type(manifest[key]).__name__}, not a {kind.__name__}")
  for reject in manifest.get("rejects", []):
    if not _are_names([reject[key] for key in ("id", "reason", "detail")]):
      raise TypeError(f"a reject holds something else than texts: {reject!r}")
  for remark in manifest.get("remarks", []):
    if not _are_names([remark[key] for key in ("id", "remark", "detail")]):
      raise TypeError(f"a remark holds something else than texts: {remark!r}")
  _check_counts(manifest.get("counts", {}))
  groups = manifest.get("groups", {})
  counts = [groups["number"], groups["parted"]] if groups else []
  if groups and not (_is_text(groups["by"]) and all(is_number(count, int) for count in counts)):
    raise TypeError(f"groups holds something else than what they are and how many: {groups!r}")
