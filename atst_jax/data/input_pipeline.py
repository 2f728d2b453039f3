"""Batches of log-mel clips from shards: read, checked, shuffled, cropped, padded and batched.

`order` says which clip comes when; two readers follow it and give the same bytes. tf.data streams
the shards, and is taken wherever TensorFlow is installed. The plain reader needs no TensorFlow,
reads stores that tf.data does not know, and knows what is wrong with a damaged record.
"""

import importlib.util
from collections.abc import Generator

import numpy as np

from atst_jax.data import plain_reader
from atst_jax.data.dataset import Dataset
from atst_jax.data.order import check_streams
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

READERS = ("auto", "tf.data", "plain")


def choose_reader(reader: str, root: str) -> str:
  """ "tf.data" or "plain", for data in `root`. Raises UserError for what is not possible here."""
  known = not storage.is_remote(root) or root.startswith("gs://")  # to TensorFlow 2.21
  installed = importlib.util.find_spec("tensorflow") is not None
  if reader == "tf.data" and not known:
    raise UserError(
      f"--config.data.reader=tf.data cannot read {root}: TensorFlow opens local files and gs://; "
      "leave it out, or copy the data"
    )
  if reader == "tf.data" and not installed:
    raise UserError(
      "--config.data.reader=tf.data needs TensorFlow: pip install -e .[tfds], or leave it out"
    )
  if reader == "auto":
    return "tf.data" if known and installed else "plain"
  return reader


def record_batches(
  dataset: Dataset,
  *,
  split,
  clip_frames,
  streams,
  shuffle_window,
  batch_size,
  seed,
  start_step=0,
  rows=None,
  max_damaged=0.0,
  threads=0,
  with_ids=False,
  reader="auto",
) -> Generator[dict, None, None]:
  """Batches from shards, from step `start_step` on, without end.

  Args:
    dataset: the prepared dataset.
    split: its split.
    clip_frames: T; shorter clips are padded with zeros, of longer ones a random window is read.
    streams: S, logical streams.
    shuffle_window: records in the buffer of a stream's shuffle. tf.data holds S of them in memory.
    batch_size: B of the global batch.
    seed: of the order.
    rows: (start, stop) of the global batch that this process supplies; whole streams. All by
      default.
    max_damaged: share of the split's clips that may be damaged; they are replaced by others of
      their shard. At 0 the first one is an error. Each process counts those that it has met.
    threads: that read; 0 chooses. Changes nothing in what is read.
    with_ids: also return the clips' ids.
    reader: of READERS. Changes nothing in what is read.

  Yields:
    {"mel": (rows, T, F) float16 dB, "length": (rows,) int32 valid frames[, "id": (rows,) bytes]}.

  Raises:
    UserError: the numbers do not fit (`check_streams`), or the reader is not possible here; when
      they are reached: a damaged record, naming file and record, or a store that does not answer.
  """
  start, stop = rows or (0, batch_size)
  check_streams(
    batch_size=batch_size,
    streams=streams,
    shards=len(dataset.shards(split)),
    processes=batch_size // (stop - start),
  )
  block = batch_size // streams
  options = {
    "split": split,
    "clip_frames": clip_frames,
    "streams": streams,
    "mine": range(start // block, stop // block),
    "window": shuffle_window,
    "block": block,
    "seed": seed,
    "threads": threads,
    "with_ids": with_ids,
  }
  plain = lambda step: plain_reader.batches(
    dataset, start_step=step, max_damaged=max_damaged, **options
  )
  chosen = choose_reader(reader, dataset.root)
  if chosen == "tf.data":
    from atst_jax.data import tf_reader  # TensorFlow may not be installed

    if not tf_reader.shuffles_as_planned():
      why = "TensorFlow draws its shuffle otherwise than planned (a new release, or a global seed)"
      if reader == "tf.data":
        raise UserError(f"--config.data.reader=tf.data: {why}; leave it out for the plain reader")
      log.warning("%s: the plain reader takes its place", why)
      chosen = "plain"
  log.info("data: %s, read by %s", dataset.root, chosen)
  if chosen == "plain":
    return plain(start_step)
  return _streamed(tf_reader, dataset, start_step, plain, options)


def _streamed(tf_reader, dataset, step, plain, options) -> Generator[dict, None, None]:
  """tf.data's batches; from one that it cannot read on, those of the plain reader, which names the
  record, or replaces it where some damage is allowed. tf.data cannot go on behind a damaged
  record."""
  batches = tf_reader.batches(dataset, start_step=step, **options)
  try:
    for batch in batches:
      yield batch
      step += 1
  except tf_reader.Unreadable as error:
    following = plain(step)
    try:
      yield next(following)  # raises where no damage is allowed
      log.warning(
        "tf.data cannot read on (%s); the plain reader does, and names what is damaged", error
      )
      yield from following
    finally:
      following.close()
  finally:
    batches.close()


def synthetic_batches(
  *, clip_frames, n_mels, batch_size, seed, start_step=0, rows=None, with_ids=False
) -> Generator[dict, None, None]:
  """Batches of noise in dB, a function of (seed, step, row), which are its id: for where there is
  no data."""
  start, stop = rows or (0, batch_size)
  step = start_step
  while True:
    mel = [
      np.random.Generator(np.random.Philox(key=[seed, row], counter=[0, 0, 0, step]))
      .normal(-30, 15, (clip_frames, n_mels))
      .astype(np.float16)
      for row in range(start, stop)
    ]
    ids = np.array([f"{seed}/{step}/{row}".encode() for row in range(start, stop)], object)
    yield {
      "mel": np.stack(mel),
      "length": np.full(stop - start, clip_frames, np.int32),
      **({"id": ids} if with_ids else {}),
    }
    step += 1
