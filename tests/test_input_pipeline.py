"""The order of the data: a pure function of (seed, step), whatever reads it and whenever it
starts."""

import contextlib
import importlib.util
import itertools
import pathlib

import numpy as np
import pytest

from atst_jax.data import tf_reader
from atst_jax.data.dataset import Dataset, Shard
from atst_jax.data.input_pipeline import choose_reader, synthetic_batches
from atst_jax.data.order import Visit, check_streams, shard_order
from atst_jax.data.shard_reader import Damage, ShardReader, rows
from atst_jax.data.tfrecord import _field, _fields, encode_example, frame_record
from atst_jax.util.errors import UserError
from tests.batches import READERS, same, take
from tests.tiny import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  return Dataset.load(write_dataset(tmp_path_factory.mktemp("order") / "data", shards=9))


@pytest.fixture(scope="module")
def reference(dataset):
  return take(dataset, 30)


def _expected_ids(dataset, steps, *, seed, streams, block, window):
  """A slow twin: lists of ids, moved about by the published order."""
  counts = [shard.num_clips for shard in dataset.shards("train")]
  rows = [[] for _ in range(streams)]
  for epoch in range(1 + steps * streams * block // sum(counts)):
    clips = [(s, i) for s in shard_order(seed, epoch, len(counts)) for i in range(counts[s])]
    for stream, out in enumerate(rows):
      ends = [(e * sum(counts) + stream) // streams for e in (epoch, epoch + 1)]
      part, clips = clips[: ends[1] - ends[0]], clips[ends[1] - ends[0] :]
      for shard, group in itertools.groupby(part, key=lambda clip: clip[0]):
        records = [i for _, i in group]
        visit = Visit(epoch, int(shard), records[0], records[-1] + 1, 0)
        out += [f"{shard}-{visit.begin + i}" for i in visit.order(seed, window)[0]]
    assert not clips
  return [[i for row in rows for i in row[s * block : (s + 1) * block]] for s in range(steps)]


def test_order_equals_slow_twin(dataset, reference):
  expected = _expected_ids(dataset, 30, seed=5, streams=4, block=2, window=3)
  assert [[i.decode() for i in batch["id"]] for batch in reference] == expected


@pytest.mark.parametrize("reader", READERS)
def test_any_number_of_processes_gives_the_same_global_batch(dataset, reference, reader):
  for processes in (1, 2, 4):
    share = 8 // processes
    parts = [
      take(dataset, 4, rows=(p * share, (p + 1) * share), reader=reader) for p in range(processes)
    ]
    joined = [
      {key: np.concatenate([p[step][key] for p in parts]) for key in parts[0][0]}
      for step in range(4)
    ]
    same(joined, reference[:4])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("start", [0, 1, 6, 13, 29])
def test_fault_29_resuming_gives_the_same_batches(dataset, reference, start, reader):
  same(take(dataset, 30 - start, start_step=start, reader=reader), reference[start:])


@pytest.mark.parametrize("reader", READERS)
def test_one_stream_gives_the_same_by_either_reader(dataset, reader):
  """All clips of an epoch one behind the other, cut on batches' and shards' borders alike; the
  longest clips fit, so none is cropped."""
  changes = {"streams": 1, "shuffle_window": 100, "clip_frames": 90, "batch_size": 7}
  batches = take(dataset, 18, start_step=3, reader=reader, **changes)
  same(batches, take(dataset, 18, start_step=3, **changes))
  clips = {clip.id.encode(): clip.mel for clip in dataset.clips("train")}
  for batch in batches:
    for clip_id, mel, length in zip(batch["id"], batch["mel"], batch["length"], strict=True):
      np.testing.assert_array_equal(mel[:length], clips[clip_id])


def test_order_changes_with_the_seed(dataset, reference):
  assert (
    np.concatenate([b["id"] for b in take(dataset, 3, seed=6)])
    != np.concatenate([b["id"] for b in reference[:3]])
  ).any()


def test_fault_19_clips_are_padded_or_windowed_and_never_altered(dataset, reference):
  clips = {clip.id.encode(): clip.mel for clip in dataset.clips("train")}
  longer = set()
  for batch in reference:
    for clip_id, mel, length in zip(batch["id"], batch["mel"], batch["length"], strict=True):
      whole = clips[clip_id]
      assert length == min(len(whole), 64) and not mel[length:].any() and mel.dtype == np.float16
      starts = [
        s
        for s in range(len(whole) - length + 1)
        if np.array_equal(mel[:length], whole[s : s + length])
      ]
      assert len(starts) == 1
      if len(whole) > 64:
        longer.add(starts[0])
  assert len(longer) > 5  # windows move


@pytest.mark.parametrize(
  "numbers, message",
  [
    ({"batch_size": 10, "streams": 4}, "batch_size 10 is not divisible by data.streams 4"),
    (
      {"streams": 6, "batch_size": 12, "processes": 4},
      "data.streams 6 is not divisible by the 4 processes",
    ),
    ({"shards": 3}, "3 shards cannot feed data.streams=4"),
  ],
)
def test_numbers_that_do_not_fit_are_refused(numbers, message):
  with pytest.raises(UserError, match=message):
    check_streams(**{"batch_size": 8, "streams": 4, "shards": 9, "processes": 1, **numbers})


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(dataset, reference, threads):
  for batch, expected in zip(take(dataset, 12, threads=threads), reference, strict=False):
    for key in ("id", "mel", "length"):
      np.testing.assert_array_equal(batch[key], expected[key])


def test_records_of_other_writers_are_read(tmp_path):
  """Features in another order and with long ones before the spectrogram, as TensorFlow's writer may
  choose."""
  mel = np.arange(40 * 64, dtype=np.float16).reshape(40, 64) / 64
  features = {"split": "s" * 2000, "mel": mel.tobytes(), "num_frames": 40, "id": "x"}
  messages = [
    dict(_fields(memoryview(encode_example({key: value}))))[1].tobytes()
    for key, value in features.items()
  ]
  path = tmp_path / "shard"
  path.write_bytes(frame_record(_field(1, b"".join(messages))))
  out = np.ones((50, 64), np.float16)
  shard = Shard(str(path), 1, path.stat().st_size, "")
  with contextlib.closing(ShardReader(shard, 64, Damage(0, 1))) as reader:
    assert reader.read(0, np.float32(0.5), rows(out[None])[0]) == (40, 0)
    assert reader.clip(0).id == "x"
  np.testing.assert_array_equal(out, np.pad(mel, ((0, 10), (0, 0))))


def test_a_reader_is_chosen_by_what_is_there(monkeypatch):
  found = importlib.util.find_spec
  has = lambda yes: monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name: (name if yes else None) if name == "tensorflow" else found(name),
  )
  has(True)
  assert choose_reader("auto", "data") == choose_reader("auto", "gs://bucket/data") == "tf.data"
  assert choose_reader("auto", "s3://bucket/data") == choose_reader("plain", "data") == "plain"
  with pytest.raises(UserError, match="cannot read s3://bucket/data: TensorFlow opens local"):
    choose_reader("tf.data", "s3://bucket/data")
  has(False)
  assert choose_reader("auto", "data") == "plain"
  with pytest.raises(UserError, match="needs TensorFlow: pip install"):
    choose_reader("tf.data", "data")


def test_where_tensorflow_shuffles_otherwise_the_plain_reader_reads(
  dataset, reference, monkeypatch, warnings
):
  pytest.importorskip("tensorflow", reason="TensorFlow is not installed: .[tfds]")
  monkeypatch.setattr(tf_reader, "shuffles_as_planned", lambda: False)
  same(take(dataset, 3, reader="auto"), reference[:3])
  assert any("the plain reader takes its place" in line for line in warnings)
  with pytest.raises(UserError, match="draws its shuffle otherwise"):
    take(dataset, 1, reader="tf.data")


def test_tensorflow_opens_the_stores_that_auto_gives_it():
  tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: .[tfds]")
  schemes = {
    scheme if isinstance(scheme, str) else scheme.decode()
    for scheme in tf.io.gfile.get_registered_schemes()
  }
  for scheme in ("gs", "s3"):
    assert (scheme in schemes) == (choose_reader("auto", f"{scheme}://bucket/data") == "tf.data")


def test_synthetic_batches_are_a_function_of_step_and_row():
  make = lambda **k: synthetic_batches(clip_frames=10, n_mels=4, batch_size=6, seed=1, **k)
  first, second = itertools.islice(make(), 2)
  np.testing.assert_array_equal(next(make(start_step=1))["mel"], second["mel"])
  np.testing.assert_array_equal(next(make(rows=(2, 4)))["mel"], first["mel"][2:4])
  assert (first["mel"] != second["mel"]).any() and (first["mel"][0] != first["mel"][1]).any()


def test_the_ten_lines_of_the_documents_read_the_shards(dataset):
  pytest.importorskip("tensorflow", reason="TensorFlow is not installed: .[tfds]")
  page = (pathlib.Path(__file__).parents[1] / "docs" / "shards.md").read_text(encoding="utf-8")
  names = {"folder": dataset.root}
  exec(page.split("```python\n")[1].split("```")[0], names)
  found = {id.decode(): mel for mel, id in names["clips"].as_numpy_iterator()}
  clips = list(dataset.clips("train"))
  assert len(found) == len(clips)
  for clip in clips:
    np.testing.assert_array_equal(found[clip.id], clip.mel)
