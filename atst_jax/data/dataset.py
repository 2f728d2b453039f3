"""Prepared datasets on disk: shards of log-mel clips and the `dataset.json` that describes them.

A shard is an uncompressed TFRecord file of `tf.train.Example` with the features `mel` (bytes,
float16 dB, (T, F) row-major), `num_frames`, `id` and, where known, `label` or `labels` (ints),
`fold`, `split`, `group`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from atst_jax.audio.frontend import FRONTENDS, FrontEnd
from atst_jax.data.schema import SCHEMA_VERSION, STATISTICS, check_manifest
from atst_jax.data.tfrecord import (
  RecordError,
  decode_example,
  encode_example,
  frame_record,
  read_records,
)
from atst_jax.util import storage
from atst_jax.util.errors import UserError

MANIFEST = "dataset.json"
FEATURES = {
  "mel": bytes,
  "num_frames": list,
  "id": bytes,
  "label": list,
  "labels": list,
  "fold": list,
  "split": bytes,
  "group": bytes,
}


@dataclasses.dataclass(frozen=True)
class Clip:
  """One prepared clip. `labels` are indices into the dataset's label names; `fold` is -1 where
  there is none."""

  id: str
  mel: np.ndarray  # (T, F) float16 dB
  labels: tuple[int, ...] = ()
  multi_label: bool = False
  fold: int = -1
  split: str = "train"
  group: str = ""  # a speaker, a session: what must not stand in two parts of a division

  def encode(self) -> bytes:
    """A serialised tf.train.Example, mel as little-endian float16; `decode` reads it."""
    features: dict[str, bytes | str | int | list[int]] = {
      "mel": np.ascontiguousarray(self.mel, "<f2").tobytes(),
      "num_frames": self.mel.shape[0],
      "id": self.id,
      "split": self.split,
    }
    if self.multi_label:
      features["labels"] = list(self.labels)
    elif self.labels:
      features["label"] = self.labels[0]
    if self.fold >= 0:
      features["fold"] = self.fold
    if self.group:
      features["group"] = self.group
    return encode_example(features)

  @classmethod
  def decode(cls, data: bytes, n_mels: int, where: str) -> "Clip":
    """Raises RecordError naming `where` and the missing or malformed feature."""
    try:
      features: dict[str, Any] = decode_example(data)
      for key in ("mel", "num_frames", "id"):
        if key not in features:
          raise ValueError(f"feature {key!r} is missing; found {sorted(features)}")
      for key, kind in FEATURES.items():
        if key in features and not isinstance(features[key], kind):
          raise TypeError(
            f"feature {key!r} holds {type(features[key]).__name__}, expected {kind.__name__}"
          )
      (frames,) = features["num_frames"]
      if not frames or len(features["mel"]) != 2 * frames * n_mels:
        raise ValueError(
          f"mel of {len(features['mel'])} bytes is not {frames} frames of {n_mels} float16"
        )
      (fold,) = features.get("fold", [-1])
      return cls(
        id=features["id"].decode(),
        mel=np.frombuffer(features["mel"], "<f2").reshape(frames, n_mels),
        labels=tuple(features.get("labels", features.get("label", ()))),
        multi_label="labels" in features,
        fold=fold,
        split=features.get("split", b"train").decode(),
        group=features.get("group", b"").decode(),
      )
    except (ValueError, IndexError, KeyError, TypeError) as error:
      raise RecordError(f"{where}: not a clip of this schema: {error}") from error


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file of a split, as `dataset.json` lists it."""

  path: str
  num_clips: int
  num_bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared dataset: the parsed `dataset.json` of a folder."""

  root: str
  manifest: dict
  frontend: FrontEnd

  @classmethod
  def described(cls, root: str) -> "Dataset":
    """Reads `root/dataset.json`, whose shards may be damaged or missing. Raises UserError, as
    `load`.

    What it says may come from anywhere: names stay in the folder, and no number asks for memory
    that no file backs.
    """
    path = os.path.join(root, MANIFEST)
    if not storage.is_file(path):
      raise UserError(
        f"{path} does not exist: {root!r} is not a prepared dataset, or its preparation has not "
        f"ended; `python -m data_pipeline.prepare --input=DIR --output={root} --frontend=atst` "
        "makes one, and `python -m data_pipeline.synth --output=sounds` makes sounds to try it with"
      )
    try:
      manifest = storage.read_json(path)
      version = manifest["schema"]
      if version != SCHEMA_VERSION:
        raise UserError(
          f"{path}: schema version {version}, this code reads {SCHEMA_VERSION}; prepare the "
          "dataset again"
        )
      try:
        frontend = FrontEnd.from_json(manifest["frontend"])
      except UserError as error:
        raise UserError(f"{path}: {error}; prepare the dataset again") from error
      check_manifest(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      if isinstance(error, UserError):
        raise
      raise UserError(
        f"{path}: not a dataset.json of this schema ({type(error).__name__}: {error})"
      ) from error
    return cls(root, manifest, frontend)

  @classmethod
  def load(cls, root: str) -> "Dataset":
    """Reads `root/dataset.json` and checks that every shard is there with its size.

    Raises UserError naming the file, the key or version, and the remedy.
    """
    dataset = cls.described(root)
    shards = [shard for split in dataset.splits for shard in dataset.shards(split)]
    sizes = storage.sizes([shard.path for shard in shards], root)
    missing = [shard.path for shard, size in zip(shards, sizes, strict=True) if size < 0]
    if missing:
      raise UserError(
        f"{root}: {len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}; "
        "run the same `prepare` command again to rebuild them"
      )
    for shard, size in zip(shards, sizes, strict=True):
      if size != shard.num_bytes:
        raise UserError(
          f"{shard.path}: {size} bytes, {shard.num_bytes} expected for its "
          f"{shard.num_clips} clips; delete it and run the same `prepare` command again"
        )
    return dataset

  def shards(self, split: str) -> list[Shard]:
    """The shards of a split in their order. Raises UserError for an unknown split, listing those
    there are."""
    splits = self.manifest["splits"]
    if split not in splits:
      raise UserError(f"{self.root}: no split {split!r}; there are {', '.join(sorted(splits))}")
    return [
      Shard(os.path.join(self.root, s["file"]), s["num_clips"], s["num_bytes"], s["sha256"])
      for s in splits[split]["shards"]
    ]

  def num_clips(self, split: str) -> int:
    """Over all shards of the split, as dataset.json says."""
    return sum(shard.num_clips for shard in self.shards(split))

  def check_frontend(self, frontend: FrontEnd, encoder: str) -> None:
    """Raises UserError if the shards hold another spectrogram than an encoder expects, which
    `encoder` names."""
    remedy = f"prepare the data with --frontend={frontend.name}"
    known = FRONTENDS.get(frontend.name)
    if known is not None and known.hash != frontend.hash:
      remedy = f"its {frontend.name!r} is another version's: train it anew, or take data of then"
    self.refuse_other(frontend, f"the encoder {encoder} expects", remedy)

  def refuse_other(self, frontend: FrontEnd, wanted: str, remedy: str) -> None:
    """Raises UserError if the shards hold another spectrogram than that of a front-end, and says
    what wants it and what to do."""
    if self.frontend.hash != frontend.hash:
      raise UserError(
        f"{self.root} was prepared with the front-end {self.frontend.name!r} "
        f"({self.frontend.hash}), {wanted} {frontend.name!r} ({frontend.hash}); {remedy}"
      )

  def min_frames(self, split: str) -> int:
    """Frames of the shortest clip of a split."""
    return self.manifest["splits"][split]["min_frames"]

  def max_frames(self, split: str) -> int:
    """Frames of the longest clip of a split."""
    return self.manifest["splits"][split]["max_frames"]

  def fingerprint(self, split: str) -> str:
    """16 hexadecimal digits over the contents of a split's shards."""
    return hashlib.sha256(
      "".join(shard.sha256 for shard in self.shards(split)).encode()
    ).hexdigest()[:16]

  @property
  def splits(self) -> list[str]:
    """Names, sorted."""
    return sorted(self.manifest["splits"])

  @property
  def label_names(self) -> list[str]:
    """Name of each class; a clip's labels are positions in it."""
    return self.manifest["label_names"]

  @property
  def statistics(self) -> dict:
    """Over the training split: `min`, `max`, `mean`, `std` in dB, `log_mean`, `log_std` of ln(power
    + 2^-23) in nepers.

    Raises UserError where they are missing.
    """
    statistics = self.manifest.get("statistics")
    if not statistics:
      raise UserError(
        f"{self.root}: {MANIFEST} holds no statistics; run `python -m data_pipeline.prepare stats "
        f"{self.root}`"
      )
    if missing := set(STATISTICS) - set(statistics):
      raise UserError(
        f"{self.root}: {MANIFEST} lacks the statistics {', '.join(sorted(missing))} (an older "
        f"version wrote it); run `python -m data_pipeline.prepare stats {self.root}`"
      )
    return statistics

  def clips(self, split: str) -> Iterator[Clip]:
    """All clips of a split in shard order. Raises RecordError on damage or when a shard holds
    another count."""
    for shard in self.shards(split):
      yield from self.shard_clips(shard)

  def shard_clips(self, shard: Shard) -> Iterator[Clip]:
    """All clips of one shard; raises as `clips`."""
    number = -1
    for number, data in enumerate(read_records(shard.path)):
      clip = Clip.decode(data, self.frontend.n_mels, f"{shard.path}: record {number}")
      if not all(0 <= label < len(self.label_names) for label in clip.labels):
        raise RecordError(
          f"{shard.path}: record {number}: labels {clip.labels} of {len(self.label_names)} classes"
        )
      yield clip
    if number + 1 != shard.num_clips:
      raise RecordError(
        f"{shard.path}: {number + 1} clips, {shard.num_clips} expected; cut on a record boundary?"
      )


def write_shard(path: str, payloads: Iterable[bytes]) -> Shard:
  """Writes a TFRecord file; a final name is always a whole file."""
  count, size, digest = 0, 0, hashlib.sha256()
  with storage.writing(path) as file:
    for payload in payloads:
      framed = frame_record(payload)
      file.write(framed)
      digest.update(framed)
      count, size = count + 1, size + len(framed)
  return Shard(path, count, size, digest.hexdigest())


def write_json(path: str, value: dict | list) -> None:
  """Writes JSON with sorted keys, whole or not at all. Raises OSError."""
  storage.write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
