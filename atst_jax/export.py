"""An encoder or a classifier for others to use: a folder with its weights, `config.json` and the
front-end's mel filters.

  python -m atst_jax.export --workdir=runs/base --output=encoders/base
  python -m atst_jax.export --workdir=runs/base --output=encoders/base_5000 --step=5000 \
    --artifacts=safetensors,params
  python -m atst_jax.export --encoder=encoders/base --output=share/base \
    --artifacts=safetensors,card,jax,onnx --license=cc-by-4.0 --results=runs/linear
  python -m atst_jax.export --workdir=runs/as20k --output=classifiers/as20k
  python -m atst_jax.export --workdir=runs/as20k --output=classifiers/as20k_last --epoch=last \
    --seed=0 --fold=0 --precision=0.9

A fine-tuning run gives a classifier for `python -m atst_jax.predict`: the encoder with its labels,
and, where a sound has several, for each a threshold that the run's validation clips choose, by the
best F1 or for a precision.
Of several runs it is the one that these clips like best.

The folder needs no config file and none of the training code's classes; `atst_jax.embed.load_model`
opens it. Beside the weights (`safetensors`, or Orbax: `params`) it may hold a model card (`card`:
README.md), a program for CPU, CUDA and TPU (`jax`: encoder.jax, see
`atst_jax.artifacts.programs.jax_program`) and an ONNX graph (`onnx`: encoder.onnx, needs .[onnx]).
`onnx_int8` (encoder_int8.onnx) has weights of 8 bits, and the log says what that loses.
`--artifacts=onnx --input=waveform` writes one graph from samples to vectors instead, waveform.onnx.
"""

from atst_jax.artifacts.export import ARTIFACTS, DEFAULT, INPUTS, export_again, export_run
from atst_jax.artifacts.folder import parse_length
from atst_jax.runtime.workdir import read_config
from atst_jax.util.cli import Parser, guard, leave
from atst_jax.util.errors import UserError

EPOCHS = ("best", "last")
OF_FINETUNING = ("epoch", "seed", "fold", "precision", "data", "base")


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("atst_jax.export", __doc__)
  add = parser.add_argument
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument(
    "--workdir",
    help="folder of a pre-training or fine-tuning run, or its checkpoint.folder (gs://…)",
  )
  source.add_argument(
    "--encoder", help="an exported encoder or classifier, to write other artifacts of it"
  )
  add("--output", required=True, help="folder to make")
  add("--step", type=int, help="checkpoint of pre-training to export; the newest by default")
  add(
    "--epoch", choices=EPOCHS, help="of fine-tuning; by default the one that validation liked best"
  )
  add("--seed", type=int, help="of the fine-tuning run, where a job has several")
  add("--fold", type=int, help="division of the fine-tuning run, from 0 as in results.json")
  add(
    "--precision",
    type=float,
    help="share of the given labels that shall be right, for which the thresholds of a fine-tuned "
    "classifier of several labels for a sound are chosen; the best F1 by default",
  )
  add("--data", help="the prepared set of the fine-tuning, if it lies elsewhere now")
  add("--base", help="the encoder that the fine-tuning began with, if it lies elsewhere now")
  add(
    "--length",
    help="the length rule of an encoder: of longer sounds embed their central seconds, or 'whole'; "
    "the run's `max_seconds`, or the encoder's, by default",
  )
  add(
    "--artifacts",
    default=",".join(DEFAULT),
    help=f"of {','.join(ARTIFACTS)} (default {','.join(DEFAULT)})",
  )
  add(
    "--input",
    choices=INPUTS,
    help="of the ONNX graph: log-mel in dB (encoder.onnx, the default), or samples, with the "
    "front-end, chunks and length rule inside (waveform.onnx)",
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
    help="workdir of a linear evaluation, or its results.json; may be repeated",
  )
  return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  options = {
    "artifacts": flags.artifacts.split(","),
    "license": flags.license,
    "results": flags.results,
  }
  if flags.input is not None:
    if "onnx" not in options["artifacts"]:
      raise UserError(f"--input={flags.input} is the ONNX graph's: add onnx to --artifacts")
    options["onnx_input"] = flags.input
  if flags.length is not None:
    options["max_seconds"] = parse_length(flags.length)
  if "card" not in options["artifacts"] and (flags.results or flags.license != "unknown"):
    raise UserError("--license and --results are for the model card: add card to --artifacts")
  finetuned = flags.workdir is not None and read_config(flags.workdir)["job"] == "finetune"
  wrong = ("step",) if finetuned else (*OF_FINETUNING, *(("step",) if flags.encoder else ()))
  if given := [name for name in wrong if getattr(flags, name) is not None]:
    kind = "a pre-training run" if flags.workdir else "--encoder"
    kind = "a fine-tuning run" if finetuned else kind
    raise UserError(f"--{given[0]} does not go with {kind}; leave it out")
  if finetuned:
    from atst_jax.downstream.finetune import exporting

    chosen = {name: getattr(flags, name) for name in ("seed", "fold", "precision", "data")}
    chosen |= {"epoch": flags.epoch or EPOCHS[0], "encoder": flags.base}
    done = exporting.export_run(flags.workdir, flags.output, **chosen, **options)
  elif flags.encoder is not None:
    export_again(flags.encoder, flags.output, **options)
    done = f"the encoder of {flags.encoder}"
  else:
    provenance = export_run(flags.workdir, flags.output, flags.step, **options)
    done = f"the {provenance['network']}'s encoder after {provenance['step']} steps"
  print(f"{flags.output}: {done}, read back and compared")


if __name__ == "__main__":
  leave(main())
