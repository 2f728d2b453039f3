"""Speed and memory of the input: both readers beside plain tf.data."""

import contextlib
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import google_crc32c
from ml_collections import ConfigDict

from atst_jax.data.dataset import Dataset
from atst_jax.data.shard_reader import Index
from atst_jax.data.tf_reader import buffer_bytes, import_tensorflow
from atst_jax.data.tfrecord import read_length
from atst_jax.performance import speed
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check
from atst_jax.util import storage

PIECE_SECONDS = 0.1  # a check is repeated for at least this time
READ_AHEAD = 5  # batches at most, of plain tf.data: two are parsed, two ready, one is filled
LATE = 1_000_003  # step from which a run is resumed


def bare_batches(config: ConfigDict, dataset: Dataset) -> Iterator:
  """The same shards by plain tf.data, for comparison: interleaved, verified, batched, parsed,
  decoded; without an order, a crop or padding. The size of buffers is that of our reader."""
  tf = import_tensorflow()
  frames, n_mels = config.data.clip_frames, dataset.frontend.n_mels

  def parse(records):
    mel = tf.io.parse_example(records, {"mel": tf.io.FixedLenFeature((), tf.string)})["mel"]
    bits = tf.io.decode_raw(mel, tf.uint16, fixed_length=2 * frames * n_mels)
    return {"mel": tf.reshape(tf.bitcast(bits, tf.float16), (-1, frames, n_mels))}

  paths = [shard.path for shard in dataset.shards(config.data.split)]
  cpus = os.cpu_count() or 1
  records = (
    tf.data.Dataset.from_tensor_slices(paths)
    .repeat()
    .interleave(
      lambda path: tf.data.TFRecordDataset(path, buffer_size=buffer_bytes(dataset.root)),
      cycle_length=config.data.streams,
      num_parallel_calls=cpus,
    )
  )
  batches = records.batch(config.batch_size, drop_remainder=True).map(parse, cpus)
  return batches.prefetch(2).as_numpy_iterator()


def _rate(source: Iterator, batch_size: int) -> float:
  """Clips per second in a window of time, without batches that were read ahead before it."""
  for _ in range(READ_AHEAD):
    next(source)
  started, batches = time.perf_counter(), 0
  while (seconds := time.perf_counter() - started) < speed.WINDOW_SECONDS:
    next(source)
    batches += 1
  return batches * batch_size / seconds


def _seconds(piece: Callable[[], object]) -> float:
  """Seconds of one call, on one core."""
  piece()
  calls, started = 0, time.thread_time()
  while (seconds := time.thread_time() - started) < PIECE_SECONDS:
    piece()
    calls += 1
  return seconds / max(calls, 1)


def check_seconds(dataset: Dataset, split: str) -> dict:
  """Seconds of the checks of a clip, on one core: the checksum of its record, and the check against
  the schema (once for each pass over a shard)."""
  shard = dataset.shards(split)[0]
  with storage.open_binary(shard.path) as file:
    payload = file.read(read_length(file, shard.path, 0) or 0)

  def read_heads():
    with storage.open_binary(shard.path, buffering=0) as file:
      Index(shard, dataset.frontend.n_mels, file)

  return {
    "checksum": _seconds(lambda: google_crc32c.value(payload)),
    "schema": _seconds(read_heads) / shard.num_clips,
  }


def resident_bytes() -> int:
  """Memory of this process now; 0 on systems without /proc."""
  with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
  return 0


def _first_batch(config, dataset, step):
  """(batches from the step on, the first one, seconds until it came)."""
  started = time.perf_counter()
  batches = recipe.batches(config, dataset, start_step=step, rows=None)
  first = next(batches)
  return batches, first, time.perf_counter() - started


def measure_input(config: ConfigDict, *, repeats: int, clips: int) -> dict:
  """Measures batches from shards alone, as the trainer receives them, after a first pass over the
  files: by each reader in turns, and by plain tf.data.

  Returns:
    clips_per_second of each; first_batch_seconds of each reader and, after a million steps,
    resumed_seconds, both without TensorFlow's import; memory_bytes: before, added by TensorFlow,
    and added by each reader at most; check_seconds of a clip.
  """
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    dataset = speed.open_or_write(config, folder, clips)
    config = speed.resolved(config, dataset)
    check(config, dataset, 1, 1)
    passes = -(-dataset.num_clips(config.data.split) // config.batch_size)
    readers, first, resumed, memory = {}, {}, {}, {"before": resident_bytes()}
    found = importlib.util.find_spec("tensorflow") is not None
    if found:
      import_tensorflow()
      memory["tensorflow"] = resident_bytes() - memory["before"]
    for name in ("tf.data", "plain") if found else ("plain",):
      config.data.reader = name
      batches, _, resumed[name] = _first_batch(config, dataset, LATE)
      batches.close()
      before = resident_bytes()
      readers[name], batch, first[name] = _first_batch(config, dataset, 0)
      stack.enter_context(contextlib.closing(readers[name]))
      held = [resident_bytes() for _ in itertools.islice(readers[name], passes)]
      memory[name] = max(held, default=before) - before
    if found:
      readers["bare"] = bare_batches(config, dataset)
      for _ in itertools.islice(readers["bare"], passes):
        pass
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repeats):
      for name, source in readers.items():
        rates[name].append(_rate(source, config.batch_size))
    checks = check_seconds(dataset, config.data.split)
  medians = {name: statistics.median(values) for name, values in rates.items()}
  best = medians.get("tf.data", medians["plain"])
  return {
    "clips_per_second": medians,
    "first_batch_seconds": first,
    "resumed_seconds": resumed,
    "memory_bytes": memory,
    "check_seconds": checks,
    "megabytes_per_second": best * batch["mel"][0].nbytes / 1e6,
    "batch_size": config.batch_size,
    "clip_shape": list(batch["mel"].shape[1:]),
    "clips": dataset.num_clips(config.data.split),
    "data": config.data.path if not clips else "noise",
    "cpus": os.cpu_count(),
  }
