"""One page about a run, for a browser without a network: `report.html` in its workdir, and its
pictures beside it as PNG files.

  python -m atst_jax.report --workdir=runs/base [--results=runs/linear …] \
    [--encoder=encoders/base --data=data/esc10 [--audio=recordings/esc10]]

The page shows progress, curves and speed, a sheet of views, scores of the online and of other
evaluations, a map of a labelled set's embeddings with players for some of its clips, the attention
of CLS, the data, the config, and the place of every start. It is one file of at most 12 MiB, loads
nothing, and names whatever it cannot show.
"""

from atst_jax.figures.run_page import write_page
from atst_jax.util.checkout import pipeline
from atst_jax.util.cli import Parser, guard, leave
from atst_jax.util.errors import UserError


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("atst_jax.report", __doc__)
  parser.add_argument(
    "--workdir", required=True, help="folder of a pre-training run; the page is written there"
  )
  parser.add_argument(
    "--results", action="append", default=[], help="workdir of an evaluation; may be repeated"
  )
  parser.add_argument(
    "--encoder", help="exported encoder, for the map of embeddings and the attention"
  )
  parser.add_argument("--data", help="prepared labelled data set, for the map")
  parser.add_argument(
    "--audio",
    help="the folder or manifest that --data was prepared from, to hear some of its clips",
  )
  return guard(lambda: _main(parser.parse(argv)))


def _recordings(path: str) -> dict[str, str]:
  """{id: path} of --audio."""
  try:
    listing = pipeline("sources.inputs").list_files(path, exact_labels=True)
  except UserError as error:
    raise UserError(str(error).replace("--input=", "--audio=")) from None
  return {source.id: source.path for source in listing.sources}


def _main(flags) -> None:
  if (flags.encoder is None) != (flags.data is None) or (flags.audio and not flags.data):
    raise UserError(
      "the map of embeddings needs both --encoder and --data, and --audio needs them too"
    )
  recordings = _recordings(flags.audio) if flags.audio else None
  paths = write_page(
    flags.workdir,
    results=flags.results,
    encoder=flags.encoder,
    data=flags.data,
    recordings=recordings,
  )
  print(*paths, sep="\n")


if __name__ == "__main__":
  leave(main())
