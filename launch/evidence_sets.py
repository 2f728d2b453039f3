"""The sets of the evidence: what pre-training hears, and what its encoders are tested on.

`recordings/` holds `esc10/CLASS/FOLD-ID-TAKE.ogg`, `fsdd/DIGIT_SPEAKER_INDEX.flac` and `notes/`
with rendered notes and their manifests family.csv and pitch.csv (columns path, label, fold, group;
the fold is the collection, 0 to 2).

Pre-training hears all of them without labels but for ESC-10's fold 5, one speaker of FSDD and the
third collection: these are tested. Probes choose their penalty on fold 4, on another speaker and on
the second collection, which pre-training has heard.
"""

import csv
import hashlib
import pathlib
import re
from collections.abc import Iterable

from atst_jax.audio.frontend import FrontEnd
from atst_jax.data.dataset import Clip, Dataset
from atst_jax.util import storage
from atst_jax.util.errors import UserError

FRONTEND = "atst"
PRETRAIN = "pretrain"
TASKS = ("digits", "family", "pitch", "esc10")
BGKNOWN = "bgknown"
TITLES = {
  "digits": "digits, speaker `theo`",
  "family": "instrument family, third collection",
  "pitch": "pitch, third collection",
  "esc10": "ESC-10, fold 5",
}
VALID_SPEAKER, TEST_SPEAKER = "yweweler", "theo"
NOTE_SPLITS = ("train", "valid", "test")  # of the three collections
HEARD = "heard.json"  # of a run: ids of the test clips that it has heard; null where nobody knows


def _esc10(recordings: pathlib.Path) -> list[dict]:
  rows = []
  for path in sorted((recordings / "esc10").glob("*/*.ogg")):
    fold, source, _ = path.stem.split("-")
    split = {"4": "valid", "5": "test"}.get(fold, "train")
    name = path.relative_to(recordings).as_posix()
    rows.append({"path": name, "label": path.parent.name, "split": split, "group": source})
  return rows


def _digits(recordings: pathlib.Path) -> list[dict]:
  rows = []
  for path in sorted((recordings / "fsdd").glob("*.flac")):
    digit, speaker, _ = path.stem.split("_")
    split = {VALID_SPEAKER: "valid", TEST_SPEAKER: "test"}.get(speaker, "train")
    name = path.relative_to(recordings).as_posix()
    rows.append({"path": name, "label": digit, "split": split, "group": speaker})
  return rows


def _notes(recordings: pathlib.Path, task: str) -> list[dict]:
  path = recordings / "notes" / f"{task}.csv"
  if not path.is_file():
    return []
  with path.open(encoding="utf-8", newline="") as file:
    return [
      {
        "path": f"notes/{row['path']}",
        "label": row["label"],
        "split": NOTE_SPLITS[int(row["fold"])],
        "group": row["group"],
      }
      for row in csv.DictReader(file)
    ]


def write_manifests(recordings: pathlib.Path, output: pathlib.Path) -> None:
  """OUTPUT/manifests/: a CSV of each task, of what pre-training hears, and of the two sides of
  BgKnown: notes over environmental sounds, divided as their tasks are. Raises UserError where
  recordings are missing."""
  tables = {
    "digits": _digits(recordings),
    "family": _notes(recordings, "family"),
    "pitch": _notes(recordings, "pitch"),
    "esc10": _esc10(recordings),
  }
  if missing := [name for name, rows in tables.items() if not {"train", "test"} <= _splits(rows)]:
    raise UserError(
      f"--recordings={recordings}: no clips for {', '.join(missing)}; needed are "
      "esc10/CLASS/FOLD-ID-TAKE.ogg, fsdd/DIGIT_SPEAKER_INDEX.flac, and notes/family.csv and "
      "notes/pitch.csv with the columns path,label,fold,group and folds 0 to 2"
    )
  heard = [
    {"path": row["path"]}
    for task in ("digits", "family", "esc10")
    for row in tables[task]
    if row["split"] != "test"
  ]
  mixed = {f"{BGKNOWN}_foreground": tables["family"], f"{BGKNOWN}_background": tables["esc10"]}
  folder = output / "manifests"
  folder.mkdir(parents=True, exist_ok=True)
  for name, rows in {PRETRAIN: heard, **tables, **mixed}.items():
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
      writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
      writer.writeheader()
      writer.writerows(rows)


def _splits(rows: list[dict]) -> set[str]:
  return {row["split"] for row in rows}


def preparations(recordings: pathlib.Path, output: pathlib.Path) -> list[tuple]:
  """(what is there when it is done, command) of every set."""
  steps = []
  for name in (PRETRAIN, *TASKS):
    folder = output / "sets" / name
    flags = [
      f"--input={output / 'manifests' / name}.csv",
      f"--root={recordings}",
      f"--output={folder}",
      f"--frontend={FRONTEND}",
      f"--name=evidence_{name}",
    ]
    steps.append((folder / "dataset.json", ["-m", "data_pipeline.prepare", *flags]))
  folder, manifests = output / "sets" / BGKNOWN, output / "manifests"
  sides = [
    flag
    for kind in ("foreground", "background")
    for flag in (f"--{kind}={manifests / BGKNOWN}_{kind}.csv", f"--{kind}_root={recordings}")
  ]
  flags = [*sides, "--seconds=2", "--name=evidence", f"--output={folder}"]
  command = ["-m", "data_pipeline.bgknown", *flags, f"--frontend={FRONTEND}"]
  steps.append((folder / "c" / "dataset.json", command))
  return steps


def _stem(id: str) -> str:
  """The name of a clip's file: of a piece `ID#0003` and of a segment `ID#START-END`, too."""
  return pathlib.PurePosixPath(re.sub(r"#[^#/]*$", "", id)).stem


def _contents(found: Iterable[Clip]) -> dict[str, str]:
  """{digest of its spectrogram: id} of every clip."""
  return {hashlib.sha256(clip.mel.tobytes()).hexdigest(): clip.id for clip in found}


class Tested:
  """The test clips of all sets: by the name of their file, and by what is in them."""

  def __init__(self, output: pathlib.Path):
    found = {task: list(Dataset.load(str(output / "sets" / task)).clips("test")) for task in TASKS}
    every = [clip for each in found.values() for clip in each]
    self.contents, self.names = _contents(every), {_stem(clip.id): clip.id for clip in every}
    frontends = {task: Dataset.load(str(output / "sets" / task)).frontend for task in TASKS}
    self.frontend: FrontEnd = frontends[TASKS[0]]

  def heard_by(self, encoder: str) -> list[str]:
    """The ids of test clips that the pre-training of an exported encoder has heard: those whose
    file's name or whose spectrogram is in its set.

    Raises UserError where that cannot be told: the export does not say what it was trained on, or
    the set is not there any more.
    """
    path = pathlib.Path(encoder) / "config.json"
    try:
      config = storage.read_json(str(path))["provenance"]["config"]
      data = config["data"]
      root, split, known = data["path"], data["split"], data["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{path} does not say what the encoder was pre-trained on ({error!r}), so that it cannot "
        "be told whether it has heard test clips; export a run of this version, or give "
        "--allow_heard"
      ) from error
    if config.get("initial"):
      raise UserError(
        f"{encoder} went on from {config['initial']}, so that it cannot be told whether it has "
        "heard test clips; train from random parameters, or give --allow_heard"
      )
    dataset = Dataset.load(root)
    if dataset.fingerprint(split) != known:
      raise UserError(
        f"{root} is not the set that {encoder} was pre-trained on, so that it cannot be told "
        "whether it has heard test clips; put that set back, or give --allow_heard"
      )
    trained = list(dataset.clips(split))
    names = {_stem(clip.id) for clip in trained}
    found = {id for name, id in self.names.items() if name in names}
    if dataset.frontend.hash == self.frontend.hash:
      contents = _contents(trained)
      found |= {id for digest, id in self.contents.items() if digest in contents}
    return sorted(found)
