"""The nearest sounds of a collection that `embed` made vectors of.

  python -m atst_jax.search --vectors=vectors.parquet --query=recordings/dog.wav \
    --encoder=encoders/base --k=10
  python -m atst_jax.search --vectors=vectors.parquet --query=a/dog.wav --whiten \
    --input=recordings --page=found.html
  python -m atst_jax.search --vectors=vectors.parquet --duplicates=0.99

A query is the id of a vector, or a sound file, which needs the encoder that made the vectors.
Prints a line for each find: its cosine and its id, of a window with its seconds; or, with
--duplicates, a line for each pair. A page shows spectrograms of the finds, and plays them; it needs
the folder, recording or table that was embedded, of which only what was found is read. From
100,000 vectors on an index is built once and kept beside the file.

Exit codes: 0 done, 2 a mistake in what was asked, 74 a store or a disk did not answer.
"""

import os
import sys

import numpy as np

from atst_jax.artifacts.batches import tail_of
from atst_jax.artifacts.collection import neighbours, vectors
from atst_jax.artifacts.collection.flags import files_of
from atst_jax.artifacts.folder import parse_length
from atst_jax.artifacts.model import load_model
from atst_jax.audio.channels import MEAN
from atst_jax.util.cli import Parser, guard, nearest
from atst_jax.util.errors import UserError, printable


def main(argv=None) -> int:
  """Returns the exit code; see the module's docstring."""
  parser = Parser("atst_jax.search", __doc__)
  add = parser.add_argument
  add("--vectors", required=True, help="the .npz or .parquet that `embed` wrote")
  add("--query", help="the id of a vector, or a sound file")
  add("--k", type=int, default=10, help="how many to find (default 10)")
  add("--encoder", help="the exported encoder of the vectors, for a query that is a sound file")
  add(
    "--whiten",
    action="store_true",
    help="compare along the principal directions of the collection, each divided by its deviation",
  )
  add("--exact", action="store_true", help="compare with every vector, however many there are")
  add("--duplicates", type=float, help="list the pairs whose cosine is at least so much")
  add("--page", help="HTML file to write, with spectrograms and players of what was found")
  add("--input", help="the folder, recording or table that was embedded; for --page")
  return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  if (flags.query is None) == (flags.duplicates is None):
    raise UserError("give one of --query and --duplicates")
  if (flags.page is None) != (flags.input is None):
    raise UserError("--page needs --input, the folder or table that was embedded, and --input it")
  if flags.k < 1:
    raise UserError(f"--k={flags.k}: must be at least 1")
  if flags.duplicates is not None:
    if flags.page is not None:
      raise UserError("--page shows what a --query finds; leave it out with --duplicates")
    _list_duplicates(flags)
    return
  table = vectors.read(flags.vectors)
  query = _query(flags, table)
  searcher = _searcher(flags, table)
  own = table.find(flags.query)
  rows, cosines = searcher.nearest(neighbours.unit(query[None], searcher.whiten), flags.k + 1)
  found = [
    (row, float(cosine)) for row, cosine in zip(rows[0], cosines[0], strict=True) if row != own
  ][: flags.k]
  for row, cosine in found:
    print(f"{cosine:.4f}  {table.name(row)}")
  if flags.page:
    if not found:
      raise UserError(f"--query={flags.query}: {flags.vectors} holds no other vector to show")
    _write_page(flags, table, found)


def _searcher(flags, table: vectors.Table):
  return neighbours.searcher(flags.vectors, table, whitened=flags.whiten, exact=flags.exact)


def _list_duplicates(flags) -> None:
  if not 0 < flags.duplicates <= 1:
    raise UserError(f"--duplicates={flags.duplicates}: a cosine above 0 and at most 1")
  table = vectors.read(flags.vectors)
  pairs = sorted(_searcher(flags, table).duplicates(flags.duplicates), key=lambda pair: -pair[2])
  for i, j, cosine in pairs:
    print(f"{cosine:.4f}  {table.name(i)}  {table.name(j)}")
  print(f"{len(pairs)} pairs of {len(table.ids)} vectors", file=sys.stderr)


def _query(flags, table: vectors.Table) -> np.ndarray:
  """(D,) vector of the query."""
  if (own := table.find(flags.query)) is not None:
    if (of_it := table.ids.count(flags.query)) > 1:
      raise UserError(
        f"--query={flags.query}: {of_it} vectors of {flags.vectors} are of it; name one, such as "
        f"--query='{table.name(own)}'"
      )
    return np.asarray(table.vectors[own])
  if not os.path.isfile(flags.query):
    raise UserError(
      f"--query={flags.query}: neither a file nor an id of {flags.vectors}"
      f"{nearest(flags.query, table.ids)}"
    )
  if table.about.get("rows") == "frames":
    raise UserError(
      f"--query={flags.query}: {flags.vectors} holds vectors over time, of which a file has many; "
      "give the id of one of them, or vectors of files or windows"
    )
  if flags.encoder is None:
    raise UserError("a query that is a sound file needs --encoder, which made the vectors")
  from atst_jax.artifacts.collection.listening import Listener
  from atst_jax.artifacts.collection.sounds import file_mel, settings_hash

  # files that were written before they named them: float32, and settings that nobody can check
  model = load_model(flags.encoder, dtype=str(table.about.get("dtype", "float32")))
  mine = {"params_hash": model.config["params_hash"], "settings": settings_hash(model)}
  for key, value in mine.items():
    if value != table.about.get(key, value):
      raise UserError(
        f"--encoder={flags.encoder} did not make {flags.vectors} ({key} {value}, there "
        f"{table.about[key]}); give the one that did"
      )
  if "length" in table.about:
    model = model.limited(parse_length(str(table.about["length"])))
  # files that were written before they named it: the mean
  listener = Listener(model.sample_rate, str(table.about.get("channels", MEAN)))
  mel = file_mel(model, listener, flags.query)
  listener.tell()
  if isinstance(mel, str):
    raise UserError(f"--query: {mel}")
  # files that were written before they named them: the last block, by the export's rule
  blocks, tail = table.about.get("blocks", 1), table.about.get("tail", model.config["tail"])
  tail = tail_of(str(tail), model.encoder)
  return model.embed([mel], num_blocks=int(blocks), tail=tail)[0]


def _write_page(flags, table: vectors.Table, found: list[tuple[int, float]]) -> None:
  from atst_jax.figures.found_page import Find, write_page

  recordings = dict(files_of(flags.input))
  finds = [
    Find(table.name(row), cosine, recordings[table.ids[row]], table.span(row))
    for row, cosine in found
    if table.ids[row] in recordings
  ]
  if not finds:
    raise UserError(
      f"--input={flags.input}: none of what was found, such as {table.name(found[0][0])!r}, is "
      f"among its {len(recordings)} files; give what was embedded"
    )
  write_page(flags.page, printable(flags.query), finds)
  print(flags.page)


if __name__ == "__main__":
  sys.exit(main())
