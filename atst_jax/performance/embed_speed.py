"""The speed of embedding: log-mels of several lengths to vectors, and files to vectors."""

import contextlib
import os
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.artifacts.collection import job
from atst_jax.artifacts.model import Model
from atst_jax.audio.frontend import FRONTENDS, mel_filters
from atst_jax.performance.torch_encoder import TorchEncoder
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

# Clips of one length that are embedded together: a multiple of CLIPS, so that nearly every batch is
# full, as in a job with many files; and at least FRAMES in all, five minutes of sound.
CLIPS, FRAMES = 96, 30_000
NOISE_FILES, NOISE_SECONDS = 48, 10
# ATST Small and the settings of its recipe.
SMALL = {
  "kind": "transformer",
  "width": 384,
  "depth": 12,
  "heads": 6,
  "drop_path": 0.1,
  "patch_frames": 4,
  "max_frames": 1001,
}
SMALL_CONFIG = {
  "encoder": SMALL,
  "frontend": FRONTENDS["atst"].to_json(),
  "normalization": {"kind": "min_max", "top_db": 80.0, "low": -79.6482, "high": 50.6842},
  "chunk_frames": 601,
  "tail": "keep",
  "max_seconds": None,
  "params_hash": "random",
}


def random_small(dtype: str) -> Model:
  """ATST Small with random parameters, which is as fast as a trained one."""
  config, filters = SMALL_CONFIG, mel_filters(FRONTENDS["atst"])
  blank = Model(config, None, filters, dtype=dtype)
  noise = jnp.zeros((1, config["chunk_frames"], blank.frontend.n_mels))
  variables = jax.jit(blank.encoder.init)(jax.random.key(0), noise)
  return Model(config, jax.tree.map(np.asarray, variables), filters, dtype=dtype)


def _clips(model: Model, frames: int) -> list[np.ndarray]:
  """Log-mels of noise."""
  rng = np.random.default_rng(0)
  shape = (frames, model.frontend.n_mels)
  one = rng.normal(-30, 15, shape).astype(np.float32)
  return [one] * (CLIPS * -(-FRAMES // (CLIPS * frames)))


def _seconds(model: Model, clips: list[np.ndarray]) -> float:
  started = time.perf_counter()
  model.embed(clips, num_blocks=1)
  return time.perf_counter() - started


def measure_lengths(model: Model, lengths: list[int], *, repeats: int, torch: bool) -> list[dict]:
  """Clips per second of each length in frames, medians of `repeats` measurements.

  Args:
    model: encodes the clips.
    lengths: of the clips; all clips of a measurement have the same length.
    torch: measure the same encoder in PyTorch too, in turns with ours.

  Returns:
    for each length `frames`, `chunks` (their lengths), `clips_per_second`, and with `torch`
    `torch_clips_per_second` and `times_torch`.

  Raises:
    UserError: with `torch`, for another encoder than a transformer, several devices, or a failure
      of PyTorch.
  """
  with contextlib.ExitStack() as stack:
    theirs = None
    if torch:
      _check_comparable(model)
      theirs = stack.enter_context(
        TorchEncoder(
          model.config["encoder"],
          model.frontend.n_mels,
          device="cpu" if jax.default_backend() == "cpu" else "cuda",
          bfloat16=model.dtype == "bfloat16",
        )
      )
    return [_measure_length(model, theirs, frames, repeats) for frames in lengths]


def _check_comparable(model: Model) -> None:
  if not model.encoder.has_blocks:
    raise UserError("--torch compares a transformer; leave it out for this encoder")
  if jax.local_device_count() > 1:
    raise UserError(
      f"--torch compares on one device, here are {jax.local_device_count()}; hide the others"
    )


def _measure_length(model: Model, theirs: TorchEncoder | None, frames: int, repeats: int) -> dict:
  model = model.limited(None)  # clips as long as it says
  clips = _clips(model, frames)
  chunks = [len(chunk) for chunk, _, _ in model.chunks(clips[0], model.config["tail"])]
  _seconds(model, clips)  # compiles
  ours, other = [], []
  if theirs is not None:
    theirs.seconds(chunks, 1)
  for _ in range(repeats):
    ours.append(_seconds(model, clips))
    if theirs is not None:
      other.append(theirs.seconds(chunks, len(clips)))
  result: dict = {
    "frames": frames,
    "chunks": chunks,
    "clips_per_second": len(clips) / statistics.median(ours),
  }
  if other:
    result["torch_clips_per_second"] = len(clips) / statistics.median(other)
    result["times_torch"] = result["clips_per_second"] / result["torch_clips_per_second"]
  log.info("%d frames measured: %.1f clips/s", frames, result["clips_per_second"])
  return result


def _write_noise(folder: str, sample_rate: int) -> None:
  import soundfile

  rng = np.random.default_rng(0)
  for number in range(NOISE_FILES):
    noise = rng.normal(0, 0.1, NOISE_SECONDS * sample_rate).astype(np.float32)
    soundfile.write(os.path.join(folder, f"{number:02d}.wav"), noise, sample_rate)


def measure_files(
  model: Model, files: list[tuple[str, str]] | None, *, workers: int, repeats: int
) -> dict:
  """Files per second of embedding, after a first pass that compiles and fills caches.

  Args:
    model: embeds them.
    files: (id, path) of recordings; None writes NOISE_FILES of NOISE_SECONDS.
    workers: threads that decode.
    repeats: passes; their median is the result.

  Returns:
    `files` (their number), `data`, `workers` and `files_per_second`.
  """
  seconds = []
  with tempfile.TemporaryDirectory() as folder:
    data = "given"
    if files is None:
      _write_noise(folder, model.sample_rate)
      names = sorted(os.listdir(folder))
      files = [(name, os.path.join(folder, name)) for name in names]
      data = f"{NOISE_SECONDS} s of noise"
    options = {"num_blocks": 1, "tail": model.config["tail"]}
    for number in range(repeats + 1):
      started = time.perf_counter()
      output = os.path.join(folder, f"{number}.npz")
      job.embed_files(model, files, output, workers=workers, options=options)
      seconds.append(time.perf_counter() - started)
  return {
    "files": len(files),
    "data": data,
    "workers": workers,
    "files_per_second": len(files) / statistics.median(seconds[1:]),
  }
