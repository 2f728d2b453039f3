"""BgKnown: sounds in backgrounds of which other parts are known (the difference-aware paper, 5.2
and Table 1).

  python -m data_pipeline.bgknown --foreground=ESC-50 --foreground_layout=esc50 \
    --background=FSD50K --background_layout=fsd50k --output=data/bgknown_esc50 --frontend=difference
  python -m atst_jax.main --config=configs/bgknown.py --workdir=runs/bgknown \
    --config.encoder=encoders/difference --config.data.path=data/bgknown_esc50

Prints a table and writes results.json and results.md: the accuracy of a linear probe on the
mixture's vector, and on its difference to that of the known background, which was mixed in (a),
overlaps it by half (b), or comes after it (c); beside it the same for random encoders and for
statistics of the log-mel spectrogram.
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ("paper",)


def get_config(variant: str = "paper") -> ConfigDict:
  """The paper's probe: Adam at 1e-3, 200 epochs, stopped by the loss of a tenth of the training
  clips, three seeds."""
  config = ConfigDict()
  config.job = "difference"
  # the paper's probe, with the exact one beside it; or "exact": that one alone
  config.protocol = "difference"
  config.seed = 0  # of random initialisations, probes and the tenth that is held out
  # runs, with seed, seed + 1, …; the table gives their mean and standard deviation
  config.seeds = 3
  config.encoder = "encoders/difference"  # folder of an exported encoder
  config.params_hash = config_dict.placeholder(str)  # filled from the encoder
  # filled from the encoder: of its normalisation, front-end, chunks and length rule
  config.embedding_hash = config_dict.placeholder(str)
  # of a transformer: what its projector sees, its "last" block, "all" blocks
  config.vectors = ("y", "last")
  # measured beside it: the encoder with random parameters, statistics of the mel
  config.baselines = ("random", "mel")
  config.weight = 1.0  # of the background that is subtracted; pre-training subtracts 0.4 to 0.6
  # filled: "data" (of the mixtures) for BYOL-A's encoders, else "encoder": whose constants of
  # normalisation are used
  config.statistics = config_dict.placeholder(str)

  config.data = ConfigDict()
  config.data.path = "data/bgknown_esc50"  # of `data_pipeline.bgknown`
  config.data.fingerprint = config_dict.placeholder(str)  # filled from the data

  config.exact = ConfigDict()
  # of the exact probe, x clips
  config.exact.penalties = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
  # what chooses the penalty: the "valid" clips, or "groups" of known clips, each left out in turn;
  # "folds": a set of mixtures has none. Filled: by protocol "exact" groups if there are, else valid
  config.exact.chosen_on = config_dict.placeholder(str)

  config.probe = ConfigDict()
  config.probe.learning_rates = (1e-3,)  # of several, the validation clips choose
  config.probe.epochs = 200  # passes over the training clips, at most
  config.probe.batch_size = 200  # clips
  config.probe.patience = 20  # epochs without a better one
  # or "accuracy": what the validation clips are watched for; labels: always loss
  config.probe.monitor = "loss"
  return config
