"""Segments of recordings: every one is the slice of the whole, is decoded in one pass, and is
accounted for."""

import time

import numpy as np
import pytest
import soundfile
import threadpoolctl

from atst_jax.audio import decode, segments
from atst_jax.audio.decode import load_audio
from atst_jax.audio.frontend import get_frontend, mel_filters
from atst_jax.audio.segments import read_segments
from atst_jax.data.dataset import Dataset
from atst_jax.util.errors import UserError
from data_pipeline.shards.shard import Settings, ShardTask, write_task
from data_pipeline.sources.files import Source
from data_pipeline.sources.inputs import list_files, list_sources
from data_pipeline.sources.segments import seconds_of
from tests.preparing import contents, run, write_inline

RATE = 16000


def noise(path, seconds=4.0, rate=RATE, channels=1, seed=0, **options):
  samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (int(seconds * rate), channels))
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, samples, rate, **options)
  return str(path)


def read(path, spans, **options):
  return [*read_segments(path, spans, sample_rate=RATE, **{"min_samples": 513, **options})]


@pytest.mark.parametrize(
  ("name", "rate", "options"),
  [
    ("a.wav", 16000, {}),
    ("a.flac", 44100, {}),
    ("a.ogg", 44100, {}),
    ("a.opus", 48000, {"format": "OGG", "subtype": "OPUS"}),
    ("a.mp3", 22050, {}),
    ("a.aiff", 8000, {}),
    ("b.wav", 8000, {"subtype": "IMA_ADPCM"}),
  ],
)
def test_a_segment_is_the_slice_of_the_whole(tmp_path, monkeypatch, name, rate, options):
  """To the last bit, whatever the format, the blocks and what else is cut: also where libsndfile's
  seeking is wrong."""
  monkeypatch.setattr(decode, "BLOCK_VALUES", 30_000)
  path = noise(tmp_path / name, 5.0, rate, channels=1 if name == "b.wav" else 2, **options)
  whole = load_audio(path, RATE)
  spans = [(0, 1), (0.25, 3.5), (1, 4.5), (1.1, 1.2), (3.9, 4), (4, np.inf), (0, np.inf)]
  found = {}
  for piece in read(path, spans, max_seconds=2):
    if piece.waveform is not None:
      found.setdefault(piece.index, []).append(piece.waveform)
  for index, (start, end) in enumerate(spans):
    stop = round(end * RATE) if end < np.inf else None
    np.testing.assert_array_equal(
      np.concatenate(found[index]), whole[round(start * RATE) : stop], str(spans[index])
    )
  assert [len(found[i]) for i in range(7)] == [1, 2, 2, 1, 1, 1, 3]


def test_what_a_segment_lacks_is_said(tmp_path):
  path = noise(tmp_path / "a.wav")
  spans = [(3, 2), (1, 1), (1, 1.01), (3, 4.04), (3, 4.5), (9, 10), (0, 1), (5, np.inf)]
  found = {piece.index: piece for piece in read(path, spans)}
  rejects = {i: (p.reject.reason, p.reject.detail) for i, p in found.items() if p.reject}
  assert rejects == {
    0: ("reversed", "3 to 2 s"),
    1: ("reversed", "1 to 1 s"),
    2: ("too_short", "160 samples at 16000 Hz, 513 needed"),
    4: ("beyond_end", "it ends at 4.5 s, the file at 4.00 s"),
    5: ("beyond_end", "it ends at 10 s, the file at 4.00 s"),
    7: ("too_short", "0 samples at 16000 Hz, 513 needed"),
  }
  assert len(found[3].waveform) == RATE and all(piece.last for piece in found.values())
  (piece,) = read(path, [(1, 2)], context=[1.5])
  np.testing.assert_array_equal(piece.waveform, load_audio(path, RATE)[: round(3.5 * RATE)])


def test_a_fault_spoils_only_what_is_behind_it(tmp_path, monkeypatch):
  monkeypatch.setattr(decode, "BLOCK_VALUES", RATE // 2)
  samples = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE)
  samples[int(2.2 * RATE)] = np.nan
  soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
  found = read(str(tmp_path / "a.wav"), [(0, 1), (1, 2), (1, 2.1), (3, 4)])
  assert [str(piece.reject) for piece in found] == [
    *("None", "None", "None"),
    "non_finite (behind 2.0 s)",
  ] or [piece.reject is None for piece in found] == [True, True, False, False]
  (one,) = read(str(tmp_path / "absent.wav"), [(0, 1)])
  assert one.reject.reason == "missing"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
  """Two recordings of 4 and 3 seconds."""
  root = tmp_path_factory.mktemp("recordings")
  noise(root / "day" / "one.flac", 4.0, 22050)
  noise(root / "two.wav", 3.0, channels=2, seed=1)
  return root


def prepared(root, table, tmp_path, monkeypatch, *flags):
  write_inline(monkeypatch)
  path = tmp_path / "table.csv"
  path.write_text(table)
  flags = (f"--input={path}", f"--root={root}", f"--output={tmp_path / 'out'}", *flags)
  assert run(*flags, "--frontend=atst") == 0
  return Dataset.load(str(tmp_path / "out"))


TABLE = """path,onset,offset,label,split
day/one.flac,0,1.5,dog,
two.wav,0.5,1,cat,
day/one.flac,1.25,2,cat,
day/one.flac,3.5,4.5,dog,
two.wav,2,1,cat,
two.wav,2,2.75,dog,
"""


def test_rows_of_a_table_are_clips(recordings, tmp_path, monkeypatch, capsys):
  opened = []
  reading = segments.open_sound
  monkeypatch.setattr(
    segments, "open_sound", lambda path, repair: opened.append(path) or reading(path, repair)
  )
  dataset = prepared(recordings, TABLE, tmp_path, monkeypatch)
  clips = {clip.id: clip for clip in dataset.clips("train")}
  frames = {id: (len(clip.mel), dataset.label_names[clip.labels[0]]) for id, clip in clips.items()}
  assert frames == {
    "day/one.flac#0-1.5": (151, "dog"),
    "day/one.flac#1.25-2": (76, "cat"),
    "two.wav#0.5-1": (51, "cat"),
    "two.wav#2-2.75": (76, "dog"),
  }
  assert {clip.id: clip.group for clip in clips.values()} == {
    id: id.partition("#")[0] for id in clips
  }
  assert dataset.manifest["rejects"] == [
    {
      "id": "day/one.flac#3.5-4.5",
      "reason": "beyond_end",
      "detail": "line 5: it ends at 4.5 s, the file at 4.00 s",
    },
    {"id": "two.wav#2-1", "reason": "reversed", "detail": "line 6: 2 to 1 s"},
  ]
  assert len(opened) == 2  # each recording once
  assert "groups: 2, one for each recording;" in capsys.readouterr().out
  before = contents(tmp_path / "out")
  again = prepared(recordings, TABLE, tmp_path, monkeypatch)
  assert contents(tmp_path / "out") == before and again.manifest == dataset.manifest
  flags = (f"--input={tmp_path / 'table.csv'}", f"--root={recordings}", "--frontend=atst")
  assert run(*flags, f"--output={tmp_path / 'out'}", "--context=0.5") == 2
  assert "context None, now it is 0.5" in capsys.readouterr().err
  assert run(*flags, f"--output={tmp_path / 'new'}", "--dry_run") == 0
  assert "6 files (manifest)" in capsys.readouterr().out


def test_a_rest_without_a_clip_is_no_loss(tmp_path, monkeypatch):
  """A recording whose one segment is too short, and what is left of it too, alone in its shard."""
  write_inline(monkeypatch)
  rows = ["path,start,end", "short.wav,0.5,0.51", *(f"{i}.wav,1,2" for i in range(3))]
  (tmp_path / "table.csv").write_text("\n".join(rows))
  for name, seconds in (("short", 1.4), *((i, 4.0) for i in range(3))):
    noise(tmp_path / f"{name}.wav", seconds)
  flags = [f"--input={tmp_path / 'table.csv'}", "--frontend=atst", f"--output={tmp_path / 'out'}"]
  assert run(*flags, "--rest") == 0
  dataset = Dataset.load(str(tmp_path / "out"))
  assert [reject["id"] for reject in dataset.manifest["rejects"]] == ["short.wav#0.5-0.51"]
  assert dataset.num_clips("train") == 9 and len(dataset.shards("train")) == 3
  before = contents(tmp_path / "out")
  assert run(*flags, "--rest") == 0 and contents(tmp_path / "out") == before


@pytest.mark.parametrize(
  ("text", "seconds"),
  [
    ("12.5", 12.5),
    ("12,5", 12.5),
    (" 3. ", 3),
    (".5", 0.5),
    (",5", 0.5),
    ("5e-05", 5e-5),
    ("1.250000e+01", 12.5),
    ("2E3", 2000),
    ("", 7),
    *((text, None) for text in (".", "-1", "1e99", "1e", "e5", "0x1", "nan", "1:30", "1.2.3")),
  ],
)
def test_times_of_tables(text, seconds):
  """As pandas and numpy write them."""
  if seconds is None:
    with pytest.raises(UserError, match="line 2: the time"):
      seconds_of(text, 7.0, "line 2")
  else:
    assert seconds_of(text, 7.0, "line 2") == seconds


def test_pieces_of_a_damaged_segment_are_kept(tmp_path, monkeypatch):
  """In shards that are dealt once more, too: beside a file that cannot be read, alone in its
  shard. A silent piece costs no other."""
  samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8 * RATE)
  samples[6 * RATE] = np.nan
  soundfile.write(tmp_path / "nan.wav", samples, RATE, subtype="FLOAT")
  samples[6 * RATE], samples[: 2 * RATE] = 0, 0
  soundfile.write(tmp_path / "silent.wav", samples, RATE, subtype="FLOAT")
  (tmp_path / "bad.wav").write_bytes(b"no sound")
  monkeypatch.setattr(decode, "BLOCK_VALUES", RATE // 2)
  noise(tmp_path / "good.wav")
  rows = [f"{name}.wav,0,7" for name in ("nan", "silent", "bad")] + ["good.wav,0,1"]
  table = "\n".join(["path,start,end", *rows])
  flags = ("--max_seconds=2", "--reject_silent")
  dataset = prepared(tmp_path, table, tmp_path, monkeypatch, *flags)
  assert [(r["id"], r["reason"], r.get("kept")) for r in dataset.manifest["rejects"]] == [
    ("bad.wav#0-7", "undecodable", None),
    ("nan.wav#0-7", "non_finite", 3),
    ("silent.wav#0-7", "silent", 3),
  ]
  assert "; 3 other pieces are kept" in dataset.manifest["rejects"][1]["detail"]
  assert sorted(clip.id for clip in dataset.clips("train")) == [
    "good.wav#0-1",
    *(f"nan.wav#0-7#000{i}" for i in (0, 1, 2)),
    *(f"silent.wav#0-7#000{i}" for i in (1, 2, 3)),
  ]
  assert len(dataset.shards("train")) == 3


def test_context_and_the_rest(recordings, tmp_path, monkeypatch, capsys):
  """What no row covers has no label, and is in the recording's split and group."""
  table = TABLE.replace("dog,\n", "dog,test\n").replace("cat,\n", "cat,test\n")
  dataset = prepared(recordings, table, tmp_path, monkeypatch, "--rest", "--context=0.25")
  clips = {clip.id: clip for clip in dataset.clips("test")}
  bare = {id: clip.group for id, clip in clips.items() if not clip.labels}
  assert bare == {"day/one.flac#2-3.5": "day/one.flac", "two.wav#1-2": "two.wav"}
  assert len(clips["day/one.flac#2-3.5"].mel) == 151  # has no context
  assert len(clips["day/one.flac#0-1.5"].mel) == 176  # nothing is in front of it
  assert {reject["reason"] for reject in dataset.manifest["rejects"]} == {"beyond_end", "reversed"}
  mixed = tmp_path / "mixed.csv"
  mixed.write_text(TABLE.replace("dog,\n", "dog,test\n"))
  listing = list_sources(str(mixed), root=str(recordings), rest=True)
  assert "no rest of 2 recordings" in listing.notes[-1]
  with pytest.raises(UserError, match="--rest needs segments"):
    list_sources(str(recordings), rest=True)
  mixed.write_text("path,start,end\ntwo.wav,,\nday/one.flac,1,2\n")
  whole = lambda **options: [
    source.whole for source in list_sources(str(mixed), root=str(recordings), **options).sources
  ]
  assert whole() == [False, True] and whole(whole_files=True) == [True, True]
  flags = (f"--input={recordings}", f"--output={tmp_path / 'new'}", "--frontend=atst")
  assert run(*flags, "--context=0.5") == 2 and not (tmp_path / "new").exists()
  assert "--context=0.5 needs segments: a table with" in capsys.readouterr().err
  with pytest.raises(UserError, match="lists segments of recordings, and whole files are taken"):
    list_files(str(mixed), root=str(recordings))


@pytest.mark.slow
def test_segments_are_not_slower_than_the_recording(tmp_path):
  """A thousand pieces of a second, of a third of an hour; processor seconds of one thread."""
  path = tmp_path / "long.flac"
  minute = np.random.default_rng(0).uniform(-0.3, 0.3, (60 * 22050, 2))
  with soundfile.SoundFile(path, "w", 22050, 2) as file:
    for _ in range(20):
      file.write(minute)
  frontend = get_frontend("atst")
  common = Settings(str(tmp_path), str(tmp_path), frontend, mel_filters(frontend), (), 60.0)
  rows = [
    Source(str(path), f"long.flac#{i}", start=1.2 * i, end=1.2 * i + 1, line=i + 2)
    for i in range(1000)
  ]
  seconds = []
  with threadpoolctl.threadpool_limits(1):
    for sources in ((Source(str(path), "long.flac"),), rows, (Source(str(path), "long.flac"),)):
      started = time.process_time()
      write_task(ShardTask("a.tfrecord", "train", tuple(sources)), common, lambda *_: None)
      seconds.append(time.process_time() - started)
  assert min(seconds[0], seconds[2]) / seconds[1] > 0.8, seconds
