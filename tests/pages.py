"""Records of a run, and checks of pictures and pages."""

import html.parser
import os

import numpy as np


def pixels(path):
  """(height, width, channels) of a PNG; every picture here has to show something."""
  import matplotlib.image

  image = matplotlib.image.imread(path)
  assert image.shape[0] > 300 and image.shape[1] > 400 and image[..., :3].std() > 0.05
  assert not [name for name in os.listdir(os.path.dirname(path)) if ".tmp-" in name]
  return image


def records(n=120, **changes):
  rng = np.random.default_rng(0)
  return [
    {
      "step": 10 * i,
      "time": i,
      "loss": 2 / (1 + i / 9) + 0.1 * rng.random(),
      "loss_byol": 1.0,
      "loss_difference": 1.5,
      "std_student": 0.3,
      "std_teacher": 0.25,
      "learning_rate": 1e-3,
      "ema_decay": 0.99 + i / n / 100,
      "clips_per_second": 50.0,
      **changes,
    }
    for i in range(n)
  ]


VOID = {"meta", "img", "path", "rect"}


class Checker(html.parser.HTMLParser):
  """Collects text and sources; raises where tags do not close."""

  def __init__(self):
    super().__init__()
    self.open, self.sources, self.text = [], [], ""

  def handle_starttag(self, tag, attrs):
    self.sources += [value for name, value in attrs if name in ("src", "href")]
    if tag not in VOID and self.get_starttag_text()[-2:] != "/>":
      self.open.append(tag)

  def handle_endtag(self, tag):
    if tag not in VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data + "\n"
