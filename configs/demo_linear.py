"""The demo's linear evaluation, by the exact probe: ten words, leaving five of 25 speakers out in
turn.

make demo
"""

from configs import linear

VARIANTS = ("paper",)


def get_config(variant: str = "paper"):
  config = linear.get_config(variant)
  config.encoder = "runs/demo/encoder"
  config.data.path = "runs/demo/data"
  return config
