"""Common to all commands: flags with clear messages about mistakes, `--verbosity`, exit codes."""

import argparse
import codecs
import contextlib
import difflib
import io
import logging
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

from atst_jax.util import logs, numbers
from atst_jax.util.errors import StoreError, UserError, plain

VERBOSITY = {"quiet": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
EXIT_AGAIN = 75  # EX_TEMPFAIL: the same command, run again, goes on
EXIT_PIPE = 128 + signal.SIGPIPE  # the reader of standard output has ended (`| head`)
OVERRIDE = "--config."
SIGNS = {"±": "+-", "…": "...", "→": "->", "×": "x", "λ": "lambda", "–": "-"}
NO_BACKEND = ("Unable to initialize backend", "Unknown backend")  # JAX's words


def nearest(value: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
  """The end of a message: "; did you mean 'x'?", or nothing if no choice is near."""
  near = difflib.get_close_matches(value, list(choices), n=1, cutoff=cutoff)
  return f"; did you mean {near[0]!r}?" if near else ""


class Parser(argparse.ArgumentParser):
  """Raises UserError for a mistake, with the nearest flag. The description is printed unchanged."""

  def __init__(self, command: str = "", description: str | None = None, **options):
    # Parts of a command (`add_subparsers`) come with a `prog`, and have --verbosity too.
    options.setdefault("prog", command if command.startswith("python ") else f"python -m {command}")
    super().__init__(
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
      **options,
    )
    self.add_argument(
      "--verbosity",
      choices=VERBOSITY,
      default="info",
      help="quiet: warnings, errors and results "
      "only; debug: also where a mistake was noticed (default info)",
    )

  def add_config(self) -> None:
    """Adds --config, for commands with a config and overrides."""
    what = "FILE.py or FILE.py:VARIANT; --config.KEY=VALUE overrides a key"
    self.add_argument("--config", required=True, help=what)

  def add_workers(self, what: str) -> None:
    """Adds --workers, threads that do `what`, and --dry_run."""
    workers = os.cpu_count() or 1
    text = f"threads that {what} (default {workers})"
    self.add_argument("--workers", type=int, default=workers, help=text)
    self.add_argument("--dry_run", action="store_true", help="tell what would be done")

  def error(self, message: str):
    """Raises UserError with `message` and the command for help."""
    raise UserError(f"{message}; see `{self.prog} --help`")

  def _known(self, argv: list[str]) -> dict[str, argparse.Action]:
    """The flags of this command, and of its parts that the arguments name."""
    known = {
      flag: action for flag, action in self._option_string_actions.items() if flag.startswith("--")
    }
    for action in self._actions:
      if isinstance(action, argparse._SubParsersAction):
        for name, part in action.choices.items():
          known |= part._known(argv) if name in argv else {}
    return known

  def _refuse_unknown(self, argv: list[str], overrides: bool) -> None:
    # Before argparse: a mistyped required flag would otherwise be reported as missing.
    known = self._known(argv)
    for argument in argv:
      flag = argument.split("=")[0]
      if flag == "--":
        break
      if (
        flag.startswith("--")
        and flag not in known
        and not (overrides and flag.startswith(OVERRIDE))
      ):
        near = nearest(flag, known, cutoff=0.75)  # two dashes are alike in all
        if overrides and not near:
          raise UserError(f"{argument}: unknown flag; overrides read {OVERRIDE}KEY=VALUE")
        self.error(f"unknown flag {flag}{near}")

  def parse(self, argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, by default of this process. Sets up the log."""
    argv = with_home(sys.argv[1:] if argv is None else argv)
    self._refuse_unknown(argv, overrides=False)
    flags = self.parse_args(argv)
    logs.set_up(VERBOSITY[flags.verbosity])
    numbers.settle()
    return flags

  def parse_with_overrides(
    self, argv: list[str] | None = None
  ) -> tuple[argparse.Namespace, list[str]]:
    """(flags, the other arguments: each `--config.KEY=VALUE`, and arguments that are no flags)."""
    argv = with_home(sys.argv[1:] if argv is None else argv)
    self._refuse_unknown(argv, overrides=True)
    flags, rest = self.parse_known_args(argv)
    logs.set_up(VERBOSITY[flags.verbosity])
    numbers.settle()
    return flags, rest


def with_home(argv: list[str]) -> list[str]:
  """The arguments with `~` expanded in `--FLAG=~/…`, where shells do not expand it."""
  expand = lambda match: match[1] + os.path.expanduser(match[2])
  return [re.sub(r"^(--[^=]+=)(~[^/]*)(?=/|$)", expand, argument) for argument in argv]


def open_streams() -> None:
  """Opens closed standard streams (`2>&-`) as /dev/null. Otherwise the next opened file would get
  their number, and messages would be written into it."""
  for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if getattr(sys, name) is None:
      setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _readable(error: UnicodeError) -> tuple[str, int]:
  """An error handler of codecs: replaces signs that the terminal's encoding does not have."""
  assert isinstance(error, UnicodeEncodeError)
  signs = error.object[error.start : error.end]
  text = "".join(SIGNS.get(sign, ascii(sign)[1:-1]) for sign in signs)
  return text, error.end


codecs.register_error("readable", _readable)


def _reader_has_ended() -> bool:
  """Whether standard output is a pipe that nobody reads any longer."""
  poll = select.poll()
  with contextlib.suppress(OSError, ValueError):
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
  return False


def _drop_output() -> None:
  """Discards unwritten output, which Python would try to write once more at its end."""
  with open(os.devnull, "w", encoding="utf-8") as nowhere:
    os.dup2(nowhere.fileno(), sys.stdout.fileno())


def guard(work: Callable[[], int | None]) -> int:
  """Runs a command and returns its exit code.

  That is the result of `work` (None is 0). A UserError gives 2 or its own code, and its message is
  printed alone. A file that cannot be read or written gives 74, Ctrl-C 75 with what to do, and a
  pipe whose reader has ended 141.
  """
  open_streams()
  if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
    sys.stdout.reconfigure(errors="readable")
  try:
    code = work() or 0
    sys.stdout.flush()
    return code
  except UserError as error:
    logs.log.debug("noticed here", exc_info=True)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
  except OSError as error:
    if isinstance(error, BrokenPipeError) and _reader_has_ended():
      _drop_output()
      return EXIT_PIPE
    logs.log.debug("noticed here", exc_info=True)
    reason = plain(f"{error.filename or 'file'}: {error.strerror or error}")
    print(f"error: {reason}; mend that and run the same command again", file=sys.stderr)
    return StoreError.exit_code
  except RuntimeError as error:
    if not any(words in str(error) for words in NO_BACKEND):
      raise
    logs.log.debug("noticed here", exc_info=True)
    reason = plain(" ".join(str(error).split())[:300])
    if asked := os.environ.get("JAX_PLATFORMS"):
      print(
        f"error: JAX_PLATFORMS={asked}: JAX finds no such device ({reason}); set JAX_PLATFORMS to "
        "what this machine has, or unset it",
        file=sys.stderr,
      )
      return UserError.exit_code
    # JAX wraps every failure of a device that is there in these words.
    print(
      f"error: JAX cannot start its device ({reason}); see whether it is well (nvidia-smi) and "
      "whether another process holds its memory, then run the same command again",
      file=sys.stderr,
    )
    return StoreError.exit_code
  except KeyboardInterrupt as error:
    print(
      f"stopped: {str(error) or 'by a signal'}; run the same command again to continue",
      file=sys.stderr,
    )
    return EXIT_AGAIN


def leave(code: int, *, at_once: bool | None = None):
  """Ends the process of a command.

  After an interruption (75) it ends at once if JAX is loaded: JAX goes on compiling in threads of
  its own, and a normal end of Python could be a segmentation fault.
  """
  if at_once is None:
    at_once = code == EXIT_AGAIN and "jax" in sys.modules
  if at_once:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(AttributeError, OSError, ValueError):
        stream.flush()
    os._exit(code)
  sys.exit(code)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
  """SIGTERM ends the code inside like Ctrl-C. Changes nothing outside the main thread, which alone
  handles signals."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
