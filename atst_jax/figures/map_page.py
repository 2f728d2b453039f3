"""A map of embeddings for a page: a point for each clip, its name under the pointer, and players
for some.

Everything is in the page: the drawing as SVG, sounds as data. Works without a mouse, too: the list
of classes dims the others, players follow below the map.
"""

import html
from typing import NamedTuple

import numpy as np

from atst_jax.figures.maps import class_styles

WIDTH, MARGIN = 860, 14
HEIGHTS = (320, 640)
SHAPES = {  # outlines around (0, 0), by matplotlib's names of markers
  "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
  "s": "M-3.5-3.5h7v7h-7z",
  "^": "M0-4.7L4.3 3.2H-4.3z",
  "D": "M0-4.8L4.8 0L0 4.8L-4.8 0z",
  "v": "M0 4.7L4.3-3.2H-4.3z",
}
STYLE = """.map{display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start}.map svg{height:auto;border:1px solid #ddd;
max-width:100%}.map .p{fill-opacity:.8;cursor:default}.map .play{stroke:#000;stroke-width:1.6;cursor:pointer}
.dim{opacity:.08}.legend{display:flex;flex-direction:column;align-items:flex-start;max-height:620px;overflow:auto}
.legend button{font:inherit;font-size:13px;background:none;border:0;padding:.1em .4em;cursor:pointer;text-align:left}
.legend button[aria-pressed=true]{font-weight:bold}.legend svg{display:inline-block;margin:0 .4em 0 0;border:0;
vertical-align:-2px}#tip{position:fixed;display:none;pointer-events:none;background:#222;color:#fff;padding:.2em .6em;
border-radius:4px;font-size:13px;max-width:30em;overflow-wrap:anywhere;z-index:1}.players figure{width:230px;
vertical-align:top;padding:4px;border:2px solid transparent}.players figure.on{border-color:#0072B2}
.players img{display:block;width:230px;height:96px}.players audio{width:230px;height:36px}"""
SCRIPT = """'use strict';
for (const map of document.querySelectorAll('.map')) {
  const tip = document.getElementById('tip'), points = map.querySelectorAll('.p');
  const show = (point, x, y) => {
    tip.textContent = point.dataset.name;
    tip.style.display = 'block';
    tip.style.left = Math.min(x + 14, innerWidth - tip.offsetWidth - 6) + 'px';
    tip.style.top = Math.min(y + 14, innerHeight - tip.offsetHeight - 6) + 'px';
  };
  const hide = () => { tip.style.display = 'none'; };
  for (const point of points) {
    point.addEventListener('pointerenter', event => show(point, event.clientX, event.clientY));
    point.addEventListener('pointerleave', hide);
    if (!point.dataset.player) continue;
    const play = () => {
      const figure = document.getElementById(point.dataset.player), audio = figure.querySelector('audio');
      for (const other of document.querySelectorAll('.players figure')) {
        other.classList.toggle('on', other === figure);
        if (other !== figure) other.querySelector('audio').pause();
      }
      audio.currentTime = 0;
      audio.play().catch(() => figure.scrollIntoView({block: 'nearest'}));
    };
    point.addEventListener('click', play);
    point.addEventListener('keydown', event => { if (event.key === 'Enter') play(); });
    point.addEventListener('focus', () => { const at = point.getBoundingClientRect(); show(point, at.x, at.y); });
    point.addEventListener('blur', hide);
  }
  const buttons = map.querySelectorAll('.legend button');
  for (const button of buttons) {
    button.addEventListener('click', () => {
      const chosen = button.getAttribute('aria-pressed') !== 'true';
      for (const other of buttons) other.setAttribute('aria-pressed', String(chosen && other === button));
      for (const point of points) point.classList.toggle('dim', chosen && point.dataset.class !== button.dataset.class);
    });
  }
}
"""


class Player(NamedTuple):
  """A clip that can be heard: its row, a picture (HTML) and a sound as a data URI."""

  row: int
  picture: str
  sound: str


def _places(points: np.ndarray) -> tuple[np.ndarray, int]:
  """(N, 2) coordinates in the drawing, both axes to the same scale, centred; and its height."""
  low, high = points.min(0), points.max(0)
  size = np.maximum(high - low, 1e-9)
  height = int(np.clip(WIDTH * size[1] / size[0], *HEIGHTS))
  scale = ((np.array([WIDTH, height]) - 2 * MARGIN) / size).min()
  place = (points - (low + high) / 2) * scale * [1, -1] + np.array([WIDTH, height]) / 2
  return place.round(1), height


def embedding_map(
  points: np.ndarray,
  labels: np.ndarray,
  label_names: list[str],
  ids: list[str],
  players: list[Player],
) -> str:
  """HTML of a map; needs STYLE and SCRIPT once in the page.

  Args:
    points: (N, 2).
    labels: (N,) class indices.
    label_names: of the classes; escaped, like the ids.
    ids: (N,) of the clips.
    players: of some rows; a click on their points, which have a dark rim, plays them.
  """
  escape = lambda text: html.escape(str(text), quote=True)
  styles = class_styles(labels)
  heard = {player.row: f"player{number}" for number, player in enumerate(players)}
  mark = lambda c, more: f'<path d="{SHAPES[styles[c][1]]}" fill="{styles[c][0]}"{more}/>'
  drawn = []
  places, height = _places(points)
  # those that can be heard lie on top
  for row in sorted(range(len(points)), key=lambda row: row in heard):
    (x, y), name = places[row], f"{label_names[labels[row]]}: {ids[row]}"
    more = (
      f' data-class="{labels[row]}" data-name="{escape(name)}" transform="translate({x:g} {y:g})"'
    )
    if row in heard:
      more += f' class="p play" data-player="{heard[row]}" tabindex="0" role="button" aria-label="play {escape(name)}"'
    else:
      more += ' class="p"'
    drawn.append(mark(labels[row], more))
  legend = "".join(
    f'<button type="button" data-class="{c}" aria-pressed="false"><svg width="12" height="12" viewBox="-6 -6 12 12">'
    f"{mark(c, '')}</svg>{escape(label_names[c])} ({(labels == c).sum()})</button>"
    for c in styles
  )
  figures = "".join(
    f'<figure id="{heard[player.row]}">{player.picture}<audio controls preload="metadata" src="{player.sound}"></audio>'
    f"<figcaption>{escape(label_names[labels[player.row]])}: {escape(ids[player.row])}</figcaption></figure>"
    for player in players
  )
  return (
    f'<div class="map"><svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
    f'aria-label="map of the embeddings">{"".join(drawn)}</svg><div class="legend">{legend}</div></div>'
    f'<div id="tip"></div>{f"""<div class="players">{figures}</div>""" if players else ""}'
  )
