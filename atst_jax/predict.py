"""New sounds to labels with an exported classifier: numpy in, numpy out; as a command, recordings
in and one file of labels out.

  from atst_jax.predict import load_model, predict
  classifier = load_model("classifiers/birds")
  probabilities = predict([waveform], classifier, sample_rate=44100)  # (1, C)

  python -m atst_jax.predict --model=classifiers/birds --input=recordings --output=labels.csv
  python -m atst_jax.predict --model=classifiers/birds --input=night.flac --window=3 --hop=1 \
    --min=0.5 --output=night.selections.txt
  python -m atst_jax.predict --model=classifiers/birds --input=segments.csv --top=5 \
    --output=segments.jsonl

A model is what `atst_jax.export` makes of a fine-tuning run, or a linear evaluation with
--config.export=FOLDER. The input is a folder of recordings, one recording, or a table: a manifest,
selections of Raven or labels of Audacity, whose segments are classified each on its own. Every
label is told with its probability. Where a sound may have several, it is told with its threshold,
too, and by default those labels that reach theirs; where it has one, the likeliest. With --window
the sounds are windows of the recordings or segments, which are read in blocks: hours need no more
memory than minutes. Several channels become one as in the data that the classifier was trained on
(`--channels`).

The output's ending says its form: .csv, .jsonl, .selections.txt (Raven), .txt (Audacity, of one
recording). A recording that cannot be used is listed with its reason and does not end the job;
OUTPUT.json lists them, too, and says of which model the labels are. After an interruption run it
again: what was computed lies in OUTPUT.part. Every device that JAX finds takes its rows of a batch.
Processes that see the same folders may share the work: the same command for each, with
--num_processes=4 and --process_id=0 to 3. The last one to end writes the output.

Exit codes: 0 done, 2 a mistake in what was asked, 74 a store or a disk did not answer, 75 stopped
early, run it again.
"""

import argparse
import collections

from atst_jax.artifacts.collection.flags import (
  add_flags,
  check_flags,
  id_of,
  is_recording,
  local_output,
  sources_of,
)
from atst_jax.artifacts.model import Model, load_model
from atst_jax.prediction.arrays import labels_of, predict, predict_windows, thresholds_of
from atst_jax.util.cli import Parser, guard, leave, sigterm_as_interrupt
from atst_jax.util.errors import UserError

__all__ = ["Model", "labels_of", "load_model", "predict", "predict_windows", "thresholds_of"]


class _Encoder(argparse.Action):
  """Says which flag is meant by the one that `embed` has."""

  def __call__(self, parser, namespace, values, option_string=None):
    """Raises UserError."""
    parser.error(f"--encoder={values}: the flag is --model here, and names a classifier")


def main(argv=None) -> int:
  """Returns the exit code; see the module's docstring."""
  parser = Parser("atst_jax.predict", __doc__)
  add = parser.add_argument
  add("--model", required=True, help="exported classifier")
  add("--encoder", action=_Encoder, help=argparse.SUPPRESS)
  add("--input", required=True, help="folder of recordings, one recording, or a table")
  add("--output", required=True, help="file to make: .csv, .jsonl, .selections.txt or .txt")
  add("--window", type=float, help="seconds of the windows that recordings are cut into")
  add("--hop", type=float, help="seconds between their beginnings (default: the window)")
  add("--top", type=int, help="tell so many labels of each sound, the likeliest")
  add("--labels", help="tell these labels alone: A,B or, where names hold commas, A;B")
  add("--min", type=float, help="tell labels of at least this probability, in place of thresholds")
  add_flags(parser, "prepare sounds while the model runs")
  with sigterm_as_interrupt():
    return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  from atst_jax.prediction import job, rows
  from atst_jax.prediction.sounds import Windows

  output = local_output(flags.output, "labels")
  rows.check_output(output, 1)
  process = check_flags(flags)
  _check(flags)
  model = load_model(flags.model, dtype=flags.dtype)
  selection = rows.selection_of(model, flags.labels, flags.top, flags.min)
  recordings = _recordings(flags.input)
  rows.check_output(output, len(recordings))
  windows = None
  if flags.window is not None:
    windows = Windows(flags.window, flags.window if flags.hop is None else flags.hop)
  settings = job.Settings(selection, windows, flags.channels or model.config["channels"])
  print(
    job.predict_files(
      model,
      recordings,
      output,
      settings,
      workers=flags.workers,
      process=process,
      dry_run=flags.dry_run,
    )
  )


def _check(flags) -> None:
  """Raises UserError for flags that do not go together."""
  if flags.hop is not None and flags.window is None:
    raise UserError(f"--hop={flags.hop:g} is between windows: give --window, too")
  if flags.top is not None and flags.top < 1:
    raise UserError(f"--top={flags.top}: at least 1 is needed")
  if flags.min is not None and not 0 <= flags.min <= 1:
    raise UserError(f"--min={flags.min:g}: a probability lies between 0 and 1")


def _recordings(path: str) -> list:
  """The recordings of an input, each with what is asked about of it."""
  from atst_jax.prediction.sounds import Part, Recording

  if is_recording(path):
    return [Recording(path, (Part(id_of(path), 0.0, float("inf")),))]
  found = collections.defaultdict(list)
  for source in sources_of(path):
    found[source.path].append(Part(source.id, source.start, source.end))
  return [Recording(file, tuple(parts)) for file, parts in found.items()]


if __name__ == "__main__":
  leave(main())
