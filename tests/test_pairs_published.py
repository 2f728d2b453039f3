"""Pairs from the published descriptions of scenes (jams)."""

import json

import numpy as np
import pytest
import soundfile

from atst_jax.data.dataset import Dataset
from data_pipeline import pairs
from data_pipeline.mixing.differences import changes, sentence
from data_pipeline.mixing.loudness import loudness
from data_pipeline.mixing.scenes import Part, Scene, synthesise
from tests.preparing import write_inline
from tests.scene_sounds import RATE, rows, write_scene_sounds


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
  return write_scene_sounds(tmp_path_factory.mktemp("sounds"))


def jams_text(parts, *, seconds=2.0, ref_db=-33.0):
  keys = ("label", "source_file", "source_time", "event_time", "event_duration", "snr", "role")
  data = [
    {
      "time": part[3],
      "duration": part[4],
      "confidence": 1.0,
      "value": {**dict(zip(keys, part, strict=True)), "pitch_shift": None, "time_stretch": None},
    }
    for part in parts
  ]
  scaper = {
    "duration": seconds,
    "sr": 44100,
    "ref_db": ref_db,
    "reverb": None,
    "fix_clipping": False,
    "peak_normalization": False,
  }
  annotation = {
    "namespace": "scaper",
    "data": data,
    "sandbox": {"scaper": scaper},
    "time": 0,
    "duration": seconds,
  }
  return json.dumps(
    {"annotations": [annotation], "file_metadata": {"duration": seconds}, "sandbox": {}}
  )


def behind(i, time, split="dev"):
  return ("rain", f"source/{split}/background/rain/{i}.wav", time, 0, 2.0, 0, "background")


@pytest.fixture
def published(tmp_path):
  """Four pairs in the layout of the published ones: three for training, one for the test."""
  dog = ("dog", "source/dev/foreground/dog/1-501-A.wav", 0, 0.5, 1.5, 6.0, "foreground")
  horn = ("horn", "source/dev/foreground/horn/1-1501-B.wav", 0, 0.1, 0.6, 9.0, "foreground")
  more = ("rain", "source/dev/foreground/rain/2.wav", 1.0, 0, 2.0, 10.0, "foreground")
  test = ("dog", "source/eval/foreground/dog/5-505-A.wav", 0, 0.5, 1.0, 6.0, "foreground")
  folder = tmp_path / "datasets" / "apwd_rain_sc"
  folder.mkdir(parents=True)
  content = {
    "dev_00000": ([behind(0, 0.4), behind(1, 1.2), dog, horn], [behind(0, 1.0), behind(1, 0.2)]),
    "dev_00001": ([behind(0, 0.4)], [behind(0, 1.4), more]),
    "dev_00002": ([behind(0, 0.4), dog], [behind(0, 1.4), dog]),
    "eval_000": ([behind(7, 0, "eval"), test], [behind(7, 2.5, "eval")]),
  }
  for name, scenes in content.items():
    for which, parts in zip(("s1", "s2"), scenes, strict=True):
      (folder / f"apwd_rain_sc_{name}_{which}.jams").write_text(jams_text(parts))
  return folder


def jams_flags(sounds, published, output):
  rain = sounds / "weather" / "rain"
  return [
    f"--jams={published.parent}",
    f"--foreground={sounds / 'events'}",
    f"--background={rain}",
    f"--output={output}",
    "--frontend=difference",
  ]


def test_published_pairs_are_mixed_and_worded(sounds, published, tmp_path, monkeypatch, capsys):
  write_inline(monkeypatch)
  assert pairs.main(jams_flags(sounds, published, tmp_path / "out")) == 0
  assert (
    "1 pairs are left out, as nothing tells them apart; the first is apwd_rain_sc_dev_00002"
    in capsys.readouterr().err
  )
  table = {
    row["id"].removeprefix("apwd_rain_sc_"): row for row in rows(tmp_path / "out" / "pairs.csv")
  }
  assert {
    id: (row["kind"], row["event"], row["split"], row["scene"]) for id, row in table.items()
  } == {
    "dev_00000": ("remove+remove", "dog;horn", "train", "rain"),
    "dev_00001": ("louder", "rain", "train", "rain"),
    "eval_000": ("remove", "dog", "test", "rain"),
  }
  dataset = Dataset.load(str(tmp_path / "out"))
  assert dataset.label_names == ["dog", "horn", "rain"]
  clips = {
    clip.id.removeprefix("apwd_rain_sc_"): clip
    for split in dataset.splits
    for clip in dataset.clips(split)
  }
  assert clips["dev_00000_s1"].labels == (0, 1) and clips["dev_00000_s2"].labels == ()
  levels = [
    (row["label"], row["role"], float(row["lufs"]), float(row["snr_db"]))
    for row in rows(tmp_path / "out" / "mixtures.csv")
    if row["clip"] == "apwd_rain_sc_dev_00000_s1"
  ]
  rain = ("rain", "background", -33.0, 0.0)
  assert levels == [rain, rain, ("dog", "event", -33.0, 6.0), ("horn", "event", -33.0, 9.0)]


def test_a_louder_background_is_a_background_that_repeats(sounds):
  rain = str(sounds / "weather" / "rain" / "0.wav")
  part = Part(rain, "0", "rain", False, True, 2.5, 0.0, 2.0, 10.0)
  mixture, notes = synthesise(Scene(rain, "x", seconds=2.0, rate=RATE, lufs=-40.0, parts=(part,)))
  assert notes[0][1] == 2.0 and loudness(mixture, RATE) == pytest.approx(-30, abs=0.1)
  sound, _ = soundfile.read(rain)
  both = np.corrcoef(mixture[200:-200], np.tile(sound, 2)[int(2.5 * RATE) :][: 2 * RATE][200:-200])
  assert both[0, 1] > 0.999


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda f: next(f.glob("*eval_000_s2.jams")).unlink(), "1 files have no partner"),
    (lambda f: f.parent.rename(f.parents[1] / "moved"), "datasets is not a folder"),
    (
      lambda f: next(f.glob("*eval_000_s2.jams")).write_text("{}"),
      "not a JAMS file of scaper (KeyError: 'annotations')",
    ),
    (
      lambda f: next(f.glob("*eval_000_s2.jams")).rename(f / "eval_000.jams"),
      "does not end in _s1.jams or _s2.jams",
    ),
    (
      lambda f: [p.rename(f / p.name.replace("eval", "x")) for p in f.glob("*eval*")],
      "neither _dev_ nor _eval_",
    ),
    (
      lambda f: next(f.glob("*eval_000_s2.jams")).write_text(
        jams_text([behind("none", 0, "eval")])
      ),
      "the recording source/eval/background/rain/none.wav is in neither",
    ),
    (
      lambda f: next(f.glob("*eval_000_s2.jams")).write_text(jams_text([behind(0, 0, "eval")])),
      "the division leaks: 1",
    ),
    (
      lambda f: [
        p.write_text(p.read_text().replace('"reverb": null', '"reverb": 0.5'))
        for p in f.glob("*eval*")
      ],
      "reverb, fix_clipping and peak_normalization are not done here",
    ),
  ],
)
def test_published_pairs_that_will_not_do(sounds, published, tmp_path, capsys, spoil, message):
  spoil(published)
  assert pairs.main(jams_flags(sounds, published, tmp_path / "out")) == 2
  assert message in capsys.readouterr().err


def test_links_are_followed_if_asked(sounds, published, tmp_path, monkeypatch, capsys):
  """The refusal names the flag that this command has."""
  write_inline(monkeypatch)
  (tmp_path / "linked").mkdir()
  for path in (sounds / "events").iterdir():
    (tmp_path / "linked" / path.name).symlink_to(path)
  flags = [
    flag
    for flag in jams_flags(sounds, published, tmp_path / "out")
    if not flag.startswith("--foreground=")
  ]
  flags += [f"--foreground={tmp_path / 'linked'}", "--workers=1"]
  assert pairs.main(flags) == 2
  assert "set --foreground_follow_links to read" in capsys.readouterr().err
  assert pairs.main([*flags, "--background_follow_links"]) == 2
  assert pairs.main([*flags, "--foreground_follow_links"]) == 0
  assert len(rows(tmp_path / "out" / "pairs.csv")) == 3


@pytest.mark.parametrize(
  "flag", ["--seconds=5", "--events=dog", "--snr=0,1", "--same_takes", "--background_layout=folder"]
)
def test_flags_of_drawn_pairs_are_refused(sounds, published, tmp_path, capsys, flag):
  """Here the files say all that they would."""
  flags = [*jams_flags(sounds, published, tmp_path / "out"), "--verbosity=debug", "--seed=1"]
  flags += ["--num_shards=1", "--shard_mb=2", "--workers=1", "--name=x", "--dry_run"]
  assert pairs.main([*flags, flag]) == 2
  name = flag.partition("=")[0]
  assert f"{name} goes with drawn pairs, not with --jams" in capsys.readouterr().err
  assert pairs.main(flags) == 0


def scene_of(*events, name="rain"):
  parts = tuple(Part("", "", label, False, False, 0.0, 0.0, 1.0, snr) for label, snr in events)
  return Scene("", "x", name=name, parts=parts)


@pytest.mark.parametrize(
  ("one", "other", "expected"),
  [
    ([], [("dog", 5)], [("add", "dog")]),
    ([("dog", 5), ("thunder", 3)], [("thunder", 3)], [("remove", "dog")]),
    ([("dog", 5)], [("dog", 12)], [("louder", "dog")]),
    ([("thunder", 3)], [("dog", 3.3), ("thunder", -9)], [("add", "dog"), ("quieter", "thunder")]),
    ([], [("rain", 10)], [("louder", "rain")]),
    ([("rain", 10)], [], [("quieter", "rain")]),
    ([("dog", 5)], [("dog", 5.2)], []),
    ([("dog", 5)], [("dog", 5), ("dog", 9)], [("add", "dog")]),
  ],
)
def test_changes_between_scenes(one, other, expected):
  found = changes(scene_of(*one), scene_of(*other))
  assert found == expected
  text = sentence(found, np.random.default_rng(0))
  assert text.count(" and ") == max(len(found) - 1, 0) and all(event in text for _, event in found)
