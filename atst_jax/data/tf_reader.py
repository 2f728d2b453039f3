"""The reader by tf.data: it streams TFRecord shards, and Python only plans.

Of every visit to a shard Python says where reading begins and how each window is shuffled
(`order`). tf.data reads and verifies the records, shuffles, takes the streams in turn, parses,
crops, pads and batches them. In memory are a window of each stream and about eleven copies of each
clip of a batch, beside TensorFlow's own 0.75 GB.
"""

import contextlib
import functools
import os
from collections.abc import Generator

import numpy as np

from atst_jax.data.dataset import Dataset
from atst_jax.data.order import visits


class Unreadable(Exception):
  """A batch that tf.data cannot make: a record in it is damaged, missing or no clip."""


@functools.cache
def import_tensorflow():
  """TensorFlow, which takes no memory of a GPU. What its libraries print while they load (2.21: ten
  lines about drivers and instruction sets, at any log level) is left out."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  with _silent():
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # the program has used TensorFlow's devices already
      tf.config.set_visible_devices([], "GPU")  # their memory is JAX's
    tf.constant(0)  # looks for devices
  return tf


@contextlib.contextmanager
def _silent():
  """Nothing is written to the process's standard error."""
  try:
    kept = os.dup(2)
  except OSError:  # it is closed
    yield
    return
  nothing = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nothing, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nothing)


def batches(
  dataset: Dataset,
  *,
  split,
  clip_frames,
  streams,
  mine,
  window,
  block,
  seed,
  threads,
  with_ids,
  start_step,
) -> Generator[dict, None, None]:
  """As `input_pipeline.record_batches`, of the streams `mine` with `block` clips each in a batch.
  Raises Unreadable."""
  tf = import_tensorflow()
  shards, n_mels = dataset.shards(split), dataset.frontend.n_mels
  counts, row_bytes = [shard.num_clips for shard in shards], 2 * n_mels
  paths = [shard.path for shard in shards]
  cpus = threads or os.cpu_count() or 1

  def plan(stream):
    """Of each visit: path, record where reading begins, records of a window, how many of the first
    one are missing, the order inside the windows, places of crops, clips already used."""
    for visit in visits(seed, int(stream), streams, counts, start_step * block):
      windows, used = visit.windows(seed, window)
      size = max(len(part.order) for part in windows)
      lead = size - len(windows[0].order)
      order = [np.arange(lead), lead + windows[0].order, *(part.order for part in windows[1:])]
      where = [np.zeros(lead, np.float32), *(part.where for part in windows)]
      order, where = np.concatenate(order), np.concatenate(where)
      yield paths[visit.shard], windows[0].begin, size, lead, order, where, lead + used

  def visit_records(path, first, size, lead, places, where, used):
    """The records of a visit in their order, and the numbers that say where they are cropped.

    TensorFlow (2.21) takes a file that ends inside a record's head for a whole one, so what is
    missing becomes an empty record, which is refused below."""
    records = tf.data.TFRecordDataset(path, buffer_size=1 << 20)
    missing = tf.data.Dataset.from_tensors("").repeat()
    records = missing.take(lead).concatenate(records.skip(first)).concatenate(missing)
    records = records.take(tf.shape(places, tf.int64)[0])
    order = tf.data.Dataset.from_tensor_slices((places, where)).batch(size)
    windows = tf.data.Dataset.zip((records.batch(size), order))
    shuffled = windows.map(lambda record, order: (tf.gather(record, order[0]), order[1]))
    return shuffled.unbatch().skip(used)

  def stream_blocks(stream):
    signature = (
      tf.TensorSpec((), tf.string),
      tf.TensorSpec((), tf.int64),
      tf.TensorSpec((), tf.int64),
      tf.TensorSpec((), tf.int64),
      tf.TensorSpec((None,), tf.int64),
      tf.TensorSpec((None,), tf.float32),
      tf.TensorSpec((), tf.int64),
    )
    visited = tf.data.Dataset.from_generator(plan, output_signature=signature, args=(stream,))
    return visited.flat_map(visit_records).batch(block, drop_remainder=True)

  features = {"mel": tf.io.FixedLenFeature((), tf.string, "")}
  if with_ids:
    features["id"] = tf.io.FixedLenFeature((), tf.string)

  def parse(records, where):
    records, where = tf.reshape(records, (-1,)), tf.reshape(where, (-1,))
    parsed = tf.io.parse_example(records, features)
    size = tf.strings.length(parsed["mel"])
    whole = tf.reduce_all((size > 0) & (size % row_bytes == 0))
    with tf.control_dependencies([tf.debugging.Assert(whole, ["not a clip of this schema"])]):
      frames = size // row_bytes
    length = tf.minimum(frames, clip_frames)
    begin = tf.cast(where * tf.cast(frames - length + 1, tf.float32), tf.int32)
    crop = tf.strings.substr(parsed["mel"], begin * row_bytes, length * row_bytes)
    # zeros behind the end of what is shorter
    bits = tf.io.decode_raw(crop, tf.uint16, fixed_length=clip_frames * row_bytes)
    mel = tf.reshape(bits, (-1, clip_frames, n_mels))
    return {"mel": mel, "length": length, **({"id": parsed["id"]} if with_ids else {})}

  blocks = tf.data.Dataset.from_tensor_slices(np.array(mine, np.int64)).interleave(
    stream_blocks,
    cycle_length=len(mine),
    block_length=1,
    num_parallel_calls=min(cpus, len(mine)),
    deterministic=True,
  )
  batched = blocks.batch(len(mine), drop_remainder=True)
  made = batched.map(parse).prefetch(1)
  settings = tf.data.Options()
  settings.autotune.enabled = False
  settings.threading.private_threadpool_size = cpus
  iterator = made.with_options(settings).as_numpy_iterator()
  try:
    while True:
      try:
        batch = next(iterator)
      except (tf.errors.OpError, StopIteration) as error:
        reason = " ".join((getattr(error, "message", None) or "the end").split())[:200]
        raise Unreadable(reason) from error
      yield batch | {"mel": batch["mel"].view(np.float16)}
  finally:
    del iterator  # and with it TensorFlow's threads and files
