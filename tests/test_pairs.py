"""Pairs of mixed clips: what is in them, who shares what with whom, and the published pairs' files."""

import collections
import csv
import itertools
import json

import numpy as np
import pytest
import soundfile

from atst_jax.frontend import FRONTENDS, log_mel
from atst_jax.records import Dataset
from data_pipeline import pairs
from data_pipeline.loudness import loudness
from data_pipeline.modifiers import TEMPLATES, changes, sentence
from data_pipeline.prepare import main as prepare
from data_pipeline.scenes import Part, Scene, synthesise, trimmed
from data_pipeline.shards import write_task
from tests.preparing import contents

RATE = 16000
FLAGS = ["--frontend=atst", "--seconds=2", "--train_pairs=12", "--valid_pairs=4", "--test_pairs=5", "--num_shards=3"]


def write_inline(tasks, settings, *, workers):
  for task in tasks:
    write_task(task, settings, lambda files, clips: None)


def rows(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
  """events/CLASS: tones between silence, named as ESC-50's files; weather/CLASS: noises of 3 s."""
  root, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
  t = np.arange(RATE) / RATE
  for name, hz in (("dog_bark", 500), ("horn", 1500), ("clock", 4000)):
    (root / "events" / name).mkdir(parents=True)
    for fold, take in itertools.product(range(1, 6), "AB"):
      tone = 0.1 * np.sin(2 * np.pi * hz * t) * (1 + 0.1 * rng.normal(size=RATE))
      silence = np.zeros(RATE // 4)
      soundfile.write(root / "events" / name / f"{fold}-{hz + fold}-{take}.wav", np.r_[silence, tone, silence], RATE)
  for name, smooth in (("rain", 1), ("wind", 9)):
    (root / "weather" / name).mkdir(parents=True)
    for i in range(12):
      noise = np.convolve(rng.normal(0, 0.1, 3 * RATE), np.ones(smooth) / smooth, "same")
      soundfile.write(root / "weather" / name / f"{i}.wav", noise, RATE)
  return root


def flags_of(sounds, output, *more):
  return [f"--foreground={sounds / 'events'}", "--foreground_layout=esc10", f"--background={sounds / 'weather'}",
          f"--output={output}", *FLAGS, *map(str, more)]  # fmt: skip


@pytest.fixture(scope="module")
def made(sounds, tmp_path_factory):
  root = tmp_path_factory.mktemp("pairs") / "made"
  assert pairs.main(flags_of(sounds, root, "--workers=1")) == 0
  return root


def test_is_a_prepared_set_whose_ids_pair(made):
  dataset, table = Dataset.load(str(made)), rows(made / "pairs.csv")
  assert dataset.splits == ["test", "train", "valid"] and dataset.label_names == ["clock", "dog_bark", "horn"]
  assert collections.Counter((row["scene"], row["split"]) for row in table) == {
    (scene, split): n for scene in ("rain", "wind") for split, n in (("train", 12), ("valid", 4), ("test", 5))
  }
  clips = {clip.id: clip for split in dataset.splits for clip in dataset.clips(split)}
  assert clips.keys() == {row[key] for row in table for key in ("id1", "id2")} and len(clips) == 2 * len(table)
  assert all(clip.mel.shape == (201, 64) and clip.multi_label for clip in clips.values())
  assert all(clips[row["id1"]].split == clips[row["id2"]].split == row["split"] for row in table)
  assert prepare(["verify", str(made)]) == 0


def test_the_clips_of_a_pair_differ_as_its_row_says(made):
  dataset, mixed = Dataset.load(str(made)), collections.defaultdict(dict)
  for row in rows(made / "mixtures.csv"):
    mixed[row["clip"]].setdefault(row["role"], []).append(row)
  labels = {clip.id: {dataset.label_names[i] for i in clip.labels} for s in dataset.splits for clip in dataset.clips(s)}
  kinds = collections.Counter()
  for pair in rows(made / "pairs.csv"):
    one, other = (mixed[pair[key]] for key in ("id1", "id2"))
    key = lambda scene: [(row["source"], row["lufs"], row["snr_db"]) for row in scene["background"]]
    assert key(one) == key(other) and len(key(one)) == 2  # the same two recordings at the same level, but
    assert [r["source_time"] for r in one["background"]] != [r["source_time"] for r in other["background"]]
    levels = [{row["label"]: float(row["snr_db"]) for row in scene.get("event", [])} for scene in (one, other)]
    before, after = (scene.pop(pair["event"], None) for scene in levels)
    assert levels[0] == levels[1] and len(levels[0]) <= 1  # all else that is heard is the same
    assert {
      "add": before is None and after is not None,
      "remove": before is not None and after is None,
      "louder": before and after and 6 <= after - before <= 12,
      "quieter": before and after and 6 <= before - after <= 12,
    }[pair["kind"]]
    assert pair["event"].replace("_", " ") in pair["text"]
    assert labels[pair["id1"]] == {row["label"] for row in one.get("event", [])}
    kinds[pair["kind"]] += 1
  assert kinds.keys() == TEMPLATES.keys()


def test_no_recording_is_in_two_splits(made):
  owners = collections.defaultdict(set)
  for row in rows(made / "mixtures.csv"):
    recording = row["source"].rsplit("-", 1)[0] if row["role"] == "event" else row["source"]  # takes of a sound
    owners[row["role"], recording].add(row["split"])
    assert row["role"] == "background" or (row["source"].split("/")[1][0] == "5") == (row["split"] == "test")
  assert all(len(splits) == 1 for splits in owners.values())
  assert len({splits.pop() for splits in owners.values()}) == 3


def test_levels_and_mixture_are_those_of_the_manifest(made, sounds):
  """A twin: every clip mixed again from mixtures.csv alone."""
  dataset, mixed = Dataset.load(str(made)), collections.defaultdict(list)
  for row in rows(made / "mixtures.csv"):
    mixed[row["clip"]].append(row)
  for clip in itertools.islice(dataset.clips("train"), 12):
    total = np.zeros(2 * RATE)
    for row in mixed[clip.id]:
      number = {key: float(row[key]) for key in ("source_time", "time", "heard", "snr_db", "lufs", "gain_db")}
      folder = "weather" if row["role"] == "background" else "events"
      sound, _ = soundfile.read(sounds / folder / row["source"])
      if row["role"] == "background":
        first = round(number["source_time"] * RATE)
        sound = np.tile(sound, 3)[first : first + 2 * RATE] * 10 ** (number["gain_db"] / 20)
        target = number["lufs"]
      else:
        loud = np.flatnonzero(np.abs(sound) > 0)
        near = sound[loud[0] - 93 : loud[-1] + 93]  # half a window of 512 / 44100 s at most is kept around a sound
        sound = trimmed(near, RATE)[: round(number["heard"] * RATE)] * 10 ** (number["gain_db"] / 20)
        assert 0.95 < len(trimmed(near, RATE)) / RATE < 1.02
        target = number["lufs"] + number["snr_db"]
      assert loudness(sound, RATE) == pytest.approx(target, abs=0.01)
      if row["role"] == "event":
        ramp = np.sin(np.pi / 2 * np.arange(160) / 160)
        sound[:160] *= ramp
        sound[-160:] *= ramp[::-1]
      start = round(number["time"] * RATE)
      total[start : start + len(sound)] += sound
    mel = log_mel(total.astype(np.float32), FRONTENDS["atst"])
    np.testing.assert_allclose(mel, clip.mel.astype(np.float32), atol=0.1)


def test_bytes_depend_on_the_seed_only(made, sounds, tmp_path, monkeypatch, capsys):
  assert pairs.main(flags_of(sounds, tmp_path / "two", "--workers=2")) == 0
  one, two = (contents(root) for root in (made, tmp_path / "two"))
  assert {k: v for k, v in one.items() if ".work" not in k} == {k: v for k, v in two.items() if ".work" not in k}
  (tmp_path / "two" / "train-00001-of-00003.tfrecord").unlink()
  done, write_tasks = [], pairs.write_tasks
  monkeypatch.setattr(
    pairs, "write_tasks", lambda tasks, *args, **kw: done.extend(tasks) or write_tasks(tasks, *args, **kw)
  )
  assert pairs.main(flags_of(sounds, tmp_path / "two")) == 0
  assert [task.file for task in done] == ["train-00001-of-00003.tfrecord"]
  assert contents(tmp_path / "two")[done[0].file] == one[done[0].file]
  assert contents(tmp_path / "two")["mixtures.csv"] == one["mixtures.csv"]
  assert pairs.main(flags_of(sounds, tmp_path / "two", "--seed=1")) == 2  # not into shards of another seed
  assert "was prepared with" in capsys.readouterr().err
  drawn = lambda seed: pairs._pairs(pairs._parser().parse(flags_of(sounds, "out", f"--seed={seed}")), FRONTENDS["atst"])
  assert all(a.id == b.id and a.query.parts != b.query.parts for a, b in zip(drawn(0), drawn(1), strict=True))


def test_more_pairs_begin_with_the_same(sounds):
  draw = lambda *more: pairs._pairs(pairs._parser().parse(flags_of(sounds, "out", *more)), FRONTENDS["atst"])
  few = {pair.id: pair for pair in draw()}
  many = {pair.id: pair for pair in draw("--train_pairs=40")}
  assert len(many) == len(few) + 56 and all(many[id] == pair for id, pair in few.items())


def test_same_takes_are_shared(sounds):
  flags = flags_of(sounds, "out", "--same_takes", "--train_pairs=40")
  for pair in pairs._pairs(pairs._parser().parse(flags), FRONTENDS["atst"]):
    one, other = (
      {e.label: (e.source, e.time, e.duration) for e in scene.events} for scene in (pair.query, pair.target)
    )
    assert all(one[label] == other[label] for label in one.keys() & other.keys())


def test_a_recording_that_is_silent_costs_its_pairs_and_is_counted(sounds, tmp_path, monkeypatch):
  monkeypatch.setattr(pairs, "write_tasks", write_inline)
  (tmp_path / "dry").mkdir()
  for file in (sounds / "weather" / "rain").iterdir():
    (tmp_path / "dry" / file.name).write_bytes(file.read_bytes())
  soundfile.write(tmp_path / "dry" / "3.wav", np.zeros(3 * RATE), RATE)
  (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"dry/{i}.wav,rain\n" for i in range(12)))
  flags = [flag for flag in flags_of(sounds, tmp_path / "out") if not flag.startswith("--background=")]
  assert pairs.main([*flags, f"--background={tmp_path / 'list.csv'}", "--train_pairs=30"]) == 0
  manifest = Dataset.load(str(tmp_path / "out")).manifest
  table = rows(tmp_path / "out" / "pairs.csv")
  assert manifest["rejects"] and {reject["reason"] for reject in manifest["rejects"]} == {"silent"}
  lost = {reject["id"][:-3] for reject in manifest["rejects"]}
  assert len(table) == 39 - len(lost) and not lost & {row["id"] for row in table}


@pytest.mark.parametrize(("more", "message"), [
  (["--events=dog_bark,hornn"], "no class 'hornn'; did you mean 'horn'?"),
  (["--events=dog_bark"], "--shared_events=1 needs 2 classes"),
  (["--eval_fold=9"], "--eval_fold=9: --foreground has the folds 1, 2, 3, 4, 5"),
  (["--train_pairs=0", "--valid_pairs=0", "--test_pairs=0"], "no pair to write"),
  (["--snr=12,3"], "invalid LOW,HIGH value: '12,3'"),
  (["--level_change=0,3"], "nobody hears a difference"),
  (["--seconds=0.5"], "--seconds=0.5 is not between"),
  (["--jams=nowhere"], "--jams=nowhere is not a folder"),
  (["--frontend=mel"], "unknown front-end"),
])  # fmt: skip
def test_mistakes_are_one_line(sounds, tmp_path, capsys, more, message):
  assert pairs.main(flags_of(sounds, tmp_path / "out", *more)) == 2
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error and not (tmp_path / "out").exists()


def test_a_class_that_is_event_and_background_is_refused(sounds, tmp_path, capsys):
  flags = [f"--foreground={sounds / 'weather'}", f"--background={sounds / 'weather'}", f"--output={tmp_path / 'out'}"]
  assert pairs.main([*flags, *FLAGS]) == 2
  assert "'rain' is a class of events and of backgrounds" in capsys.readouterr().err


def test_pyloudnorm_missing_names_the_extra(sounds, tmp_path, capsys, monkeypatch):
  from data_pipeline import loudness as room

  monkeypatch.setitem(__import__("sys").modules, "pyloudnorm", None)
  room.loudness_meter.cache_clear()
  assert pairs.main(flags_of(sounds, tmp_path / "out")) == 2
  assert "pip install -e .[mixtures]" in capsys.readouterr().err


# The published pairs.


def scene_of(*events, name="rain"):
  parts = tuple(Part("", "", label, False, False, 0.0, 0.0, 1.0, snr) for label, snr in events)
  return Scene("", "x", name=name, parts=parts)


@pytest.mark.parametrize(("one", "other", "expected"), [
  ([], [("dog", 5)], [("add", "dog")]),
  ([("dog", 5), ("thunder", 3)], [("thunder", 3)], [("remove", "dog")]),
  ([("dog", 5)], [("dog", 12)], [("louder", "dog")]),
  ([("thunder", 3)], [("dog", 3.3), ("thunder", -9)], [("add", "dog"), ("quieter", "thunder")]),
  ([], [("rain", 10)], [("louder", "rain")]),
  ([("rain", 10)], [], [("quieter", "rain")]),
  ([("dog", 5)], [("dog", 5.2)], []),
  ([("dog", 5)], [("dog", 5), ("dog", 9)], [("add", "dog")]),
])  # fmt: skip
def test_changes_between_scenes(one, other, expected):
  found = changes(scene_of(*one), scene_of(*other))
  assert found == expected
  text = sentence(found, np.random.default_rng(0))
  assert text.count(" and ") == max(len(found) - 1, 0) and all(event in text for _, event in found)


def jams_text(parts, *, seconds=2.0, ref_db=-33.0):
  keys = ("label", "source_file", "source_time", "event_time", "event_duration", "snr", "role")
  data = [{"time": part[3], "duration": part[4], "confidence": 1.0,
           "value": {**dict(zip(keys, part, strict=True)), "pitch_shift": None, "time_stretch": None}}
          for part in parts]  # fmt: skip
  scaper = {"duration": seconds, "sr": 44100, "ref_db": ref_db, "reverb": None, "fix_clipping": False,
            "peak_normalization": False}  # fmt: skip
  annotation = {"namespace": "scaper", "data": data, "sandbox": {"scaper": scaper}, "time": 0, "duration": seconds}
  return json.dumps({"annotations": [annotation], "file_metadata": {"duration": seconds}, "sandbox": {}})


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
  content = {"dev_00000": ([behind(0, 0.4), behind(1, 1.2), dog, horn], [behind(0, 1.0), behind(1, 0.2)]),
             "dev_00001": ([behind(0, 0.4)], [behind(0, 1.4), more]),
             "dev_00002": ([behind(0, 0.4), dog], [behind(0, 1.4), dog]),
             "eval_000": ([behind(7, 0, "eval"), test], [behind(7, 2.5, "eval")])}  # fmt: skip
  for name, scenes in content.items():
    for which, parts in zip(("s1", "s2"), scenes, strict=True):
      (folder / f"apwd_rain_sc_{name}_{which}.jams").write_text(jams_text(parts))
  return folder


def jams_flags(sounds, published, output):
  rain = sounds / "weather" / "rain"
  return [f"--jams={published.parent}", f"--foreground={sounds / 'events'}", f"--background={rain}",
          f"--output={output}", "--frontend=difference"]  # fmt: skip


def test_published_pairs_are_mixed_and_worded(sounds, published, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(pairs, "write_tasks", write_inline)
  assert pairs.main(jams_flags(sounds, published, tmp_path / "out")) == 0
  assert (
    "1 pairs are left out, as nothing tells them apart; the first is apwd_rain_sc_dev_00002" in capsys.readouterr().err
  )
  table = {row["id"].removeprefix("apwd_rain_sc_"): row for row in rows(tmp_path / "out" / "pairs.csv")}
  assert {id: (row["kind"], row["event"], row["split"], row["scene"]) for id, row in table.items()} == {
    "dev_00000": ("remove+remove", "dog;horn", "train", "rain"),
    "dev_00001": ("louder", "rain", "train", "rain"),
    "eval_000": ("remove", "dog", "test", "rain"),
  }
  dataset = Dataset.load(str(tmp_path / "out"))
  assert dataset.label_names == ["dog", "horn", "rain"]
  clips = {clip.id.removeprefix("apwd_rain_sc_"): clip for split in dataset.splits for clip in dataset.clips(split)}
  assert clips["dev_00000_s1"].labels == (0, 1) and clips["dev_00000_s2"].labels == ()
  levels = [(row["label"], row["role"], float(row["lufs"]), float(row["snr_db"])) for row in rows(
    tmp_path / "out" / "mixtures.csv") if row["clip"] == "apwd_rain_sc_dev_00000_s1"]  # fmt: skip
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


@pytest.mark.parametrize(("spoil", "message"), [
  (lambda f: next(f.glob("*eval_000_s2.jams")).unlink(), "1 files have no partner"),
  (lambda f: next(f.glob("*eval_000_s2.jams")).write_text("{}"), "not a JAMS file of scaper (KeyError: 'annotations')"),
  (lambda f: next(f.glob("*eval_000_s2.jams")).rename(f / "eval_000.jams"), "does not end in _s1.jams or _s2.jams"),
  (lambda f: [p.rename(f / p.name.replace("eval", "x")) for p in f.glob("*eval*")], "neither _dev_ nor _eval_"),
  (lambda f: next(f.glob("*eval_000_s2.jams")).write_text(jams_text([behind("none", 0, "eval")])),
   "the recording source/eval/background/rain/none.wav is in neither"),
  (lambda f: next(f.glob("*eval_000_s2.jams")).write_text(jams_text([behind(0, 0, "eval")])), "the division leaks: 1"),
  (lambda f: [p.write_text(p.read_text().replace('"reverb": null', '"reverb": 0.5')) for p in f.glob("*eval*")],
   "reverb, fix_clipping and peak_normalization are not done here"),
])  # fmt: skip
def test_published_pairs_that_will_not_do(sounds, published, tmp_path, capsys, spoil, message):
  spoil(published)
  assert pairs.main(jams_flags(sounds, published, tmp_path / "out")) == 2
  assert message in capsys.readouterr().err
