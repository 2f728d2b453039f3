"""The kinds of encoder, by the name that a config's `encoder.kind` gives them.

This is the only place that knows them. What else is asked of a kind, its class answers
(`layers.Encoder`).
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from atst_jax.models.audiontt import AudioNTT
from atst_jax.models.conformer import Conformer
from atst_jax.models.convnets.efficientnet import EfficientNet
from atst_jax.models.convnets.resnet import ResNet
from atst_jax.models.convnets.vggish import VGGish
from atst_jax.models.layers import Encoder
from atst_jax.models.ssast import PatchTransformer
from atst_jax.models.transformer import Transformer
from atst_jax.util.numbers import as_written

ENCODERS: dict[str, type[Encoder]] = {
  "transformer": Transformer,
  "cnn": AudioNTT,
  "efficientnet": EfficientNet,
  "resnet50": ResNet,
  "conformer": Conformer,
  "vggish": VGGish,
  "ssast": PatchTransformer,
}

# how an encoder is computed; no part of a config's `encoder` section
FREE_FIELDS = ("dtype", "attention", "kernels", "remat")
MOST = {"depth": 1 << 10}  # of an encoder from a file; of other whole numbers 2^20


def fields_of(kind: str) -> dict[str, type]:
  """Name and type of each key, beside `kind`, of a config's `encoder` section."""
  left_out = (*FREE_FIELDS, "parent", "name")
  fields = dataclasses.fields(ENCODERS[kind])
  return {f.name: f.type for f in fields if isinstance(f.type, type) and f.name not in left_out}


def make_encoder(encoder: Mapping, **options) -> Encoder:
  """The linen module of a config's `encoder` section: its `kind` and its fields. Of `options`, all
  among FREE_FIELDS, it takes those that it has."""
  fields = dict(encoder)
  module = ENCODERS[fields.pop("kind")]
  known = {field.name for field in dataclasses.fields(module)}
  return module(**fields, **{key: options[key] for key in options if key in known})


def fresh_variables(encoder: Encoder, frames: int, n_mels: int, seed: int) -> dict:
  """Random variables of an encoder of clips of (frames, n_mels), drawn from a seed. Compiled once
  for all seeds."""
  return _initial(encoder, (1, frames, n_mels), jax.random.key(seed, impl="threefry2x32"))


@as_written
@functools.partial(jax.jit, static_argnums=(0, 1))
def _initial(encoder, shape, key):
  return encoder.init(key, jnp.zeros(shape, jnp.float32))


def check_encoder(encoder: dict, n_mels: int) -> None:
  """Raises ValueError, KeyError or TypeError for what `make_encoder` cannot build: it may come from
  a file."""
  kind, fields = encoder["kind"], fields_of(encoder["kind"])
  if set(encoder) != {"kind", *fields}:
    raise ValueError(
      f"encoder {kind} needs {', '.join(fields)}; it has {', '.join(map(str, encoder))}"
    )
  for name, type_ in fields.items():
    value = encoder[name]
    if type_ is int:
      right = type(value) is int and 1 <= value <= MOST.get(name, 1 << 20)
    elif type_ is float:  # rates of what is dropped
      right = type(value) in (int, float) and 0 <= value < 1
    else:
      right = isinstance(value, type_)
    if not right:
      raise ValueError(f"encoder.{name} is {value!r}")
  make_encoder(encoder).check(n_mels)
