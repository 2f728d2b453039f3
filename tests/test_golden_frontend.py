"""The released code's front-end (../shared/golden) against this project's, and both against
float64."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from atst_jax.audio import waveforms
from atst_jax.audio.frontend import FRONTENDS, FrontEnd, log_mel, log_mel_blocks
from atst_jax.method import normalization


def _float64_db(waveform, frontend):
  """The same front-end once more, HTK filters and all in float64."""
  half, n_fft = frontend.n_fft // 2, frontend.n_fft
  padded = np.pad(waveform.astype(np.float64), half, mode="reflect")
  frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[:: frontend.hop_length]
  window = signal.get_window(frontend.window, frontend.win_length)
  before = (n_fft - frontend.win_length) // 2
  window = np.pad(window, (before, n_fft - frontend.win_length - before))
  power = np.abs(np.fft.rfft(frames * window)) ** 2
  mel = lambda hz: 2595 * np.log10(1 + hz / 700)
  edges = np.linspace(mel(frontend.f_min), mel(frontend.f_max), frontend.n_mels + 2)
  edges = 700 * (10 ** (edges / 2595) - 1)
  bins = np.linspace(0, frontend.sample_rate / 2, half + 1)[:, None]
  rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
  falling = (edges[2:] - bins) / np.diff(edges)[1:]
  filters = np.maximum(0, np.minimum(rising, falling))
  return 10 * np.log10(np.maximum(power @ filters, 1e-10))


@pytest.mark.parametrize("clip", range(4))
@pytest.mark.parametrize("frontend, key", [("audiossl", "released_db"), ("atst", "paper_db")])
def test_frontend(golden, clip, frontend, key):
  """Within 75 dB of a frame's loudest bin. A float32 FFT leaves rounding noise of about 1e-7 of the
  loudest bin, which is 5e-4 of a bin 75 dB below it: so far is each pass from float64, and two of
  them from each other up to the sum, 1.02e-3 dB on other clips. Further down the golden numbers
  themselves lie up to 0.065 dB from float64. Window and mel products add nothing to that."""
  arrays = golden("frontend")
  expected = arrays[f"{key}_{clip}"]
  mel = log_mel(arrays[f"wave_{clip}"], FRONTENDS[frontend])
  assert mel.shape == expected.shape and mel.dtype == np.float32
  loud = expected > -80  # power above 1e-8
  exact = loud & (expected > expected.max(1, keepdims=True) - 75)
  np.testing.assert_allclose(mel[exact], expected[exact], atol=1e-3)
  float64 = _float64_db(arrays[f"wave_{clip}"], FRONTENDS[frontend])
  np.testing.assert_allclose(mel[exact], float64[exact], atol=5e-4)  # the golden ones: 6e-4
  np.testing.assert_allclose(mel[loud], expected[loud], atol=0.1)


@pytest.mark.parametrize("clip", range(4))
def test_normalization(golden, clip):
  arrays = golden("frontend")
  db = jnp.asarray(arrays[f"released_db_{clip}"])
  normalized = normalization.normalize(
    db, kind="min_max", peak=db.max(), top_db=80.0, low=-79.6482, high=50.6842
  )
  np.testing.assert_allclose(normalized, arrays[f"released_norm_{clip}"], atol=1e-5)


@pytest.mark.parametrize(
  "name, key, floor, offset, tolerance",
  [("vggish", "examples", 0.0, 0.01, 1e-5), ("cola", "log_mel", 1e-5, 0.0, 1e-4)],
)
def test_magnitudes(golden, name, key, floor, offset, tolerance):
  """VGGish's and COLA's input: frames that are not centred, triangles over mel. Seen red with
  triangles over Hz, and with centred frames."""
  arrays, frontend = golden(name), dataclasses.replace(FRONTENDS[name], level="recorded")
  mel = log_mel(arrays["waveform"], frontend)
  assert len(mel) == frontend.num_frames(len(arrays["waveform"]))
  ours = normalization.normalize(mel, kind="log_magnitude", peak=0, floor=floor, offset=offset)
  expected = arrays[key].reshape(-1, 64)
  np.testing.assert_allclose(ours[: len(expected)], expected, atol=tolerance)


@pytest.mark.parametrize("number", [400, 700, 400 + 127 * 160, 400 + 128 * 160, 41_000])
def test_magnitudes_of_pieces_are_those_of_the_whole(number):
  """To the bit, at the borders of a group of frames too; one sample less than a window is none."""
  frontend, sound = FRONTENDS["vggish"], np.random.default_rng(0).normal(0, 0.1, number)
  sound, whole = sound.astype(np.float32), log_mel(sound.astype(np.float32), frontend)
  assert len(whole) == frontend.num_frames(number)
  assert frontend.num_frames(frontend.samples_of(96)) == 96 == frontend.num_frames(15_600)
  pieces = (sound[i : i + 997] for i in range(0, number, 997))
  np.testing.assert_array_equal(np.concatenate(list(log_mel_blocks(pieces, frontend))), whole)
  with pytest.raises(ValueError, match="399 samples: need at least 400"):
    list(log_mel_blocks([sound[:399]], frontend))


@pytest.mark.parametrize("held", [waveforms.HELD_FRAMES, 100])
def test_a_sound_at_unit_level_is_divided_by_its_norm(held, monkeypatch):
  """COLA's input: as the released code's `l2_normalize` with 1e-9, however loud the recording; in
  pieces to the bit, also of a sound that is not held in memory."""
  monkeypatch.setattr(waveforms, "HELD_FRAMES", held)
  unit, sound = FRONTENDS["cola"], np.random.default_rng(0).normal(0, 0.1, 41_000)
  sound = sound.astype(np.float32)
  recorded = dataclasses.replace(unit, level="recorded")
  expected = log_mel(sound / np.float32(np.linalg.norm(sound.astype(np.float64))), recorded)
  np.testing.assert_array_equal(log_mel(sound, unit), expected)
  np.testing.assert_allclose(log_mel(sound / 100, unit), expected, atol=1e-3)
  assert np.abs(log_mel(sound, recorded) - expected).min() > 5
  pieces = lambda: (sound[i : i + 997] for i in range(0, len(sound), 997))
  mel = waveforms.mel_of(pieces, unit, None)
  assert isinstance(mel, waveforms.LongMel) == (held == 100)
  np.testing.assert_array_equal(waveforms.central(mel, len(mel)), expected)
  assert np.isfinite(log_mel(np.zeros(8000, np.float32), unit)).all()


def test_a_power_spectrum_is_written_as_ever():
  """Data and exports of older versions keep their hash; new front-ends are read back."""
  assert not {"spectrum", "level"} & set(FRONTENDS["atst"].to_json())
  assert FRONTENDS["atst"].hash == "79d9b11e18adde84"
  assert len({frontend.hash for frontend in FRONTENDS.values()}) == len(FRONTENDS) - 1
  for frontend in FRONTENDS.values():
    assert FrontEnd.from_json(frontend.to_json()) == frontend
