"""Whether what is done already is what the evidence asks for now: other values are refused.

Places may differ: what lies there is known by its hash. So may keys on which nothing that is
computed depends, and those that a run that goes on may change.
"""

import functools
import pathlib

from atst_jax.data.dataset import Dataset
from atst_jax.downstream.retrieval.text import load_text_encoder
from atst_jax.method.subtraction import SECTIONS
from atst_jax.pretraining import initial
from atst_jax.pretraining.job import FREE_KEYS, NAMED_KEYS
from atst_jax.runtime.workdir import differences
from atst_jax.util import storage
from atst_jax.util.config import flatten, load_with_overrides, to_json
from atst_jax.util.errors import UserError

# what a run fills where its config says None or "auto"
FILLED = (
  *("data.fingerprint", "dtype", "initial_hash", "params_hash", "exact.chosen_on", "text.hash"),
  "embedding_hash",
  *(f"views.normalization.{name}" for name in ("low", "high", "mean", "std")),
)
# of evaluations: places, and what is written besides the results
PLACES = ("encoder", "data.path", "export", "export_precision", "export_clips")


def read(path: pathlib.Path) -> dict | None:
  """The content of a JSON file; None where there is none."""
  return storage.read_json(str(path)) if path.is_file() else None


def check_trained(workdir: pathlib.Path, flags: list[str]) -> None:
  """Raises UserError if the run of a workdir, or its exported encoder, has another config or set
  than the flags give, or if the encoder does not say what it was trained with.

  Args:
    flags: --config=…, --workdir=… and overrides.
  """
  stored, encoder = read(workdir / "config.json"), workdir / "encoder"
  if stored is None and encoder.exists():
    exported = read(encoder / "config.json") or {}
    stored = (exported.get("provenance") or {}).get("config")
    if stored is None:
      raise UserError(
        f"{workdir} has no config.json, and {encoder} does not say what it was trained with: "
        "delete it, or choose another --output"
      )
  if stored is None:
    return
  config, known, free = _asked(flags), {}, (*FREE_KEYS, *NAMED_KEYS)
  if (pathlib.Path(config["data.path"]) / "dataset.json").is_file():
    dataset = Dataset.load(config["data.path"])
    known["data.fingerprint"] = dataset.fingerprint(config["data.split"])
  begins = config["initial"]
  if not begins:
    known["initial_hash"] = None
  elif pathlib.Path(begins).is_dir():
    known["initial_hash"] = initial.read_config(begins)["params_hash"]
  else:
    free = tuple(key for key in free if key != "initial")
  _agree(workdir, config, stored, "trained", free, known)


def check_measured(
  workdir: pathlib.Path, flags: list[str], encoder: pathlib.Path, fingerprint: str | None
) -> None:
  """Raises UserError if the results of a workdir are of another encoder, set, text model or config.

  Args:
    flags: --config=…, --workdir=… and overrides.
    encoder: the export; it may not be there yet.
    fingerprint: of the set; None where it is not there.
  """
  if not (results := read(workdir / "results.json")):
    return
  found, there = results["encoder"]["params_hash"], read(encoder / "config.json")
  if there is not None and found != there.get("params_hash"):
    raise UserError(
      f"{workdir} was measured with another encoder ({found}) than there is now "
      f"({there.get('params_hash')}): delete it, or rename the encoder's folder"
    )
  config, free = _asked(flags), PLACES
  known = {"params_hash": found, "statistics": "encoder", "crop": "center"}
  if fingerprint:
    known["data.fingerprint"] = fingerprint
  model = config.get("text.model")
  if model and pathlib.Path(model).is_dir():
    known["text.hash"] = _text_hash(model)
    free = (*PLACES, "text.model")
  _agree(workdir, config, results["config"], "measured", free, known)


@functools.cache
def _text_hash(model: str) -> str:
  return load_text_encoder(model).hash


def _asked(flags: list[str]) -> dict:
  """{key: value} of the config that the flags give."""
  config, _, *more = flags
  return flatten(to_json(load_with_overrides(config.removeprefix("--config="), more, SECTIONS)))


def _agree(
  workdir: pathlib.Path,
  asked: dict,
  stored: dict,
  done: str,
  free: tuple[str, ...],
  known: dict[str, object],
) -> None:
  """Raises UserError if a stored config differs from the one that is asked for.

  Args:
    done: "trained" or "measured", for the message.
    free: keys and sections that may differ.
    known: what a run would fill now. Keys of FILLED that are not among them may have any value.
  """
  had = flatten(stored)
  filled = {key: had[key] for key in FILLED if key in had} | known
  asked = asked | {k: v for k, v in filled.items() if asked.get(k, "") in (None, "auto")}
  if found := differences(had, asked, free):
    raise UserError(
      f"{workdir} was {done} with another config ({'; '.join(found.values())}): choose another "
      "--output, or delete it"
    )
