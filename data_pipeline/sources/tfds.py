"""Any audio data set of TensorFlow Datasets, by name: written once as audio files with a manifest
beside them.

  python -m data_pipeline.prepare --tfds=crema_d --output=data/crema_d --frontend=atst

From there on it is prepared like any other manifest: rejects, statistics, restarts. Samples are
kept as they are (whole numbers as 16 bits, others as 32-bit floats). The files may be deleted once
the set is prepared. Needs pip install -e .[tfds].
"""

import contextlib
import csv
import json
import os

import numpy as np

from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import Progress

SPLITS = {"validation": "valid"}  # TFDS's name -> ours
MANIFEST_NAME, SOURCE_NAME = "manifest.csv", "source.json"
NO_SEPARATOR = "\x1f"  # of labels: each is one name, whatever it holds
SCALE_CLIPS = 100  # of each split; their peak tells whether integers have 16 or 32 bits


def export(
  name: str, folder: str, *, label: str = "", group: str = "", data_dir: str | None = None
) -> str:
  """Writes every example of a data set as an audio file. Files that are there are kept.

  Args:
    name: of the data set and perhaps its config, for example "nsynth/full".
    folder: where to write; a sub-folder for each split.
    label: feature of the class, "/" between the levels ("instrument/family"); by default "label",
      or none.
    group: feature whose values divisions keep together ("speaker_id"); none by default.
    data_dir: of TFDS, if not its own.

  Returns:
    The path of the manifest.

  Raises:
    UserError: TFDS does not know the name, cannot get the data, or the features do not fit.
  """
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UserError(f"--tfds={name}: {error}; pip install -e .[tfds]") from error

  try:
    builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare()
  except Exception as error:  # TFDS has an exception of its own for every mishap
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    raise UserError(f"--tfds={name}: {reason}") from error
  features = builder.info.features
  audio = _audio_feature(name, features)
  label = label or ("label" if "label" in features else "")
  names = _names(name, features, label, "--tfds_label")
  group_names = _names(name, features, group, "--tfds_group")
  rate = features[audio].sample_rate
  if not rate:
    raise UserError(
      f"--tfds={name}: its feature {audio!r} does not state a sample rate; export it to files and "
      "prepare those"
    )
  path = os.path.join(folder, MANIFEST_NAME)
  source = {"tfds": builder.info.full_name, "label": label}
  _claim(folder, source | ({"group": group} if group else {}))
  wide = _is_wide(builder, audio)
  rows = []
  for split, info in builder.info.splits.items():
    ours = SPLITS.get(split, split)
    storage.make_folder(os.path.join(folder, ours))
    read = tfds.ReadConfig(interleave_cycle_length=1)  # in the order of the shards
    examples = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False, read_config=read))
    with contextlib.closing(Progress(info.num_examples)) as progress:
      for number, example in enumerate(examples):
        relative = f"{ours}/{number:07d}.wav"
        _write(os.path.join(folder, relative), example[audio], rate, wide)
        row = [relative, _label(example, label, names), ours, f"{split}/{number:07d}"]
        rows.append([*row, _label(example, group, group_names)] if group else row)
        progress.update(number + 1, number + 1)
  with storage.writing(path, "w", encoding="utf-8", newline="") as file:
    header = ["path", "label", "split", "id", *(["group"] if group else [])]
    csv.writer(file).writerows([header, *rows])
  return path


def _audio_feature(name: str, features) -> str:
  import tensorflow_datasets as tfds

  found = [key for key, feature in features.items() if isinstance(feature, tfds.features.Audio)]
  if len(found) != 1:
    raise UserError(
      f"--tfds={name}: has {len(found)} audio features among {', '.join(features)}; exactly one is "
      "needed"
    )
  return found[0]


def _is_wide(builder, audio: str) -> bool:
  """Whether integers have 32 bits, by the peak of some clips."""
  import tensorflow_datasets as tfds

  if not np.issubdtype(builder.info.features[audio].np_dtype, np.integer):
    return False
  heads = (
    tfds.as_numpy(builder.as_dataset(split=split).take(SCALE_CLIPS))
    for split in builder.info.splits
  )
  return any(np.abs(example[audio]).max(initial=0) > 2**15 for head in heads for example in head)


def _feature(features, key: str):
  for part in key.split("/"):
    features = features[part]
  return features


def _names(name: str, features, label: str, flag: str) -> list[str] | None:
  """Names of the classes; None where labels are texts. `flag` names the feature in a message."""
  if not label:
    return None
  try:
    feature = _feature(features, label)
  except (KeyError, TypeError) as error:
    raise UserError(f"{flag}={label}: {name} has the features {', '.join(features)}") from error
  if hasattr(feature, "feature"):
    raise UserError(
      f"{flag}={label}: each example of {name} has a list of them; export the set's files and a "
      "table with them, and prepare that"
    )
  return getattr(feature, "names", None)


def _label(example, label: str, names: list[str] | None) -> str:
  if not label:
    return ""
  value = _feature(example, label)
  if names is not None:
    return names[int(value)] if value >= 0 else ""  # TFDS's mark of no label is -1
  return value.decode() if isinstance(value, bytes) else str(value)


def _claim(folder: str, source: dict) -> None:
  """Writes down which data set a folder's files are of. Raises UserError if they are of another."""
  path = os.path.join(folder, SOURCE_NAME)
  try:
    found = json.loads(storage.read_text(path))
  except FileNotFoundError:
    found = None
    if storage.names(folder):
      found = "something else"
  if found not in (None, source):
    raise UserError(f"{folder} holds the files of {found}, not of {source}; delete that folder")
  storage.make_folder(folder)
  storage.write_text(path, json.dumps(source))


def _write(path: str, samples: np.ndarray, rate: int, wide: bool) -> None:
  """`wide`: integers have 32 bits, not 16, in the whole set."""
  import soundfile

  if storage.is_file(path):
    return
  samples = np.asarray(samples)
  if np.issubdtype(samples.dtype, np.integer) and wide:
    samples = samples / 2.0**31
  if np.issubdtype(samples.dtype, np.integer):
    samples, subtype = np.minimum(samples, 2**15 - 1).astype(np.int16), "PCM_16"
  else:
    samples, subtype = samples.astype(np.float32), "FLOAT"
  with storage.writing(path, "w+b") as file:
    soundfile.write(file, samples, int(rate), subtype=subtype, format="WAV")
