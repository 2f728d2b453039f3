"""EVAR's audio representation, `AR_ATST_JAX`: a class on EVAR's own base, as in its guide to new
models.

In a checkout of EVAR: a file `evar/ar_atst_jax.py` with the line `from atst_jax.downstream.evar
import AR_ATST_JAX`, the line `import evar.ar_atst_jax` in lineareval.py, and a config, which this
prints:

  python -m atst_jax.downstream.evar --encoder=encoders/base --blocks=1 > config/atst_jax.yaml

No code of EVAR is here (its licence is for evaluation only); the interface follows its description.
Needs pip install -e .[torch].
"""

import functools

from atst_jax.artifacts.embedding import get_scene_embeddings, get_timestamp_embeddings
from atst_jax.artifacts.model import Model
from atst_jax.downstream.features import log_statistics
from atst_jax.downstream.suites.torch_arrays import like, open_encoder, samples
from atst_jax.util.cli import Parser, guard, leave
from atst_jax.util.errors import UserError

MAX_SECONDS = 12.0  # ATST's protocol: longer clips are cropped centrally; 0 takes them whole


def config_text(path: str, blocks: int) -> str:
  """EVAR's config of an export, as YAML."""
  model = open_encoder(path)
  if not 1 <= blocks <= model.depth:
    raise UserError(f"--blocks={blocks}: the encoder has {model.depth} blocks")
  frontend = model.frontend
  values = {
    "audio_repr": "ar_atst_jax.AR_ATST_JAX",
    "weight_file": path,
    "feature_d": model.width(blocks),
    "n_blocks": blocks,
    "max_seconds": 0.0 if model.encoder.unit_protocol else MAX_SECONDS,
    "sample_rate": frontend.sample_rate,
    "n_fft": frontend.n_fft,
    "window_size": frontend.win_length,
    "hop_size": frontend.hop_length,
    "n_mels": frontend.n_mels,
    "f_min": frontend.f_min,
    "f_max": frontend.f_max,
    "temporal_pooling_type": "mean",
    "batch_size": 64,
    "lr_lineareval": 0.0003,
    "report_per_epochs": 50,
    "early_stop_epochs": 20,
  }
  return "".join(f"{key}: {value}\n" for key, value in values.items())


def statistics(model: Model, batches) -> dict:
  """`log_statistics` over all frames of (audio, …) batches."""
  sounds = (sound for batch in batches for sound in samples(batch[0], model))
  return log_statistics(model.log_mel(sound, model.sample_rate) for sound in sounds)


@functools.cache
def adapter(base: type) -> type:
  """The class AR_ATST_JAX on EVAR's `BaseAudioRepr`."""

  class AR_ATST_JAX(base):
    """(B, N) waveforms to (B, feature_d) vectors by an export. Computes in JAX, whatever the device
    of the tensors."""

    def __init__(self, cfg):
      super().__init__(cfg)
      # EVAR's own wrapper of ATST crops the waveform, too
      self.encoder = open_encoder(cfg.weight_file).limited(cfg.max_seconds or None)
      found = {
        "sample_rate": self.encoder.sample_rate,
        "feature_d": self.encoder.width(cfg.n_blocks),
      }
      for key, value in found.items():
        if getattr(cfg, key) != value:
          raise UserError(
            f"{key} is {getattr(cfg, key)} in the config and {value} in {cfg.weight_file} with "
            f"n_blocks: {cfg.n_blocks}; print the config again"
          )

    def precompute(self, device, data_loader):
      """BYOL-A's protocol: an encoder that standardises takes the statistics of the evaluated set.
      Other encoders do not change."""
      if self.encoder.config["normalization"]["kind"] == "standard":
        self.encoder = self.encoder.standardized(statistics(self.encoder, data_loader))

    def forward(self, batch_audio):
      """(B, N) -> (B, feature_d) float32."""
      sounds, encoder = samples(batch_audio, self.encoder), self.encoder
      vectors = get_scene_embeddings(
        sounds, encoder, encoder.sample_rate, num_blocks=self.cfg.n_blocks
      )
      return like(vectors, batch_audio)

    def encode_frames(self, batch_audio):
      """(B, N) -> (B, D, T) float32: the last block's patches, or a convolutional encoder's
      frames."""
      sounds = samples(batch_audio, self.encoder, over_time=True)
      vectors, _ = get_timestamp_embeddings(sounds, self.encoder, self.encoder.sample_rate)
      return like(vectors.swapaxes(1, 2), batch_audio)

  return AR_ATST_JAX


def __getattr__(name: str):
  if name != "AR_ATST_JAX":
    raise AttributeError(name)
  try:
    from evar.ar_base import BaseAudioRepr
  except ImportError as error:
    raise UserError(
      f"evar/ar_base.py cannot be imported ({error}); run from the root of its checkout"
    ) from error
  return adapter(BaseAudioRepr)


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("atst_jax.downstream.evar", __doc__)
  parser.add_argument("--encoder", required=True, help="exported encoder")
  parser.add_argument(
    "--blocks", type=int, default=1, help="how many of the last blocks to concatenate (default 1)"
  )
  return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  print(config_text(flags.encoder, flags.blocks), end="")


if __name__ == "__main__":
  leave(main())
