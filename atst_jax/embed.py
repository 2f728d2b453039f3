"""Audio to vectors with an exported encoder: numpy in, numpy out; as a command, files in and one
file of vectors out.

  from atst_jax.embed import load_model, get_scene_embeddings, get_timestamp_embeddings
  model = load_model("encoders/base")
  vectors = get_scene_embeddings([waveform], model, sample_rate=44100)  # (1, D)

  python -m atst_jax.embed --encoder=encoders/base --input=recordings --output=vectors.npz
  python -m atst_jax.embed --encoder=encoders/base --input=list.csv --output=vectors.parquet \
    --blocks=12 --workers=8
  python -m atst_jax.embed --encoder=encoders/base --input=day.flac --output=day.parquet \
    --window=3 --hop=1

The input is a folder of recordings, one recording, or a manifest CSV with a column `path`; files
may have any rate and length. A file that cannot be used is listed with its reason and does not end
the job. After an interruption run it again: what was computed lies in OUTPUT.part, and the result
is the same. With --window a file has a vector for each window, as if that were a file, and with
--frames the encoder's vectors over time; both have their times in seconds. Long sounds are cut into
chunks whose vectors are averaged; an export may have the rule that only the central seconds of a
longer sound count (`--length`). Several channels become one as in the data that the encoder was
trained on (`--channels`).

Every device that JAX finds takes its rows of a batch, and one device gives the same bits. Processes
that see the same folders may share the work: the same command for each, with --num_processes=4 and
--process_id=0 to 3. The last one to end writes the output.

Exit codes: 0 done, 2 a mistake in what was asked, 74 a store or a disk did not answer, 75 stopped
early, run it again.
"""

from atst_jax.artifacts.batches import checked_tail
from atst_jax.artifacts.collection.flags import add_flags, check_flags, files_of, local_output
from atst_jax.artifacts.embedding import get_scene_embeddings, get_timestamp_embeddings
from atst_jax.artifacts.folder import parse_length
from atst_jax.artifacts.model import TAILS, Model, load_model
from atst_jax.util.cli import Parser, guard, leave, sigterm_as_interrupt
from atst_jax.util.errors import UserError

__all__ = ["Model", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]


def main(argv=None) -> int:
  """Returns the exit code; see the module's docstring."""
  parser = Parser("atst_jax.embed", __doc__)
  add = parser.add_argument
  add("--encoder", required=True, help="exported encoder")
  add("--input", required=True, help="folder of recordings, one recording, or a manifest CSV")
  add(
    "--output",
    required=True,
    help="FILE.npz or FILE.parquet to make, with `id` (N,) and `vector` (N, D)",
  )
  add(
    "--blocks", type=int, default=1, help="how many of the last blocks to concatenate (default 1)"
  )
  add("--tail", choices=TAILS, help="how chunks are averaged; the export's rule by default")
  add(
    "--length",
    help="'whole' embeds all of a longer sound, a number its central seconds; the export's rule by "
    "default",
  )
  add("--window", type=float, help="seconds of a window; a vector for each, with its times")
  add("--hop", type=float, help="seconds between the beginnings of windows (default --window)")
  add("--frames", action="store_true", help="the vectors over time, with their times")
  add_flags(parser, "decode while the encoder runs")
  with sigterm_as_interrupt():
    return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  from atst_jax.artifacts.collection import job, vectors

  output = local_output(flags.output, "vectors")
  if not output.endswith(vectors.SUFFIXES):
    raise UserError(f"--output={flags.output}: must be a .npz or a .parquet")
  if output.endswith(".parquet"):
    vectors.import_parquet(output)
  process = check_flags(flags)
  model = load_model(flags.encoder, dtype=flags.dtype)
  if flags.tail is not None and model.encoder.context is not None:
    raise UserError(
      f"--tail={flags.tail}: this encoder's vector of a long sound is that of one pass, no chunks "
      "are averaged; leave it out"
    )
  if flags.tail is not None:
    checked_tail(flags.tail, model.encoder, "--tail")
  rows = _rows(flags, model)
  if flags.length is not None:
    model = model.limited(parse_length(flags.length))
  if not 1 <= flags.blocks <= model.depth:
    raise UserError(f"--blocks={flags.blocks}: the encoder has {model.depth} blocks")
  files = files_of(flags.input)
  options = {"num_blocks": flags.blocks, "tail": flags.tail or model.config["tail"]}
  print(
    job.embed_files(
      model,
      files,
      output,
      workers=flags.workers,
      options=options,
      rows=rows,
      channels=flags.channels or model.config["channels"],
      process=process,
      dry_run=flags.dry_run,
    )
  )


def _rows(flags, model: Model):
  """What gets a vector, from the flags. Raises UserError for flags that do not go together."""
  from atst_jax.artifacts.collection.sounds import FRAMES, WINDOWS, Rows

  if flags.frames:
    others = {
      "--window": flags.window is not None,
      "--hop": flags.hop is not None,
      "--tail": flags.tail is not None,
      "--length": flags.length is not None,
      "--blocks": flags.blocks != 1,
    }
    for name in (name for name, given in others.items() if given):
      raise UserError(
        f"{name} and --frames: vectors over time are those of the last block, of the whole sound; "
        f"leave {name} out"
      )
    return Rows(FRAMES)
  if flags.window is not None:
    return Rows(WINDOWS, flags.window, flags.window if flags.hop is None else flags.hop)
  if flags.hop is not None:
    raise UserError(f"--hop={flags.hop:g} needs --window=SECONDS")
  return Rows()


if __name__ == "__main__":
  leave(main())
