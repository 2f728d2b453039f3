"""Retrieval with auxiliary information (difference-aware paper 5.3): find the sound that differs
from a sound as a sentence says.

  python -m data_pipeline.pairs --foreground=ESC-50 --foreground_layout=esc50 \
      --background=FSD50K … --output=data/pairs --frontend=…   # the encoder's
  python -m atst_jax.main --config=configs/retrieval.py --workdir=runs/retrieval \
    --config.encoder=encoders/mine --config.data.path=data/pairs \
    --config.text.model=models/distilbert-base-uncased

Prints R@1, R@5 and R@10 and writes results.json and results.md: the encoder with sound and
sentence, with either alone, and what an encoder with random parameters and plain statistics of the
log-mel spectrogram reach. Needs pip install -e .[text]. Minutes on a GPU for the 45,000 training
pairs of a scene.
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ("paper",)


def get_config(variant: str = "paper") -> ConfigDict:
  """300 epochs of Adam, the smallest validation loss selects, three seeds (5.3); the rest is not in
  the paper."""
  config = ConfigDict()
  config.job = "retrieval"
  config.protocol = "retrieval"  # what results.json calls it
  config.seed = 0  # of adapters, random encoders and a validation split that is drawn
  # runs, with seed, seed + 1, …; the table gives their mean and standard deviation
  config.seeds = 3
  config.encoder = "encoders/byola"  # folder of an exported encoder
  config.params_hash = config_dict.placeholder(str)  # filled from the encoder
  # filled from the encoder: of its normalisation, front-end, chunks and length rule
  config.embedding_hash = config_dict.placeholder(str)
  config.blocks = "last"  # of a transformer; or "all"
  config.max_seconds = 12.0  # longer clips are cropped centrally
  # filled: "data" for BYOL-A's encoders, else "encoder"
  config.statistics = config_dict.placeholder(str)
  # the encoder, fresh parameters, mel statistics
  config.features = ("pre-trained", "random", "mel")
  # of what the query is made, for the pre-trained features
  config.systems = ("audio + text", "audio", "text")
  config.scenes = "each"  # adapters of its own for every scene; "joint": the same for all
  # candidates: the answers of the scene's test pairs; "all": of all scenes'
  config.gallery = "scene"
  config.recall_at = (1, 5, 10)  # answers of the gallery among which the right one counts

  config.data = ConfigDict()
  config.data.path = "data/pairs"  # of `data_pipeline.pairs`
  config.data.fingerprint = config_dict.placeholder(str)  # filled from the data

  config.text = ConfigDict()
  config.text.model = "distilbert-base-uncased"  # a folder of transformers, or a name on its hub
  config.text.hash = config_dict.placeholder(str)  # filled from the model
  config.text.pooling = "first"  # the first token's vector; "mean": of all tokens

  config.adapter = ConfigDict()
  config.adapter.hidden = 512  # of the two layers on frozen sound and text
  config.adapter.width = 512  # numbers that are compared
  config.adapter.temperature = 0.07  # learned from there
  # sounds enter with mean 0 and deviation 1 over the training clips
  config.adapter.standardize = True

  config.train = ConfigDict()
  config.train.epochs = 300  # passes over the training pairs
  config.train.batch_size = 256  # pairs; each is the others' negative
  config.train.learning_rate = 1e-3  # of Adam
  config.train.label_weight = 1.0  # of the classification of events beside the contrastive loss
  return config
