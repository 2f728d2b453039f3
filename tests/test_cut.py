"""Files that were cut are used, and the report says so; sizes that are left open are no cut."""

import struct

import numpy as np
import pytest
import soundfile

from atst_jax.audio import streams
from atst_jax.audio.decode import Reject, load_audio
from tests.sounds import RATE, encoded, quality, sound


@pytest.mark.parametrize(
  ("ending", "subtype"),
  [
    *(("wav", None), ("wav", "MS_ADPCM"), ("mp3", None), ("au", "PCM_16"), ("au", "ULAW")),
    *(("aiff", "PCM_24"), ("aiff", "IMA_ADPCM"), ("w64", "PCM_16"), ("rf64", "PCM_16")),
  ],
)
def test_a_file_that_was_cut_is_said(tmp_path, ending, subtype):
  path = tmp_path / f"a.{ending}"
  soundfile.write(path, sound(2.0), RATE, subtype=subtype)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  waveform, found = quality(path)
  assert 0.9 < len(waveform) / RATE < 1.1
  told = "1.9" if subtype == "MS_ADPCM" else "2.0"  # of whole blocks
  told = f"{len(waveform) / RATE:.1f} s read, the header tells of {told} s: it was cut"
  assert found.remarks() == {"incomplete": told}


@pytest.mark.parametrize(("subtype", "rate"), [("VORBIS", RATE), ("OPUS", 48000)])
def test_an_ogg_that_was_cut_is_said(tmp_path, subtype, rate):
  path = tmp_path / "a.ogg"
  noise = np.random.default_rng(0).uniform(-0.1, 0.1, 6 * rate)
  whole = encoded(noise, rate, format="OGG", subtype=subtype)
  path.write_bytes(whole + b"junk")
  assert quality(path)[1].remarks() == {}
  path.write_bytes(whole[: len(whole) // 2])
  waveform, found = quality(path)
  told = f"{len(waveform) / RATE:.1f} s read, its last page does not end the stream: it was cut"
  assert found.remarks() == {"incomplete": told}
  for end in (whole.rindex(b"OggS"), -10):  # behind a whole page, and in the last one
    path.write_bytes(whole[:end])
    with open(path, "rb") as file:
      assert streams.look(file).unended
  place = whole.index(b"OggS", len(whole) // 2)
  path.write_bytes(whole[:place] + b"oops" + whole[place + 4 :])  # damaged, and not cut
  with open(path, "rb") as file:
    assert streams.look(file) == streams.Streams()


def test_an_ogg_that_was_cut_early_is_said(tmp_path):
  path = tmp_path / "a.ogg"
  path.write_bytes(encoded(sound(2.0), RATE, format="OGG")[:5000])
  with pytest.raises(Reject, match="no samples: it was cut"):
    quality(path)


@pytest.mark.parametrize(
  ("ending", "name", "form", "sizes"),
  [
    ("au", b".snd", ">8xI", (0xFFFFFFFF,)),
    ("aiff", b"SSND", ">4xI", (0, 0x7F000008, 0x7FFFFFFF, 0xFFFFFFFF)),
    ("w64", b"data", "<16xQ", (0, 24, 2**63 - 1, 2**64 - 1)),
    ("rf64", b"ds64", "<16xQ", (0, 2**63 - 1, 2**64 - 1)),
  ],
)
def test_sizes_left_open_are_no_cut(tmp_path, ending, name, form, sizes):
  """As recorders and pipes leave them (SoX 0x7f000000, FFmpeg 2**63 - 1)."""
  path = tmp_path / f"a.{ending}"
  soundfile.write(path, sound(0.5), RATE)
  whole, expected = path.read_bytes(), load_audio(str(path), RATE)
  place = whole.index(name) + struct.calcsize(form[:-1])
  for size in sizes:
    data = bytearray(whole)
    struct.pack_into(form[0] + form[-1], data, place, size)
    path.write_bytes(data)
    with open(path, "rb") as file:
      assert streams.look(file) == streams.Streams()
    if ending in ("au", "aiff"):
      waveform, found = quality(path)
      np.testing.assert_array_equal(waveform, expected)
      assert found.remarks() == {}
