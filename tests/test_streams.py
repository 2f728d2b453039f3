"""Files of which libsndfile reads a part: further streams, blocks of codecs; and channels that
cancel each other. PyAV reads them whole; without it the report says what is missing."""

import contextlib

import numpy as np
import pytest
import soundfile

from atst_jax.audio import sound_file, streams
from atst_jax.audio.decode import Reject, duration, load_audio
from atst_jax.data.dataset import Dataset
from data_pipeline.shards import shard
from tests.preparing import run, write_inline
from tests.sounds import RATE, encoded, quality, sound, tone


@pytest.fixture
def chained(tmp_path):
  """chained("ogg") is a file of 1 and then of 0.5 seconds."""

  def make(ending):
    data = b""
    for seconds in (1.0, 0.5):
      soundfile.write(tmp_path / f"part.{ending}", sound(seconds), RATE)
      data += (tmp_path / f"part.{ending}").read_bytes()
    (tmp_path / f"chained.{ending}").write_bytes(data)
    return tmp_path / f"chained.{ending}"

  return make


@pytest.mark.parametrize("ending", ["ogg", "flac", "mp3"])
def test_streams_that_follow_are_said_without_pyav(chained, monkeypatch, warnings, ending):
  monkeypatch.setattr(sound_file, "has_pyav", lambda: False)
  path = chained(ending)
  waveform, found = quality(path)
  assert abs(len(waveform) - RATE) < 10
  remedy = r"; pip install -e .[av] reads them"
  assert found.remarks() == {"incomplete": f"1.0 s read, more streams follow{remedy}"}
  assert quality(path.with_name(f"part.{ending}"))[1].remarks() == {}
  for _ in range(2):
    load_audio(str(path), RATE)
  assert warnings == [f"{path}: not all of it is used: {found.missed}"]


@pytest.mark.parametrize(("ending", "most"), [("ogg", 200), ("flac", 0), ("mp3", 4500)])
def test_pyav_reads_all_streams(chained, ending, most):
  pytest.importorskip("av")
  waveform, found = quality(chained(ending))
  assert 0 <= len(waveform) - 1.5 * RATE <= most and found.remarks() == {}
  tail = sound(0.5)[1000:-5000]
  lag = len(waveform) - len(tail) - 5000
  errors = [
    np.abs(waveform[lag - late : lag - late + len(tail)] - tail).mean()
    for late in range(max(most, 1) + 1)
  ]
  assert min(errors) < 0.25 * np.abs(tail).mean()


def test_what_pyav_misses_between_flacs_is_said(chained, monkeypatch):
  """FFmpeg's parser may take noise for a header, and lose a block of a stream that follows."""
  monkeypatch.setattr(streams, "CHUNK", 1000)  # markers across its ends
  with open(chained("flac"), "rb") as file:
    found = streams.look(file)
  assert found == streams.Streams(more=True, promised=round(1.5 * RATE))
  with soundfile.SoundFile(chained("flac")) as first:
    read = sound_file.Sound(first, found, by_pyav=True)
    read.read(2 * RATE)
    assert read.missed() == "1.00 of 1.50 s read of its streams; cut it apart before each 'fLaC'"


def joined(path, *parts):
  """A file of streams (rate, channels), a second each, of 440 and then of 880 Hz."""
  kind = {"format": path.suffix[1:].upper()}
  waves = [tone(440 * (1 + i), rate, 1.0, channels) for i, (rate, channels) in enumerate(parts)]
  data = [encoded(wave, rate, **kind) for wave, (rate, _) in zip(waves, parts, strict=True)]
  path.write_bytes(b"".join(data))
  return path


@pytest.mark.parametrize(
  ("name", "second"),
  [("a.mp3", (22050, 1)), ("a.flac", (22050, 1)), ("a.flac", (48000, 1)), ("a.flac", (RATE, 2))],
)
def test_what_follows_sounds_as_it_did_at_another_rate(tmp_path, name, second):
  path = joined(tmp_path / name, (RATE, 1), second)
  with open(path, "rb") as file:
    found = streams.look(file)
  assert found.promised == (2 * RATE if path.suffix == ".flac" else None)
  pytest.importorskip("av")
  waveform, found = quality(path)
  assert abs(len(waveform) - 2 * RATE) < 9000  # FFmpeg may miss a block between FLACs, as below
  assert abs(len(waveform) - 2 * RATE) < 3 or second != (48000, 1)
  assert bool(found.missed) == (name == "a.flac" and len(waveform) < 1.9 * RATE)
  assert duration(str(path)) == pytest.approx(2, abs=0.15)
  for i in range(2):
    part = waveform[int(len(waveform) * (i + 0.25) / 2) :][: RATE // 2]
    assert np.abs(np.fft.rfft(part)).argmax() == pytest.approx(220 * (1 + i), abs=1)
    assert np.abs(part).max() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("second", [(RATE, 1), (22050, 2)])
def test_links_that_ffmpeg_does_not_join_are_read_up_to_there(tmp_path, second):
  pytest.importorskip("av")
  path = joined(tmp_path / "a.ogg", (RATE, 2), second)
  waveform, found = quality(path)
  assert len(waveform) == pytest.approx(RATE, abs=600)
  assert duration(str(path)) == pytest.approx(len(waveform) / RATE, abs=0.01)
  said = "1.0 s read, more streams follow; PyAV: Not yet implemented in FFmpeg, patches welcome"
  assert found.remarks() == {"incomplete": said}


def test_libsndfile_is_the_second_try(chained, tmp_path, monkeypatch):
  """Where PyAV fails with a reason, and libsndfile reads a part."""

  @contextlib.contextmanager
  def fails(file, partly=False):
    raise ValueError("not today")
    yield

  monkeypatch.setattr(sound_file, "has_pyav", lambda: True)
  monkeypatch.setattr(sound_file, "open_pyav", fails)
  waveform, found = quality(chained("ogg"))
  assert abs(len(waveform) - RATE) < 10
  told = "1.0 s read, more streams follow; PyAV: not today"
  assert found.remarks() == {"incomplete": told}
  with pytest.raises(Reject, match=r"undecodable \(not today\)"):
    quality(open_flac(tmp_path / "a.flac"))


def test_several_wavs_in_a_row_are_refused(chained):
  with pytest.raises(Reject, match="several WAVs in a row"):
    quality(chained("wav"))


def test_what_pyav_reads_is_prepared_once_it_is_installed(
  chained, tmp_path, monkeypatch, tmp_path_factory
):
  """By the same command; shards that lack nothing stay."""
  pytest.importorskip("av")
  write_inline(monkeypatch)
  chained("ogg")
  (tmp_path / "part.ogg").unlink()
  for i in range(3):
    soundfile.write(tmp_path / f"{i}.wav", sound(0.2), RATE)
  output = tmp_path_factory.mktemp("out") / "shards"
  flags = [f"--input={tmp_path}", f"--output={output}", "--frontend=atst", "--name=one"]
  with monkeypatch.context() as patch:
    for module in (sound_file, shard):
      patch.setattr(module, "has_pyav", lambda: False)
    assert run(*flags) == 0
  (remark,) = Dataset.load(str(output)).manifest["remarks"]
  assert "more streams follow" in (output / "report.html").read_text()
  assert remark["id"] == "chained.ogg" and remark["remark"] == "incomplete"
  inodes = {path.name: path.stat().st_ino for path in output.glob("*.tfrecord")}
  assert run(*flags) == 0
  dataset = Dataset.load(str(output))
  frames = {clip.id: len(clip.mel) for clip in dataset.clips("train")}
  assert frames["chained.ogg"] == 151 and "remarks" not in dataset.manifest
  kept = [inodes[path.name] == path.stat().st_ino for path in output.glob("*.tfrecord")]
  assert sorted(kept) == [False, True, True, True]


def open_flac(path):
  """A FLAC as it is written into a pipe: its header counts no samples."""
  soundfile.write(path, sound(0.5), RATE)
  data = bytearray(path.read_bytes())
  data[21] &= 0xF0
  data[22:26] = bytes(4)
  path.write_bytes(data)
  return path


def test_a_flac_of_open_length(tmp_path, monkeypatch):
  path = open_flac(tmp_path / "a.flac")
  with monkeypatch.context() as patch:
    patch.setattr(sound_file, "has_pyav", lambda: False)
    with pytest.raises(Reject, match=r"leaves the length open .*: pip install -e \.\[av\]"):
      quality(path)
  pytest.importorskip("av")
  np.testing.assert_allclose(quality(path)[0], sound(0.5), atol=2e-5)


def test_pyav_is_the_second_try(tmp_path):
  """A sound under another's ending that libsndfile does not know."""
  av = pytest.importorskip("av")
  with av.open(str(tmp_path / "a.mp4"), "w") as container:
    stream = container.add_stream("alac", rate=RATE, layout="mono")
    frame = av.AudioFrame.from_ndarray(
      (sound(0.5)[None] * 2**15).astype(np.int16), format="s16p", layout="mono"
    )
    frame.sample_rate, frame.pts = RATE, 0
    sizes = av.AudioResampler("s16p", "mono", RATE, frame_size=4096)
    for part in [*sizes.resample(frame), *sizes.resample(None)]:
      container.mux(stream.encode(part))
    container.mux(stream.encode(None))
  (tmp_path / "a.mp4").rename(tmp_path / "a.wav")
  np.testing.assert_allclose(quality(tmp_path / "a.wav")[0], sound(0.5), atol=1e-4)
  (tmp_path / "b.wav").write_bytes(b"no sound at all" * 99)
  with pytest.raises(Reject, match=r"undecodable \(Format not recognised"):
    quality(tmp_path / "b.wav")


@pytest.mark.parametrize("subtype", ["MS_ADPCM", "GSM610"])
def test_codecs_of_blocks_end_where_fact_says(tmp_path, subtype):
  soundfile.write(tmp_path / "a.wav", sound(1.0)[:12345], 8000, subtype=subtype)
  assert len(load_audio(str(tmp_path / "a.wav"), 8000)) == 12345


def test_channels_that_cancel_are_said_and_one_can_be_chosen(tmp_path, monkeypatch, capsys):
  write_inline(monkeypatch)
  left, other = sound(1.0), sound(1.0, seed=1)
  many = np.zeros((RATE, 16), np.float32)
  many[:, 9] = other
  (tmp_path / "in").mkdir()
  for name, samples in {
    "inverted": np.stack([0.9 * left, -left], 1),
    "many": many,
    "stereo": np.stack([left, other], 1),
    "mono": left,
  }.items():
    soundfile.write(tmp_path / "in" / f"{name}.wav", samples, RATE, subtype="FLOAT")
  path = lambda name: str(tmp_path / "in" / f"{name}.wav")
  for name, expected in (("inverted", left), ("many", other), ("mono", left)):
    loudest, found = quality(path(name), channels="loudest")
    np.testing.assert_array_equal(np.abs(loudest), np.abs(expected))
    assert not found.remarks()
  np.testing.assert_array_equal(quality(path("stereo"), channels="2")[0], other)
  with pytest.raises(Reject, match=r"no_channel \(it has 1, --channels=2\)"):
    quality(path("mono"), channels="2")
  flags = [f"--input={tmp_path / 'in'}", "--frontend=atst"]
  assert run(*flags, f"--output={tmp_path / 'mean'}") == 0
  told = capsys.readouterr().out
  assert "2 files whose channels cancel each other" in told and "--channels=loudest" in told
  assert "'inverted.wav': 26 dB\n" in told and "'many.wav': 24 dB\n" in told
  assert run(*flags, f"--output={tmp_path / 'two'}", "--channels=2") == 0
  dataset = Dataset.load(str(tmp_path / "two"))
  assert [reject["id"] for reject in dataset.manifest["rejects"]] == ["mono.wav"]
  assert dataset.manifest["preparation"]["channels"] == "2" and "remarks" not in dataset.manifest
  assert run(*flags, f"--output={tmp_path / 'two'}") == 2  # of another plan
  for wrong in ("0", "left", "1.5"):
    assert run(*flags, f"--output={tmp_path / 'new'}", f"--channels={wrong}") == 2
    assert "choose mean, loudest, or a channel's number" in capsys.readouterr().err
