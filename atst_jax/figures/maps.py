"""A map of a labelled set: its embeddings by t-SNE, as a picture and for a page.

On the page every clip is a point that shows its name under the pointer; some have a player. The
list of classes dims the others, and works without a mouse, as do the players below the map.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from atst_jax.artifacts.collection import neighbours
from atst_jax.artifacts.model import Model
from atst_jax.data.dataset import Clip, Dataset
from atst_jax.figures.pictures import COLORS, literal, save
from atst_jax.util import html_page
from atst_jax.util.errors import UserError

# Of classes: matplotlib's names of markers, and outlines around (0, 0) for a page.
MARKERS = {
  "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
  "s": "M-3.5-3.5h7v7h-7z",
  "^": "M0-4.7L4.3 3.2H-4.3z",
  "D": "M0-4.8L4.8 0L0 4.8L-4.8 0z",
  "v": "M0 4.7L4.3-3.2H-4.3z",
}
WIDTH, MARGIN, HEIGHTS = 860, 14, (320, 640)  # of the map on a page
MAX_POINTS = 2000  # of the map: t-SNE's time grows faster than its number of points
ROWS, COLUMNS, LABEL = 34, 5, 30  # of a picture's list of classes, and characters of a name
DIRECTIONS = 50  # before t-SNE, as van der Maaten and Hinton (2008)


def project(features: np.ndarray) -> np.ndarray:
  """(N, D) -> (N, 2) by t-SNE with a fixed seed, on the first principal directions, scaled to equal
  variance: a few of them have nearly all variance, and seldom tell classes apart.

  Raises:
    UserError: there are fewer than 4 clips, or all have the same vector.
  """
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits

  if len(features) < 4:
    raise UserError(f"{len(features)} clips make no map; at least 4 are needed")
  white = neighbours.whitening(features)
  x = (features - white.mean) @ white.directions[:, -DIRECTIONS:]
  x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  # t-SNE's threads wait for each other by spinning: on shared cores 25 times slower than one.
  with threadpool_limits(1):
    perplexity = min(30, (len(x) - 1) / 3)
    init = "pca" if x.shape[1] > 1 else "random"
    return TSNE(2, perplexity=perplexity, init=init, random_state=0).fit_transform(x)


def class_styles(labels: np.ndarray) -> dict[int, tuple[str, str]]:
  """Class -> (colour, marker): Okabe and Ito's colours and grey, each with five markers; for more
  classes, colours of a rainbow, with the markers in turn."""
  import matplotlib

  classes = np.unique(labels).tolist()
  colors = [*COLORS, "#666666"]
  each = len(colors)  # with the same marker
  if len(classes) > len(colors) * len(MARKERS):
    each = 1
    colors = [
      matplotlib.colors.to_hex(c)
      for c in matplotlib.colormaps["turbo"](np.linspace(0, 1, len(classes)))
    ]
  return {
    c: (colors[i % len(colors)], [*MARKERS][i // each % len(MARKERS)])
    for i, c in enumerate(classes)
  }


class Labelled(NamedTuple):
  """Clips of a labelled set with their places on a map."""

  clips: list[Clip]
  labels: np.ndarray  # (N,) of their first labels
  points: np.ndarray  # (N, 2)


def labelled(model: Model, dataset: Dataset, *, name: str) -> Labelled:
  """A map of at most MAX_POINTS labelled clips of a set, drawn with a fixed seed, from the
  encoder's last block.

  Args:
    name: of the encoder, for messages.

  Raises:
    UserError: the set has another front-end, or too few labelled clips.
  """
  dataset.check_frontend(model.frontend, name)
  every = lambda: enumerate(clip for split in dataset.splits for clip in dataset.clips(split))
  rows = [row for row, clip in every() if clip.labels]
  if not rows:
    raise UserError(f"{dataset.root}: no clip has a label; a map needs a labelled data set")
  chosen = set(np.random.default_rng(0).permutation(rows)[:MAX_POINTS].tolist())
  clips = [dataclasses.replace(clip, mel=clip.mel.copy()) for row, clip in every() if row in chosen]
  features = model.embed((clip.mel.astype(np.float32) for clip in clips), num_blocks=1)
  return Labelled(clips, np.array([clip.labels[0] for clip in clips]), project(features))


def embedding_map(
  points: np.ndarray, labels: np.ndarray, label_names: list[str], path: str, *, title=""
) -> None:
  """A map of clips, by colour and marker of their class. Of very many classes, those with the most
  clips are named.

  Args:
    points: (N, 2) of `project`.
    labels: (N,) class indices.
    label_names: of the classes.
    path: PNG to write.
    title: a line above the picture.
  """
  from matplotlib.figure import Figure

  styles = class_styles(labels)
  counts = {c: int((labels == c).sum()) for c in styles}
  named = sorted(sorted(styles, key=counts.__getitem__, reverse=True)[: ROWS * COLUMNS])
  names = {c: literal(label_names[c], LABEL) for c in named}
  columns = -(-len(named) // ROWS)
  wide = columns * (0.7 + 0.085 * max(map(len, names.values())))  # inches
  figure = Figure(figsize=(8.5 + wide, 7.5), layout="constrained")
  axis = figure.subplots()
  for c, (color, marker) in styles.items():
    x, y = points[labels == c].T
    label = names.get(c, "_")  # a legend leaves those out
    axis.scatter(x, y, s=18, color=color, marker=marker, linewidths=0, alpha=0.8, label=label)
  axis.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
  axis.set_title(literal(title), fontsize=10)
  axis.spines[["top", "right"]].set_visible(False)
  figure.legend(
    *axis.get_legend_handles_labels(),
    loc="outside right upper",
    ncols=columns,
    frameon=False,
    fontsize=9,
    title=f"those of {len(styles)} with the most clips" if len(named) < len(styles) else None,
  )
  save(figure, path)


class Player(NamedTuple):
  """A clip with a player: its row, and its picture and sound as data URIs."""

  row: int
  image: str
  sound: str


def _places(points: np.ndarray) -> tuple[np.ndarray, int]:
  """(N, 2) coordinates in the drawing, both axes to the same scale, centred; and its height."""
  low, high = points.min(0), points.max(0)
  size = np.maximum(high - low, 1e-9)
  height = int(np.clip(WIDTH * size[1] / size[0], *HEIGHTS))
  scale = ((np.array([WIDTH, height]) - 2 * MARGIN) / size).min()
  place = (points - (low + high) / 2) * scale * [1, -1] + np.array([WIDTH, height]) / 2
  return place.round(1), height


def map_for_page(
  points: np.ndarray,
  labels: np.ndarray,
  label_names: list[str],
  ids: list[str],
  players: list[Player],
) -> Markup:
  """The map as a part of a page that includes map.css and map.js once.

  Args:
    points: (N, 2).
    labels: (N,) class indices.
    label_names: of the classes.
    ids: (N,) of the clips.
    players: of some rows. Their points have a dark rim; a click plays them.
  """
  heard = {player.row: number for number, player in enumerate(players)}
  names = [f"{label_names[label]}: {id}" for label, id in zip(labels, ids, strict=True)]
  places, height = _places(points)
  return html_page.render(
    "figures/map.html",
    width=WIDTH,
    height=height,
    styles={
      c: {
        "color": color,
        "shape": MARKERS[marker],
        "name": label_names[c],
        "count": (labels == c).sum(),
      }
      for c, (color, marker) in class_styles(labels).items()
    },
    points=[
      {
        "label": int(labels[row]),
        "name": names[row],
        "place": tuple(places[row]),
        "player": heard.get(row),
      }
      # points with players lie on top
      for row in sorted(range(len(points)), key=lambda row: row in heard)
    ],
    players=[{"name": names[p.row], "image": p.image, "sound": p.sound} for p in players],
  )
