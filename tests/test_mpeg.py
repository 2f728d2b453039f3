"""MP3s whose first frame does not count the others: libsndfile takes their length from its
bitrate."""

import io

import numpy as np
import pytest

from atst_jax.audio import sound_file, streams
from atst_jax.audio.decode import duration, load_audio
from tests.sounds import RATE, encoded, quality, sound, tone


@pytest.fixture
def uncounted(tmp_path):
  """uncounted(loud) is an MP3 of 3 seconds whose loud half has frames of more bits, without the
  first frame, which counts the others; `loud` comes at the "start" or the "end"."""

  def make(loud, between=b"", behind=b"", before=b""):
    halves = [np.zeros(int(1.5 * RATE)), sound(1.5)][:: 1 if loud == "end" else -1]
    kind = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.4}
    data = encoded(np.concatenate(halves), RATE, **kind)
    data = data[data.index(b"\xff\xfb", 4) :]
    half = data.index(b"\xff\xfb", len(data) // 2)
    path = tmp_path / "uncounted.mp3"
    path.write_bytes(before + data[:half] + between + data[half:] + behind)
    return path

  return make


FALSE = b"\xff\xe3\x18\xc0"  # begins a frame, but none follows
NOISE = b"".join(np.random.default_rng(i).bytes(96) + FALSE for i in range(30))
ID3 = b"ID3\3\0\0\0\0\x17\x38" + NOISE
VBRI = (b"\xff\xfb\x90\xc0" + bytes(32) + b"VBRI" + bytes(400))[:417]  # libsndfile heeds it not
ODD = [{}, {"before": ID3}, {"between": NOISE}, {"between": ID3}, {"before": VBRI}]
ODD += [{"behind": b"TAG" + bytes(125)}, {"behind": b"APETAGEX" + NOISE}]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: "".join(odd) or "plain")
def test_mp3s_without_a_count_are_counted(uncounted, odd):
  with open(uncounted("end", **odd), "rb") as file:
    found = streams.look(file)
  assert found.uncounted and found.promised == pytest.approx(3 * RATE, abs=3 * 1152)


@pytest.mark.parametrize("loud", ["start", "end"])
def test_mp3s_without_a_count_say_what_is_not_read(uncounted, monkeypatch, loud):
  """The bitrate of the first frame gives too few seconds, or too many."""
  monkeypatch.setattr(sound_file, "has_pyav", lambda: False)
  path = uncounted(loud)
  waveform, found = quality(path)
  seconds = len(waveform) / RATE
  assert duration(str(path)) == pytest.approx(seconds, abs=0.001)
  assert duration(str(path)) == pytest.approx(len(load_audio(str(path), RATE)) / RATE, abs=0.001)
  if loud == "end":
    assert seconds == pytest.approx(3, abs=0.1) and found.remarks() == {}
  else:
    told = f"{seconds:.1f} of 3.0 s read, its header does not count its frames"
    assert found.remarks() == {"incomplete": f"{told}; pip install -e .[av] reads the rest"}


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: "".join(odd) or "plain")
def test_pyav_reads_mp3s_without_a_count(uncounted, odd):
  pytest.importorskip("av")
  path = uncounted("start", **odd)
  waveform, found = quality(path)
  assert len(waveform) / RATE == pytest.approx(3, abs=0.1) and found.remarks() == {}
  assert duration(str(path)) == pytest.approx(len(waveform) / RATE, abs=0.06)


@pytest.mark.parametrize("rate", [48000, 32000, 24000, 16000, 12000, 11025, 8000])
def test_mp3s_of_one_bitrate_stay_with_libsndfile(tmp_path, rate):
  """MPEG 1, 2 and 2.5."""
  kind = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.5}
  data = encoded(tone(440, rate, 3.0), rate, **kind)
  sync = data[:2]
  (tmp_path / "a.mp3").write_bytes(data[data.index(sync, 4) :] + b"APETAGEX" + bytes(2000))
  with open(tmp_path / "a.mp3", "rb") as file:
    found = streams.look(file)
  assert not found.uncounted and found.promised == pytest.approx(3 * rate, abs=4 * 1152)
  assert quality(tmp_path / "a.mp3")[1].remarks() == {}


def test_frames_that_are_not_where_they_should_be_are_not_counted():
  """Fewer than there are would be a limit."""
  frame = bytes.fromhex("fffb90c4") + bytes(413)
  look = lambda data: streams.look(io.BytesIO(data))
  assert look(frame * 20).promised == 20 * 1152
  assert look((frame + b"x") * 20) == look(frame + bytes(1000)) == streams.Streams()
  assert look(ID3) == look(ID3[:50]) == streams.Streams()


@pytest.mark.parametrize(
  ("head", "expected"),
  [
    ("ffff c000", (384, 416)),  # layer I, MPEG 1: 384 kbit/s, 44.1 kHz
    ("fff7 c000", (384, 416)),  # layer I, MPEG 2: 192 kbit/s, 22.05 kHz
    ("fffd a400", (1152, 576)),  # layer II, MPEG 1: 192 kbit/s, 48 kHz
    ("fff5 c200", (1152, 836)),  # layer II, MPEG 2: 128, padded
    ("fffb 9200", (1152, 418)),
    ("fff1 5080", None),  # AAC
    ("fffb f000", None),
    ("fffb 9c00", None),
  ],
)
def test_frames_of_mpeg_audio(head, expected):
  found = streams._frame(bytes.fromhex(head))
  assert (found and (found.samples, found.size)) == expected
