"""Linear evaluation of an exported encoder on a labelled set: by an exact probe, by ATST's protocol
(3.2; the default for the papers' tasks), or by BYOL-A's and the difference-aware paper's (`:evar`).
With 1, 2, 4, 8 and 16 labelled clips of every class: `:few`.

  python -m atst_jax.main --config=configs/linear.py --workdir=runs/linear \
    --config.encoder=encoders/base --config.data.path=data/esc10
  python -m atst_jax.main --config=configs/linear.py:evar --workdir=runs/evar …

  python -m atst_jax.main --config=configs/linear.py --workdir=runs/linear \
    --config.encoder=encoders/base --config.data.path=data/esc10 --config.export=classifiers/esc10

The last one also writes the probe as a classifier (`python -m atst_jax.predict`).
Prints a table and writes results.json and results.md: the encoder, the same architecture with
random parameters, and plain statistics of the log-mel spectrogram, each with all blocks and with
the last block alone.
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ("paper", "released", "evar", "few")


def get_config(variant: str = "paper") -> ConfigDict:
  """ATST's protocol with a grid of rates that also serves sets of a few hundred clips; EVAR's with
  a grid around the rates that BYOL-A took for its tasks."""
  config = ConfigDict()
  config.job = "linear"
  # "exact", "atst" or "evar"; filled: "atst" for ATST's tasks, else "exact"
  config.protocol = config_dict.placeholder(str)
  config.seed = 0  # of random initialisations, probes and drawn divisions
  # runs, with seed, seed + 1, …; the table gives their mean and standard deviation
  config.seeds = 3
  config.encoder = "encoders/base"  # folder of an exported encoder
  config.params_hash = config_dict.placeholder(str)  # filled from the encoder
  # filled from the encoder: of its normalisation, front-end, chunks and length rule
  config.embedding_hash = config_dict.placeholder(str)
  config.blocks = ("all", "last")  # of a transformer, whose vectors are probed
  # filled: "unit" for BYOL-A's encoders under EVAR, else "center"
  config.crop = config_dict.placeholder(str)
  config.max_seconds = 12.0  # of "center": longer clips are cropped centrally
  # of "unit", filled from the task: clips are cut or filled to it
  config.unit_seconds = config_dict.placeholder(float)
  # filled: "encoder", but "data" where the crop is filled as "unit": whose constants of
  # normalisation are used; the data's are the training split's, which is all clips where folds are
  config.statistics = config_dict.placeholder(str)
  config.knn = 10  # neighbours

  config.data = ConfigDict()
  config.data.path = "data/esc10"  # prepared labelled data set
  config.data.fingerprint = config_dict.placeholder(str)  # filled from the data

  config.splits = ConfigDict()
  config.splits.way = "auto"  # or "fold", "split", "random"
  config.splits.num_folds = 5  # of "random"
  # chooses the rate where folds are tested: the next "fold", or a "tenth" of the rest
  config.splits.hold_out = "fold"
  # chooses rates and epochs on the test clips, as some published scores did
  config.select_on_test = False

  config.exact = ConfigDict()
  # of the exact probe, x clips
  config.exact.penalties = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)

  config.probe = ConfigDict()  # of "atst" and "evar"
  # by "atst" x batch_size / 256
  config.probe.learning_rates = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
  config.probe.task_rates = True  # also those that the protocol's authors name for the task
  config.probe.epochs = 100  # passes over the training clips
  config.probe.batch_size = 1024  # clips
  config.probe.refit = True  # the chosen rate once more on training and validation clips together
  # of "atst": which epoch is tested; "best": on the validation clips, without a refit
  config.probe.tested_epoch = "last"
  config.probe.patience = 20  # of EVAR: epochs without a better one
  # of EVAR: what the validation clips are watched for, or "loss"; labels: always loss
  config.probe.monitor = "accuracy"
  if variant == "few":
    config.job = "few"
    config.protocol = "exact"  # or "atst", "evar", which choose by all validation clips
    config.knn = 1
    config.probe.refit = False  # "atst" and "evar" choose on validation clips
    config.few = ConfigDict()
    config.few.clips = (1, 2, 4, 8, 16)  # of every class, ascending
    config.few.draws = 10  # of those clips, each with a probe of its own
    # of the exact probe, x clips: where each class has clips of one group, which choose nothing
    config.few.penalty = 1.0
  else:
    # what chooses the penalty, each left out of the clips that are not tested in turn: their
    # "folds" or "groups"; or the "valid" clips. Filled: by protocol "exact" the first that there
    # is, else "valid"
    config.exact.chosen_on = config_dict.placeholder(str)
    # folder to make: the encoder with a probe as a classifier for `python -m atst_jax.predict`,
    # whose rate or penalty is the one that all divisions' validation clips prefer
    config.export = config_dict.placeholder(str)
    # share of the given labels that shall be right, for which the classifier's thresholds are
    # chosen, where a sound may have several labels; not set: the best F1
    config.export_precision = config_dict.placeholder(float)
    # that it is fitted on: "all" labelled ones, or those that the first "division" does not test.
    # Filled: "all"; by protocol "evar", whose probe stops by validation clips, "division"
    config.export_clips = config_dict.placeholder(str)
  if variant == "released":
    config.protocol = "atst"
    config.probe.refit, config.probe.tested_epoch = False, "best"
  if variant == "evar":
    config.protocol = "evar"
    config.splits.hold_out = "tenth"
    config.probe.learning_rates = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    config.probe.epochs = 200
    config.probe.batch_size = 200
    config.probe.refit = False
  return config
