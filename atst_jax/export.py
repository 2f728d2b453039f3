"""An encoder for others to use: a folder with its weights, `config.json` and the front-end's mel
filters.

  python -m atst_jax.export --workdir=runs/base --output=encoders/base
  python -m atst_jax.export --workdir=runs/base --output=encoders/base_5000 --step=5000 \
    --artifacts=safetensors,params
  python -m atst_jax.export --encoder=encoders/base --output=share/base \
    --artifacts=safetensors,card,jax,onnx --license=cc-by-4.0 --results=runs/linear/results.json

The folder needs no config file and none of the training code's classes; `atst_jax.embed.load_model`
opens it. Beside the weights (`safetensors`, or Orbax: `params`) it may hold a model card (`card`:
README.md), a program for CPU, CUDA and TPU (`jax`: encoder.jax, see atst_jax.artifacts.jax_program)
and an ONNX graph (`onnx`: encoder.onnx, needs .[onnx]).
"""

from atst_jax.artifacts.export import ARTIFACTS, DEFAULT, export_again, export_run
from atst_jax.artifacts.folder import parse_length
from atst_jax.util.cli import Parser, guard, leave
from atst_jax.util.errors import UserError


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("atst_jax.export", __doc__)
  add = parser.add_argument
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument(
    "--workdir", help="folder of a pre-training run, or its checkpoint.folder (gs://…)"
  )
  source.add_argument("--encoder", help="an exported encoder, to write other artifacts of it")
  add("--output", required=True, help="folder to make")
  add("--step", type=int, help="checkpoint to export; the newest by default")
  add(
    "--length",
    help="the length rule: of longer sounds embed their central seconds, or 'whole'; the run's "
    "`max_seconds`, or the encoder's, by default",
  )
  add(
    "--artifacts",
    default=",".join(DEFAULT),
    help=f"of {','.join(ARTIFACTS)} (default {','.join(DEFAULT)})",
  )
  add(
    "--license",
    default="unknown",
    help="of the weights, for the model card: an identifier such as cc-by-4.0",
  )
  add(
    "--results",
    action="append",
    default=[],
    help="results.json of a linear evaluation; may be repeated",
  )
  return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  options = {
    "artifacts": flags.artifacts.split(","),
    "license": flags.license,
    "results": flags.results,
  }
  if flags.length is not None:
    options["max_seconds"] = parse_length(flags.length)
  if "card" not in options["artifacts"] and (flags.results or flags.license != "unknown"):
    raise UserError("--license and --results are for the model card: add card to --artifacts")
  if flags.encoder is not None:
    if flags.step is not None:
      raise UserError("--step belongs to --workdir")
    export_again(flags.encoder, flags.output, **options)
    done = f"the encoder of {flags.encoder}"
  else:
    provenance = export_run(flags.workdir, flags.output, flags.step, **options)
    done = f"the {provenance['network']}'s encoder after {provenance['step']} steps"
  print(f"{flags.output}: {done}, read back and compared")


if __name__ == "__main__":
  leave(main())
