"""The benchmark data sets as their owners ship them: which files, labels, folds and splits.

Each function takes the folder that holds a data set and returns its listing. Files that the owner's
lists name are listed whether they are there or not, so that what is missing is counted;
data_pipeline/README.md says what is expected.
"""

import contextlib
import json
import os
from collections.abc import Callable

from atst_jax.util import storage
from atst_jax.util.errors import UserError

from .audioset import audioset
from .files import Source, audio_files, printable
from .listing import Listing, find, lines_of, parsed_files, rows_of, source, split_of


def esc50(root: str, *, only_esc10: bool = False) -> Listing:
  """ESC-50 (Piczak, 2015): audio/ and meta/esc50.csv, five folds."""
  table = find(root, "esc50", "meta/esc50.csv")
  audio = os.path.join(os.path.dirname(os.path.dirname(table)), "audio")
  rows = rows_of(table, "esc50", "filename", "fold", "category", "esc10")
  sources = [
    source(root, os.path.join(audio, row["filename"]), row["category"], fold=int(row["fold"]))
    for row in rows
    if not only_esc10 or row["esc10"].lower() == "true"
  ]
  return Listing(sources, "esc10" if only_esc10 else "esc50")


def esc10(root: str) -> Listing:
  """ESC-10, five folds: from ESC-50's own folder, or as CLASS/FOLD-FREESOUNDID-TAKE.ogg."""
  with contextlib.suppress(UserError):
    find(root, "esc10", "meta/esc50.csv")
    return esc50(root, only_esc10=True)
  pattern = r"(?P<label>[^/]+)/(?P<fold>\d+)-\d+-[A-Z]+\.\w+"
  files = parsed_files(root, "esc10", pattern, "CLASS/FOLD-ID-TAKE.ogg")
  return Listing(
    [Source(file, id, (printable(m["label"]),), fold=int(m["fold"])) for file, id, m in files],
    "esc10",
  )


def fsdd(root: str) -> Listing:
  """Free Spoken Digit Dataset as DIGIT_SPEAKER_INDEX.flac. Fold i is the i-th speaker: folds leave
  one speaker out."""
  pattern = r"(.*/)?(?P<digit>\d)_(?P<speaker>[^_/]+)_\d+\.\w+"
  files = list(parsed_files(root, "fsdd", pattern, "DIGIT_SPEAKER_INDEX.flac"))
  speakers = sorted({match["speaker"] for _, _, match in files})
  sources = [
    Source(
      file, id, (m["digit"],), fold=speakers.index(m["speaker"]), group=printable(m["speaker"])
    )
    for file, id, m in files
  ]
  return Listing(sources, "fsdd", [printable(speaker) for speaker in speakers])


def urbansound8k(root: str) -> Listing:
  """UrbanSound8K (Salamon et al., 2014): audio/fold1..10/ and metadata/UrbanSound8K.csv, ten
  folds."""
  table = find(root, "urbansound8k", "metadata/UrbanSound8K.csv")
  audio = os.path.join(os.path.dirname(os.path.dirname(table)), "audio")
  rows = rows_of(table, "urbansound8k", "slice_file_name", "fold", "class")
  return Listing(
    [
      source(
        root,
        os.path.join(audio, f"fold{row['fold']}", row["slice_file_name"]),
        row["class"],
        fold=int(row["fold"]),
      )
      for row in rows
    ],
    "urbansound8k",
  )


def speech_commands(root: str) -> Listing:
  """Speech Commands v2 (Warden, 2018): WORD/*.wav and the official lists; background noise is left
  out."""
  lists = {
    split: find(root, "speech_commands", f"{name}_list.txt")
    for split, name in (("valid", "validation"), ("test", "testing"))
  }
  folder = os.path.dirname(lists["valid"])
  splits = {name: split for split, path in lists.items() for name in lines_of(path)}
  sources = [
    source(root, file, relative.split("/")[0], split=splits.pop(relative, "train"))
    for file, relative in sorted(audio_files(folder), key=lambda pair: pair[1])
    if "/" in relative and not relative.startswith("_background_noise_")
  ]
  sources += [
    source(root, os.path.join(folder, name), name.split("/")[0], split=s)
    for name, s in splits.items()
  ]
  return Listing(sources, "speech_commands")


def voxceleb1(root: str) -> Listing:
  """VoxCeleb1 (Nagrani et al., 2017): wav/SPEAKER/VIDEO/*.wav and the identification split
  iden_split.txt."""
  lines = lines_of(find(root, "voxceleb1", "iden_split.txt"))
  audio = find(root, "voxceleb1", "wav")
  names = {"1": "train", "2": "valid", "3": "test"}
  sources = []
  for number, line in enumerate(lines, 1):
    split, _, name = line.partition(" ")
    if split not in names or not name:
      raise UserError(
        f"iden_split.txt line {number}: {line!r} is not '1|2|3 SPEAKER/VIDEO/FILE.wav'"
      )
    sources.append(
      source(
        root, os.path.join(audio, name.strip()), name.split("/")[0].strip(), split=names[split]
      )
    )
  return Listing(sources, "voxceleb1")


def nsynth(root: str) -> Listing:
  """NSynth (Engel et al., 2017): nsynth-{train,valid,test}/ with audio/ and examples.json; 11
  instrument families."""
  sources = []
  for split in ("train", "valid", "test"):
    path = find(root, "nsynth", f"nsynth-{split}/examples.json")
    examples = json.loads(storage.read_text(path))
    audio = os.path.join(os.path.dirname(path), "audio")
    sources += [
      source(
        root, os.path.join(audio, f"{name}.wav"), example["instrument_family_str"], split=split
      )
      for name, example in examples.items()
    ]
  return Listing(sources, "nsynth")


def gtzan(root: str) -> Listing:
  """GTZAN (Tzanetakis and Cook, 2002): GENRE/*.wav and the fault-filtered lists of Kereliuk et al.
  (2015)."""
  sources = []
  audio = find(root, "gtzan", "genres_original", "genres", "blues")
  audio = os.path.dirname(audio) if os.path.basename(audio) == "blues" else audio
  for split in ("train", "valid", "test"):
    for name in lines_of(find(root, "gtzan", f"{split}_filtered.txt")):
      sources.append(source(root, os.path.join(audio, name), name.split("/")[0], split=split))
  return Listing(sources, "gtzan")


def crema_d(root: str) -> Listing:
  """CREMA-D (Cao et al., 2014): AudioWAV/ACTOR_SENTENCE_EMOTION_LEVEL.wav. Its owners give no
  split: actors are drawn into train, valid and test (70, 10 and 20 %) by a hash of their number."""
  audio = find(root, "crema_d", "AudioWAV")
  pattern = r"(?P<actor>\d+)_[A-Z]+_(?P<emotion>[A-Z]+)_[A-Z]+\.\w+"
  files = parsed_files(audio, "crema_d", pattern, "ACTOR_SENTENCE_EMOTION_LEVEL.wav")
  shares = {"train": 0.7, "valid": 0.1, "test": 0.2}
  return Listing(
    [
      source(
        root, file, m["emotion"], split=split_of(f"crema_d {m['actor']}", shares), group=m["actor"]
      )
      for file, _, m in files
    ],
    "crema_d",
  )


def voxforge(root: str) -> Listing:
  """VoxForge: LANGUAGE/USER-DATE-CODE/wav/*.wav. Users (sessions, where anonymous) are drawn into
  train, valid and test (70, 15 and 15 %) by hash."""
  pattern = r"(?P<language>[^/]+)/(.*/)?(?P<session>[^/]+)/(wav|flac)/[^/]+"
  files = parsed_files(root, "voxforge", pattern, "LANGUAGE/SESSION/wav/FILE.wav")
  shares = {"train": 0.7, "valid": 0.15, "test": 0.15}
  user = lambda session: (
    session if session.lower().startswith("anonymous") else session.split("-")[0]
  )
  return Listing(
    [
      source(
        root,
        file,
        m["language"],
        split=split_of(f"voxforge {m['language']}/{user(m['session'])}", shares),
        group=printable(f"{m['language']}/{user(m['session'])}"),
      )
      for file, _, m in files
    ],
    "voxforge",
  )


def surge(root: str) -> Listing:
  """The Surge synthesiser's pitch data set (Turian et al., 2021): TONE/NOTE.ogg, 88 notes. Tones
  are drawn into train, valid and test (81, 9.5 and 9.5 %) by hash."""
  files = parsed_files(root, "surge", r"(?P<tone>.+)/(?P<note>[^/]+)\.\w+", "TONE/NOTE.ogg")
  shares = {"train": 0.81, "valid": 0.095, "test": 0.095}
  return Listing(
    [
      source(
        root,
        file,
        m["note"],
        split=split_of(f"surge {m['tone']}", shares),
        group=printable(m["tone"]),
      )
      for file, _, m in files
    ],
    "surge",
  )


def fsd50k(root: str) -> Listing:
  """FSD50K (Fonseca et al., 2022): FSD50K.{dev,eval}_audio/ and FSD50K.ground_truth/{dev,eval}.csv;
  multi-label."""
  sources = []
  for part in ("dev", "eval"):
    table = find(root, "fsd50k", f"FSD50K.ground_truth/{part}.csv")
    audio = os.path.join(os.path.dirname(os.path.dirname(table)), f"FSD50K.{part}_audio")
    for row in rows_of(table, "fsd50k", "fname", "labels", *(("split",) if part == "dev" else ())):
      split = {"train": "train", "val": "valid"}[row["split"]] if part == "dev" else "test"
      sources.append(
        source(
          root,
          os.path.join(audio, f"{row['fname']}.wav"),
          *row["labels"].split(","),
          multi_label=True,
          split=split,
        )
      )
  return Listing(sources, "fsd50k")


LAYOUTS: dict[str, Callable[[str], Listing]] = {
  function.__name__: function
  for function in (
    audioset,
    crema_d,
    esc10,
    esc50,
    fsd50k,
    fsdd,
    gtzan,
    nsynth,
    speech_commands,
    surge,
    urbansound8k,
    voxceleb1,
    voxforge,
  )
}
