"""BgKnown: mixtures with known backgrounds are what their table says, reproducible, and free of
leaks."""

import collections
import csv
import json
import math
import pathlib

import numpy as np
import pytest
import soundfile

from atst_jax.audio.frontend import FRONTENDS, log_mel
from atst_jax.data.dataset import Dataset
from atst_jax.util.errors import UserError
from data_pipeline import bgknown
from data_pipeline.mixing import mixtures
from data_pipeline.mixing.loudness import loudness
from data_pipeline.mixing.mixtures import CONDITIONS, Mixture, Recipe
from tests.preparing import contents, write_inline

RATE = 16000
FLAGS = ["--frontend=atst", "--seconds=0.6", "--workers=1", "--num_shards=2"]


def write_sets(root):
  """Foregrounds: 3 classes in folds 1 to 5, one of 2 s, one of 0.3 s, one silent. Backgrounds: 1.5
  s of noise, folds 1 to 5, two in each, one silent and one too short."""
  rng = np.random.default_rng(0)

  def write(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, subtype="FLOAT")

  rows = {"foreground": [], "background": []}
  for i in range(15):
    seconds = {3: 2.0, 4: 0.3}.get(i, 0.6)
    tone = 0.2 * np.sin(2 * np.pi * 200 * (1 + i % 3) * np.arange(round(seconds * RATE)) / RATE)
    if i == 3:
      tone[: RATE // 2] *= 0.1  # its loudest window begins later
    write(root / "foreground" / f"{i}.wav", tone * (i != 14))
    rows["foreground"].append((f"{i}.wav", f"class {i % 3}", i % 5 + 1))
  for i in range(12):
    noise = rng.normal(0, 0.02 * (i + 1), round(1.5 * RATE) if i < 11 else RATE)
    write(root / "background" / f"{i}.wav", noise * (i != 10))
    rows["background"].append((f"{i}.wav", "noise", i % 5 + 1))
  for kind, lines in rows.items():
    with open(root / kind / "list.csv", "w", encoding="utf-8", newline="") as file:
      csv.writer(file).writerows([("path", "label", "fold"), *lines])
  return root


def build(root, output, *flags):
  sets = [f"--{kind}={root / kind / 'list.csv'}" for kind in ("foreground", "background")]
  return bgknown.main([*sets, f"--output={output}", *FLAGS, *map(str, flags)])


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
  return write_sets(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def made(sounds, tmp_path_factory):
  """(folder, rows of its table) of a set with two mixtures for each foreground, and their
  sounds."""
  output = tmp_path_factory.mktemp("bgknown") / "set"
  with pytest.MonkeyPatch.context() as patch:
    write_inline(patch)
    assert build(sounds, output, "--per_clip=2", "--write_audio") == 0
  with open(output / "mixtures.csv", encoding="utf-8", newline="") as file:
    return output, list(csv.DictReader(file))


def read(root, kind, id):
  return soundfile.read(root / kind / id, dtype="float32")[0]


def test_sounds_are_those_of_the_offsets_and_gains(sounds, made):
  """An independent reading of the table gives the sounds, and with the front-end the clips of all
  four sets."""
  output, rows = made
  sets = {
    c: {clip.id: clip for s in ("train", "test") for clip in Dataset.load(str(output / c)).clips(s)}
    for c in CONDITIONS
  }
  assert len(rows) == 28
  assert all(set(clips) == {row["id"] for row in rows} for clips in sets.values())
  starts = set()
  for number, row in enumerate(rows):
    n, foreground = round(0.6 * RATE), read(sounds, "foreground", row["foreground"])
    background = 10 ** (float(row["background_gain_db"]) / 20) * read(
      sounds, "background", row["background"]
    )
    a, b, c = (int(row[key]) for key in "abc")
    assert (b, c) == (a + n // 2, a + n) and 0 <= a <= len(background) - 2 * n
    starts.add(a)
    start = int(row["foreground_offset"])
    event = np.pad(foreground[start : start + n], (0, max(0, n - len(foreground))))
    waveforms = {key: background[at : at + n] for key, at in (("a", a), ("b", b), ("c", c))}
    waveforms["mix"] = waveforms["a"] + 10 ** (float(row["foreground_gain_db"]) / 20) * event
    for condition, waveform in waveforms.items():
      clip = sets[condition][row["id"]]
      assert clip.split == row["split"] and clip.fold == -1
      mel = log_mel(waveform.astype(np.float32), FRONTENDS["atst"])
      # half a step of float16 at 100 dB
      np.testing.assert_allclose(clip.mel.astype(np.float32), mel, atol=0.06)
      written = soundfile.read(output / "audio" / condition / f"{number:06d}.wav", dtype="float32")[
        0
      ]
      np.testing.assert_allclose(written, waveform, atol=2**-15)
  assert len(starts) > 10  # drawn, for each mixture anew


def test_snr_is_what_was_drawn_measured_on_the_sounds(sounds, made):
  """By the same standard's measure, on what is in the files; levels are Scaper's: (a) fixed, the
  foreground above."""
  output, rows = made
  snrs = []
  for number, row in enumerate(rows):
    mix, a = (soundfile.read(output / "audio" / c / f"{number:06d}.wav")[0] for c in ("mix", "a"))
    snr = loudness(mix - a, RATE) - loudness(a, RATE)
    assert snr == pytest.approx(float(row["snr_db"]), abs=0.1)
    assert loudness(a, RATE) == pytest.approx(-23, abs=0.1)
    snrs.append(float(row["snr_db"]))
  assert all(0 <= snr <= 3 for snr in snrs) and np.ptp(snrs) > 2


def test_loudest_window_and_short_foregrounds(made):
  offsets = {row["foreground"]: int(row["foreground_offset"]) for row in made[1]}
  assert offsets["4.wav"] == offsets["0.wav"] == 0
  assert RATE // 2 <= offsets["3.wav"] <= RATE // 2 + 160
  assert mixtures.loudest(np.ones(10, np.float32), 20, 1) == 0


def test_no_file_is_on_both_sides_and_folds_are_kept(made):
  sides = collections.defaultdict(set)
  for row in made[1]:
    for kind in ("foreground", "background"):
      sides[kind, row[kind]].add(row["split"])
      assert (int(row[kind][:-4]) % 5 + 1 in (4, 5)) == (row["split"] == "test")
  assert all(len(side) == 1 for side in sides.values()) and len(sides) > 20
  # silent, too short
  assert ("background", "10.wav") not in sides and ("background", "11.wav") not in sides
  leak = Mixture(**{**dict.fromkeys(mixtures.COLUMNS, 0), "background": "x", "foreground": "y"})
  rows = [mixtures.dataclasses.replace(leak, split=split) for split in ("train", "test")]
  with pytest.raises(
    UserError, match="2 recordings are in the test and in other splits, the first is background 'x'"
  ):
    bgknown.check(rows)


def test_silent_foreground_is_left_out_and_said(made):
  plan = json.loads((made[0] / "bgknown.json").read_text(encoding="utf-8"))
  assert {(r["id"], r["reason"]) for r in plan["rejects"]} == {
    ("14.wav#0000", "silent"),
    ("14.wav#0001", "silent"),
  }


def test_sets_hold_the_same_clips_in_the_same_order(made):
  sets = [Dataset.load(str(made[0] / condition)) for condition in CONDITIONS]
  for split in ("train", "test"):
    ids = [[(clip.id, clip.labels) for clip in dataset.clips(split)] for dataset in sets]
    assert ids[0] == ids[1] == ids[2] == ids[3]
  assert {dataset.manifest["name"] for dataset in sets} == {"bgknown_manifest"}
  assert sets[0].label_names == ["class 0", "class 1", "class 2"]


def bytes_of(folder):
  return {
    name: data
    for name, data in contents(folder).items()
    if ".work" not in name and "audio" not in name and not name.endswith("report.html")
  }


def test_the_same_bytes_from_two_workers_and_after_an_interruption(
  sounds, made, tmp_path, monkeypatch, capsys
):
  """Real processes draw, and one set is completed by real processes."""
  with monkeypatch.context() as patch:
    write_inline(patch)
    assert build(sounds, tmp_path / "two", "--per_clip=2", "--workers=2") == 0
  assert bytes_of(tmp_path / "two") == bytes_of(made[0]) and len(bytes_of(made[0])) > 20
  for path in (tmp_path / "two" / "mix").glob("t*"):
    path.unlink()
  assert build(sounds, tmp_path / "two", "--per_clip=2", "--workers=2") == 0
  assert bytes_of(tmp_path / "two") == bytes_of(made[0])
  assert build(sounds, tmp_path / "two", "--per_clip=2", "--seed=1") == 2
  assert "was made with other seed" in capsys.readouterr().err


def test_another_seed_draws_another_set(sounds, tmp_path, made):
  source = bgknown.Source(str(sounds / "foreground" / "0.wav"), "0.wav", ("class 0",))
  pool = [bgknown.Source(str(sounds / "background" / f"{i}.wav"), f"{i}.wav") for i in range(10)]
  draw = lambda seed: mixtures.draw(
    source, "0.wav#0000", pool, Recipe(RATE, 0.6, (0.0, 3.0), -23.0, seed)
  )
  assert draw(0) == draw(0) != draw(1)


def test_what_would_clip_is_turned_down_alike(sounds):
  source = bgknown.Source(str(sounds / "foreground" / "0.wav"), "0.wav", ("class 0",))
  pool = [bgknown.Source(str(sounds / "background" / "9.wav"), "9.wav")]
  recipe = Recipe(RATE, 0.6, (3.0, 3.0), -5.0, 0)
  mixture = mixtures.draw(source, "0", pool, recipe)
  made = {c: mixtures.sound(mixture, c, source.path, pool[0].path, recipe) for c in CONDITIONS}
  assert max(np.abs(x).max() for x in made.values()) == pytest.approx(mixtures.PEAK, abs=1e-5)
  assert loudness(made["mix"] - made["a"], RATE) - loudness(made["a"], RATE) == pytest.approx(
    3.0, abs=0.1
  )
  assert mixture.background_lufs + mixture.background_gain_db < -6


def test_table_reads_back():
  rows = [
    Mixture("a b,\n'c\"", "train", "x;y", "f", "g", 1, 2, 3, 4, 0.1, -math.pi, -1e-9, 0.0, 5.5, 7)
  ]
  assert mixtures.from_table(mixtures.to_table(rows)) == rows


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--snr=3,0"], "--snr=3,0: two numbers"),
    (["--seconds=0.1"], "--seconds=0.1 is not between"),
    (["--seconds=5"], "no background of 10 s on one side"),
    (["--test_folds=9"], "--foreground: files by split {'train': 15}"),
    (["--foreground_labels=dog"], "--foreground_labels: no class 'dog'; there are class 0"),
    (["--background_layout=esc50"], "--background_layout=esc50 needs a folder"),
    (["--backgruond_labels=x"], "did you mean '--background_labels'"),
  ],
)
def test_mistakes_are_one_line(sounds, tmp_path, capsys, flags, message):
  import re

  assert build(sounds, tmp_path / "set", *flags) == 2
  error = capsys.readouterr().err
  assert re.search(message, error) and error.count("\n") == 1 and not (tmp_path / "set").exists()


def test_a_file_cannot_be_both(sounds, tmp_path, capsys):
  same = sounds / "foreground" / "list.csv"
  assert (
    bgknown.main(
      [f"--foreground={same}", f"--background={same}", f"--output={tmp_path / 'x'}", *FLAGS]
    )
    == 2
  )
  assert "15 files are foreground and background" in capsys.readouterr().err


def test_the_output_lies_outside_of_the_sounds(sounds, tmp_path, capsys):
  sets = [f"--{kind}={sounds / kind}" for kind in ("foreground", "background")]
  (tmp_path / "link").symlink_to(sounds / "background")
  assert bgknown.main([*sets, f"--output={tmp_path / 'link' / 'set'}", *FLAGS]) == 2
  assert f"link/set lies in --background={sounds}" in capsys.readouterr().err


def test_dry_run_writes_nothing(sounds, tmp_path, capsys):
  assert build(sounds, tmp_path / "set", "--dry_run") == 0
  assert (
    "15 foregrounds; backgrounds of 1.2 s or more: 7 to train, 4 to test, 1 left out"
    in capsys.readouterr().out
  )
  assert not (tmp_path / "set").exists()


def test_splits_and_hashes_divide_where_there_are_no_folds():
  make = lambda **fields: [
    bgknown.Source(f"{i}", f"{i}", ("x",), **{k: v[i] for k, v in fields.items()})
    for i in range(200)
  ]
  by_split = bgknown.divided(
    make(split=["train", "valid", "test", "train"] * 50), ["4", "5"], "foreground"
  )
  assert [source.split for source in by_split[:4]] == ["train", "valid", "test", "train"]
  drawn = bgknown.divided(make(), ["4", "5"], "foreground")
  assert 0.3 < np.mean([source.split == "test" for source in drawn]) < 0.5
  assert drawn == bgknown.divided(make(), ["4", "5"], "background")


def test_sources_of_esc10_are_on_one_side(shared):
  """Clips of one Freesound recording share a fold; what is tested shares none with what is trained
  on."""
  args = bgknown._parser().parse(
    [
      f"--foreground={shared / 'data' / 'esc10'}",
      "--foreground_layout=esc10",
      "--background=x",
      "--output=x",
      "--frontend=atst",
    ]
  )
  sides = collections.defaultdict(set)
  for source in bgknown._listing(args, "foreground").sources:
    sides[pathlib.PurePath(source.id).name.split("-")[1]].add(source.split)
  assert len(sides) > 250 and all(len(side) == 1 for side in sides.values())
