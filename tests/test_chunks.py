"""Chunks in batches: the lengths that they are padded to, and devices that change no bit."""

import jax
import numpy as np
import pytest

from atst_jax.artifacts import batches
from atst_jax.artifacts.embedding import get_scene_embeddings
from atst_jax.artifacts.model import load_model
from atst_jax.models import chunking
from atst_jax.models.chunking import Budget, choose_sizes, padded_sizes
from atst_jax.util.errors import UserError
from atst_jax.util.prefetch import prefetch_each
from tests import programs


@pytest.fixture(scope="module")
def one(encoder):
  """The encoder on one device; its programs are compiled once for all tests."""
  return load_model(encoder, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def eight(encoder):
  """On all of them."""
  return load_model(encoder)


def _mels(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(-40, 10, (n, 64)).astype(np.float32) for n in lengths]


def test_half_seconds_are_there_and_shared_lengths_have_their_own():
  assert padded_sizes(601)[:3] == [51, 101, 151] and padded_sizes(601)[-1] == 601
  assert len(padded_sizes(601)) == 12
  # chunks of 10-s clips; many clips of 5.3 s, and a few
  assert choose_sizes([601, 400] * 50, 601, 2000) == {601: 601, 400: 401}
  assert choose_sizes([530] * 200, 601, 2000) == {530: 536}
  assert choose_sizes([530] * 9, 601, 2000) == {530: 551}


def test_lengths_that_save_too_little_get_no_program():
  """A few short clips are padded to what the others need; many are not."""
  assert choose_sizes([101] * 2 + [501] * 50, 601, 2000) == {101: 501, 501: 501}
  assert choose_sizes([101] * 9 + [501] * 50, 601, 2000) == {101: 101, 501: 501}
  # what was moved once counts when the next size is asked about
  sizes = choose_sizes([101] * 3 + [301] * 3 + [501] * 9, 601, 1000)
  assert sizes == {101: 301, 301: 301, 501: 501}


@pytest.mark.parametrize("seed", range(3))
def test_every_length_fits_and_little_is_padding(seed):
  lengths = np.random.default_rng(seed).integers(4, 602, 300).tolist()
  sizes = choose_sizes(lengths, 601, 2000)
  assert all(n <= sizes[n] <= 601 for n in lengths) and len(set(sizes.values())) <= 12
  padding = sum(sizes[n] - n for n in lengths) / sum(lengths)
  assert padding < 0.2  # halves of the longest, as once, have 0.3


def test_padding_company_and_devices_change_nothing(one, eight, monkeypatch):
  """Each clip as if it were alone, whatever it is padded to; from eight devices the bits of one.
  Over time, too."""
  monkeypatch.setattr(chunking, "CPU", Budget(batch=100, rows=32, ahead=150, program=40))
  mels = _mels([17, 32, 17, 70, 17, 100, 17])
  found = one.embed(mels, num_blocks=1)
  np.testing.assert_array_equal(found, eight.embed(mels, num_blocks=1))
  np.testing.assert_allclose(found[3], one.embed([mels[3]], num_blocks=1)[0], atol=1e-5)
  long = _mels([300])[0]
  np.testing.assert_array_equal(one.embed_frames(long), eight.embed_frames(long))


def test_every_device_gets_rows(eight, monkeypatch):
  """Of a full batch; and a clip alone is no batch."""
  seen = []
  run = batches.Program.__call__

  def spy(program, chunks, size, rows, **options):
    out = run(program, chunks, size, rows, **options)
    seen.append((len(chunks), rows, {shard.data.shape[0] for shard in out.addressable_shards}))
    assert len(out.addressable_shards) == jax.local_device_count() == 8
    return out

  monkeypatch.setattr(batches.Program, "__call__", spy)
  eight.embed(_mels([32] * 40), num_blocks=1)
  eight.embed(_mels([32]), num_blocks=1)
  assert seen == [(40, 32, {32}), (1, 1, {1})]


def test_bfloat16_by_choice(encoder, one):
  """Near, and not the same: the encoder did compute in it. Unknown types are refused."""
  mels, rough = _mels([40, 9]), load_model(encoder, dtype="bfloat16", devices=jax.devices()[:1])
  a, b = (model.embed(mels, num_blocks=1) for model in (one, rough))
  assert b.dtype == np.float32 and 1e-4 < np.abs(a - b).max() < 0.1
  assert load_model(encoder, dtype="auto").dtype == "float32"  # of a CPU
  assert rough.limited(1.0).dtype == "bfloat16"
  with pytest.raises(UserError, match="float16"):
    load_model(encoder, dtype="float16")


def test_more_frames_than_the_rule_has(one):
  """`max_frames` above the export's rule counts: seen red when the waveform was cropped first."""
  sound = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
  sound *= np.linspace(0.01, 1, 16000, dtype=np.float32) ** 4
  ruled = one.limited(0.5)
  embed = lambda model, **options: get_scene_embeddings([sound], model, 16000, **options)
  np.testing.assert_array_equal(embed(ruled, max_frames=500), embed(one))
  np.testing.assert_array_equal(embed(ruled, max_frames=81), embed(one, max_frames=81))
  assert np.abs(embed(ruled, max_frames=51) - embed(one)).max() > 1e-3


def test_threads_read_ahead_in_order():
  """Values and errors where they belong, and no thread is left when it is closed."""

  def some(item):
    yield from range(item)
    if item == 3:
      raise ValueError("three")

  each = prefetch_each(some, range(9), workers=2, ahead=1)
  assert [list(next(each)) for _ in range(3)] == [[], [0], [0, 1]]
  with pytest.raises(ValueError, match="three"):
    list(next(each))
  each.close()


def test_random_twins_compile_nothing_anew(encoder, monkeypatch, caplog):
  """An evaluation draws a twin for each seed, and gives it a length rule of its own."""
  monkeypatch.setattr(batches.Program, "__init__", programs.make_apart)
  model, mels = load_model(encoder, devices=jax.devices()[:1]), _mels([40])

  def twin(seed):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
      vectors = model.reinitialized(seed).limited(None).embed(mels)
    return vectors, sum("Compiling" in message for message in caplog.messages)

  (first, compiled), (second, anew) = twin(1), twin(2)
  assert compiled >= 2 and not anew  # its parameters and its vectors
  assert np.abs(first - second).max() > 0.1
  np.testing.assert_array_equal(twin(1)[0], first)
  assert np.abs(model.embed(mels) - first).max() > 0.1
