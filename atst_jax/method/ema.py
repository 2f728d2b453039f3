"""The teacher: an exponential moving average of the student's parameters, as an optax-like
transformation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class EmaState(NamedTuple):
  """`params` follow the student; `batch_stats` are the teacher's own, updated by its forward
  passes."""

  count: jax.Array  # type: ignore[assignment]  # optax's name; tuples have a method of it
  params: Any
  batch_stats: Any


class Ema(NamedTuple):
  """The teacher as an optax-like pair: init(params, batch_stats) -> state, update(params, state) ->
  state."""

  init: Callable[[Any, Any], EmaState]
  update: Callable[[Any, EmaState], EmaState]


def ema(decay_schedule: Callable[[jax.Array], jax.Array]) -> Ema:
  """teacher <- m·teacher + (1 - m)·student, m = decay_schedule(updates done so far).

  Parameters only, as in the released code: BatchNorm statistics are not averaged. Everything stays
  float32 (in bfloat16 a decay of 0.9995 never moves).
  """

  def init(params, batch_stats):
    # not the student's buffers: the state is donated
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    return EmaState(jnp.zeros((), jnp.int32), copy(params), copy(batch_stats))

  def update(params, state):
    decay = decay_schedule(state.count)
    follow = lambda teacher, student: teacher + (1 - decay) * (student - teacher)
    return state._replace(count=state.count + 1, params=jax.tree.map(follow, state.params, params))

  return Ema(init, update)
