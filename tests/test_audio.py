"""Decoding: every kind of file either gives the right waveform or is rejected with its reason."""

import os
import tracemalloc

import numpy as np
import pytest
import soundfile

from atst_jax.audio import decode
from atst_jax.audio.channels import mean_of
from atst_jax.audio.decode import Quality, Reject, load_audio, read_pieces
from atst_jax.util.errors import UserError

RATE = 16000


def tone(seconds, rate, hz=440.0):
  """(N,) sine of amplitude 0.5."""
  return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)


def write(path, samples, rate=RATE, subtype=None):
  soundfile.write(path, samples, rate, subtype=subtype)
  return str(path)


def reason(path, **kwargs):
  with pytest.raises(Reject) as raised:
    list(read_pieces(str(path), sample_rate=RATE, min_samples=513, **kwargs))
  # details go to dataset.json, whatever the place
  assert str(os.path.dirname(path)) not in raised.value.detail
  return raised.value.reason


@pytest.mark.parametrize(
  ("name", "rate", "subtype", "error"),
  [
    ("a.wav", 16000, "PCM_U8", 0.01),
    ("a.wav", 16000, "PCM_16", 1e-4),
    ("a.wav", 8000, "PCM_24", 2e-3),
    ("a.wav", 48000, "PCM_32", 1e-3),
    ("a.wav", 44100, "FLOAT", 1e-3),
    ("a.wav", 22050, "DOUBLE", 1e-3),
    ("a.wav", 8000, "ULAW", 0.02),
    ("a.flac", 44100, "PCM_24", 1e-3),
    ("a.aiff", 44100, "PCM_16", 1e-3),
    ("a.ogg", 44100, "VORBIS", 0.03),
    ("a.opus", 48000, "OPUS", 0.03),
    ("a.mp3", 44100, None, 0.03),
  ],
)
def test_fault_16_every_format_gives_the_same_sound(tmp_path, name, rate, subtype, error):
  path = tmp_path / name
  kind = "OGG" if name.endswith("opus") else None
  soundfile.write(path, tone(1.5, rate), rate, subtype=subtype, format=kind)
  quality = Quality()
  ((number, waveform),) = read_pieces(str(path), sample_rate=RATE, quality=quality)
  assert number is None and waveform.dtype == np.float32 and quality.sample_rate == rate
  assert abs(len(waveform) - 1.5 * RATE) < 0.1 * RATE  # mp3 pads
  middle = slice(4000, 20000)  # clear of the resampler's and the codecs' edges
  np.testing.assert_allclose(waveform[middle], tone(1.5, RATE)[middle], atol=error)


def test_fault_16_a_wrong_name_does_not_matter(tmp_path):
  for suffix in ("flac", "ogg", "aiff"):
    write(tmp_path / f"a.{suffix}", tone(1, RATE))
    os.rename(tmp_path / f"a.{suffix}", tmp_path / f"{suffix}.wav")
    assert len(load_audio(str(tmp_path / f"{suffix}.wav"), RATE)) == RATE


def test_fault_16_channels_are_averaged(tmp_path):
  left, right = tone(1, RATE), np.full(RATE, 0.25)
  path = write(tmp_path / "a.wav", np.stack([left, right, np.zeros(RATE)], 1), subtype="FLOAT")
  np.testing.assert_allclose(load_audio(path, RATE), (left + right) / 3, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_mean_of_two_channels_has_the_bits_of_any_other(channels):
  block = np.random.default_rng(0).uniform(-1, 1, (9999, channels)).astype(np.float32)
  np.testing.assert_array_equal(mean_of(block), block.mean(axis=1))
  assert mean_of(block).dtype == np.float32


def test_fault_16_rejects_have_their_reason(tmp_path):
  assert reason(tmp_path / "absent.wav") == "missing"
  (tmp_path / "zero.wav").touch()
  assert reason(tmp_path / "zero.wav") == "empty"
  assert reason(write(tmp_path / "header.wav", np.zeros(0))) == "empty"
  (tmp_path / "text.wav").write_text("these are words " * 100)
  assert reason(tmp_path / "text.wav") == "undecodable"
  (tmp_path / "bytes.mp3").write_bytes(np.random.default_rng(0).bytes(5000))
  assert reason(tmp_path / "bytes.mp3") == "undecodable"
  (tmp_path / "folder.wav").mkdir()
  assert reason(tmp_path / "folder.wav") == "undecodable"
  os.mkfifo(tmp_path / "pipe.wav")
  assert reason(tmp_path / "pipe.wav") == "undecodable"
  (tmp_path / "headerless.raw").write_bytes(bytes(5000))
  assert reason(tmp_path / "headerless.raw") == "undecodable"
  assert reason(write(tmp_path / "short.wav", tone(0.01, RATE))) == "too_short"
  assert reason(write(tmp_path / "slow.wav", tone(1, RATE), rate=10)) == "undecodable"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_fault_18_non_finite_samples_are_rejected(tmp_path, value):
  samples = tone(1, RATE)
  samples[12345] = value
  path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
  assert reason(path) == "non_finite"
  with pytest.raises(UserError, match=r"a\.wav: non_finite"):
    load_audio(path, RATE)


def test_min_samples_is_the_first_length_accepted(tmp_path):
  path = write(tmp_path / "a.wav", tone(1, RATE)[:513])
  ((_, waveform),) = read_pieces(path, sample_rate=RATE, min_samples=513)
  assert len(waveform) == 513
  assert reason(write(tmp_path / "b.wav", tone(1, RATE)[:512])) == "too_short"


def test_truncated_files_are_rejected_or_as_long_as_they_decode(tmp_path):
  noise = np.random.default_rng(0).uniform(-0.3, 0.3, 3 * RATE)
  for name, outcome in (("a.wav", 24000), ("a.ogg", 18000), ("a.flac", "undecodable")):
    path = tmp_path / name
    write(path, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if isinstance(outcome, str):
      assert reason(path) == outcome
    else:
      assert abs(len(load_audio(str(path), RATE)) - outcome) < 8000


@pytest.mark.parametrize(
  ("seconds", "lengths"),
  [(6.0, [6.0]), (6.1, [6.0]), (7.5, [6.0, 1.5]), (12.0, [6.0, 6.0]), (13.0, [6.0, 6.0, 1.0])],
)
@pytest.mark.parametrize("rate", [16000, 44100])
def test_fault_19_long_files_are_cut(tmp_path, seconds, lengths, rate):
  path = write(tmp_path / "a.wav", tone(seconds, rate), rate, "FLOAT")
  whole = load_audio(path, RATE)
  pieces = list(read_pieces(path, sample_rate=RATE, max_seconds=6.0))
  assert [len(piece) / RATE for _, piece in pieces] == pytest.approx(lengths, abs=1e-3)
  assert [number for number, _ in pieces] == ([None] if seconds <= 6 else list(range(len(lengths))))
  np.testing.assert_array_equal(
    np.concatenate([piece for _, piece in pieces]), whole[: int(sum(lengths) * RATE)]
  )


def test_a_fault_at_the_end_of_a_long_file_rejects_all_of_it(tmp_path, monkeypatch):
  monkeypatch.setattr(decode, "BLOCK_VALUES", 4096)
  samples = tone(13, RATE)
  samples[-1] = np.nan
  pieces = read_pieces(
    write(tmp_path / "a.wav", samples, subtype="FLOAT"), sample_rate=RATE, max_seconds=6.0
  )
  with pytest.raises(Reject, match="non_finite"):
    next(pieces)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_content_does_not_depend_on_the_block_size(tmp_path, monkeypatch, suffix):
  noise = np.random.default_rng(0).uniform(-0.5, 0.5, (44100 * 5 // 2, 2))
  path = write(tmp_path / f"a.{suffix}", noise, 44100)
  results = []
  for block in (1 << 18, 9999, 778):
    monkeypatch.setattr(decode, "BLOCK_VALUES", block)
    results.append(list(read_pieces(path, sample_rate=RATE, max_seconds=1.0)))
  for other in results[1:]:
    assert len(other) == len(results[0]) >= 2
    for (_, one), (_, two) in zip(results[0], other, strict=True):
      np.testing.assert_array_equal(one, two)


def test_fault_18_silence_clipping_and_dc_are_noticed(tmp_path):
  def quality(samples, subtype="PCM_16"):
    result = Quality()
    list(
      read_pieces(
        write(tmp_path / "a.wav", samples, subtype=subtype), sample_rate=RATE, quality=result
      )
    )
    return result.silent, result.clipped, result.dc

  assert quality(np.zeros(RATE)) == (True, False, False)
  assert quality(tone(1, RATE)) == (False, False, False)
  assert quality(np.clip(4 * tone(1, RATE), -1, 1)) == (False, True, False)
  assert quality(np.clip(4 * tone(1, RATE), -1, 1), "PCM_U8") == (False, True, False)
  assert quality(tone(1, RATE) + 0.1) == (False, False, True)


def test_fault_19_memory_is_bounded_by_a_piece(tmp_path):
  path = write(tmp_path / "a.wav", np.zeros(RATE * 300, np.float32))  # 19 MB as float32
  tracemalloc.start()
  try:
    count = sum(len(piece) for _, piece in read_pieces(path, sample_rate=RATE, max_seconds=5.0))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert count == RATE * 300 and peak < 6e6


def test_names_that_are_not_utf8(tmp_path):
  path = os.path.join(os.fsencode(tmp_path), b"\xff\xfe \n.wav")
  soundfile.write(path, tone(1, RATE), RATE)
  assert len(load_audio(os.fsdecode(path), RATE)) == RATE
