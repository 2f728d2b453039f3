"""The demo's linear evaluation: 5-fold cross-validation over 10 classes of motion.

make demo
"""

from configs import linear

VARIANTS = ("paper",)


def get_config(variant: str = "paper"):
  config = linear.get_config(variant)
  config.encoder = "runs/demo/encoder"
  config.data.path = "runs/demo/data"
  return config
