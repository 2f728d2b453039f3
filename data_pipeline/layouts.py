"""The benchmark data sets as their owners ship them: which files, labels, folds and splits.

Each function takes the folder that holds a data set and returns its listing. Files that the owner's lists name are
listed whether they are there or not, so that what is missing is counted; data_pipeline/README.md says what is expected.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator

from atst_jax.errors import UserError
from data_pipeline.files import Source, audio_files, inside, printable


@dataclasses.dataclass(frozen=True)
class Listing:
  """All files of an input, sorted by id. `fold_names[i]` names fold i, where folds have names."""

  sources: list[Source]
  kind: str
  fold_names: list[str] = dataclasses.field(default_factory=list)

  @property
  def label_names(self) -> list[str]:
    return sorted({label for source in self.sources for label in source.labels})

  @property
  def multi_label(self) -> bool:
    return any(source.multi_label for source in self.sources)


def _find(root: str, layout: str, *names: str) -> str:
  """The first of `names` that exists under `root`, or one folder below it."""
  folders = [root, *sorted(entry.path for entry in os.scandir(root) if entry.is_dir())]
  for folder in folders:
    for name in names:
      if os.path.exists(path := os.path.join(folder, name)):
        return path
  raise UserError(f"{root} holds no {' or '.join(names)}, which --layout={layout} needs; data_pipeline/README.md says "
                  "how the data set is laid out")  # fmt: skip


def _table(path: str, layout: str, *columns: str) -> Iterator[dict[str, str]]:
  """Yields the rows of a CSV file that has these columns."""
  with open(path, encoding="utf-8-sig", newline="") as file:
    reader = csv.DictReader(file)
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
      raise UserError(f"{path}: no column {', '.join(missing)}, which --layout={layout} needs")
    yield from reader


def _lines(path: str) -> list[str]:
  with open(path, encoding="utf-8") as file:
    return [line.strip() for line in file if line.strip()]


@functools.cache
def _folder_inside(folder: str, root: str) -> bool:
  return inside(folder, root)


def _source(root: str, path: str, *labels: str, **fields) -> Source:
  """A file under `root`. Raises UserError if its name or a link leads out of there."""
  outside = ".." in os.path.relpath(path, root).split(os.sep) or not _folder_inside(os.path.dirname(path), root)
  if outside or (os.path.islink(path) and not inside(path, root)):
    raise UserError(f"{path!r} lies outside {root}; mend the list that names it, or copy the file into the folder")
  return Source(path, printable(os.path.relpath(path, root).replace(os.sep, "/")), labels, **fields)


def _parsed_files(path: str, layout: str, pattern: str, example: str) -> Iterator[tuple[str, str, re.Match]]:
  """Yields (path, id, match) of every audio file; raises UserError if one is not named after the pattern."""
  for file, relative in audio_files(path):
    match = re.fullmatch(pattern, relative)
    if match is None:
      raise UserError(f"{file} is not named like {example}, which --layout={layout} expects; use --layout=folder, or a "
                      "manifest with the columns path,label,fold")  # fmt: skip
    yield file, printable(relative), match


def split_of(group: str, shares: dict[str, float]) -> str:
  """A split drawn by a hash of a group's name (a speaker, a session), so that no group is in two of them."""
  place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
  for split, share in shares.items():
    place -= share
    if place < 0:
      return split
  return next(iter(shares))


def esc50(root: str, *, only_esc10: bool = False) -> Listing:
  """ESC-50 (Piczak, 2015): audio/ and meta/esc50.csv, five folds."""
  table = _find(root, "esc50", "meta/esc50.csv")
  audio = os.path.join(os.path.dirname(os.path.dirname(table)), "audio")
  rows = _table(table, "esc50", "filename", "fold", "category", "esc10")
  sources = [_source(root, os.path.join(audio, row["filename"]), row["category"], fold=int(row["fold"]))
             for row in rows if not only_esc10 or row["esc10"].lower() == "true"]  # fmt: skip
  return Listing(sources, "esc10" if only_esc10 else "esc50")


def esc10(root: str) -> Listing:
  """ESC-10, five folds: from ESC-50's own folder, or as CLASS/FOLD-FREESOUNDID-TAKE.ogg."""
  with contextlib.suppress(UserError):
    _find(root, "esc10", "meta/esc50.csv")
    return esc50(root, only_esc10=True)
  pattern = r"(?P<label>[^/]+)/(?P<fold>\d+)-\d+-[A-Z]+\.\w+"
  files = _parsed_files(root, "esc10", pattern, "CLASS/FOLD-ID-TAKE.ogg")
  return Listing([Source(file, id, (m["label"],), fold=int(m["fold"])) for file, id, m in files], "esc10")


def fsdd(root: str) -> Listing:
  """Free Spoken Digit Dataset as DIGIT_SPEAKER_INDEX.flac. Fold i is the i-th speaker: folds leave one speaker out."""
  pattern = r"(.*/)?(?P<digit>\d)_(?P<speaker>[^_/]+)_\d+\.\w+"
  files = list(_parsed_files(root, "fsdd", pattern, "DIGIT_SPEAKER_INDEX.flac"))
  speakers = sorted({match["speaker"] for _, _, match in files})
  sources = [Source(file, id, (m["digit"],), fold=speakers.index(m["speaker"])) for file, id, m in files]
  return Listing(sources, "fsdd", [printable(speaker) for speaker in speakers])


def urbansound8k(root: str) -> Listing:
  """UrbanSound8K (Salamon et al., 2014): audio/fold1..10/ and metadata/UrbanSound8K.csv, ten folds."""
  table = _find(root, "urbansound8k", "metadata/UrbanSound8K.csv")
  audio = os.path.join(os.path.dirname(os.path.dirname(table)), "audio")
  rows = _table(table, "urbansound8k", "slice_file_name", "fold", "class")
  return Listing([_source(root, os.path.join(audio, f"fold{row['fold']}", row["slice_file_name"]), row["class"],
                          fold=int(row["fold"])) for row in rows], "urbansound8k")  # fmt: skip


def speech_commands(root: str) -> Listing:
  """Speech Commands v2 (Warden, 2018): WORD/*.wav and the official lists; background noise is left out."""
  lists = {split: _find(root, "speech_commands", f"{name}_list.txt")
           for split, name in (("valid", "validation"), ("test", "testing"))}  # fmt: skip
  folder = os.path.dirname(lists["valid"])
  splits = {name: split for split, path in lists.items() for name in _lines(path)}
  sources = [
    _source(root, file, relative.split("/")[0], split=splits.pop(relative, "train"))
    for file, relative in sorted(audio_files(folder), key=lambda pair: pair[1])
    if "/" in relative and not relative.startswith("_background_noise_")
  ]
  sources += [_source(root, os.path.join(folder, name), name.split("/")[0], split=s) for name, s in splits.items()]
  return Listing(sources, "speech_commands")


def voxceleb1(root: str) -> Listing:
  """VoxCeleb1 (Nagrani et al., 2017): wav/SPEAKER/VIDEO/*.wav and the identification split iden_split.txt."""
  lines = _lines(_find(root, "voxceleb1", "iden_split.txt"))
  audio = _find(root, "voxceleb1", "wav")
  names = {"1": "train", "2": "valid", "3": "test"}
  sources = []
  for number, line in enumerate(lines, 1):
    split, _, name = line.partition(" ")
    if split not in names or not name:
      raise UserError(f"iden_split.txt line {number}: {line!r} is not '1|2|3 SPEAKER/VIDEO/FILE.wav'")
    sources.append(_source(root, os.path.join(audio, name.strip()), name.split("/")[0].strip(), split=names[split]))
  return Listing(sources, "voxceleb1")


def nsynth(root: str) -> Listing:
  """NSynth (Engel et al., 2017): nsynth-{train,valid,test}/ with audio/ and examples.json; 11 instrument families."""
  sources = []
  for split in ("train", "valid", "test"):
    path = _find(root, "nsynth", f"nsynth-{split}/examples.json")
    with open(path, encoding="utf-8") as file:
      examples = json.load(file)
    audio = os.path.join(os.path.dirname(path), "audio")
    sources += [_source(root, os.path.join(audio, f"{name}.wav"), example["instrument_family_str"], split=split)
                for name, example in examples.items()]  # fmt: skip
  return Listing(sources, "nsynth")


def gtzan(root: str) -> Listing:
  """GTZAN (Tzanetakis and Cook, 2002): GENRE/*.wav and the fault-filtered lists of Kereliuk et al. (2015)."""
  sources = []
  audio = _find(root, "gtzan", "genres_original", "genres", "blues")
  audio = os.path.dirname(audio) if os.path.basename(audio) == "blues" else audio
  for split in ("train", "valid", "test"):
    for name in _lines(_find(root, "gtzan", f"{split}_filtered.txt")):
      sources.append(_source(root, os.path.join(audio, name), name.split("/")[0], split=split))
  return Listing(sources, "gtzan")


def crema_d(root: str) -> Listing:
  """CREMA-D (Cao et al., 2014): AudioWAV/ACTOR_SENTENCE_EMOTION_LEVEL.wav. Its owners give no split: actors are drawn
  into train, valid and test (70, 10 and 20 %) by a hash of their number."""
  audio = _find(root, "crema_d", "AudioWAV")
  pattern = r"(?P<actor>\d+)_[A-Z]+_(?P<emotion>[A-Z]+)_[A-Z]+\.\w+"
  files = _parsed_files(audio, "crema_d", pattern, "ACTOR_SENTENCE_EMOTION_LEVEL.wav")
  shares = {"train": 0.7, "valid": 0.1, "test": 0.2}
  return Listing([_source(root, file, m["emotion"], split=split_of(f"crema_d {m['actor']}", shares))
                  for file, _, m in files], "crema_d")  # fmt: skip


def voxforge(root: str) -> Listing:
  """VoxForge: LANGUAGE/USER-DATE-CODE/wav/*.wav. Users (sessions, where anonymous) are drawn into train, valid and test
  (70, 15 and 15 %) by hash."""
  pattern = r"(?P<language>[^/]+)/(.*/)?(?P<session>[^/]+)/(wav|flac)/[^/]+"
  files = _parsed_files(root, "voxforge", pattern, "LANGUAGE/SESSION/wav/FILE.wav")
  shares = {"train": 0.7, "valid": 0.15, "test": 0.15}
  user = lambda session: session if session.lower().startswith("anonymous") else session.split("-")[0]
  return Listing([_source(root, file, m["language"],
                          split=split_of(f"voxforge {m['language']}/{user(m['session'])}", shares))
                  for file, _, m in files], "voxforge")  # fmt: skip


def surge(root: str) -> Listing:
  """The Surge synthesiser's pitch data set (Turian et al., 2021): TONE/NOTE.ogg, 88 notes. Tones are drawn into train,
  valid and test (81, 9.5 and 9.5 %) by hash."""
  files = _parsed_files(root, "surge", r"(?P<tone>.+)/(?P<note>[^/]+)\.\w+", "TONE/NOTE.ogg")
  shares = {"train": 0.81, "valid": 0.095, "test": 0.095}
  return Listing([_source(root, file, m["note"], split=split_of(f"surge {m['tone']}", shares))
                  for file, _, m in files], "surge")  # fmt: skip


def fsd50k(root: str) -> Listing:
  """FSD50K (Fonseca et al., 2022): FSD50K.{dev,eval}_audio/ and FSD50K.ground_truth/{dev,eval}.csv; multi-label."""
  sources = []
  for part in ("dev", "eval"):
    table = _find(root, "fsd50k", f"FSD50K.ground_truth/{part}.csv")
    audio = os.path.join(os.path.dirname(os.path.dirname(table)), f"FSD50K.{part}_audio")
    for row in _table(table, "fsd50k", "fname", "labels", *(("split",) if part == "dev" else ())):
      split = {"train": "train", "val": "valid"}[row["split"]] if part == "dev" else "test"
      sources.append(_source(root, os.path.join(audio, f"{row['fname']}.wav"), *row["labels"].split(","),
                             multi_label=True, split=split))  # fmt: skip
  return Listing(sources, "fsd50k")


AUDIOSET_LISTS = {"balanced_train_segments.csv": "train", "unbalanced_train_segments.csv": "train",
                  "eval_segments.csv": "test"}  # fmt: skip


def audioset(root: str) -> Listing:
  """AudioSet (Gemmeke et al., 2017): any of the three segment lists, class_labels_indices.csv (or ontology.json), and
  clips anywhere below named by YouTube id and, if at all, the start in seconds or milliseconds."""
  names = _audioset_classes(root)
  lists = [name for name in AUDIOSET_LISTS if os.path.exists(os.path.join(root, name))]
  if not lists:
    raise UserError(f"{root} holds none of {', '.join(AUDIOSET_LISTS)}, which --layout=audioset needs")
  files: dict[str, str] = {}  # name without extension -> the first path, in the order of names
  for file, relative in audio_files(root):
    stem = os.path.splitext(os.path.basename(relative))[0]
    files[stem] = min(files.get(stem, file), file)
  sources = {}
  for name in lists:
    for number, (video, start, end, labels) in enumerate(_audioset_segments(os.path.join(root, name)), 1):
      unknown = [mid for mid in labels if mid not in names]
      if unknown or not re.fullmatch(r"[A-Za-z0-9_-]{11}", video):
        what = f"class {unknown[0]!r}" if unknown else f"video {video!r}"
        raise UserError(f"{os.path.join(root, name)} segment {number}: unknown {what}")
      id = f"{video}_{start:.3f}"
      path = next((files[stem] for stem in _audioset_stems(video, start, end) if stem in files), None)
      sources[id] = Source(path or os.path.join(root, f"{id}.wav"), id, tuple(names[mid] for mid in labels), True,
                           split=AUDIOSET_LISTS[name])  # fmt: skip
  return Listing(list(sources.values()), "audioset")


def _audioset_stems(video: str, start: float, end: float) -> Iterator[str]:
  """Names that downloaders give a clip: start, or start and end, in seconds or milliseconds, `Y` in front or not."""
  for begin in (video, f"Y{video}"):
    yield begin
    for form in ("{:.3f}", "{:g}", "{:.1f}", "{:.0f}000"):
      yield f"{begin}_{form.format(start)}"
      for join in "_-":
        yield f"{begin}_{form.format(start)}{join}{form.format(end)}"


def _audioset_segments(path: str) -> Iterator[tuple[str, float, float, list[str]]]:
  """Yields (video, start, end in seconds, class ids) of a list, whose first lines are comments."""
  with open(path, encoding="utf-8", newline="") as file:
    lines = (line for line in file if not line.startswith("#"))
    for row in csv.reader(lines, skipinitialspace=True):
      if row:
        yield row[0], float(row[1]), float(row[2]), row[3].split(",")


def _audioset_classes(root: str) -> dict[str, str]:
  """Class id -> name."""
  if os.path.exists(path := os.path.join(root, "class_labels_indices.csv")):
    return {row["mid"]: row["display_name"] for row in _table(path, "audioset", "mid", "display_name")}
  with open(_find(root, "audioset", "ontology.json", "class_labels_indices.csv"), encoding="utf-8") as file:
    return {entry["id"]: entry["name"] for entry in json.load(file)}


LAYOUTS: dict[str, Callable[[str], Listing]] = {
  function.__name__: function
  for function in (audioset, crema_d, esc10, esc50, fsd50k, fsdd, gtzan, nsynth, speech_commands, surge, urbansound8k,
                   voxceleb1, voxforge)
}  # fmt: skip


def subset(sources: Iterable[Source], number: int) -> list[Source]:
  """The `number` training files on disk whose ids hash lowest, and all of the other splits.

  AS-200K is this with 200,000 of AudioSet's training clips; the paper's own draw of 200,000 cannot be recovered.
  """
  sources = list(sources)
  there = [s for s in sources if s.split == "train" and os.path.isfile(s.path)]
  if len(there) < number:
    listed = sum(s.split == "train" for s in sources)
    raise UserError(f"--subset={number}: of {listed} training files listed {len(there)} are on disk; ask for fewer")
  train = sorted(there, key=lambda s: hashlib.sha256(s.id.encode()).digest())
  return train[:number] + [s for s in sources if s.split != "train"]
