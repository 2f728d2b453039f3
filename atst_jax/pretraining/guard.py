"""What keeps one bad step from spoiling a run, inside the jitted step: nothing of it waits for the
host.

A step whose loss, gradient or BatchNorm statistics are not finite is skipped: student, optimizer,
teacher and statistics stay as they were, and with them the counts that all schedules follow. `step`
goes on: it is the position in the data and in the random draws. So finished updates = step -
skipped, the teacher's and the optimizer's count.

A spike is a loss more than `spike` deviations above the median of the last `window` finite losses,
where a deviation is 1.4826 times the median distance from the median (a normal distribution's
standard deviation), but at least 2 % of the median and 0.001: the loss of BYOL lies in [0, 4], and
small changes of a steady loss are no spikes. Spikes count after the warm-up, once the window is
full. They enter the window, so that a level that has changed for good is the new level half a
window later.

Outputs are collapsed if they are nearly one point or nearly on one line. For unit vectors
Σ_d var_d = 1 - |mean|², and |mean|² is the mean cosine c of two clips. Spread evenly over P
dimensions, std·√P = √(1 - c). So `collapse_std` = 0.1 is a mean cosine of 0.99 between clips that
have nothing to do with each other. The rank is the participation ratio of the covariance's
eigenvalues, (Σλ)² / Σλ² (`losses.output_rank`): 1 on a line, 2 in an even plane, P on the sphere.
`collapse_rank` = 1.1 is 95 % of the variance on one line. The objective says whose outputs are
looked at (`Objective.judged`). BYOL's are the teacher's: what the student predicts may rightly be
the same for all clips, where their views have nothing in common.

In 446 steps of configs/demo.py no loss was more than 4.1 deviations above the median, std·√P never
below 0.74 and the rank never below 1.9.

What is remembered is part of the state, so a run that was stopped decides as one that was not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class GuardState(NamedTuple):
  """Counts are int32.

  skipped: steps without an update, whether skipped or undone by a rollback.
  bad: steps in a row, up to the last one, that were skipped or a spike.
  collapsed: steps in a row with collapsed outputs.
  rollbacks: how often the run has gone back to a checkpoint.
  seen: finite losses so far.
  losses: (window,) the last ones, in a ring.
  """

  skipped: jax.Array
  bad: jax.Array
  collapsed: jax.Array
  rollbacks: jax.Array
  seen: jax.Array
  losses: jax.Array


def init_guard(window: int) -> GuardState:
  """Counts of 0 and (window,) zeros; losses are judged once there were `window` finite ones."""
  counts = {name: jnp.zeros((), jnp.int32) for name in GuardState._fields if name != "losses"}
  return GuardState(**counts, losses=jnp.zeros(window, jnp.float32))


def deviations(loss, losses):
  """How many deviations a loss lies above the median of earlier ones: (), (window,) -> ()."""
  median = jnp.median(losses)
  deviation = 1.4826 * jnp.median(jnp.abs(losses - median))
  return (loss - median) / jnp.maximum(jnp.maximum(deviation, 0.02 * median), 1e-3)


def judge(
  guard: GuardState,
  metrics,
  finite,
  *,
  warm,
  outputs,
  spike,
  collapse_std,
  collapse_rank,
  judged="teacher",
):
  """(the guard after a step, how many deviations its loss is above the usual).

  Args:
    finite: whether the step is kept.
    warm: whether the warm-up is over.
    judged: whose outputs are looked at: of the metrics std_… and rank_….
    outputs: P.
    spike: in deviations; 0 for never.
    collapse_std, collapse_rank: below one of them, outputs are collapsed; 0 for never.
  """
  window = len(guard.losses)
  loss = metrics["loss"]
  distance = jnp.where(finite & (guard.seen >= window), deviations(loss, guard.losses), 0.0)
  spiked = warm & (distance > spike) & (spike > 0)
  spread, rank = metrics[f"std_{judged}"] * outputs**0.5, metrics[f"rank_{judged}"]
  flat = finite & ((spread < collapse_std) | (rank < collapse_rank))
  in_row = lambda happened, count: jnp.where(happened, count + 1, 0)
  return GuardState(
    skipped=guard.skipped + ~finite,
    bad=in_row(~finite | spiked, guard.bad),
    collapsed=in_row(flat, guard.collapsed),
    rollbacks=guard.rollbacks,
    seen=guard.seen + finite,
    losses=jnp.where(finite, guard.losses.at[guard.seen % window].set(loss), guard.losses),
  ), distance


def guarded(train_step, *, warmup_steps, **rule):
  """The same train_step(state, batch) -> (state, metrics), whose updates that are not finite are
  not made.

  Args:
    warmup_steps: updates before spikes count.
    rule: the other keyword arguments of `judge`.
  """

  def step(state, batch):
    new, metrics = train_step(state, batch)
    statistics = [part.batch_stats for part in (new, new.teacher) if part]
    values = jax.tree.leaves((metrics["loss"], metrics["grad_norm"], statistics))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in values]))
    warm = state.updates >= warmup_steps
    guard, distance = judge(state.guard, metrics, finite, warm=warm, **rule)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    counts = {name: getattr(guard, name) for name in ("skipped", "bad", "collapsed", "rollbacks")}
    return kept._replace(step=new.step, guard=guard), {**metrics, **counts, "deviation": distance}

  return step


def go_on(state, step, rollbacks):
  """A state of an earlier step made to go on at `step`: what was trained since is undone, its data
  are not seen again.

  The state is donated; its shardings stay.
  """

  def move(state, step, rollbacks):
    guard = state.guard._replace(
      skipped=state.guard.skipped + step - state.step,
      bad=jnp.zeros_like(state.guard.bad),
      rollbacks=rollbacks,
    )
    return state._replace(step=step, guard=guard)

  shardings = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(move, out_shardings=shardings, donate_argnums=0)(
    state, jnp.int32(step), jnp.int32(rollbacks)
  )
