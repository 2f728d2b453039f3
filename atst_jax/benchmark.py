"""Speed, each part against what it cannot do without.

  python -m atst_jax.benchmark prepare --input=recordings [--frontend=atst --files=400 --seconds=5 --repeats=5 --json]

`prepare` compares the job that writes shards with a bare loop of decoding, resampling and log-mel over the same files:
one process with one, and the pool of processes, after its start, with as many loops side by side.
"""

import argparse
import json
import os
import sys

from atst_jax.errors import UserError


def main(argv=None) -> int:
  parser = argparse.ArgumentParser("python -m atst_jax.benchmark", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
  parser.add_argument("part", choices=("prepare",))
  parser.add_argument("--input", required=True, help="a folder of recordings")
  parser.add_argument("--frontend", default="atst")
  parser.add_argument("--files", type=int, default=400, help="at most so many, drawn by a hash of their names")
  parser.add_argument("--seconds", type=float, default=5.0, help="of the bare loop in one measurement, at least")
  parser.add_argument("--repeats", type=int, default=5, help="measurements, of which the median counts")
  parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of the pool")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  from data_pipeline.speed import measure_prepare

  try:
    for key in ("files", "repeats", "workers"):
      if getattr(flags, key) < 1:
        raise UserError(f"--{key}={getattr(flags, key)}: must be at least 1")
    result = measure_prepare(flags.input, frontend=flags.frontend, files=flags.files, seconds=flags.seconds,
                             repeats=flags.repeats, workers=flags.workers)  # fmt: skip
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if flags.json:
    print(json.dumps(result))
    return 0
  print("{files} files, {hours:.2f} hours of audio, {passes} times".format(**result))
  print("one process: {clips_per_second:.0f} clips/s, {hours_per_core_minute:.2f} hours of audio per core-minute, "
        "{megabytes_per_second:.1f} MB/s read; {share_of_bare_loop:.0%} of a bare loop of decoding, resampling and "
        "log-mel ({bare_clips_per_second:.0f} clips/s)".format(**result))  # fmt: skip
  print("pool of {workers}, after a start of {start_seconds:.1f} s: {pool_clips_per_second:.0f} clips/s, "
        "{pool_speedup:.2f} times one process; {share_of_bare_loops:.0%} of {workers} bare loops side by side; a "
        "worker holds at most {worker_megabytes:.0f} MB".format(**result))  # fmt: skip
  return 0


if __name__ == "__main__":
  sys.exit(main())
