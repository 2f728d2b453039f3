"""Chunks through an encoder, in batches that lie over all devices of this process.

Every device computes the same program on its own rows, so a vector has the same bits on one device
and on eight.
"""

import collections
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from atst_jax.audio.waveforms import Mel, windows
from atst_jax.models.chunking import batch_rows, budget, choose_sizes, padded_sizes
from atst_jax.models.encoders import make_encoder
from atst_jax.models.layers import Encoder
from atst_jax.runtime.devices import DTYPES, resolve_fused
from atst_jax.util.errors import UserError
from atst_jax.util.numbers import as_written

IN_FLIGHT = 2  # batches that the devices have been given and not yet given back


def fast_encoder(encoder: dict, dtype: str):
  """The module that computes in `dtype`, as fast as JAX's device has it."""
  if dtype == "float32":
    return make_encoder(encoder)
  unsuited = make_encoder(encoder).unsuited()
  attention, kernels = resolve_fused("auto", "auto", dtype=dtype, unsuited=unsuited)
  return make_encoder(encoder, dtype=DTYPES[dtype], attention=attention, kernels=kernels)


def tail_of(tail: str, encoder: Encoder) -> str:
  """The rule that a file names: what "released" divides are the patches of ATST's transformer, for
  others it is "drop"."""
  return "drop" if tail == "released" and not encoder.has_blocks else tail


def checked_tail(tail: str, encoder: Encoder, name: str = "tail") -> str:
  """A rule that the argument `name` asks for. Raises UserError for one of ATST's transformer where
  this encoder is another."""
  if tail != tail_of(tail, encoder):
    raise UserError(f"{name}={tail} is of ATST's transformer; take drop, which is the same here")
  return tail


class Chunk(NamedTuple):
  """What an encoder is given at a time.

  Attributes:
    mel: (T, F) dB.
    peak: dB, the maximum of the clip that it is from.
    mean_over: frames that the sum over its patches is divided by.
  """

  mel: np.ndarray
  peak: float
  mean_over: int


class Place(NamedTuple):
  """What becomes of a chunk's vector.

  Attributes:
    clip: its number.
    weight: in the mean over the clip's chunks.
    whole: whether the chunk has the longest length; others are tails.
  """

  clip: int
  weight: float
  whole: bool


class Program:
  """A function of a batch of chunks, compiled for the devices of this process."""

  def __init__(self, compute: Callable, variables, devices: list | None):
    """Args:
    compute: (variables, mel (B, T, F), peak (B,), length (B,), mean_over (B,), **options) -> an
      array with B rows, none of which depends on another.
    variables: arrays, copied to the devices when they are used first.
    devices: all of this process by default.
    """
    self._compute, self._variables, self._devices = compute, variables, devices
    self._compiled: dict[Hashable, Callable] = {}

  def of(self, variables) -> "Program":
    """The same function of other arrays of the same shapes; both share what they compile."""
    if variables is self._variables:
      return self
    other = Program(self._compute, variables, self._devices)
    other._compiled = self._compiled
    return other

  @functools.cached_property
  def _mesh(self) -> Mesh:
    return Mesh(np.array(self._devices or jax.local_devices()), ("data",))

  @functools.cached_property
  def _on_devices(self):
    return jax.device_put(self._variables, NamedSharding(self._mesh, P()))

  @property
  def devices(self) -> int:
    """How many there are."""
    return self._mesh.size

  def __call__(self, chunks: list[Chunk], size: int, rows: int, **options) -> jax.Array:
    """Begins to compute a batch.

    Args:
      chunks: at most `rows` for each device.
      size: frames that they are padded to.
      rows: of the program of one device.
      options: of `compute`, fixed in its program.

    Returns:
      An array of `rows` · devices rows, those behind the chunks without meaning.
    """
    total, bins = rows * self.devices, chunks[0].mel.shape[1]
    mel = np.zeros((total, size, bins), np.float32)
    peak = np.zeros(total, np.float32)
    length, mean_over = np.zeros(total, np.int32), np.zeros(total, np.int32)
    for row, chunk in enumerate(chunks):
      mel[row, : len(chunk.mel)], peak[row] = chunk.mel, chunk.peak
      length[row], mean_over[row] = len(chunk.mel), chunk.mean_over
    key = tuple(sorted(options.items()))
    if key not in self._compiled:
      compute = functools.partial(self._compute, **options)
      specs = (P(), *4 * (P("data"),))
      # unchecked: kernels of Pallas do not say over which devices their results vary
      rows_apart = jax.shard_map(
        compute, mesh=self._mesh, in_specs=specs, out_specs=P("data"), check_vma=False
      )
      self._compiled[key] = as_written(jax.jit(rows_apart))
    batch = jax.device_put((mel, peak, length, mean_over), NamedSharding(self._mesh, P("data")))
    return self._compiled[key](self._on_devices, *batch)

  def batches(self, chunks: list, count: int, size: int) -> Iterator[tuple[list, int]]:
    """Cuts chunks of one size into batches: (chunks, `rows`). `count`: how many there are in all;
    few are encoded one by one, so that a single clip does not wait for a whole batch."""
    rows = batch_rows(size) if 2 * count > batch_rows(size) else 1
    for start in range(0, len(chunks), rows * self.devices):
      yield chunks[start : start + rows * self.devices], rows


class Queue:
  """Chunks that wait until a batch is full, and until their lengths are known."""

  def __init__(self, program: Program, chunk_frames: int, **options):
    """`options`: of the program."""
    self._program, self._chunk_frames, self._options = program, chunk_frames, options
    self._short: list[tuple[Place, Chunk]] = []  # their padded length is not chosen yet
    self._short_frames = 0
    self._full: list[tuple[Place, Chunk]] = []  # of the longest length
    self._full_count = 0
    self._running: collections.deque = collections.deque()

  def add(self, place: Place, chunk: Chunk) -> Iterator[tuple[Place, np.ndarray]]:
    """Takes a chunk in, and yields (place, vector) of those that are done. Has to be read to its
    end. Chunks of the longest length come out in their order."""
    if len(chunk.mel) == self._chunk_frames:
      self._full.append((place, chunk))
      self._full_count += 1
      rows = batch_rows(self._chunk_frames)
      if len(self._full) == rows * self._program.devices:
        yield from self._run(self._full, self._chunk_frames, rows)
        self._full = []
      return
    self._short.append((place, chunk))
    self._short_frames += len(chunk.mel)
    if self._short_frames >= budget().ahead:
      yield from self._run_short()

  def flush(self) -> Iterator[tuple[Place, np.ndarray]]:
    """Yields (place, vector) of all that are left."""
    yield from self._run_short()
    yield from self._run_group(self._full, self._full_count, self._chunk_frames)
    self._full, self._full_count = [], 0
    while self._running:
      yield from self._finished()

  def _run_short(self):
    lengths = [len(chunk.mel) for _, chunk in self._short]
    present = [self._chunk_frames] if self._full_count else []
    sizes = choose_sizes([*lengths, *present], self._chunk_frames, budget().program)
    groups = collections.defaultdict(list)
    for item, length in zip(self._short, lengths, strict=True):
      groups[sizes[length]].append(item)
    self._short, self._short_frames = [], 0
    for size in sorted(groups):
      yield from self._run_group(groups[size], len(groups[size]), size)

  def _run_group(self, items, count, size):
    for part, rows in self._program.batches(items, count, size):
      yield from self._run(part, size, rows)

  def _run(self, items, size, rows):
    places, chunks = zip(*items, strict=True)
    self._running.append((places, self._program(list(chunks), size, rows, **self._options)))
    if len(self._running) == IN_FLIGHT:
      yield from self._finished()

  def _finished(self):
    places, vectors = self._running.popleft()
    yield from zip(places, np.asarray(vectors), strict=False)


class Clips:
  """Weighted sums of the vectors of clips' chunks."""

  def __init__(self):
    # Of each clip; the tail is added last, whenever it comes: sums do not depend on the order.
    self._sums: list = []
    self._tails: list = []
    self._weights: list[float] = []

  def begin(self) -> None:
    """There is one more clip."""
    self._sums.append(0.0)
    self._tails.append(0.0)
    self._weights.append(0)

  def add(self, found: Iterable[tuple[Place, np.ndarray]]) -> None:
    """Takes (place, vector) of chunks."""
    for place, vector in found:
      sums = self._sums if place.whole else self._tails
      sums[place.clip] = sums[place.clip] + place.weight * vector
      self._weights[place.clip] += place.weight

  def means(self, width: int) -> np.ndarray:
    """(clips, width) float32."""
    out = np.empty((len(self._sums), width), np.float32)
    for i, weight in enumerate(self._weights):
      # freed here, so that the features of a large set are in memory only once
      out[i], self._sums[i], self._tails[i] = (self._sums[i] + self._tails[i]) / weight, None, None
    return out


def vectors_over_time(
  program: Program, encoder: Encoder, mel: Mel, peak: float, chunk_frames: int
) -> Iterator[np.ndarray]:
  """Yields a clip's consecutive (N, D) vectors over time, in memory for one batch of chunks. Where
  an encoder knows its `context`, they are those of one pass over the whole clip.

  Args:
    program: of the encoder's `frames`.
    mel: (T, F) dB, T at least the encoder's hop.
    peak: its maximum.
    chunk_frames: the longest chunk.
  """
  context, hop = encoder.context or 0, encoder.hop
  inner = (chunk_frames - 2 * context) // hop * hop
  if len(mel) <= chunk_frames or inner < hop:  # a chunk alone, or chunks without context
    context, inner = 0, chunk_frames // hop * hop
  size = chunk_frames
  if len(mel) <= inner:
    size = next(size for size in padded_sizes(chunk_frames) if len(mel) <= size)
  count, full = max(1, len(mel) // inner), batch_rows(size) * program.devices
  waiting: list[tuple[Chunk, int]] = []  # with the frames of context before it
  for number, (part, before) in enumerate(windows(mel, inner, context), 1):
    if len(part) - before >= hop:
      waiting.append((Chunk(np.array(part, np.float32), peak, 0), before))
    if len(waiting) < full and number * inner < len(mel):
      continue
    for batch, rows in program.batches(waiting, count, size):
      found = np.asarray(program([chunk for chunk, _ in batch], size, rows))
      for (chunk, before), vectors in zip(batch, found, strict=False):
        last = min((before + inner) // hop, len(chunk.mel) // hop)
        yield vectors[before // hop : last]
    waiting = []


def maximum_plus_mean(vectors: Iterable[np.ndarray]) -> np.ndarray:
  """(D,): over time, of a clip's consecutive (N, D) vectors."""
  top, total, count = np.array(-np.inf), np.array(0.0), 0
  for part in vectors:
    top, total = np.maximum(top, part.max(0)), total + part.sum(0, dtype=np.float64)
    count += len(part)
  return top + total / count
