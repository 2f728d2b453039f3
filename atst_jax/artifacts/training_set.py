"""What an export keeps of the data set that it was trained on: how several channels became one."""

from atst_jax.audio.channels import MEAN, check_channels
from atst_jax.data.dataset import Dataset
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log


def channels_of(manifest: dict) -> str:
  """`--channels` of the preparation, from its dataset.json. Raises UserError for what it cannot
  be."""
  preparation = manifest.get("preparation")
  channels = preparation.get("channels", MEAN) if isinstance(preparation, dict) else MEAN
  check_channels(str(channels))
  return channels


def channels_of_run(data: dict) -> str:
  """The same of a pre-training run, from the section `data` of its config: MEAN, and a line that
  says so, where its set is not there any longer."""
  if data["source"] != "records":
    return MEAN
  try:
    dataset = Dataset.described(data["path"])
    if dataset.fingerprint(data["split"]) == data["fingerprint"]:
      return channels_of(dataset.manifest)
    reason = f"{data['path']} holds other clips now"
  except UserError as error:
    reason = str(error)
  log.warning(
    "how the run's data set made one channel of several is not known, so `embed` will take their "
    "mean, or what --channels says there: %s",
    reason,
  )
  return MEAN
