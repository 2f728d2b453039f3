"""Views before any training: drawn from the config's own data, and refused as training would
refuse."""

import pytest

from atst_jax import preview
from atst_jax.data.dataset import Dataset
from atst_jax.figures.view_sheet import sample
from atst_jax.util import config as configs
from tests.pages import pixels
from tests.tiny import tiny_config, tiny_flags, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_dataset(tmp_path_factory.mktemp("preview") / "data", frames=(40, 90))


def test_sheets_of_records_and_of_noise(tmp_path, data, capsys):
  records = {"data__source": "records", "data__path": data}
  assert preview.main([*tiny_flags(**records), f"--output={tmp_path}/sheets", "--sheets=2"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[:2] == [
    "6 steps of 16 clips, warm-up 2",
    "views of 0.32 s and 0.32 s, from two segments of at most 0.64 s",
  ]
  assert lines[2].startswith(f"{data}, train: 26 clips of 0.4")
  assert lines[2].endswith("s, each 3.7 times")
  assert lines[3:] == [f"{tmp_path}/sheets/views_{i}.png" for i in (1, 2)]
  first, second = (
    pixels(tmp_path / "sheets" / "views_1.png"),
    pixels(tmp_path / "sheets" / "views_2.png"),
  )
  assert first.shape != second.shape or (first != second).any()
  assert preview.main([*tiny_flags(difference__weight="0"), f"--output={tmp_path}/noise"]) == 0
  pixels(tmp_path / "noise" / "views_1.png")


def test_clips_are_whole_records_of_the_data(data):
  config = configs.to_json(tiny_config(data__source="records", data__path=data, views__group="3"))
  one, two = sample(config, Dataset.load(data), 2)
  assert one["mel"].shape == (6, 64, 64)  # two groups of 3
  known = {clip.mel.tobytes() for clip in Dataset.load(data).clips("train")}
  short = [
    mel[:n].tobytes()
    for b in (one, two)
    for mel, n in zip(b["mel"], b["length"], strict=True)
    if n < 64
  ]
  assert short and set(short) <= known and len(set(short)) == len(short)


@pytest.mark.parametrize(
  "flags, message",
  [
    (
      ["--config.views.group=3", "--devices=8"],
      "views.group 3 must be at least 2 and divide the 2 clips of a device",
    ),
    (["--devices=5"], "batch_size 16 is not divisible by 5 devices"),
    (["--config.mesh.fsdp=3"], "does not use the 8 devices"),
    (["--config.encoder.widht=8"], "did you mean --config.encoder.width"),
    (["--sheets=0"], "--sheets=0: must be at least 1"),
    (
      ["--config.data.source=records", "--config.data.path=/nowhere"],
      "/nowhere/dataset.json does not exist",
    ),
  ],
)
def test_a_config_that_training_refuses_is_refused(tmp_path, capsys, flags, message):
  assert preview.main([*tiny_flags(), f"--output={tmp_path}/sheets", *flags]) == 2
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error and not (tmp_path / "sheets").exists()
