"""The stretches of a recording that no segment covers, as clips without a label."""

import collections
import dataclasses
import math
import os
from collections.abc import Iterator

from atst_jax.util.errors import UserError, printable

from .files import Listing
from .segments import make_segment

REST_SECONDS = 1.0  # a shorter rest is left out, as the last piece of a long file is


def add_rest(listing: Listing) -> Listing:
  """Adds the stretches that no segment of a recording covers. They have no label, and the split and
  group of the recording. Recordings whose table is empty are added whole.

  Raises UserError if the listing has no segments.
  """
  if not listing.unannotated and all(source.whole for source in listing.sources):
    raise UserError("--rest needs segments: a table with `start` and `end`, of Raven or Audacity")
  by_path = collections.defaultdict(list)
  for source in listing.sources:
    by_path[source.path].append(source)
  rest, divided = [*listing.unannotated], 0
  for path, sources in by_path.items():
    first = sources[0]
    if len({(source.split, source.group) for source in sources}) > 1:
      divided += 1
      continue
    fold = first.fold if len({source.fold for source in sources}) == 1 else -1
    bare = dataclasses.replace(first, id="", labels=(), fold=fold)
    relative = printable(os.path.relpath(path, listing.root).replace(os.sep, "/"))
    spans = [(source.start, source.end) for source in sources]
    rest += [
      make_segment(bare, start=start, end=end, line=0, relative=relative)
      for start, end in _gaps(spans)
    ]
  notes = listing.notes
  if divided:
    notes += (f"no rest of {divided} recordings whose segments lie in several splits or groups",)
  return dataclasses.replace(listing, sources=listing.sources + rest, notes=notes)


def _gaps(spans: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
  """Yields the gaps of REST_SECONDS or more between spans; the last one has no end."""
  reached = 0.0
  for start, end in sorted((start, end) for start, end in spans if end > start):
    if start - reached >= REST_SECONDS:
      yield reached, start
    reached = max(reached, end)
  if reached < math.inf:
    yield reached, math.inf
