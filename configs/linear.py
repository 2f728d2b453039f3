"""Linear evaluation of an exported encoder on a labelled set (ATST 3.2).

  python -m atst_jax.main --config=configs/linear.py --workdir=runs/linear \
    --config.encoder=encoders/base --config.data.path=data/esc10

Prints a table and writes results.json and results.md: the encoder, the same architecture with random parameters, and
plain statistics of the log-mel spectrogram, each with all blocks and with the last block alone.
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ("paper",)


def get_config(variant: str = "paper") -> ConfigDict:
  """ATST's protocol with a grid of rates that also serves sets of a few hundred clips."""
  del variant
  config = ConfigDict()
  config.job = "linear"
  config.seed = 0  # of random initialisations, probes and drawn divisions
  config.seeds = 3  # runs, with seed, seed + 1, …; the table gives their mean and standard deviation
  config.encoder = "encoders/base"
  config.params_hash = config_dict.placeholder(str)  # filled from the encoder
  config.blocks = ("all", "last")
  config.max_seconds = 12.0  # longer clips are cropped centrally
  config.statistics = "encoder"  # "data": BYOL-A's way, standardise by the evaluated training split instead
  config.knn = 10  # neighbours

  config.data = ConfigDict()
  config.data.path = "data/esc10"
  config.data.fingerprint = config_dict.placeholder(str)  # filled from the data

  config.splits = ConfigDict()
  config.splits.way = "auto"  # or "fold", "split", "random"
  config.splits.num_folds = 5  # of "random"

  config.probe = ConfigDict()
  config.probe.learning_rates = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)  # x batch_size / 256
  config.probe.epochs = 100
  config.probe.batch_size = 1024
  config.probe.refit = True  # the chosen rate once more on training and validation clips together
  return config
