"""The benchmark data sets as their owners ship them: which files, labels, folds and splits.

Each function takes the folder of a data set and returns its listing. All files of the owner's lists
are listed, also those that are missing, which are counted. data_pipeline/README.md says what is
expected. Clips of one recording, speaker, video or instrument are a group, which no drawn division
parts. In AudioSet and FSD50K every clip is a recording of its own, and GTZAN's owners name no
artists: these have no groups.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable

from atst_jax.util import storage
from atst_jax.util.errors import UserError, printable

from .audioset import audioset
from .files import Listing, Source
from .owner_lists import OwnerFolder, lines_of, split_of

RECORDING = "original recording"


def esc50(folder: OwnerFolder) -> Listing:
  """ESC-50 (Piczak, 2015): audio/ and meta/esc50.csv, five folds. Files are named
  FOLD-FREESOUNDID-TAKE-TARGET.wav: the takes of a recording are a group."""
  table = folder.find("meta/esc50.csv")
  audio = os.path.join(os.path.dirname(os.path.dirname(table)), "audio")
  sources = []
  for row in folder.rows(table, "filename", "fold", "category", "esc10"):
    if folder.layout == "esc50" or row["esc10"].lower() == "true":
      name, fold = row["filename"], int(row["fold"])
      group = name.partition("-")[2].partition("-")[0]
      path = os.path.join(audio, name)
      sources.append(folder.source(path, row["category"], fold=fold, group=group))
  return Listing(sources, folder.layout, grouped_by=RECORDING)


def esc10(folder: OwnerFolder) -> Listing:
  """ESC-10, five folds: from ESC-50's own folder, or as CLASS/FOLD-FREESOUNDID-TAKE.ogg."""
  table = ""
  with contextlib.suppress(UserError):
    table = folder.find("meta/esc50.csv")
  if table:
    return esc50(folder)
  pattern = r"(?P<label>[^/]+)/(?P<fold>\d+)-(?P<recording>\d+)-[A-Z]+\.\w+"
  files = folder.parsed_files(folder.path, pattern, "CLASS/FOLD-ID-TAKE.ogg")
  sources = [
    Source(file, id, (printable(m["label"]),), fold=int(m["fold"]), group=m["recording"])
    for file, id, m in files
  ]
  return Listing(sources, "esc10", grouped_by=RECORDING)


def fsdd(folder: OwnerFolder) -> Listing:
  """Free Spoken Digit Dataset as DIGIT_SPEAKER_INDEX.flac. Fold i is the i-th speaker: folds leave
  one speaker out."""
  pattern = r"(.*/)?(?P<digit>\d)_(?P<speaker>[^_/]+)_\d+\.\w+"
  files = list(folder.parsed_files(folder.path, pattern, "DIGIT_SPEAKER_INDEX.flac"))
  speakers = sorted({match["speaker"] for _, _, match in files})
  sources = []
  for file, id, m in files:
    fold, group = speakers.index(m["speaker"]), printable(m["speaker"])
    sources.append(Source(file, id, (m["digit"],), fold=fold, group=group))
  names = [printable(speaker) for speaker in speakers]
  return Listing(sources, "fsdd", names, grouped_by="speaker")


def urbansound8k(folder: OwnerFolder) -> Listing:
  """UrbanSound8K (Salamon et al., 2014): audio/fold1..10/ and metadata/UrbanSound8K.csv, ten folds.
  Files are named FSID-CLASS-OCCURRENCE-SLICE.wav: the slices of a recording are a group."""
  table = folder.find("metadata/UrbanSound8K.csv")
  audio = os.path.join(os.path.dirname(os.path.dirname(table)), "audio")
  sources = []
  for row in folder.rows(table, "slice_file_name", "fold", "class"):
    name, fold = row["slice_file_name"], int(row["fold"])
    path = os.path.join(audio, f"fold{row['fold']}", name)
    sources.append(folder.source(path, row["class"], fold=fold, group=name.split("-")[0]))
  return Listing(sources, "urbansound8k", grouped_by=RECORDING)


def speech_commands(folder: OwnerFolder) -> Listing:
  """Speech Commands v2 (Warden, 2018): WORD/SPEAKER_nohash_N.wav and the official lists; background
  noise is left out. A speaker is a group."""
  lists = {
    split: folder.find(f"{name}_list.txt")
    for split, name in (("valid", "validation"), ("test", "testing"))
  }
  root = os.path.dirname(lists["valid"])
  splits = {name: split for split, path in lists.items() for name in lines_of(path)}
  there = sorted(relative for _, relative in folder.files(root))
  names = {
    name: splits.get(name, "train")
    for name in there
    if "/" in name and not name.startswith("_background_noise_")
  }
  sources = []
  for name, split in (names | splits).items():
    word, _, file = name.partition("/")
    speaker = printable(re.sub(r"(_nohash_\d+)?\.\w+$", "", file))
    sources.append(folder.source(os.path.join(root, name), word, split=split, group=speaker))
  return Listing(sources, "speech_commands", grouped_by="speaker")


def voxceleb1(folder: OwnerFolder) -> Listing:
  """VoxCeleb1 (Nagrani et al., 2017): wav/SPEAKER/VIDEO/*.wav and the identification split
  iden_split.txt. A video is a group."""
  lines = lines_of(folder.find("iden_split.txt"))
  audio = folder.find("wav")
  splits = {"1": "train", "2": "valid", "3": "test"}
  sources = []
  for number, line in enumerate(lines, 1):
    split, _, name = map(str.strip, line.partition(" "))
    parts = [part.strip() for part in name.split("/")]
    if split not in splits or len(parts) != 3:
      raise UserError(
        f"iden_split.txt line {number}: {line!r} is not '1|2|3 SPEAKER/VIDEO/FILE.wav'"
      )
    path, group = os.path.join(audio, name), printable(parts[1])
    sources.append(folder.source(path, parts[0], split=splits[split], group=group))
  return Listing(sources, "voxceleb1", grouped_by="video")


def nsynth(folder: OwnerFolder) -> Listing:
  """NSynth (Engel et al., 2017): nsynth-{train,valid,test}/ with audio/ and examples.json; 11
  instrument families. Notes are named INSTRUMENT-PITCH-VELOCITY: an instrument is a group."""
  sources = []
  for split in ("train", "valid", "test"):
    path = folder.find(f"nsynth-{split}/examples.json")
    audio = os.path.join(os.path.dirname(path), "audio")
    for name, example in json.loads(storage.read_text(path)).items():
      path, family = os.path.join(audio, f"{name}.wav"), example["instrument_family_str"]
      group = printable(name.rsplit("-", 2)[0])
      sources.append(folder.source(path, family, split=split, group=group))
  return Listing(sources, "nsynth", grouped_by="instrument")


def gtzan(folder: OwnerFolder) -> Listing:
  """GTZAN (Tzanetakis and Cook, 2002): GENRE/*.wav and the fault-filtered lists of Kereliuk et al.
  (2015)."""
  sources = []
  audio = folder.find("genres_original", "genres", "blues")
  audio = os.path.dirname(audio) if os.path.basename(audio) == "blues" else audio
  for split in ("train", "valid", "test"):
    for name in lines_of(folder.find(f"{split}_filtered.txt")):
      sources.append(folder.source(os.path.join(audio, name), name.split("/")[0], split=split))
  return Listing(sources, "gtzan")


def fsd50k(folder: OwnerFolder) -> Listing:
  """FSD50K (Fonseca et al., 2022): FSD50K.{dev,eval}_audio/ and FSD50K.ground_truth/{dev,eval}.csv;
  multi-label."""
  sources = []
  for part in ("dev", "eval"):
    table = folder.find(f"FSD50K.ground_truth/{part}.csv")
    audio = os.path.join(os.path.dirname(os.path.dirname(table)), f"FSD50K.{part}_audio")
    for row in folder.rows(table, "fname", "labels", *(("split",) if part == "dev" else ())):
      split = {"train": "train", "val": "valid"}[row["split"]] if part == "dev" else "test"
      path, labels = os.path.join(audio, f"{row['fname']}.wav"), row["labels"].split(",")
      sources.append(folder.source(path, *labels, multi_label=True, split=split))
  return Listing(sources, "fsd50k")


def _drawn(
  folder: OwnerFolder,
  pattern: str,
  example: str,
  *,
  grouped_by: str,
  group_of: Callable[[re.Match], str],
  shares: dict[str, float],
  below: str = "",
) -> Listing:
  """A data set whose owners give no division. Names of files say the `label`, and a group (a
  speaker, a tone); whole groups are drawn into the splits by a hash of their names.

  Args:
    pattern, example: what names of files look like.
    grouped_by: what a group is.
    below: the folder of the files; by default the whole.
  """
  sources = []
  audio = folder.find(below) if below else folder.path
  for file, _, match in folder.parsed_files(audio, pattern, example):
    group = group_of(match)
    split = split_of(f"{folder.layout} {group}", shares)
    sources.append(folder.source(file, match["label"], split=split, group=printable(group)))
  return Listing(sources, folder.layout, grouped_by=grouped_by)


def crema_d(folder: OwnerFolder) -> Listing:
  """CREMA-D (Cao et al., 2014): AudioWAV/ACTOR_SENTENCE_EMOTION_LEVEL.wav. Actors are drawn into
  train, valid and test (70, 10 and 20 %)."""
  return _drawn(
    folder,
    r"(?P<actor>\d+)_[A-Z]+_(?P<label>[A-Z]+)_[A-Z]+\.\w+",
    "ACTOR_SENTENCE_EMOTION_LEVEL.wav",
    grouped_by="actor",
    group_of=lambda match: match["actor"],
    shares={"train": 0.7, "valid": 0.1, "test": 0.2},
    below="AudioWAV",
  )


def voxforge(folder: OwnerFolder) -> Listing:
  """VoxForge: LANGUAGE/USER-DATE-CODE/wav/*.wav. Users (sessions, where anonymous) are drawn into
  train, valid and test (70, 15 and 15 %)."""

  def user(match: re.Match) -> str:
    session = match["session"]
    name = session if session.lower().startswith("anonymous") else session.split("-")[0]
    return f"{match['label']}/{name}"

  return _drawn(
    folder,
    r"(?P<label>[^/]+)/(.*/)?(?P<session>[^/]+)/(wav|flac)/[^/]+",
    "LANGUAGE/SESSION/wav/FILE.wav",
    grouped_by="user",
    group_of=user,
    shares={"train": 0.7, "valid": 0.15, "test": 0.15},
  )


def surge(folder: OwnerFolder) -> Listing:
  """The Surge synthesiser's pitch data set (Turian et al., 2021): TONE/NOTE.ogg, 88 notes. Tones
  are drawn into train, valid and test (81, 9.5 and 9.5 %)."""
  return _drawn(
    folder,
    r"(?P<tone>.+)/(?P<label>[^/]+)\.\w+",
    "TONE/NOTE.ogg",
    grouped_by="tone",
    group_of=lambda match: match["tone"],
    shares={"train": 0.81, "valid": 0.095, "test": 0.095},
  )


LAYOUTS: dict[str, Callable[[OwnerFolder], Listing]] = {
  "audioset": audioset,
  "crema_d": crema_d,
  "esc10": esc10,
  "esc50": esc50,
  "fsd50k": fsd50k,
  "fsdd": fsdd,
  "gtzan": gtzan,
  "nsynth": nsynth,
  "speech_commands": speech_commands,
  "surge": surge,
  "urbansound8k": urbansound8k,
  "voxceleb1": voxceleb1,
  "voxforge": voxforge,
}
# Their owners publish no division; ours is drawn.
DRAWN = ("crema_d", "surge", "voxforge")
