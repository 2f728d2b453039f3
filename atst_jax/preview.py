"""Sheets of a config's views of its data, before any training.

  python -m atst_jax.preview --config=configs/base.py --output=preview [--sheets=3]
    [--config.KEY=VALUE …]

Checks the config as training does, then draws clips of the data with their crops, boxes, views and
mixtures (`view_sheet`). Nothing is trained and no workdir is needed. `--devices` checks for another
number of devices than this machine has.
"""

import os

import jax

from atst_jax.audio.frontend import get_frontend
from atst_jax.data.dataset import Dataset
from atst_jax.figures.view_sheet import sample, view_sheet
from atst_jax.method.subtraction import SECTIONS
from atst_jax.objectives.byol import ranges_of
from atst_jax.objectives.registry import get_objective
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check
from atst_jax.runtime.mesh import mesh_shape
from atst_jax.util import config as configs
from atst_jax.util import storage
from atst_jax.util.cli import Parser, guard, leave
from atst_jax.util.errors import UserError


def describe(config, dataset: Dataset | None) -> str:
  """Lines about the resolved config in units: clips, lengths, passes over the data."""
  frontend = get_frontend(config.data.frontend)
  seconds = lambda frames: f"{frames * frontend.hop_length / frontend.sample_rate:.2f}"
  views = [
    f"{seconds(low)}" + (f" to {seconds(high)}" if low < high else "")
    for low, high in ranges_of(config.views)
  ]
  segments = "two segments" if config.views.segments == "two" else "a single segment"
  lines = [
    f"{config.total_steps} steps of {config.batch_size} clips, warm-up {config.warmup_steps}",
    f"views of {views[0]} s and {views[1]} s, from {segments} "
    f"of at most {seconds(config.data.clip_frames)} s",
  ]
  if dataset is not None:
    split = dataset.manifest["splits"][config.data.split]
    clips = dataset.num_clips(config.data.split)
    visits = config.total_steps * config.batch_size / clips
    lines.append(
      f"{dataset.root}, {config.data.split}: {clips} clips of {seconds(split['min_frames'])} to "
      f"{seconds(split['max_frames'])} s, each {visits:.1f} times"
    )
  return "\n".join(lines)


def draw(config, dataset: Dataset | None, output: str, sheets: int) -> list[str]:
  """Writes `views_1.png`, … of different clips into a folder. Returns their paths."""
  content, paths = configs.to_json(config), list[str]()
  storage.make_folder(output)
  for number, clips in enumerate(sample(content, dataset, sheets), 1):
    paths.append(os.path.join(output, f"views_{number}.png"))
    view_sheet(content, dataset, clips, paths[-1], config.seed + number - 1)
  return paths


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("atst_jax.preview", __doc__)
  parser.add_config()
  parser.add_argument("--output", required=True, help="folder for the pictures")
  parser.add_argument(
    "--sheets", type=int, default=1, help="pictures, of different clips (default 1)"
  )
  parser.add_argument(
    "--devices", type=int, help="that the training will have; those of this machine by default"
  )
  return guard(lambda: _main(*parser.parse_with_overrides(argv)))


def _main(flags, rest) -> None:
  config = configs.load_with_overrides(flags.config, rest, SECTIONS)
  if config.job != "pretrain":
    raise UserError(
      f"--config={flags.config} is of a {config.job!r} job; only pre-training makes views"
    )
  if not get_objective(config).has_views:
    raise UserError(
      f"--config={flags.config}: objective {config.objective} has no augmented views to draw; only "
      "byol's are drawn"
    )
  devices = jax.device_count() if flags.devices is None else flags.devices
  for name, value in (("sheets", flags.sheets), ("devices", devices)):
    if value < 1:
      raise UserError(f"--{name}={value}: must be at least 1")
  dataset = Dataset.load(config.data.path) if config.data.source == "records" else None
  config = recipe.resolve(config, dataset)
  check(config, dataset, devices, jax.process_count())
  mesh_shape(**config.mesh, count=devices)
  try:
    paths = draw(config, dataset, flags.output, flags.sheets)
  except OSError as error:
    raise UserError(f"--output={flags.output}: cannot be written ({error.strerror})") from error
  print(describe(config, dataset), *paths, sep="\n")


if __name__ == "__main__":
  leave(main())
