"""How the jobs that write shards end: by themselves, by a mistake, a disk that does not answer, or a signal."""

from collections.abc import Callable

from atst_jax.command import guard, sigterm_as_interrupt
from data_pipeline.workers import Stopped


def run(work: Callable[[], int | None]) -> int:
  """`command.guard`, where SIGTERM and a dead worker end the job as Ctrl-C does."""

  def go():
    try:
      return work()
    except Stopped as error:
      raise KeyboardInterrupt(str(error)) from error

  with sigterm_as_interrupt():
    return guard(go)
