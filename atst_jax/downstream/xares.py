"""X-ARES' encoder (xares 0.1): the file for its runner. The environment names the export.

  ATST_JAX_ENCODER=encoders/base python -m xares.run --max-jobs 1 \\
    atst_jax/downstream/xares.py tasks/*.py

The runner imports the path as a module's name, so it need not exist in the working folder. Needs
.[torch] and xares.
"""

from atst_jax.artifacts.embedding import get_timestamp_embeddings
from atst_jax.downstream.suites.torch_arrays import like, open_encoder, samples


def ATSTJAXEncoder():
  """A torch.nn.Module from (B, N) or (N,) waveforms at `sampling_rate` to (B, T, output_dim)
  vectors, one for every `hop_size_in_ms`: the last block's patches, or a convolutional encoder's
  frames.

  X-ARES keeps vectors and scores under the name of the encoder's class. It contains the export's
  hash, so that another export does not get them.
  """
  import torch

  encoder = open_encoder()

  def forward(self, audio):
    sounds = samples(audio, encoder, over_time=True)
    vectors, _ = get_timestamp_embeddings(sounds, encoder, encoder.sample_rate)
    return like(vectors, audio)

  name = f"ATSTJAX{encoder.config['params_hash']}Encoder"
  module = type(name, (torch.nn.Module,), {"forward": forward})()
  module.sampling_rate = encoder.sample_rate
  module.output_dim = encoder.config["encoder"]["width"]
  module.hop_size_in_ms = 1000 * encoder.hop * encoder.frontend.hop_length / encoder.sample_rate
  return module
