"""What the linear evaluation refuses, and says of it."""

import os

import numpy as np
import pytest

from atst_jax import main
from atst_jax.artifacts.model import Model
from atst_jax.data.dataset import Clip
from atst_jax.downstream.linear import recipe
from atst_jax.util.config import load, override
from tests.evaluation import make_clips, refused, resolved, write_clips
from tests.tiny import ROOT, job_flags


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_clips(tmp_path_factory.mktemp("linear") / "data", make_clips())


def test_fault_24_40_other_front_end_is_refused_with_the_remedy(encoder, tmp_path):
  data = write_clips(tmp_path / "data", make_clips(), frontend="audiossl")
  refused(
    "'audiossl' .* expects 'atst' .* prepare the data with --frontend=atst",
    encoder,
    data,
    tmp_path / "run",
  )


def test_fault_39_leaking_folds_are_refused_before_anything_is_computed(
  encoder, tmp_path, monkeypatch
):
  clips = make_clips()
  clips[3] = Clip("0.wav#0000", clips[3].mel, clips[3].labels, fold=clips[3].fold)
  clips[7] = Clip("0.wav#0001", clips[7].mel, clips[7].labels, fold=clips[7].fold)
  monkeypatch.setattr(Model, "embed", None)
  refused(
    "leaks: 1 source file .* '0.wav'",
    encoder,
    write_clips(tmp_path / "data", clips),
    tmp_path / "run",
  )


def test_fault_38_embeddings_that_are_nan_name_the_clip(encoder, tmp_path):
  clips = make_clips()
  clips[5].mel[3, 7] = np.nan
  data = write_clips(tmp_path / "data", clips)
  refused(
    r"pre-trained: the embeddings of 1 of 36 clips are NaN or infinite, the first is of '5.wav'",
    encoder,
    data,
    tmp_path / "run",
  )
  assert not os.path.exists(tmp_path / "run" / "features")


def test_clips_without_label_are_refused(encoder, tmp_path):
  clips = make_clips()
  clips[4] = Clip("bare.wav", clips[4].mel, fold=0)
  data = write_clips(tmp_path / "data", clips)
  refused("1 of 36 clips have no label, the first is 'bare.wav'", encoder, data, tmp_path)


@pytest.mark.parametrize(
  ("key", "value", "pattern"),
  [
    ("probe.learning_rates", "0.1,0.01", "must be positive and ascending"),
    ("blocks", "'all','first'", "choose from all, last"),
    ("seeds", "0", r"seeds=0: must be positive"),
    ("params_hash", "abc", "params_hash=abc, but what --config.encoder names has"),
  ],
)
def test_values_that_cannot_work_are_refused(encoder, data, tmp_path, key, value, pattern):
  refused(pattern, encoder, data, tmp_path / "run", **{key.replace(".", "__"): value})


@pytest.mark.parametrize(
  ("key", "value", "pattern"),
  [
    ("probe.epochs", "40", r"probe\.epochs=40 plays no part by the protocol exact.*protocol=atst"),
    ("probe.refit", "false", r"probe\.refit=False plays no part by the protocol exact"),
    ("probe.tested_epoch", "best", r"probe\.tested_epoch=best plays no part by the protocol exact"),
    ("splits.num_folds", "4", r"num_folds=4 plays no part: .*splits\.way=random"),
    ("unit_seconds", "0.5", r"unit_seconds=0\.5 plays no part with --config\.crop=center"),
  ],
)
def test_settings_without_a_part_are_refused(encoder, data, tmp_path, key, value, pattern):
  changes = {key.replace(".", "__"): value}
  refused(pattern, encoder, data, tmp_path / "run", protocol="exact", **changes)


@pytest.mark.parametrize(
  ("key", "value", "pattern"),
  [
    ("probe__patience", "3", r"patience=3 is of the protocol evar"),
    ("probe__monitor", "loss", r"monitor=loss is of the protocol evar"),
    ("max_seconds", "3", r"max_seconds=3\.0 plays no part with --config\.crop=unit"),
  ],
)
def test_settings_of_another_protocol_or_crop_are_refused(
  encoder, data, tmp_path, key, value, pattern
):
  unit = {"crop": "unit", "unit_seconds": "0.1"}
  refused(pattern, encoder, data, tmp_path / "run", protocol="atst", **unit, **{key: value})


def test_settings_of_the_config_files_are_let_pass(encoder, data):
  for variant in ("paper", "evar"):
    flags = {"encoder": encoder, "data.path": data, "protocol": "exact"}
    config = load(f"{ROOT / 'configs' / 'linear.py'}:{variant}")
    for key, value in flags.items():
      override(config, key, value)
    assert recipe.resolve(config).training.protocol == "exact"
  drawn = resolved(encoder, data, protocol="exact", splits__way="random", splits__num_folds="4")
  assert len(recipe.resolve(drawn).splits) == 4


@pytest.mark.parametrize("name", ["linear", "finetune"])
def test_the_command_ends_with_2_and_one_message(data, tmp_path, capsys, name):
  assert main.main(job_flags(name, tmp_path / "run", encoder="nowhere", data__path=data)) == 2
  assert capsys.readouterr().err.startswith("error: ")
