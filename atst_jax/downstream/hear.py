"""HEAR's common interface (HEAR 2021, v2021.1): a module that its validator and its evaluation kit
load by name.

  hear-validator atst_jax.downstream.hear --model encoders/base
  python -m heareval.embeddings.runner atst_jax.downstream.hear --model encoders/base \\
    --tasks-dir tasks
  python -m heareval.embeddings.runner … --model-options '{"num_blocks": 12}'

Scene vectors are [CLS, mean of the patches] of the last block, or of the last `num_blocks`;
timestamp vectors are the last block's patches, every 40 ms. Needs pip install -e .[torch].
"""

from atst_jax.artifacts.embedding import get_scene_embeddings as scene
from atst_jax.artifacts.embedding import get_timestamp_embeddings as timestamps
from atst_jax.downstream.suites.torch_arrays import like, open_encoder, samples
from atst_jax.util.errors import UserError


def load_model(model_file_path: str = "", num_blocks: int = 1):
  """A torch.nn.Module with `sample_rate` (Hz), `scene_embedding_size` and
  `timestamp_embedding_size`.

  Args:
    model_file_path: the folder of an export; by default the environment's ATST_JAX_ENCODER.
    num_blocks: of a transformer's last blocks, for scene vectors.
  """
  import torch

  encoder = open_encoder(model_file_path)
  if not 1 <= num_blocks <= encoder.depth:
    raise UserError(f"num_blocks={num_blocks}: the encoder has {encoder.depth} blocks")
  model = torch.nn.Module()
  model.encoder, model.num_blocks = encoder, num_blocks
  model.sample_rate = encoder.sample_rate
  model.scene_embedding_size = encoder.width(num_blocks)
  model.timestamp_embedding_size = encoder.config["encoder"]["width"]
  return model


def get_scene_embeddings(audio, model):
  """(B, N) tensor at `model.sample_rate` -> (B, scene_embedding_size) float32, on the audio's
  device."""
  sounds, encoder = samples(audio, model.encoder), model.encoder
  return like(scene(sounds, encoder, encoder.sample_rate, num_blocks=model.num_blocks), audio)


def get_timestamp_embeddings(audio, model):
  """(B, N) tensor -> (B, T, timestamp_embedding_size) float32, and (B, T) their centres in
  milliseconds."""
  sounds, encoder = samples(audio, model.encoder, over_time=True), model.encoder
  vectors, times = timestamps(sounds, encoder, encoder.sample_rate)
  return like(vectors, audio), like(times, audio)
