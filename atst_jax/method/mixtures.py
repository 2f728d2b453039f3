"""The mixtures of the subtraction: every view with its neighbour's (difference-aware paper, section
4).

Letters: B clips, K views, T frames, F mel bins.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from atst_jax.method.groups import SILENT, shift_in_group, valid_frames
from atst_jax.method.normalization import nepers_per_unit, normalize_batch
from atst_jax.method.subtraction import Subtraction


class Mixtures(NamedTuple):
  """Views, each mixed with its neighbour's."""

  views: jax.Array  # (B, 2 or 1, T, F)
  length: jax.Array | None  # (B, 2 or 1) valid frames
  gamma: jax.Array  # (B, 2), the neighbour's share


def draw_gamma(key, clips, *, low, high, per, shared):
  """γ ~ U(low, high): (clips, 2).

  Args:
    per: "clip" draws one number for every clip (difference-aware paper 5.1), "batch" one for all.
    shared: whether both views have the same γ; the paper does not say, and by default they do not.
  """
  gamma = jax.random.uniform(
    key, (clips if per == "clip" else 1, 1 if shared else 2), minval=low, maxval=high
  )
  return jnp.broadcast_to(gamma, (clips, 2))


def mixing_scale(*, domain, stage, k, post_std):
  """Scale at which views are mixed: 1 mixes what the encoder sees, nepers of power per unit mix
  energies.

  Args:
    domain: "normalized" (Eq. 2 to the letter) or "energy".
    stage: "post_norm" mixes the post-normalised values, "pre_norm" those before; energies do not
      depend on it.
    k: nepers of power per unit before the post-normalisation.
    post_std: what the post-normalisation divided by (1 without it). Its offset cancels in a
      mixture.
  """
  if domain == "energy":
    return k * post_std
  return post_std if stage == "pre_norm" else 1.0


def mean_level(x, valid, scale):
  """Mean energy of (B, K, T, F) over its valid frames, as a level in units of x: (B, K, 1, 1)."""
  count = x.shape[-1] * (x.shape[-2] if valid is None else valid.sum((-2, -1), keepdims=True))
  x = x if valid is None else jnp.where(valid, x, SILENT)
  return (jax.nn.logsumexp(scale * x, (-2, -1), keepdims=True) - jnp.log(count)) / scale


def mix_neighbours(views, length, gamma, *, group, scale, match_level=False):
  """w = log(γ·e^{s(v)} + (1 - γ)·e^v): the difference-aware paper's Eq. 2; γ weighs the neighbour.

  Args:
    views: (B, K, T, F) normalised log-mel.
    length: (B, K) valid frames or None. A mixture is as long as its longer part; padding counts as
      silence.
    gamma: (B, K) in (0, 1).
    group: clips of a group; the next clip of the same group is the neighbour.
    scale: of `mixing_scale`.
    match_level: first bring the neighbour to the clip's mean energy (the paper assumes similar
      levels, section 1).

  Returns:
    mixtures (B, K, T, F) and their valid frames (B, K) or None.
  """
  gamma = gamma[..., None, None]
  neighbour = shift_in_group(views, group)
  valid = neighbour_valid = mixed_length = None
  if length is not None:
    mask = lambda length: valid_frames(length, views.shape[2])[..., None]
    neighbour_length = shift_in_group(length, group)
    valid, neighbour_valid = mask(length), mask(neighbour_length)
    mixed_length = jnp.maximum(length, neighbour_length)
  if match_level:
    neighbour = (
      neighbour + mean_level(views, valid, scale) - mean_level(neighbour, neighbour_valid, scale)
    )
  if valid is not None and neighbour_valid is not None:
    views, neighbour = (
      jnp.where(valid, views, SILENT),
      jnp.where(neighbour_valid, neighbour, SILENT),
    )
  mixed = (
    jnp.logaddexp(scale * neighbour + jnp.log(gamma), scale * views + jnp.log1p(-gamma)) / scale
  )
  return (mixed if length is None else jnp.where(mask(mixed_length), mixed, 0)), mixed_length


def make_mixtures(key, views, length, post_std, *, options: Subtraction, k, group):
  """Mixes views, as `Mixtures`.

  Args:
    views, length, post_std: of `views.make_views`.
    k: nepers of power per unit of the views before their post-normalisation.
    group: clips of a group.
  """
  gamma = draw_gamma(
    key,
    len(views),
    low=options.gamma_min,
    high=options.gamma_max,
    per=options.gamma_per,
    shared=options.gamma_shared,
  )
  K = 2 if options.symmetric else 1
  mixtures, length = mix_neighbours(
    views[:, :K],
    None if length is None else length[:, :K],
    gamma[:, :K],
    group=group,
    scale=mixing_scale(domain=options.mix_domain, stage=options.mix_stage, k=k, post_std=post_std),
    match_level=options.match_level,
  )
  if options.renormalize == "batch":
    mixtures, _ = normalize_batch(mixtures, length)
  return Mixtures(mixtures, length, gamma)


def mixing_options(views: dict, options: Subtraction, batch_size: int) -> dict:
  """Keyword arguments of `make_mixtures` under a config's section `views`."""
  k = nepers_per_unit(**views["normalization"]) if options.mix_k is None else options.mix_k
  group = batch_size if options.neighbour == "batch" else views["group"]
  return {"options": options, "k": k, "group": group}
