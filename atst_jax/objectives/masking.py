"""Which vectors of a clip are hidden: SSAST's patches, wav2vec 2.0's spans. Every draw has a static
shape and is a function of one clip's key.

Letters: N vectors of a clip, M hidden ones.
"""

import jax
import jax.numpy as jnp
import numpy as np

SMALLEST, LARGEST = 3, 5  # sides of SSAST's clusters, in patches


def cluster_mask(key, *, patches: int, stride: int, masked: int):
  """SSAST's clusters: squares of one side C of 3, 4 or 5, until more than `masked` patches are hit,
  of which the first `masked` stay.

  The released code draws corners s among all patches, again and again, each hiding the s +
  stride · i + j (i, j < C) that lie in 1 … N - 1. So patch 0 is never hidden, a cluster at a row's
  end goes on in the next row, and the cut takes away the highest indices. A corner that comes again
  hides nothing new; the corners that count come in the order of a random permutation. Each patch is
  hit at the smallest rank among its corners; the mask is what is hit no later than the patch of
  rank `masked`. That is the same distribution without a loop.

  Args:
    key: of the clip.
    patches: N, counted row by row.
    stride: patches of a row.
    masked: M, at most N - 2.

  Returns:
    (M,) indices, ascending.
  """
  side_key, corner_key = jax.random.split(key)
  side = jax.random.randint(side_key, (), SMALLEST, LARGEST + 1)
  rank = jax.random.permutation(corner_key, patches)
  i, j = (x.reshape(-1, 1) for x in np.mgrid[:LARGEST, :LARGEST])
  corners = np.arange(patches)[None] - (stride * i + j)
  inside = (np.maximum(i, j) < side) & (corners >= 0)
  hit = jnp.where(inside, rank[np.maximum(corners, 0)], patches).min(0)
  hit = hit.at[0].set(patches)
  kept = hit <= jnp.sort(hit)[masked]
  return jnp.sort(jnp.where(kept, jnp.arange(patches), patches))[:masked]


def uniform_mask(key, *, patches: int, masked: int):
  """(M,) of N patches without replacement, in the order of the draw (SSAST's masking of frames)."""
  return jax.random.permutation(key, patches)[:masked]


def span_mask(key, count, *, vectors: int, probability: float, span: int):
  """wav2vec 2.0's spans: a share of the vectors begins one, and they may overlap.

  Args:
    key: of the clip.
    count: valid vectors; spans lie inside them.
    vectors: N.
    probability: share of the valid vectors that begin a span (rounded up or down by chance), drawn
      without replacement; at least one does, of spans of a single vector two.
    span: vectors of a span.

  Returns:
    (N,) bool.
  """
  number_key, start_key = jax.random.split(key)
  places = jnp.maximum(count - span + 1, 1)
  number = jnp.floor(probability * count + jax.random.uniform(number_key)).astype(jnp.int32)
  at = jnp.arange(vectors)
  drawn = jnp.where(at < places, jax.random.uniform(start_key, (vectors,)), 2.0)
  begins = jnp.argsort(jnp.argsort(drawn)) < jnp.clip(number, 1 + (span == 1), places)
  begins = jnp.pad(begins, (span - 1, 0))
  hidden = jnp.zeros((vectors,), bool)
  for back in range(span):
    hidden |= begins[span - 1 - back : span - 1 - back + vectors]
  return hidden & (at < count)


def draw_others(key, hidden, *, number: int):
  """For every vector, others of the hidden ones, drawn with replacement (wav2vec 2.0's
  distractors).

  Args:
    key: of the clip.
    hidden: (N,) bool, at least two.
    number: K.

  Returns:
    (N, K) indices of hidden vectors; of a hidden vector never its own.
  """
  N = hidden.shape[0]
  first = jnp.argsort(~hidden, stable=True)  # the hidden ones in their order, then the rest
  rank = jnp.cumsum(hidden) - 1  # of a hidden vector
  others = jnp.maximum(hidden.sum() - 1, 1)
  drawn = jax.random.randint(key, (N, number), 0, others)
  return first[drawn + (drawn >= rank[:, None])]


def as_bool(indices, patches: int):
  """(B, M) indices -> (B, N) bool."""
  return jax.vmap(lambda at: jnp.zeros((patches,), bool).at[at].set(True))(indices)
