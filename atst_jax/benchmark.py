"""Speed in a steady state: medians, without the warm-up. The device's queue is empty at both ends
of a measurement.

  python -m atst_jax.benchmark step --config=configs/atst_small.py --config.batch_size=16 \
    --config.views.group=8 --torch
  python -m atst_jax.benchmark input --config=configs/base.py --clips=4096
  python -m atst_jax.benchmark end_to_end --config=configs/demo.py
  python -m atst_jax.benchmark prepare --input=recordings
  python -m atst_jax.benchmark embed --frames=301,601,1001 --torch
  python -m atst_jax.benchmark embed --encoder=encoders/base --input=recordings

`step` is the whole train step, with views, on a batch on the device. Its FLOPs are model FLOPs:
student forward and backward, teacher forward, without recomputation. `input` measures the batches
from shards, `end_to_end` both together. `prepare` compares the job that writes shards with a bare
loop of decoding, resampling and log-mel over the same files: one process with one loop, and the
pool of processes, after its start, with as many loops. `embed` measures an encoder: log-mels of
each length to vectors, many of one length together, and files to vectors. Without --encoder it is
ATST Small with random parameters; without --input the files are 10 s of noise.
"""

import json
import os
import sys

import jax

from atst_jax.audio.frontend import FRONTENDS
from atst_jax.runtime.devices import DTYPES
from atst_jax.util.checkout import pipeline
from atst_jax.util.cli import Parser, guard, leave
from atst_jax.util.environment import start_anew
from atst_jax.util.errors import UserError


def _parser() -> Parser:
  parser = Parser("atst_jax.benchmark", __doc__)
  parts = parser.add_subparsers(dest="part", required=True)
  for name in ("step", "input", "end_to_end"):
    part = parts.add_parser(name, description=__doc__)
    part.add_argument(
      "--config",
      required=True,
      help="FILE.py or FILE.py:VARIANT; --config.KEY=VALUE overrides a key",
    )
    if name != "step":
      part.add_argument(
        "--clips", type=int, default=0, help="measure with so many clips of noise, not the data set"
      )
    if name != "input":
      part.add_argument(
        "--peak_tflops",
        type=float,
        help="of one device in the config's dtype, where it is not in the table of chips",
      )
  parts.choices["step"].add_argument(
    "--torch",
    action="store_true",
    help="compare with the same work in PyTorch: ours, PyTorch's, ours again (extra `torch`)",
  )
  parts.choices["step"].add_argument(
    "--torch_compile", action="store_true", help="the same, by torch.compile"
  )
  part = parts.add_parser("prepare", description=__doc__)
  part.add_argument("--input", required=True, help="a folder of recordings")
  part.add_argument("--frontend", default="atst", help=f"{', '.join(FRONTENDS)} (default atst)")
  part.add_argument(
    "--files", type=int, default=400, help="at most so many, drawn by a hash of their names"
  )
  part.add_argument(
    "--seconds", type=float, default=5.0, help="of the bare loop in one measurement, at least"
  )
  part.add_argument(
    "--workers", type=int, default=os.cpu_count() or 1, help="processes of the pool"
  )
  _add_embed(parts.add_parser("embed", description=__doc__))
  for part in parts.choices.values():
    part.add_argument(
      "--repeats", type=int, default=5, help="measurements, of which the median counts"
    )
    part.add_argument("--json", action="store_true", help="print JSON")
  return parser


def _add_embed(part) -> None:
  part.add_argument("--encoder", help="exported encoder (default: ATST Small, random)")
  part.add_argument(
    "--frames",
    default="101,201,301,401,501,601,801,1001",
    help="lengths of log-mels, with commas between them",
  )
  part.add_argument("--input", help="folder of recordings or manifest CSV, for files to vectors")
  part.add_argument("--dtype", choices=DTYPES, default="float32", help="as of embed")
  part.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads that decode")
  part.add_argument(
    "--torch", action="store_true", help="in turns with the encoder in eager PyTorch (one device)"
  )


def _embed(flags) -> dict:
  from atst_jax.artifacts.model import load_model
  from atst_jax.performance import embed_speed

  try:
    lengths = [int(frames) for frames in flags.frames.split(",")]
  except ValueError:
    raise UserError(f"--frames={flags.frames}: whole numbers with commas between them") from None
  if flags.encoder:
    model = load_model(flags.encoder, dtype=flags.dtype)
  else:
    model = embed_speed.random_small(flags.dtype)
  if min(lengths) < model.hop:
    raise UserError(f"--frames={flags.frames}: this encoder needs at least {model.hop}")
  files = None
  if flags.input:
    sources = pipeline("sources.inputs").list_files(flags.input).sources
    files = [(source.id, source.path) for source in sources]
  found = embed_speed.measure_lengths(model, lengths, repeats=flags.repeats, torch=flags.torch)
  return {
    "device": jax.devices()[0].device_kind,
    "devices": jax.local_device_count(),
    "dtype": model.dtype,
    "lengths": found,
    **embed_speed.measure_files(model, files, workers=flags.workers, repeats=flags.repeats),
  }


def _show_embed(result) -> list[str]:
  lines = ["{devices} x {device}, {dtype}, log-mels to vectors:".format(**result)]
  for length in result["lengths"]:
    line = "{frames} frames: {clips_per_second:.1f} clips/s".format(**length)
    if "times_torch" in length:
      line += ", PyTorch {torch_clips_per_second:.1f}: {times_torch:.2f} times as many".format(
        **length
      )
    lines.append(line)
  lines.append(
    "files to vectors ({files} files, {data}), {workers} threads decode: "
    "{files_per_second:.1f} files/s".format(**result)
  )
  return lines


def _prepare(flags) -> dict:
  return pipeline("shards.speed").measure_prepare(
    flags.input,
    frontend=flags.frontend,
    files=flags.files,
    seconds=flags.seconds,
    repeats=flags.repeats,
    workers=flags.workers,
  )


def _measure(flags, config) -> dict:
  from atst_jax.performance import speed

  if flags.part == "input":
    from atst_jax.performance import input_speed

    return input_speed.measure_input(config, repeats=flags.repeats, clips=flags.clips)
  peak = None if flags.peak_tflops is None else 1e12 * flags.peak_tflops
  if flags.part == "step":
    return speed.measure_step(config, repeats=flags.repeats, peak=peak)
  return speed.measure_end_to_end(config, repeats=flags.repeats, clips=flags.clips, peak=peak)


def _show_step(result) -> list[str]:
  mfu = "MFU unknown: give --peak_tflops"
  if result["mfu"]:
    mfu = "MFU {mfu:.1%} of {peak_tflops:.3g} TFLOP/s a device".format(**result)
  lines = [
    "{devices} x {device}, batch {batch_size}, {dtype}: {clips_per_second:.2f} clips/s, "
    "{ms_per_step:.1f} ms/step (best {ms_per_step_best:.1f})".format(**result),
    "{gflop_per_clip:.2f} model GFLOP per clip, {tflop_per_second:.3f} TFLOP/s, ".format(**result)
    + mfu,
    "memory of a device: {:.2f} GiB, {peak_memory_is}".format(
      result["peak_memory_bytes"] / 2**30, **result
    ),
  ]
  if "compile_seconds" in result:
    lines.append("compiled in {compile_seconds:.1f} s".format(**result))
  if "torch" in result:
    lines.append(
      "once more {again_clips_per_second:.2f} clips/s; PyTorch ({torch}, {dtype} as well, without "
      "views, the last block for all tokens) between the two: {torch_clips_per_second:.2f}, so "
      "{times_torch:.2f} times as many here".format(**result)
    )
  if "data_wait" in result:
    lines.append("waited for data ({data}): {data_wait:.2%} of the time".format(**result))
  return lines


def _show_input(result) -> list[str]:
  rates, memory = result["clips_per_second"], result["memory_bytes"]
  bare = rates.get("bare")
  lines = ["{clips} clips of {clip_shape} float16 ({data}), batch {batch_size}, {cpus} CPUs"]
  if bare:
    lines.append(f"plain tf.data, without order, crop and padding: {bare:.0f} clips/s")
  for name, first in result["first_batch_seconds"].items():
    share = f", {rates[name] / bare:.2f} of plain tf.data" if bare else ""
    lines.append(
      f"reader {name}: {rates[name]:.0f} clips/s{share}; first batch after {first:.2f} s, resumed "
      f"after {result['resumed_seconds'][name]:.2f} s; holds {memory[name] / 1e6:.0f} MB"
    )
  if "tensorflow" in memory:
    lines.append(f"TensorFlow itself holds {memory['tensorflow'] / 1e6:.0f} MB")
  checks = ", ".join(f"{name} {1e6 * s:.1f} µs" for name, s in result["check_seconds"].items())
  lines.append(f"of a clip's time on one core the checks take: {checks}")
  return [lines[0].format(**result), *lines[1:]]


def _show_prepare(result) -> list[str]:
  return [
    "{files} files, {hours:.2f} hours of audio, {passes} times".format(**result),
    "one process: {clips_per_second:.0f} clips/s, {hours_per_core_minute:.2f} hours of audio per "
    "core-minute, {megabytes_per_second:.1f} MB/s read; {share_of_bare_loop:.0%} of a bare loop of "
    "decoding, resampling and log-mel ({bare_clips_per_second:.0f} clips/s)".format(**result),
    "pool of {workers}, after a start of {start_seconds:.1f} s: {pool_clips_per_second:.0f} "
    "clips/s, {pool_speedup:.2f} times one process; {share_of_bare_loops:.0%} of {workers} bare "
    "loops side by side; a worker holds at most {worker_megabytes:.0f} MB".format(**result),
  ]


SHOW = {
  "step": _show_step,
  "end_to_end": _show_step,
  "input": _show_input,
  "prepare": _show_prepare,
  "embed": _show_embed,
}


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  argv = sys.argv[1:] if argv is None else argv
  return guard(lambda: _main(argv, *_parser().parse_with_overrides(argv)))


def _main(argv, flags, rest) -> None:
  if getattr(flags, "clips", 0) < 0:
    raise UserError(f"--clips={flags.clips}: must not be negative")
  for key in ("files", "repeats", "workers", "seconds", "peak_tflops"):
    if getattr(flags, key, None) is not None and not getattr(flags, key) > 0:
      raise UserError(f"--{key}={getattr(flags, key)}: must be above 0")
  if flags.part in ("prepare", "embed"):
    if rest:
      raise UserError(f"{rest[0]}: unknown flag")
    result = _prepare(flags) if flags.part == "prepare" else _embed(flags)
  else:
    from atst_jax.performance.cost import load_pretraining

    config = load_pretraining(flags.config, rest)
    if flags.part == "step" and (flags.torch or flags.torch_compile):
      from atst_jax.performance import torch_step

      result = torch_step.beside(config, argv, repeats=flags.repeats, compiled=flags.torch_compile)
    else:
      result = _measure(flags, config)
  print(json.dumps(result) if flags.json else "\n".join(SHOW[flags.part](result)))


if __name__ == "__main__":
  if sys.argv[1:2] not in (["prepare"], ["embed"]):  # the commands of these two do not start anew
    start_anew("atst_jax.benchmark")
  leave(main())
