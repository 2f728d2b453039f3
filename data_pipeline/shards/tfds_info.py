"""The two JSON files that let `tfds.builder_from_directory(folder)` open a prepared dataset.

They are written by hand, so that preparing needs neither TFDS nor TensorFlow. TFDS parses the
shards as they are: `mel` as a (None, F) float16 tensor stored as bytes. A feature that some clips
lack (labels, folds) is left out of the list.
"""

import os
import re

from atst_jax.data.dataset import write_json
from atst_jax.util import storage

PACKAGE = "tensorflow_datasets.core.features"


def _scalar() -> dict:
  return {
    "pythonClassName": f"{PACKAGE}.scalar.Scalar",
    "tensor": {"dtype": "int64", "encoding": "none", "shape": {}},
  }


def _label(names: list[str]) -> dict:
  return {
    "pythonClassName": f"{PACKAGE}.class_label_feature.ClassLabel",
    "classLabel": {"numClasses": str(len(names))},
  }


def features(
  *, n_mels: int, label_names: list[str], multi_label: bool, labelled: bool, folded: bool
) -> dict:
  """The content of `features.json`."""
  text = {"pythonClassName": f"{PACKAGE}.text_feature.Text", "text": {}}
  content = {
    "mel": {
      "pythonClassName": f"{PACKAGE}.tensor_feature.Tensor",
      "tensor": {
        "dtype": "float16",
        "encoding": "bytes",
        "shape": {"dimensions": ["-1", str(n_mels)]},
      },
    },
    "num_frames": _scalar(),
    "id": text,
    "split": text,
  }
  if folded:
    content["fold"] = _scalar()
  label = _label(label_names) if storable(label_names) else _scalar()
  if multi_label:
    content["labels"] = {
      "pythonClassName": f"{PACKAGE}.sequence_feature.Sequence",
      "sequence": {"feature": label, "length": "-1"},
    }
  elif labelled:
    content["label"] = label
  return {
    "pythonClassName": f"{PACKAGE}.features_dict.FeaturesDict",
    "featuresDict": {"features": content},
  }


def storable(label_names: list[str]) -> bool:
  """Whether TFDS can keep these names, one per line of a text file."""
  return (
    bool(label_names)
    and all(name and name.split() and name == name.strip() for name in label_names)
    and not any(len(name.splitlines()) > 1 for name in label_names)
  )


def write_tfds_info(output: str, manifest: dict, *, labelled: bool, folded: bool) -> None:
  """Writes `features.json`, `dataset_info.json` and the label names beside `dataset.json`.

  Args:
    labelled: whether every clip has a label.
    folded: whether every clip has a fold.
  """
  names, multi_label = manifest["label_names"], manifest["multi_label"]
  splits = [
    {
      "name": split,
      "filepathTemplate": "{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}",
      "shardLengths": [str(shard["num_clips"]) for shard in content["shards"]],
      "numBytes": str(sum(shard["num_bytes"] for shard in content["shards"])),
    }
    for split, content in manifest["splits"].items()
  ]
  name = re.sub(r"[^a-z0-9_]+", "_", manifest["name"].lower())
  info = {
    "name": name if name[:1].isalpha() else f"audio_{name}",
    "version": "1.0.0",
    "description": f"Log-mel spectrograms (dB), front-end {manifest['frontend']['name']}.",
    "fileFormat": "tfrecord",
    "splits": splits,
  }
  n_mels = manifest["frontend"]["n_mels"]
  content = features(
    n_mels=n_mels, label_names=names, multi_label=multi_label, labelled=labelled, folded=folded
  )
  write_json(os.path.join(output, "dataset_info.json"), info)
  write_json(os.path.join(output, "features.json"), content)
  if storable(names) and (multi_label or labelled):
    path = os.path.join(output, "labels.labels.txt" if multi_label else "label.labels.txt")
    storage.write_text(path, "\n".join(names) + "\n")
