"""Fixed groups of a batch's clips, inside which clips are mixed, and valid frames of padded ones.

Letters: B clips, G clips of a group. A group is G consecutive clips of the global batch and lies on
one device, so nothing here communicates unless one group spans the whole batch.
"""

import jax
import jax.numpy as jnp

SILENT = -1e9  # level of padding when a maximum or a mixture is taken


def valid_frames(length, frames):
  """(...) lengths -> (..., frames) booleans."""
  return (
    jax.lax.broadcasted_iota(jnp.int32, (*length.shape, frames), length.ndim) < length[..., None]
  )


def in_groups(x, group):
  """(B, ...) -> (B / G, G, ...)."""
  return x.reshape(x.shape[0] // group, group, *x.shape[1:])


def shift_in_group(x, group):
  """s(x): the next clip of the same group, cyclically: (B, ...) -> (B, ...). With G = B it is the
  paper's shift."""
  return jnp.roll(in_groups(x, group), -1, axis=1).reshape(x.shape)
