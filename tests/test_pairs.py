"""Pairs of mixed clips: what is in them, and who shares what with whom."""

import collections
import itertools

import numpy as np
import pytest
import soundfile

from atst_jax.audio.frontend import FRONTENDS, log_mel
from atst_jax.data.dataset import Dataset
from data_pipeline import pairs
from data_pipeline.mixing.differences import TEMPLATES
from data_pipeline.mixing.loudness import loudness
from data_pipeline.mixing.scenes import trimmed
from data_pipeline.prepare import main as prepare
from data_pipeline.shards import job
from tests.preparing import contents, write_inline
from tests.scene_sounds import RATE, rows, write_scene_sounds

FLAGS = [
  "--frontend=atst",
  "--seconds=2",
  "--train_pairs=12",
  "--valid_pairs=4",
  "--test_pairs=5",
  "--num_shards=3",
]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
  return write_scene_sounds(tmp_path_factory.mktemp("sounds"))


def flags_of(sounds, output, *more):
  return [
    f"--foreground={sounds / 'events'}",
    "--foreground_layout=esc10",
    f"--background={sounds / 'weather'}",
    f"--output={output}",
    *FLAGS,
    *map(str, more),
  ]


@pytest.fixture(scope="module")
def made(sounds, tmp_path_factory):
  root = tmp_path_factory.mktemp("pairs") / "made"
  with pytest.MonkeyPatch.context() as patch:
    write_inline(patch)
    assert pairs.main(flags_of(sounds, root)) == 0
  return root


def test_is_a_prepared_set_whose_ids_pair(made):
  dataset, table = Dataset.load(str(made)), rows(made / "pairs.csv")
  assert dataset.splits == ["test", "train", "valid"]
  assert dataset.label_names == ["clock", "dog_bark", "horn"]
  assert collections.Counter((row["scene"], row["split"]) for row in table) == {
    (scene, split): n
    for scene in ("rain", "wind")
    for split, n in (("train", 12), ("valid", 4), ("test", 5))
  }
  clips = {clip.id: clip for split in dataset.splits for clip in dataset.clips(split)}
  assert clips.keys() == {row[key] for row in table for key in ("id1", "id2")}
  assert len(clips) == 2 * len(table)
  assert all(clip.mel.shape == (201, 64) and clip.multi_label for clip in clips.values())
  assert all(clips[row["id1"]].split == clips[row["id2"]].split == row["split"] for row in table)
  assert prepare(["verify", str(made)]) == 0


def test_the_clips_of_a_pair_differ_as_its_row_says(made):
  dataset, mixed = Dataset.load(str(made)), collections.defaultdict(dict)
  for row in rows(made / "mixtures.csv"):
    mixed[row["clip"]].setdefault(row["role"], []).append(row)
  labels = {
    clip.id: {dataset.label_names[i] for i in clip.labels}
    for s in dataset.splits
    for clip in dataset.clips(s)
  }
  kinds = collections.Counter()
  for pair in rows(made / "pairs.csv"):
    one, other = (mixed[pair[key]] for key in ("id1", "id2"))
    key = lambda scene: [(row["source"], row["lufs"], row["snr_db"]) for row in scene["background"]]
    # the same two recordings at the same level, but
    assert key(one) == key(other) and len(key(one)) == 2
    assert [r["source_time"] for r in one["background"]] != [
      r["source_time"] for r in other["background"]
    ]
    levels = [
      {row["label"]: float(row["snr_db"]) for row in scene.get("event", [])}
      for scene in (one, other)
    ]
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
    # takes of a sound
    recording = row["source"].rsplit("-", 1)[0] if row["role"] == "event" else row["source"]
    owners[row["role"], recording].add(row["split"])
    assert row["role"] == "background" or (row["source"].split("/")[1][0] == "5") == (
      row["split"] == "test"
    )
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
      number = {
        key: float(row[key])
        for key in ("source_time", "time", "heard", "snr_db", "lufs", "gain_db")
      }
      folder = "weather" if row["role"] == "background" else "events"
      sound, _ = soundfile.read(sounds / folder / row["source"])
      if row["role"] == "background":
        first = round(number["source_time"] * RATE)
        sound = np.tile(sound, 3)[first : first + 2 * RATE] * 10 ** (number["gain_db"] / 20)
        target = number["lufs"]
      else:
        loud = np.flatnonzero(np.abs(sound) > 0)
        # half a window of 512 / 44100 s at most is kept around a sound
        near = sound[loud[0] - 93 : loud[-1] + 93]
        sound = trimmed(near, RATE)[: round(number["heard"] * RATE)] * 10 ** (
          number["gain_db"] / 20
        )
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
  assert {k: v for k, v in one.items() if ".work" not in k} == {
    k: v for k, v in two.items() if ".work" not in k
  }
  (tmp_path / "two" / "train-00001-of-00003.tfrecord").unlink()
  write_inline(monkeypatch)
  done, write_tasks = [], job.write_tasks
  monkeypatch.setattr(
    job,
    "write_tasks",
    lambda tasks, *args, **kw: done.extend(tasks) or write_tasks(tasks, *args, **kw),
  )
  assert pairs.main(flags_of(sounds, tmp_path / "two")) == 0
  assert [task.file for task in done] == ["train-00001-of-00003.tfrecord"]
  assert contents(tmp_path / "two")[done[0].file] == one[done[0].file]
  assert contents(tmp_path / "two")["mixtures.csv"] == one["mixtures.csv"]
  # not into shards of another seed
  assert pairs.main(flags_of(sounds, tmp_path / "two", "--seed=1")) == 2
  assert "was prepared with" in capsys.readouterr().err
  drawn = lambda seed: pairs._pairs(
    pairs._parser().parse(flags_of(sounds, "out", f"--seed={seed}")), FRONTENDS["atst"]
  )
  assert all(
    a.id == b.id and a.query.parts != b.query.parts for a, b in zip(drawn(0), drawn(1), strict=True)
  )


def test_more_pairs_begin_with_the_same(sounds):
  draw = lambda *more: pairs._pairs(
    pairs._parser().parse(flags_of(sounds, "out", *more)), FRONTENDS["atst"]
  )
  few = {pair.id: pair for pair in draw()}
  many = {pair.id: pair for pair in draw("--train_pairs=40")}
  assert len(many) == len(few) + 56 and all(many[id] == pair for id, pair in few.items())


def test_same_takes_are_shared(sounds):
  flags = flags_of(sounds, "out", "--same_takes", "--train_pairs=40")
  for pair in pairs._pairs(pairs._parser().parse(flags), FRONTENDS["atst"]):
    one, other = (
      {e.label: (e.source, e.time, e.duration) for e in scene.events}
      for scene in (pair.query, pair.target)
    )
    assert all(one[label] == other[label] for label in one.keys() & other.keys())


def test_a_recording_that_is_silent_costs_its_pairs_and_is_counted(sounds, tmp_path, monkeypatch):
  write_inline(monkeypatch)
  (tmp_path / "dry").mkdir()
  for file in (sounds / "weather" / "rain").iterdir():
    (tmp_path / "dry" / file.name).write_bytes(file.read_bytes())
  soundfile.write(tmp_path / "dry" / "3.wav", np.zeros(3 * RATE), RATE)
  (tmp_path / "list.csv").write_text(
    "path,label\n" + "".join(f"dry/{i}.wav,rain\n" for i in range(12))
  )
  flags = [
    flag for flag in flags_of(sounds, tmp_path / "out") if not flag.startswith("--background=")
  ]
  assert pairs.main([*flags, f"--background={tmp_path / 'list.csv'}", "--train_pairs=30"]) == 0
  manifest = Dataset.load(str(tmp_path / "out")).manifest
  table = rows(tmp_path / "out" / "pairs.csv")
  assert manifest["rejects"] and {reject["reason"] for reject in manifest["rejects"]} == {"silent"}
  lost = {reject["id"][:-3] for reject in manifest["rejects"]}
  assert len(table) == 39 - len(lost) and not lost & {row["id"] for row in table}


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (["--events=dog_bark,hornn"], "no class 'hornn'; did you mean 'horn'?"),
    (["--events=dog_bark"], "--shared_events=1 needs 2 classes"),
    (["--eval_fold=9"], "--eval_fold=9: --foreground has the folds 1, 2, 3, 4, 5"),
    (["--train_pairs=0", "--valid_pairs=0", "--test_pairs=0"], "no pair to write"),
    (["--snr=12,3"], "invalid LOW,HIGH value: '12,3'"),
    (["--level_change=0,3"], "nobody hears a difference"),
    (["--seconds=0.5"], "--seconds=0.5 is not between"),
    (["--foreground=.", "--output=out"], "--output=out lies in --foreground=.: shards would lie"),
    (["--jams=nowhere"], "--foreground_layout goes with drawn pairs, not with --jams"),
    (["--frontend=mel"], "unknown front-end"),
  ],
)
def test_mistakes_are_one_line(sounds, tmp_path, capsys, more, message):
  assert pairs.main(flags_of(sounds, tmp_path / "out", *more)) == 2
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error and not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(made, sounds, tmp_path, capsys):
  """Its numbers are those of what is made without it."""
  assert pairs.main(flags_of(sounds, tmp_path / "out", "--dry_run")) == 0
  mixed = rows(made / "mixtures.csv")
  heard = {
    role: len({row["source"] for row in mixed if row["role"] == role})
    for role in ("event", "background")
  }
  manifest = Dataset.load(str(made)).manifest
  hours = sum(split["num_clips"] for split in manifest["splits"].values()) * 2 / 3600
  assert capsys.readouterr().out.splitlines() == [
    "rain: 12 train, 4 valid, 5 test",
    "wind: 12 train, 4 valid, 5 test",
    f"42 pairs of {heard['event']} foregrounds and {heard['background']} backgrounds, "
    f"about {hours:.2f} hours and 0.00 GiB; nothing written",
  ]
  assert not (tmp_path / "out").exists()
  before = contents(made)
  assert pairs.main(flags_of(sounds, made, "--dry_run")) == 0 and contents(made) == before
  assert pairs.main(flags_of(sounds, made, "--dry_run", "--seed=1")) == 2
  assert "was prepared with" in capsys.readouterr().err


def test_a_class_that_is_event_and_background_is_refused(sounds, tmp_path, capsys):
  flags = [
    f"--foreground={sounds / 'weather'}",
    f"--background={sounds / 'weather'}",
    f"--output={tmp_path / 'out'}",
  ]
  assert pairs.main([*flags, *FLAGS]) == 2
  assert "'rain' is a class of events and of backgrounds" in capsys.readouterr().err


def test_pyloudnorm_missing_names_the_extra(sounds, tmp_path, capsys, monkeypatch):
  from data_pipeline.mixing import loudness as room

  monkeypatch.setitem(__import__("sys").modules, "pyloudnorm", None)
  room.loudness_meter.cache_clear()
  assert pairs.main(flags_of(sounds, tmp_path / "out")) == 2
  assert "pip install -e .[mixtures]" in capsys.readouterr().err
