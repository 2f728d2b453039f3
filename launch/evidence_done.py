"""Whether what is done already is what the evidence asks for now: other values are refused.

Places may differ: what lies there is known by its hash. So may keys on which nothing that is
computed depends.
"""

import functools
import pathlib

from atst_jax.downstream.retrieval.text import load_text_encoder
from atst_jax.method.subtraction import SECTIONS
from atst_jax.pretraining.job import FREE_KEYS
from atst_jax.runtime.workdir import differences
from atst_jax.util import storage
from atst_jax.util.config import flatten, load_with_overrides, to_json
from atst_jax.util.errors import UserError

# what a run fills where its config says None or "auto"
FILLED = (
  *("data.fingerprint", "dtype", "params_hash", "exact.chosen_on", "text.hash"),
  *(f"views.normalization.{name}" for name in ("low", "high", "mean", "std")),
)
# of evaluations: places, and what is written besides the results
PLACES = ("encoder", "data.path", "text.model", "export", "export_precision", "export_clips")


def read(path: pathlib.Path) -> dict | None:
  """The content of a JSON file; None where there is none."""
  return storage.read_json(str(path)) if path.is_file() else None


def check_trained(workdir: pathlib.Path, flags: list[str]) -> None:
  """Raises UserError if the run of a workdir has another config than the flags give.

  Args:
    flags: --config=…, --workdir=… and overrides.
  """
  if stored := read(workdir / "config.json"):
    _agree(workdir, flags, stored, "trained", FREE_KEYS, {})


def check_measured(
  workdir: pathlib.Path, flags: list[str], params_hash: str | None, fingerprint: str | None
) -> None:
  """Raises UserError if the results of a workdir are of another encoder, set, text model or config.

  Args:
    flags: --config=…, --workdir=… and overrides.
    params_hash: of the encoder; None where it does not say.
    fingerprint: of the set; None where it is not there.
  """
  if not (results := read(workdir / "results.json")):
    return
  found, stored = results["encoder"]["params_hash"], results["config"]
  if found != params_hash:
    raise UserError(
      f"{workdir} was measured with another encoder ({found}) than there is now ({params_hash}): "
      "delete it, or rename the encoder's folder"
    )
  known = {"params_hash": found, "statistics": "encoder", "crop": "center"}
  if fingerprint:
    known["data.fingerprint"] = fingerprint
  for flag in flags:
    key, _, model = flag.partition("=")
    if key == "--config.text.model" and pathlib.Path(model).exists():
      known["text.hash"] = _text_hash(model)
  _agree(workdir, flags, stored, "measured", PLACES, known)


@functools.cache
def _text_hash(model: str) -> str:
  return load_text_encoder(model).hash


def _agree(
  workdir: pathlib.Path,
  flags: list[str],
  stored: dict,
  done: str,
  free: tuple[str, ...],
  known: dict[str, object],
) -> None:
  """Raises UserError if a stored config differs from that of `flags`.

  Args:
    done: "trained" or "measured", for the message.
    free: keys and sections that may differ.
    known: what a run would fill now. Keys of FILLED that are not among them may have any value.
  """
  config, _, *more = flags
  had = flatten(stored)
  asked = flatten(to_json(load_with_overrides(config.removeprefix("--config="), more, SECTIONS)))
  for key, value in ({key: had[key] for key in FILLED if key in had} | known).items():
    if asked.get(key, "") in (None, "auto"):
      asked[key] = value
  if found := differences(had, asked, free):
    raise UserError(
      f"{workdir} was {done} with another config ({'; '.join(found.values())}): choose another "
      "--output, or delete it"
    )
