"""A batch encoded in parts, one after the other: gradient accumulation inside one step."""

import flax.linen as nn
import jax

RANDOM = ("drop_path", "dropout")  # streams of the network's own randomness


def in_parts(encode, encoder: nn.Module, parts: int, *arrays):
  """encode(encoder, *arrays) in `parts`: rows i, i + parts, …, so that every device has its share
  of each.

  Each part is encoded on its own, and once more in the backward pass, where the gradients add up.
  So memory is that of a part.

  Args:
    encode: (bound module, *arrays) -> array.
    arrays: (B, ...) each, or None; `parts` divides B.
  """
  if parts == 1:
    return encode(encoder, *arrays)
  split = lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
  scan = nn.scan(
    nn.remat(lambda encoder, carry, part: (carry, encode(encoder, *part)), prevent_cse=False),
    variable_broadcast="params",
    variable_carry="batch_stats",
    split_rngs={"params": False, **dict.fromkeys(RANDOM, True)},
  )
  _, y = scan(encoder, None, jax.tree.map(split, arrays))
  return y.swapaxes(0, 1).reshape(-1, *y.shape[2:])
