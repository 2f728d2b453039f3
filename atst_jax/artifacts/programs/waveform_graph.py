"""An encoder as an ONNX graph from samples to vectors: any batch, any length.

The graph takes `waveform` (B, N), float32 mono of full scale 1.0 at the front-end's rate, padded at
will, and `samples` (B,) int64, the valid ones. It gives `scene` (B, D), the vectors of
`Model.embed` (one block); of a classifier `logits` and `probabilities` (B, C), as `predict` does.
Length rule, front-end, normalisation, chunks and pooling are inside. The spectrum is a convolution
with constant sines and cosines, since ONNX's own STFT errs by 1.5e-3 and its MelWeightMatrix is
another filter bank. Long clips are run in parts, by loops. A clip that is shorter than
`min_samples` (metadata) gets NaN: a graph can raise no error.
"""

import os
from collections.abc import Callable

import numpy as np

from atst_jax.artifacts.classifiers.head import Head
from atst_jax.artifacts.classifiers.scoring import head_of, score
from atst_jax.artifacts.model import Model
from atst_jax.artifacts.programs.graph import Graph, encode, import_onnx, serialized, session
from atst_jax.artifacts.programs.onnx_graph import TOLD, probabilities
from atst_jax.audio.frontend import POWER_FLOOR, FrontEnd, analysis_window
from atst_jax.util import storage
from atst_jax.util.errors import UserError

NAME = "waveform.onnx"
BLOCK = 512  # frames whose spectra are computed at a time
DB_PER_NEPER = 10 / np.log(10)  # of power
TOLERANCE = 1e-3  # of another runtime's products, relative to the greatest number


def crop(g: Graph, sample_rate: int, max_seconds: float | None) -> tuple[str, str]:
  """Where the part of a clip that counts by the length rule begins, and how many samples it has,
  (B,) int64 each: the nodes of `central_samples`."""
  samples = g.op("Max", g.op("Min", "samples", g.size("waveform", 1)), g.ints(0))
  if max_seconds is None:
    return g.op("Mul", samples, g.ints(0)), samples
  kept = g.op("Min", samples, g.ints(round(max_seconds * sample_rate)))
  return g.op("Div", g.op("Sub", samples, kept), g.ints(2)), kept


def log_mel(
  g: Graph, frontend: FrontEnd, filters: np.ndarray, start: str, samples: str, frames: str
) -> str:
  """The nodes of `frontend.log_mel`.

  Args:
    g: that they are added to.
    frontend, filters: as of `frontend.log_mel`.
    start, samples: (B,) int64 as of `crop`.
    frames: (B,) int64, of the clips.

  Returns:
    (B, T, F) dB, T at least the longest clip's frames; what lies behind a clip's own means nothing.
  """
  window, hop = analysis_window(frontend).astype(np.float64), frontend.hop_length
  within = np.flatnonzero(window)
  within = np.arange(within[0], within[-1] + 1)  # samples of an FFT where the window is not 0
  turns = np.outer(np.arange(frontend.n_fft // 2 + 1), within) % frontend.n_fft / frontend.n_fft
  waves = np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)]) * window[within]
  most = g.op("ReduceMax", frames, axes=[0], keepdims=1)
  times = g.ceil(most, g.ints(BLOCK))
  size = g.ceil(most, times)  # frames of a block
  step = g.op("Mul", size, g.ints(hop))
  places = g.op("Add", g.op("Sub", step, g.ints(hop)), g.ints(len(within)))
  places = g.op("Add", g.range(places), g.ints(within[0] - frontend.n_fft // 2))
  last = g.op("Unsqueeze", g.op("Sub", samples, g.ints(1)), g.ints(1))

  b = g.body()
  place = b.op("Abs", b.op("Add", places, b.op("Mul", b.index, step)))  # reflected at the start
  place = b.op("Sub", last, b.op("Abs", b.op("Sub", last, place)))  # and at the end
  place = b.op("Max", place, b.ints(0))  # behind the end of shorter clips anything may stand
  place = b.op("Add", place, b.op("Unsqueeze", start, b.ints(1)))
  signal = b.op("Unsqueeze", b.op("GatherElements", "waveform", place, axis=1), b.ints(1))
  parts = b.op("Conv", signal, b.const(waves[:, None]), strides=[hop])  # (B, 2K, t)
  power = b.op("MatMul", b.const(np.tile(filters.T, 2)), b.op("Mul", parts, parts))  # (B, F, t)
  nepers = b.op("Log", b.op("Max", power, b.const(POWER_FLOOR)))
  mel = b.op("Transpose", b.op("Mul", nepers, b.const(DB_PER_NEPER)), perm=[0, 2, 1])

  mel = g.op("Transpose", g.loop(times, b, stacked=[mel]), perm=[1, 0, 2, 3])
  return g.op("Reshape", mel, g.ints(0, -1, frontend.n_mels))


def part(b: Graph, mel: str, start: str, stop: str, least: int) -> str:
  """(B, t, F): the frames from `start` to `stop`, at least so many."""
  x = b.op("Slice", mel, start, stop, b.ints(1))
  missing = b.op("Max", b.op("Sub", b.ints(least), b.size(x, 1)), b.ints(0))
  return b.op("Pad", x, b.op("Concat", b.ints(0, 0, 0, 0), missing, b.ints(0), axis=0))


def as_heard(g: Graph, head: Head, mel: str, frames: str) -> tuple[str, str]:
  """(B, T', F) dB and its frames (B,) int64: the nodes of `scoring.clip_of`."""
  kept = g.op("Min", frames, g.ints(head.max_frames))
  start = g.op("Div", g.op("Sub", frames, kept), g.ints(2))
  start = start if head.crop == "center" else g.op("Mul", start, g.ints(0))
  length = kept if head.fill_frames is None else g.op("Max", kept, g.ints(head.fill_frames))
  place = g.range(g.op("ReduceMax", length, axes=[0], keepdims=1))
  place = g.op("Add", g.op("Unsqueeze", place, g.ints(0)), g.op("Unsqueeze", start, g.ints(1)))
  place = g.op("Min", place, g.op("Sub", g.size(mel, 1), g.ints(1)))
  clip = g.op("GatherND", mel, g.op("Unsqueeze", place, g.ints(2)), batch_dims=1)
  clip = g.op("Cast", g.op("Cast", clip, to=10), to=1)  # float16, as in shards
  fill = g.const(head.fill_db or 0)
  return g.op("Where", g.mask(clip, 1, kept, [2]), clip, fill), length


def pooled(g: Graph, model: Model, mel: str, frames: str, num_blocks: int) -> str:
  """(B, D'): the vectors of clips (B, T, F) dB with so many frames (B,) int64."""
  seen = g.op("Where", g.mask(mel, 1, frames, [2]), mel, g.const(-np.inf))
  peak = g.op("ReduceMax", seen, axes=[1, 2], keepdims=0)
  if model.encoder.context is not None:
    return one_pass(g, model, mel, frames, peak)
  return mean_of_chunks(g, model, mel, frames, peak, num_blocks)


def mean_of_chunks(
  g: Graph, model: Model, mel: str, frames: str, peak: str, num_blocks: int
) -> str:
  """(B, D): the mean of the vectors of a clip's chunks, by the export's `tail`; the nodes of
  `chunking.weighted_chunks` and `Model.embed`."""
  tail, size = model.config["tail"], model.chunk_frames
  drop_to = size // 2 if tail in ("released", "drop") else model.hop - 1
  zeros = g.op("Mul", g.op("Unsqueeze", g.op("Cast", frames, to=1), g.ints(1)), g.const(0))
  sums = g.op("Mul", zeros, g.const(np.ones((1, model.width(num_blocks)))))

  b = g.body(states=2)
  start = b.op("Mul", b.index, b.ints(size))
  left = b.op("Sub", frames, start)
  length = b.op("Max", b.op("Min", left, b.ints(size)), b.ints(0))
  chunk = part(b, mel, start, b.op("Add", start, b.ints(size)), model.hop)
  mean_over = left if tail == "released" else None
  vector, _ = encode(b, model, chunk, length, peak, mean_over, num_blocks)
  counts = b.op("Greater", length, b.ints(drop_to))
  counts = b.op("Or", counts, b.op("Equal", b.index, b.ints(0)))
  weight = b.op("Cast", length, to=1) if tail == "weighted" else b.const(1)
  weight = b.op("Unsqueeze", b.op("Where", counts, weight, b.const(0)), b.ints(1))
  # the vector of a chunk behind the end means nothing, and may be no number
  vector = b.op("Where", b.op("Unsqueeze", counts, b.ints(1)), vector, b.const(0))
  states = [b.op("Add", b.states[0], b.op("Mul", vector, weight)), b.op("Add", b.states[1], weight)]

  times = g.ceil(g.op("ReduceMax", frames, axes=[0], keepdims=1), g.ints(size))
  return g.op("Div", *g.loop(times, b, initial=[sums, zeros], states=states))


def one_pass(g: Graph, model: Model, mel: str, frames: str, peak: str) -> str:
  """(B, D): maximum plus mean over a clip's vectors over time, which see each other's surroundings;
  the nodes of `layers.pool_frames` over `batches.vectors_over_time`. Raises UserError if a chunk
  has no room for them."""
  hop, context = model.hop, model.encoder.context
  inner = (model.chunk_frames - 2 * context) // hop * hop
  if inner < hop:
    raise UserError(
      f"chunks of {model.chunk_frames} frames have no room for what this encoder sees around a "
      f"frame, for which --input=waveform needs {2 * context + hop}; leave it out"
    )
  zeros = g.op("Mul", g.op("Unsqueeze", g.op("Cast", frames, to=1), g.ints(1)), g.const(0))
  zeros = g.op("Mul", zeros, g.const(np.ones((1, model.width(1)))))

  b = g.body(states=2)
  start = b.op("Mul", b.index, b.ints(inner))
  first = b.op("Max", b.op("Sub", start, b.ints(context)), b.ints(0))
  window = part(b, mel, first, b.op("Add", start, b.ints(inner + context)), hop)
  length = b.op("Min", b.op("Sub", frames, first), b.size(window, 1))
  length = b.op("Max", length, b.ints(0))
  _, found = encode(b, model, window, length, peak)
  before = b.op("Sub", start, first)
  begin = b.op("Div", before, b.ints(hop))
  end = b.op("Div", b.op("Min", length, b.op("Add", before, b.ints(inner))), b.ints(hop))
  valid = b.mask(found, 1, end, [2])
  valid = b.op("And", valid, b.op("Not", b.mask(found, 1, begin, [2])))
  top = b.op("Where", valid, found, b.const(-np.inf))
  total = b.op("Where", valid, found, b.const(0))
  states = [
    b.op("Max", b.states[0], b.op("ReduceMax", top, axes=[1], keepdims=0)),
    b.op("Add", b.states[1], b.op("ReduceSum", total, b.ints(1), keepdims=0)),
  ]

  times = g.ceil(g.op("ReduceMax", frames, axes=[0], keepdims=1), g.ints(inner))
  lowest = g.op("Add", zeros, g.const(-np.inf))
  top, total = g.loop(times, b, initial=[lowest, zeros], states=states)
  count = g.op("Cast", g.op("Div", frames, g.ints(hop)), to=1)
  return g.op("Add", top, g.op("Div", total, g.op("Unsqueeze", count, g.ints(1))))


def build(model: Model) -> bytes:
  """The serialised ONNX model of an export, checked.

  Raises:
    UserError: onnx is not installed, the kind of encoder brings no nodes, its chunks are too short,
      or the weights are too many for one file.
  """
  import_onnx()
  if not model.frontend.is_centred or model.frontend.level != "recorded":
    raise UserError(
      f"the front-end {model.frontend.name!r} has no ONNX nodes; leave out --input=waveform"
    )
  if model.fill_frames is not None:
    raise UserError(
      f"sounds shorter than {model.fill_frames} frames are filled with silence for this encoder, "
      "which the nodes of --input=waveform do not; leave it out"
    )
  g, head = Graph(), head_of(model) if model.config["head"] else None
  start, samples = crop(g, model.sample_rate, None if head else model.max_seconds)
  frames = g.op("Add", g.op("Div", samples, g.ints(model.frontend.hop_length)), g.ints(1))
  mel = log_mel(g, model.frontend, model.filters, start, samples, frames)
  if head:
    vectors = pooled(g, model, *as_heard(g, head, mel, frames), head.blocks)
    logits = g.dense(vectors, model.variables["head"])
    named = {"logits": logits, "probabilities": probabilities(g, logits, head.activation)}
    size = len(head.labels)
  else:
    named, size = {"scene": pooled(g, model, mel, frames, 1)}, model.width(1)
  enough = g.op("GreaterOrEqual", samples, g.ints(model.min_samples))
  enough = g.op("Unsqueeze", enough, g.ints(1))
  for name, value in named.items():
    g.name(g.op("Where", enough, value, g.const(np.nan)), name)
  inputs = [("waveform", np.float32, ["B", "N"]), ("samples", np.int64, ["B"])]
  told = {key: model.config.get(key) for key in TOLD}
  told |= {"sample_rate": model.sample_rate, "min_samples": model.min_samples}
  return serialized(g, inputs, [(name, np.float32, ["B", size]) for name in named], told)


def load(path: str) -> Callable:
  """The function (waveform, samples) -> {output: array} of a file, run by onnxruntime on the CPU.
  Raises UserError if onnxruntime is not installed."""
  run = session(path)
  return lambda waveform, samples: run(waveform=waveform, samples=samples)


def add(folder: str, model: Model) -> None:
  """Writes `waveform.onnx` and runs it beside the model, on noise of two lengths.

  Raises:
    UserError: as of `build` and `load`.
    RuntimeError: their vectors differ.
  """
  path = os.path.join(folder, NAME)
  with storage.writing(path) as file:
    file.write(build(model))
  least, longer = model.min_samples, (model.chunk_frames + 30) * model.frontend.hop_length
  rng = np.random.Generator(np.random.Philox(1))
  noise = rng.normal(0, 0.1, (2, longer)).astype(np.float32)
  sounds, rate = [noise[0, :least], noise[1]], model.sample_rate
  if model.config["head"]:
    name, expected = "logits", score(model, (model.mel(x, rate, whole=True) for x in sounds))
  else:
    name, expected = "scene", model.embed((model.mel(x, rate) for x in sounds), num_blocks=1)
  found = load(path)(noise, np.array([least, longer]))[name]
  difference = float(np.abs(found - expected).max())
  if not difference <= TOLERANCE * float(np.abs(expected).max()):
    raise RuntimeError(f"{path}: {name} differs by {difference} from the model's")
