"""The published pairs (APwD-Dataset): JAMS files, in which scaper describes its mixtures, read
without jams or scaper.

`NAME_s1.jams` and `NAME_s2.jams` are a pair. `dev` in a name is training, `eval` test. Recordings
are found in the folders of ESC-50 and FSD50K by their file names. The owners first cut the silence
around events and repeat backgrounds; here that happens while mixing. Their sentences were not
published: ours are made from the differences.
"""

import collections
import json
import os
import re

from atst_jax.util import storage
from atst_jax.util.errors import UserError

from ..sources.tree import audio_files
from .differences import changes, sentence
from .drawn_pairs import Pair, pair_rng
from .recordings import errors_of
from .scenes import Part, Scene

SPLITS = {"dev": "train", "eval": "test"}
NAME = re.compile(r"(?P<pair>.+)_(?P<which>s[12])\.jams")
# Names of the published pairs, whose scenes are `rain` and `traffic`.
APWD = re.compile(r"apwd_(?P<scene>.+)_sc_")


def find_recordings(
  foreground: str, background: str, *, follow_links: dict[str, bool]
) -> dict[str, tuple[str, bool]]:
  """{file name without its ending: (path, whether it is a background)} of all audio in two folders.

  Args:
    follow_links: of "foreground" and "background", as of `audio_files`.
  """
  found = {}
  for flag, folder in (("foreground", foreground), ("background", background)):
    with errors_of(flag):
      for path, _ in sorted(audio_files(folder, follow_links=follow_links[flag])):
        found[_name(path)] = (path, flag == "background")
  return found


def _name(path: str) -> str:
  return os.path.splitext(os.path.basename(path))[0]


def read_pairs(
  folder: str, recordings: dict[str, tuple[str, bool]], *, seed: int
) -> tuple[list[Pair], list[str]]:
  """All pairs below a folder.

  Args:
    recordings: of `find_recordings`.
    seed: of the choice of sentences.

  Returns:
    The pairs, and the ids of pairs without a difference that can be said.

  Raises:
    UserError: a file is not one of scaper, has no partner or asks for an effect that is not known
      here; a recording is missing; or neither dev nor eval is in a name.
  """
  files: dict = collections.defaultdict(dict)
  for path in _jams_files(folder):
    match = NAME.fullmatch(os.path.basename(path))
    if not match:
      raise UserError(f"{path}: the name does not end in _s1.jams or _s2.jams")
    files[match["pair"]][match["which"]] = path
  if not files:
    raise UserError(f"--jams={folder} holds no .jams file")
  if single := sorted(pair for pair, found in files.items() if len(found) < 2):
    raise UserError(
      f"--jams={folder}: {len(single)} files have no partner, the first is {files[single[0]]}"
    )
  pairs, same = [], []
  for id in sorted(files):
    query, target = (
      _scene(files[id][which], f"{id}_{which}", recordings) for which in ("s1", "s2")
    )
    if found := changes(query, target):
      named = APWD.match(id)
      pairs.append(
        Pair(
          id,
          named["scene"] if named else query.name,
          query,
          target,
          tuple(found),
          sentence(found, pair_rng(seed, "text", id)),
        )
      )
    else:
      same.append(id)
  return pairs, same


def _jams_files(folder: str) -> list[str]:
  if storage.is_remote(folder):
    return sorted(
      os.path.join(folder, path) for path, _ in storage.find(folder) if path.endswith(".jams")
    )
  if not os.path.isdir(folder):
    raise UserError(f"--jams={folder} is not a folder")
  return sorted(
    os.path.join(root, name)
    for root, _, names in os.walk(folder)
    for name in names
    if name.endswith(".jams")
  )


def _scene(path: str, id: str, recordings) -> Scene:
  try:
    content = json.loads(storage.read_text(path))
    (annotation,) = (one for one in content["annotations"] if one["namespace"] == "scaper")
    settings = annotation["sandbox"]["scaper"]
    values = [observation["value"] for observation in annotation["data"]]
    for key in ("pitch_shift", "time_stretch"):
      if any(value[key] is not None for value in values):
        raise UserError(f"{path}: {key} is not done here")
    if settings["reverb"] is not None or settings["fix_clipping"] or settings["peak_normalization"]:
      raise UserError(f"{path}: reverb, fix_clipping and peak_normalization are not done here")
    parts = tuple(_part(value, recordings, path) for value in values)
    names = {part.label for part in parts if part.background}
    if len(names) != 1:
      raise UserError(f"{path}: backgrounds of {len(names)} classes, expected one")
    return Scene(
      path=parts[0].path,
      id=id,
      labels=tuple(sorted({part.label for part in parts if not part.background})),
      multi_label=True,
      split=_split(id, path),
      name=names.pop(),
      seconds=float(settings["duration"]),
      rate=int(settings["sr"]),
      lufs=float(settings["ref_db"]),
      parts=parts,
    )
  except (ValueError, KeyError, TypeError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{path}: not a JAMS file of scaper ({type(error).__name__}: {error})"
    ) from error


def _split(id: str, path: str) -> str:
  found = {SPLITS[word] for word in re.split(r"[_/]", id) if word in SPLITS}
  if len(found) != 1:
    raise UserError(
      f"{path}: neither _dev_ nor _eval_ (or both) in the name: of which split is it?"
    )
  return found.pop()


def _part(value: dict, recordings, path: str) -> Part:
  name = _name(value["source_file"])
  if name not in recordings:
    raise UserError(
      f"{path}: the recording {value['source_file']} is in neither --foreground nor --background"
    )
  # Recordings of backgrounds repeat, also as events (a louder rain over rain).
  file, is_background = recordings[name]
  return Part(
    path=file,
    source=f"{'background' if is_background else 'foreground'}/{name}",
    label=value["label"],
    background=value["role"] == "background",
    loops=is_background,
    source_time=float(value["source_time"]),
    time=float(value["event_time"]),
    duration=float(value["event_duration"]),
    snr_db=float(value["snr"]),
  )
