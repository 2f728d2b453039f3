"""Loudness, gains and fades of sounds that are mixed."""

import math

import numpy as np
import pytest

from data_pipeline.mixing.loudness import amplified, faded, gain_to, loudness

RATE = 16000


def sine(seconds, hz=997, amplitude=1.0):
  return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(
    np.float32
  )


def test_full_scale_sine_is_at_minus_3_lufs():
  """BS.1770: a sine of 997 Hz at full scale in one channel reads -3.01 LKFS. The filter of a rate
  other than 48 kHz is derived from its analogue form, and differs a little."""
  assert loudness(sine(2.0), RATE) == pytest.approx(-3.01, abs=0.1)
  assert loudness(sine(2.0, amplitude=0.1), RATE) == pytest.approx(-23.01, abs=0.1)


def test_low_frequencies_count_less():
  assert loudness(sine(2.0, hz=30), RATE) < loudness(sine(2.0), RATE) - 5


def test_gain_reaches_the_target():
  noise = np.random.default_rng(0).normal(0, 0.05, 3 * RATE)
  gain = gain_to(noise, RATE, -27.5)
  assert loudness(amplified(noise, gain), RATE) == pytest.approx(-27.5, abs=1e-3)


def test_pauses_do_not_count():
  noise = np.random.default_rng(0).normal(0, 0.05, 2 * RATE)
  assert loudness(np.concatenate([noise, np.zeros(4 * RATE)]), RATE) == pytest.approx(
    loudness(noise, RATE), abs=0.5
  )


def test_short_sounds_have_a_loudness():
  assert loudness(sine(0.1), RATE) == pytest.approx(loudness(sine(1.0), RATE), abs=0.1)


def test_silence_is_minus_infinity_and_has_no_gain():
  assert loudness(np.zeros(RATE), RATE) == -math.inf
  with pytest.raises(ValueError, match="silent"):
    gain_to(np.zeros(RATE), RATE, -20.0)


@pytest.mark.parametrize("wrong", [np.zeros(0), np.zeros((2, RATE)), np.full(RATE, np.nan)])
def test_no_loudness_of_what_is_no_sound(wrong):
  with pytest.raises(ValueError, match="waveform of shape"):
    loudness(wrong, RATE)


def test_fades_start_and_end_at_zero_and_leave_the_middle():
  out = faded(np.ones(RATE), RATE, 0.01)
  assert out[0] == out[-1] == 0 and (np.diff(out[:160]) > 0).all() and (out[160:-160] == 1).all()
  assert np.array_equal(out, out[::-1])
  assert len(faded(np.ones(5), RATE, 0.01)) == 5
