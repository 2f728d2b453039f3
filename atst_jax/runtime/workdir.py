"""The folder of a run: one owner at a time, one config for its whole life, a line for every start
and for its first save."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Callable, Iterable, Iterator

import jax

import atst_jax
from atst_jax.data.dataset import write_json
from atst_jax.runtime.mesh import from_process_zero
from atst_jax.util import storage
from atst_jax.util.config import changes, flatten
from atst_jax.util.errors import UserError
from atst_jax.util.lock import Held, Lock
from atst_jax.util.logs import log

CONFIG = "config.json"
# Added to the message about a key that older versions did not have.
REASONS = {
  "data.order": " (clips came in another order: docs/shards.md)",
  "embedding_hash": " (the encoder's normalisation, front-end, chunks or length rule)",
}
# Older versions did not have these keys, and worked with these values.
FORMERLY = {
  "initial_hash": None,
  "max_seconds": None,
  "objective": "byol",
  "teacher.before_step": False,
  "views.mixup_last_offset": True,
}
STARTS = "starts.jsonl"
# JAX's settings that change numbers and may differ between starts of a run.
SETTINGS = ("jax_default_matmul_precision",)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # noted at each start


def claim(workdir: str, flag: str = "workdir") -> Lock:
  """Makes the folder and locks it; the caller closes the lock. Raises UserError with `flag` and the
  owner."""
  if storage.is_remote(workdir):
    raise UserError(
      f"--{flag}={workdir}: a store cannot be locked or appended to; choose a folder of this "
      "host, and "
      f"--config.checkpoint.folder={workdir} for the checkpoints"
    )
  try:
    os.makedirs(workdir, exist_ok=True)
    return Lock(workdir)
  except OSError as error:
    raise UserError(
      f"--{flag}={workdir}: cannot be written ({error.strerror}); choose another folder"
    ) from error
  except Held as owner:
    raise UserError(
      f"--{flag}={workdir} is in use by {owner}; wait for it, stop it, or choose another folder"
    ) from None


def read_config(workdir: str) -> dict:
  """The config of the run in a folder. Raises UserError if there is none."""
  path = os.path.join(workdir, CONFIG)
  try:
    config = storage.read_json(path)
    if not isinstance(config, dict):
      raise ValueError(f"a {type(config).__name__}")
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(f"{path} does not exist: {workdir!r} is not the workdir of a run") from None
  except ValueError as error:
    if isinstance(error, UserError):  # a store that does not answer
      raise
    raise UserError(f"{path} is damaged ({error}); restore it, or start in a new workdir") from None
  return config


def differences(stored: dict, config: dict, ignore: tuple[str, ...]) -> dict[str, str]:
  """{key: "key: old -> new"} of the changes since the stored config, without the keys of `ignore`
  and what lies in its sections, which end with a dot."""
  former = {key: value for key, value in FORMERLY.items() if key in flatten(config)}
  stored, config = former | flatten(stored), flatten(config)
  lines = {line.partition(":")[0]: line for line in changes(stored, config)}
  lines = {key: line + REASONS.get(key, "") for key, line in lines.items()}
  return {key: line for key, line in lines.items() if not among(key, ignore)}


def among(key: str, keys: tuple[str, ...]) -> bool:
  """Whether a key is one of `keys`, or lies in one of their sections, which end with a dot."""
  return any(key.startswith(k) if k.endswith(".") else key == k for k in keys)


def compare(
  workdir: str,
  stored: dict,
  config: dict,
  *,
  ignore: tuple[str, ...],
  named: tuple[str, ...] = (),
  allow_changes: bool,
) -> list[str]:
  """Compares the config with the run's own.

  Args:
    ignore: keys, and sections that end with a dot, that do not change the computation.
    named: keys and sections whose changes are accepted, with a warning.
    allow_changes: whether all changes are accepted, with a warning.

  Returns:
    "key: old -> new" of all changes, without `ignore`.

  Raises:
    UserError: other keys have changed; it lists them.
  """
  found = differences(stored, config, ignore)
  refused = [line for key, line in found.items() if not among(key, named)]
  if refused and not allow_changes:
    raise UserError(
      f"{workdir} belongs to a run with another config:\n  "
      + "\n  ".join(refused)
      + "\nchoose a new workdir, or pass --allow_changed_config to go on with the new values"
    )
  if found:
    log.warning("%s: the run goes on with other values: %s", workdir, "; ".join(found.values()))
  return list(found.values())


def keep_config(places: Iterable[str], config: dict) -> None:
  """Stores the config in folders. Raises UserError if one cannot be written."""
  for place in places:
    try:
      storage.make_folder(place)
      write_json(os.path.join(place, CONFIG), config)
    except OSError as error:
      raise UserError(
        f"{place}: cannot be written ({error.strerror}); choose another folder"
      ) from error


def agree(places: list[str], config: dict, made_with: dict | None, **options) -> list[str]:
  """Stores the config of a new job in folders, the last of which is the workdir. For a job that
  goes on, compares it with the config of the checkpoints (`made_with`), and stores that in folders
  without a config. `options`, result and errors are those of `compare`.

  Raises UserError, too, if the workdir is another job's.
  """
  refuse_other_job(places[-1], config)
  if made_with is None:
    keep_config(places, config)
    return []
  changed = compare(places[0], made_with, config, **options)
  keep_config([p for p in places if not storage.is_file(os.path.join(p, CONFIG))], made_with)
  return changed


def refuse_other_job(workdir: str, config: dict) -> None:
  """Raises UserError if the workdir has the config of a job of another kind."""
  if storage.is_file(os.path.join(workdir, CONFIG)):
    job = read_config(workdir).get("job")
    if job != config.get("job"):
      raise UserError(
        f"{workdir} belongs to a job {job!r}, and this one is {config.get('job')!r}; choose "
        "another workdir"
      )


@contextlib.contextmanager
def own(
  workdir: str,
  folder: str | None,
  config: dict,
  *,
  ignore: tuple[str, ...],
  named: tuple[str, ...] = (),
  allow_changes: bool,
  stored: Callable[[], dict | None],
) -> Iterator[list[str]]:
  """Holds the locks of the workdir and of a local folder of checkpoints, and compares the config,
  in process 0; an error ends the others with the same code. Yields the changes.

  The config of a new run is stored. The stored config of a run that goes on is replaced only when
  something is saved (`Session.checkpoints`): a job that fails or does nothing changes no record.

  Args:
    folder: of the checkpoints, if not in the workdir; the config lies there too.
    ignore, named, allow_changes: of `compare`.
    stored: gives the config of the run's checkpoints; None if there are none. Called under the
      lock.
  """
  locks = contextlib.ExitStack()
  changed: list[str] = []

  def take() -> int:
    locks.enter_context(contextlib.closing(claim(workdir)))
    apart = os.path.realpath(folder or workdir) != os.path.realpath(workdir)
    if folder and apart and not storage.is_remote(folder):  # a store has no locks
      locks.enter_context(contextlib.closing(claim(folder, "config.checkpoint.folder")))
    places = [place for place in (folder, workdir) if place]
    options = {"ignore": ignore, "named": named, "allow_changes": allow_changes}
    changed.extend(agree(places, config, stored(), **options))
    return 0

  with locks:
    from_process_zero(take)
    yield changed


def record_start(workdir: str, step: int, changed: Iterable[str] = ()) -> None:
  """Appends a line about a start: time, host, devices and versions, the `step` that it goes on
  from, and the changes of the config. Raises OSError if it cannot.

  Warns of SETTINGS, which change the rounding of numbers, if they differ from the start before.
  """
  start: dict = {
    "time": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds").removesuffix("+00:00"),
    "step": step,
    "host": socket.gethostname(),
    "processes": jax.process_count(),
    "devices": jax.device_count(),
    "device": jax.devices()[0].device_kind,
    "python": platform.python_version(),
    "versions": {
      "atst_jax": atst_jax.__version__,
      **{name: importlib.metadata.version(name) for name in PACKAGES},
    },
    "settings": {name: getattr(jax.config, name, None) for name in SETTINGS},
  }
  if changed := list(changed):
    start["changes"] = changed
  before = read_starts(workdir)
  if step and before and (settings := before[-1].get("settings")):
    for name, value in start["settings"].items():
      if (was := settings.get(name)) != value:
        said = "%s: %s was %r and is %r; sums are rounded otherwise"
        log.warning(said, workdir, name, was, value)
  _append(workdir, start)


def _append(workdir: str, line: dict) -> None:
  with open(os.path.join(workdir, STARTS), "a+b") as file:
    size = file.seek(0, os.SEEK_END)
    if size:
      file.seek(size - 1)
    # A full disk may have cut the last line short.
    begun = b"\n" if size and file.read(1) != b"\n" else b""
    file.write(begun + json.dumps(line).encode() + b"\n")


def _lines(workdir: str) -> list[dict]:
  lines, path = [], os.path.join(workdir, STARTS)
  with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
    for line in file:
      with contextlib.suppress(ValueError):
        lines.append(json.loads(line))
  return lines


def read_starts(workdir: str) -> list[dict]:
  """The lines of `record_start`, without those that were cut short. Older versions wrote none."""
  return [line for line in _lines(workdir) if "step" in line]


def note_saved(workdir: str, step: int) -> None:
  """Adds a line about the first checkpoint of a start that has a line. Raises OSError if it
  cannot."""
  if any("saved" not in line for line in _lines(workdir)[-1:]):
    _append(workdir, {"saved": step})


def saved_step(workdir: str) -> int:
  """The step of a checkpoint that the run has had, by its last line; 0 if it was stopped before its
  first."""
  return max((line.get("saved", line.get("step", 0)) for line in _lines(workdir)[-1:]), default=0)


def continuation(
  config: dict,
  workdir: str,
  ignore: tuple[str, ...],
  named: tuple[str, ...] = (),
  *,
  stored: dict | None,
) -> str:
  """A line: the run is new (`stored` is None), or goes on with that config. Raises UserError if it
  would be refused (`agree`)."""
  refuse_other_job(workdir, config)
  if stored is None:
    return f"{workdir}: a new run"
  found = differences(stored, config, (*ignore, *named))
  if found:
    lines = [f"{workdir} belongs to a run with another config:", *found.values()]
    raise UserError(
      "\n  ".join(lines) + "\nchoose a new workdir; without --dry_run, --allow_changed_config goes "
      "on with the new values"
    )
  return f"{workdir}: belongs to this run"
