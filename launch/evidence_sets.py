"""The sets of the evidence: what pre-training hears, and what its encoders are tested on.

`recordings/` holds `esc10/CLASS/FOLD-ID-TAKE.ogg`, `fsdd/DIGIT_SPEAKER_INDEX.flac` and `notes/`
with rendered notes and their manifests family.csv and pitch.csv (columns path, label, fold, group;
the fold is the collection, 0 to 2).

Pre-training hears all of them without labels but for ESC-10's fold 5, one speaker of FSDD and the
third collection: these are tested. What chooses (fold 4, another speaker, the second collection)
has been heard. A set's folds are the folds, the speakers and the collections.

Trials of the recipe know nothing of what is tested: in their sets those clips are not there. They
are tested on what chooses otherwise, and neither their pre-training nor their probes hear that.
"""

import csv
import hashlib
import io
import pathlib
import re
from collections.abc import Iterable

from atst_jax.audio.frontend import FrontEnd
from atst_jax.data.dataset import Clip, Dataset
from atst_jax.downstream import features
from atst_jax.downstream.bgknown.sets import fingerprint as of_conditions
from atst_jax.downstream.bgknown.sets import load as load_conditions
from atst_jax.downstream.retrieval.pair_set import fingerprint as of_pairs
from atst_jax.util import storage
from atst_jax.util.errors import UserError

FRONTEND = "atst"
PRETRAIN = "pretrain"
TASKS = ("digits", "family", "pitch", "esc10")
BGKNOWN, PAIRS = "bgknown", "pairs"
SIDES = {"foreground": "family", "background": "esc10"}  # of their mixtures
TITLES = {
  "digits": "digits, speaker `theo`",
  "family": "instrument family, third collection",
  "pitch": "pitch, third collection",
  "esc10": "ESC-10, fold 5",
}
TRIAL_TITLES = {
  "digits": "digits, speaker `yweweler`",
  "family": "instrument family, second collection",
  "pitch": "pitch, second collection",
  "esc10": "ESC-10, fold 4",
}
VALID_SPEAKER, TEST_SPEAKER = "yweweler", "theo"
NOTE_SPLITS = ("train", "valid", "test")  # of the three collections
# of a run: its encoder's params_hash, and the ids of the test clips that its pre-training has
# heard; null where nobody knows
HEARD = "heard.json"


def _esc10(recordings: pathlib.Path) -> list[dict]:
  rows = []
  for path in sorted((recordings / "esc10").glob("*/*.ogg")):
    fold, source, _ = path.stem.split("-")
    split = {"4": "valid", "5": "test"}.get(fold, "train")
    name = path.relative_to(recordings).as_posix()
    row = {"path": name, "label": path.parent.name, "split": split, "fold": fold, "group": source}
    rows.append(row)
  return rows


def _digits(recordings: pathlib.Path) -> list[dict]:
  found = [(path, *path.stem.split("_")[:2]) for path in (recordings / "fsdd").glob("*.flac")]
  speakers, rows = sorted({speaker for _, _, speaker in found}), []
  for path, digit, speaker in sorted(found):
    split = {VALID_SPEAKER: "valid", TEST_SPEAKER: "test"}.get(speaker, "train")
    row = {"path": path.relative_to(recordings).as_posix(), "label": digit, "split": split}
    rows.append({**row, "fold": speakers.index(speaker), "group": speaker})
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
        "fold": row["fold"],
        "group": row["group"],
      }
      for row in csv.DictReader(file)
    ]


def write_manifests(
  recordings: pathlib.Path, output: pathlib.Path, *, trials: bool, dry_run: bool = False
) -> None:
  """OUTPUT/manifests/: a CSV of each task and of what pre-training hears, and, but for trials, of
  the two sides of mixtures, notes over environmental sounds, divided as their tasks are. With
  `dry_run` they are checked and not written.

  Raises UserError where recordings are missing, or where a set was prepared from another list.
  """
  tables = {
    "digits": _digits(recordings),
    "family": _notes(recordings, "family"),
    "pitch": _notes(recordings, "pitch"),
    "esc10": _esc10(recordings),
  }
  if missing := [name for name, rows in tables.items() if _splits(rows) != set(NOTE_SPLITS)]:
    raise UserError(
      f"--recordings={recordings}: no clips for {', '.join(missing)}; needed are "
      "esc10/CLASS/FOLD-ID-TAKE.ogg, fsdd/DIGIT_SPEAKER_INDEX.flac, and notes/family.csv and "
      "notes/pitch.csv with the columns path,label,fold,group and folds 0 to 2"
    )
  if trials:
    moved = {"train": "train", "valid": "test"}
    tables = {
      name: [{**row, "split": moved[row["split"]]} for row in rows if row["split"] in moved]
      for name, rows in tables.items()
    }
  heard = [
    {"path": row["path"]}
    for task in ("digits", "family", "esc10")
    for row in tables[task]
    if row["split"] != "test"
  ]
  mixed = {} if trials else {f"{BGKNOWN}_{side}": tables[task] for side, task in SIDES.items()}
  if not dry_run:
    (output / "manifests").mkdir(parents=True, exist_ok=True)
  for name, rows in {PRETRAIN: heard, **tables, **mixed}.items():
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path, folder = output / "manifests" / f"{name}.csv", output / "sets" / name.partition("_")[0]
    if folder.exists() and path.is_file() and path.read_text(encoding="utf-8") != text.getvalue():
      runs = f"{output}/*/seed*"
      used = (
        f"trained on it ({runs})" if name == PRETRAIN else f"measured on it ({runs}/{folder.name})"
      )
      raise UserError(
        f"{folder} was prepared from another list than that of today; delete it with what was "
        f"{used}, or choose another --output"
      )
    if not dry_run:
      path.write_text(text.getvalue(), encoding="utf-8")


def _splits(rows: list[dict]) -> set[str]:
  return {row["split"] for row in rows}


def preparations(recordings: pathlib.Path, output: pathlib.Path) -> list[tuple]:
  """(what is there when it is done, command) of the set for pre-training and of every task's."""
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
  return steps


def mixtures(recordings: pathlib.Path, output: pathlib.Path, *, pairs: bool) -> list[tuple]:
  """The same of BgKnown and, if asked for, of the pairs of retrieval: notes over rain and over the
  sea, of which each sentence changes one."""
  manifests = output / "manifests"
  sides = [
    flag
    for kind in SIDES
    for flag in (f"--{kind}={manifests / BGKNOWN}_{kind}.csv", f"--{kind}_root={recordings}")
  ]
  folder, common = output / "sets" / BGKNOWN, [*sides, f"--frontend={FRONTEND}"]
  command = ["-m", "data_pipeline.bgknown", *common, "--seconds=2", "--name=evidence"]
  steps = [(folder / "c" / "dataset.json", [*command, f"--output={folder}"])]
  if pairs:
    folder = output / "sets" / PAIRS
    numbers = ["--train_pairs=1000", "--valid_pairs=100", "--test_pairs=200", "--seconds=5"]
    command = ["-m", "data_pipeline.pairs", *common, "--scenes=rain,sea_waves", *numbers]
    command += ["--name=evidence_pairs", f"--output={folder}"]
    steps.append((folder / "dataset.json", command))
  return steps


def fingerprint(output: pathlib.Path, name: str) -> str | None:
  """Of a prepared set, as its results have it; None where it is not there."""
  folder = output / "sets" / name
  done = folder / "c" if name == BGKNOWN else folder
  if not (done / "dataset.json").is_file():
    return None
  if name == BGKNOWN:
    return of_conditions(load_conditions(str(folder)))
  dataset = Dataset.load(str(folder))
  return of_pairs(dataset) if name == PAIRS else features.fingerprint(dataset)


def _stem(id: str) -> str:
  """The name of a clip's file: of a piece `ID#0003` and of a segment `ID#START-END`, too. Of
  ESC-50's FOLD-ID-TAKE-CLASS the last part, which ESC-10 as it lies here does not have, is left
  out."""
  name = pathlib.PurePosixPath(re.sub(r"#[^#/]*$", "", id)).stem
  return re.sub(r"^(\d-\d+-[A-Z])-\d+$", r"\1", name)


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
