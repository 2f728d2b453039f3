"""What is audio: headers of WAVs that recorders left, other endings, and what only PyAV reads."""

import struct

import numpy as np
import pytest
import soundfile

from atst_jax.audio import formats, sound_file
from atst_jax.audio.decode import Quality, Reject, duration, load_audio, read_pieces
from tests.preparing import contents, run, write_inline

RATE = 16000


def samples(count):
  """(count,) int16 noise below a third of full scale."""
  return np.random.default_rng(0).integers(-9000, 9000, count).astype("<i2")


def write_wav(
  path, data, *, size=None, riff=None, align=None, channels=1, rate=RATE, extra=b"", tail=b""
):
  """A WAV of 16 bits, whose header may say what it likes."""
  align = 2 * channels if align is None else align
  head = struct.pack("<HHIIHH", 0xFFFE if extra else 1, channels, rate, 2 * rate, align, 16) + extra
  fmt = struct.pack("<4sI", b"fmt ", len(head)) + head
  size = 2 * data.size if size is None else size
  body = b"WAVE" + fmt + struct.pack("<4sI", b"data", size) + data.tobytes() + tail
  riff = len(body) if riff is None else riff
  path.write_bytes(struct.pack("<4sI", b"RIFF", riff) + body)
  return str(path)


EXTENSIBLE = struct.pack("<HHIH14s", 22, 16, 63, 1, bytes.fromhex("000000001000800000aa00389b71"))


@pytest.mark.parametrize(
  "header",
  [
    {"size": 0xFFFFFFFF},
    {"size": 2 * 4000 + 16},
    {"riff": 36},
    {"tail": b"x"},
    {"align": 0},
    {"extra": EXTENSIBLE},
    {"rate": 192_000},
    {"rate": 3200},
  ],
  ids=str,
)
def test_fault_16_odd_headers_are_read(tmp_path, header):
  path = write_wav(tmp_path / "a.wav", samples(4000), **header)
  read = load_audio(path, header.get("rate", RATE))
  np.testing.assert_array_equal(read, samples(4000) / np.float32(2**15))


def test_fault_16_six_channels_are_averaged(tmp_path):
  data = samples(6 * 4000).reshape(-1, 6)
  path = write_wav(tmp_path / "a.wav", data, channels=6, extra=EXTENSIBLE)
  np.testing.assert_allclose(load_audio(path, RATE), data.mean(1) / 2**15, atol=1e-6)


@pytest.mark.parametrize("header", [{}, {"riff": 0}, {"riff": 0xFFFFFFFF}, {"tail": b"x"}], ids=str)
def test_a_header_that_was_never_finished(tmp_path, header):
  path = write_wav(tmp_path / "a.wav", samples(4000), size=0, **header)
  with pytest.raises(Reject, match=r"never finished.*800[01] bytes.*--repair_headers"):
    list(read_pieces(path, sample_rate=RATE))
  ((_, read),) = read_pieces(path, sample_rate=RATE, repair_headers=True)
  np.testing.assert_array_equal(read, samples(4000) / np.float32(2**15))


@pytest.mark.parametrize("tail", [b"", struct.pack("<4sI4s", b"LIST", 4, b"INFO")])
def test_an_empty_wav_is_no_unfinished_one(tmp_path, tail):
  path = write_wav(tmp_path / "a.wav", samples(0), tail=tail)
  with pytest.raises(Reject, match=r"empty \(no samples\)"):
    list(read_pieces(path, sample_rate=RATE, repair_headers=True))


def test_prepare_repairs_headers(tmp_path, monkeypatch, capsys):
  write_inline(monkeypatch)
  (tmp_path / "in").mkdir()
  write_wav(tmp_path / "in" / "whole.wav", samples(4000))
  (tmp_path / "in" / "list.txt").touch()
  flags = (f"--input={tmp_path / 'in'}", "--frontend=atst", "--name=one")
  assert run(*flags, f"--output={tmp_path / 'whole'}") == 0
  assert "1 files skipped, not audio or hidden: 1 .txt" in capsys.readouterr().out
  write_wav(tmp_path / "in" / "whole.wav", samples(4000), size=0)
  assert run(*flags, f"--output={tmp_path / 'refused'}") == 2
  assert "never finished" in capsys.readouterr().err
  assert run(*flags, f"--output={tmp_path / 'repaired'}", "--repair_headers") == 0
  whole, repaired = (
    {name: data for name, data in contents(tmp_path / folder).items() if "tfrecord" in name}
    for folder in ("whole", "repaired")
  )
  assert whole == repaired != {}


@pytest.mark.parametrize("ending", ["caf", "au", "w64", "aifc", "snd", "rf64"])
def test_what_libsndfile_reads_is_audio(tmp_path, ending):
  kind = {"aifc": "AIFF", "snd": "AU"}.get(ending, ending.upper())
  soundfile.write(tmp_path / f"a.{ending}", samples(4000), RATE, format=kind, subtype="PCM_16")
  assert formats.is_audio(f"a.{ending}") and not formats.needs_pyav(f"a.{ending}")
  read = load_audio(str(tmp_path / f"a.{ending}"), RATE)
  np.testing.assert_array_equal(read, samples(4000) / np.float32(2**15))


def test_without_pyav_the_reject_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setattr(sound_file, "has_pyav", lambda: False)
  (tmp_path / "a.m4a").write_bytes(b"x" * 100)
  with pytest.raises(Reject, match=r"\.m4a needs PyAV: pip install -e \.\[av\]"):
    list(read_pieces(str(tmp_path / "a.m4a"), sample_rate=RATE))


def encode(path, codec, sound, rate):
  """Writes a (N,) float32 sound by PyAV."""
  av = pytest.importorskip("av")
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=rate, layout="mono")
    stream.bit_rate = 128_000
    resampler = av.AudioResampler(
      format=stream.codec_context.codec.audio_formats[0].name,
      layout="mono",
      rate=rate,
      frame_size=stream.codec_context.frame_size or 1024,
    )
    frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
      container.mux(stream.encode(part))
    container.mux(stream.encode(None))


@pytest.mark.parametrize(
  ("name", "codec", "rate", "late", "more"),
  [
    ("a.m4a", "aac", 44100, 0, 0),
    ("a.mp4", "aac", 44100, 0, 0),
    ("a.mov", "aac", 44100, 0, 0),
    ("a.m4a", "alac", 44100, 0, 0),
    ("a.webm", "libopus", 48000, 0, 0),
    ("a.mkv", "aac", 44100, 0, 1023),  # it does not tell where the last frame ends
    ("a.aac", "aac", 44100, 1024, 2047),  # nor this where the first begins
    ("a.wma", "wmav2", 44100, -2048, 0),
  ],
)
def test_pyav_gives_what_was_encoded(tmp_path, name, codec, rate, late, more):
  """`late`, `more`: samples of silence before the sound, and at most so many too many in all."""
  rng = np.random.default_rng(0)
  sound = np.convolve(rng.standard_normal(rate + 317), np.hanning(32), "same")
  sound = (0.4 * sound / np.abs(sound).max()).astype(np.float32)
  encode(tmp_path / name, codec, sound, rate)
  read = load_audio(str(tmp_path / name), rate)
  assert len(sound) - 2 * abs(min(late, 0)) <= len(read) <= len(sound) + more
  assert duration(str(tmp_path / name)) == pytest.approx(len(read) / rate, abs=0.05)
  middle = slice(4096, len(sound) - 8192)
  found = read[middle.start + late : middle.stop + late]
  error = np.sqrt(np.mean((found - sound[middle]) ** 2) / np.mean(sound[middle] ** 2))
  assert error < (1e-4 if codec == "alac" else 0.25)
  blocks = list(read_pieces(str(tmp_path / name), sample_rate=rate, max_seconds=0.4))
  assert [number for number, _ in blocks] == [0, 1] or len(blocks) == 3
  np.testing.assert_array_equal(
    np.concatenate([block for _, block in blocks])[: len(read)],
    read[: sum(len(block) for _, block in blocks)],
  )


@pytest.mark.parametrize("name", ["noise", "half", "list", "text", "other"])
def test_pyav_rejects_damage_and_opens_no_other_file(tmp_path, name):
  pytest.importorskip("av")
  sound = samples(RATE).astype(np.float32) / 2**15
  encode(tmp_path / "whole.m4a", "aac", sound, RATE)
  encode(tmp_path / "other.nut", "aac", sound, RATE)  # sound, but no container that is expected
  soundfile.write(tmp_path / "real.wav", sound, RATE)
  whole = (tmp_path / "whole.m4a").read_bytes()
  content = {
    "noise": np.random.default_rng(0).bytes(5000),
    "half": whole[: len(whole) // 2],
    "list": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.wav\n#EXT-X-ENDLIST\n",
    "other": (tmp_path / "other.nut").read_bytes(),
    "text": b"ffconcat version 1.0\nfile 'real.wav'\n",
  }[name]
  (tmp_path / "a.m4a").write_bytes(content)
  with pytest.raises(Reject) as raised:
    list(read_pieces(str(tmp_path / "a.m4a"), sample_rate=RATE))
  assert raised.value.reason == "undecodable" and str(tmp_path) not in raised.value.detail


@pytest.mark.parametrize("riff", [None, 36 + 8000])
def test_a_header_that_tells_of_too_little(tmp_path, riff):
  """Its size stands for the first half second: the other samples are told, or read."""
  path = write_wav(tmp_path / "a.wav", samples(2 * RATE), size=RATE, riff=riff)
  found = Quality()
  ((_, read),) = read_pieces(path, sample_rate=RATE, quality=found)
  assert len(read) == RATE // 2
  told = "0.5 s read, the header tells of no more, 1.5 s follow; `prepare --repair_headers` reads"
  assert found.remarks() == {"incomplete": f"{told} them"}
  ((_, read),) = read_pieces(
    path, sample_rate=RATE, quality=(found := Quality()), repair_headers=True
  )
  np.testing.assert_array_equal(read, samples(2 * RATE) / np.float32(2**15))
  assert found.remarks() == {}


CHUNK = np.random.default_rng(0).bytes(RATE)


@pytest.mark.parametrize(
  "tail",
  [
    b"LIST" + struct.pack("<I", RATE) + CHUNK,
    b"LIST" + struct.pack("<I", RATE - 1) + CHUNK[1:] + b"bext" + struct.pack("<I", RATE) + CHUNK,
    b"id3 " + struct.pack("<I", RATE) + CHUNK,
    b"ID3\x03\x00\x00\x00\x00\x7d\x00" + CHUNK,
    bytes(RATE),
    CHUNK[:1000],
  ],
  ids=["LIST", "not padded", "id3", "ID3", "zeros", "short"],
)
@pytest.mark.parametrize("odd", [0, 1])
def test_what_may_follow_samples_is_not_taken_for_some(tmp_path, tail, odd):
  """Nor where the samples are of an odd number of bytes, and not padded."""
  data = samples(RATE).view("u1")[: RATE + odd]
  path = write_wav(tmp_path / "a.wav", data, size=len(data), tail=tail)
  ((_, read),) = read_pieces(path, sample_rate=RATE, quality=(found := Quality()))
  assert len(read) == RATE // 2 and found.remarks() == {}
  ((_, read),) = read_pieces(path, sample_rate=RATE, repair_headers=True)
  assert len(read) == RATE // 2
