"""What a pre-training config may not say, alone or together with the rest."""

from unittest import mock

import pytest

from atst_jax.data.order import check_streams
from atst_jax.objectives.registry import get_objective
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check
from atst_jax.util.errors import UserError
from tests.tiny import tiny_config


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"batch_size": "12"}, "batch_size 12 is not divisible by 8 devices; use a multiple of 8"),
    ({"views__group": "3"}, "views.group 3 must be at least 2 and divide the 2 clips of a device"),
    (
      {"views__crop_frames": "65"},
      "65 must be at least 4, .* at most data.clip_frames 64 and encoder.max_frames 64",
    ),
    ({"views__crop_frames": "3"}, "views.crop_frames 3 must be at least 4, which make one vector"),
    ({"log__every_steps": "0"}, "log.every_steps=0: must be at least 1"),
    ({"encoder__depth": "0"}, "must be at least 1"),
    ({"views__freq_scale": "(0.6,)"}, "must be two positive numbers"),
    ({"views__time_scale": "1.5,0.6"}, "the smaller first"),
    (
      {"views__normalization__low": "40"},
      "views.normalization.low=40.0: must be below views.normalization.high=40.0",
    ),
    ({"optimizer__b1": "2"}, "must lie between 0"),
    ({"optimizer__eps": "0"}, "optimizer.eps=0.0: must lie between 1e-12 and 1"),
    ({"optimizer__base_lr": "nan"}, "must lie between 0"),
    ({"teacher__decay_end": "7"}, "must lie between 0 and 1"),
    ({"views__canvas_time": "0.5"}, "must lie between 1"),
    ({"encoder__heads": "3"}, "encoder.width 16 is not divisible by encoder.heads 3"),
    ({"views__segments": "three"}, "views.segments=three: choose one of two, single"),
    ({"difference__weight": "1.5"}, "difference.weight=1.5: must lie between 0 and 1"),
    (
      {"difference__gamma_min": "0.7"},
      "difference.gamma_min=0.7: must be below difference.gamma_max=0.6",
    ),
    ({"difference__mix_domain": "log"}, "choose one of normalized, energy"),
    ({"encoder__kind": "cnnn"}, "choose one of transformer"),
    ({"dtype": "float16"}, "choose one of auto, float32"),
    ({"warmup_steps": "9"}, "warmup_steps=9: must lie between 0 and total_steps=6; set it"),
    (
      {"views__first_frames": "33,20"},
      r"first_frames=\(33, 20\): must be two numbers from 4 to views.crop_frames",
    ),
    (
      {"views__first_frames": "8,16", "views__second_frames": "8,16"},
      "views.crop_frames 32 is longer than any view",
    ),
    (
      {"views__first_frames": "8,32", "views__segments": "single"},
      "takes both views from one segment",
    ),
    (
      {"difference__level": "frame"},
      "level=frame makes a difference only with --config.encoder.kind=cnn",
    ),
    ({"difference__track_mixtures": "false"}, "only with --config.encoder.kind=cnn"),
    ({"difference__mix_stage": "pre_norm"}, "only with --config.views.post_norm=true"),
    ({"difference__mix_stage": "pre_norm", "views__post_norm": "true"}, "mix_domain=normalized"),
    (
      {"difference__joint_projector": "true", "difference__symmetric": "false"},
      "difference.symmetric=true",
    ),
    ({"difference__mix_k": "3", "difference__mix_domain": "normalized"}, "mix_k is used only with"),
    (
      {"views__normalization__kind": "standard"},
      "views.normalization has no 'mean', which kind 'standard' needs",
    ),
    ({"views__first_frames": "8,16,32"}, "must be two whole numbers of frames"),
    ({"views__first_frames": "8.5,32"}, "must be two whole numbers of frames"),
    (
      {"encoder__kind": "cnn"},
      "kind=cnn needs the keys dropout, hidden, version, width; start from a",
    ),
    (
      {"difference__stop_gradient": "true", "difference__subtrahend": "teacher"},
      "subtrahend=student",
    ),
    ({"difference__gamma_shared": "true", "difference__symmetric": "false"}, "symmetric=true"),
    ({"tail": "cut"}, "tail=cut: choose one of released"),
    ({"export": "both"}, "export=both: choose one of teacher, student"),
  ],
)
def test_fault_11_impossible_combinations_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    check(recipe.resolve(tiny_config(**changes), None), None, devices=8, processes=1)


@pytest.mark.parametrize(
  "file, changes, message",
  [
    ("base.py", {"objective": "simclr"}, "objective=simclr: choose one of byol, cola, trill"),
    ("base.py", {"objective": "cola"}, r"needs the keys cola\.similarity, .*from configs/cola"),
    ("cola.py:small", {"objective": "byol"}, r"needs joint_views, heads, .*configs/base"),
    ("cola.py:small", {"batch_size": "1"}, "batch_size=1: objective cola .* it needs 2 or more"),
    ("trill.py:small", {"batch_size": "1"}, "batch_size=1: objective trill"),
    (
      "cola.py:small",
      {"views.crop_frames": "64"},
      "64 frames, so both windows of every clip would",
    ),
    ("cola.py:small", {"optimizer__end_lr": "1e-3"}, "end_lr=0.001 does nothing with .*=constant"),
    ("trill.py:small", {"trill.distance_frames": "0"}, "distance_frames=0: both windows of a clip"),
    ("cola.py:small", {"cola__similarity": "dot"}, "choose one of bilinear, cosine"),
    ("cola.py:small", {"cola__similarity": "cosine"}, "set --config.cola.temperature=0.2"),
    ("cola.py:small", {"cola__temperature": "0.2"}, "set --config.cola.temperature=none"),
    ("cola.py:small", {"views__crop_frames": "65"}, "and at most data.clip_frames 64"),
    (
      "trill.py:small",
      {"export": "teacher"},
      "objective trill has no teacher; set --config.export=",
    ),
    ("trill.py:small", {"trill__margin": "-1"}, "trill.margin=-1.0: must lie between 0 and 4"),
    (
      "cola.py:small",
      {"data__frontend": "ssast"},
      "frontend=ssast filters first; set --config.cola",
    ),
    ("ssast.py:small", {"tail": "released"}, "tail=released .* ATST's .* take --config.tail=drop"),
    ("ssast.py:small", {"warmup_steps": "2"}, "warmup_steps=2: stairs have steps of 50; set 0"),
    ("cola.py:small", {"views__normalization__offset": "-1.0"}, "takes the logarithm of nothing"),
    (
      "base.py",
      {"views__normalization__kind": "log_magnitude"},
      "log_magnitude needs floor, offset",
    ),
    (
      "ssast.py:small",
      {"ssast__task": "generative", "ssast__softmax": "targets"},
      "softmax=targets",
    ),
    (
      "ssast.py:small",
      {"ssast__task": "discriminative", "ssast__generative_weight": "1.0"},
      "generative_weight=1.0 does nothing with --config.ssast.task=discriminative",
    ),
  ],
)
def test_an_objective_is_refused_what_it_cannot_do(file, changes, message):
  with pytest.raises(UserError, match=message):
    check(recipe.resolve(tiny_config(file, **changes), None), None, devices=1, processes=1)


def test_a_section_that_no_objective_reads_is_refused():
  config = tiny_config("cola.py:small")
  with config.unlocked():
    config.heads = tiny_config().heads
    with pytest.raises(UserError, match=r"has heads, which --config\.objective=cola does not"):
      check(recipe.resolve(config, None), None, devices=1, processes=1)
    del config.heads
    config.cola.margin = 0.1
    with pytest.raises(UserError, match=r"sets cola\.margin: no such key; did you mean cola"):
      check(recipe.resolve(config, None), None, devices=1, processes=1)


def test_steps_follow_from_epochs_unless_set():
  assert recipe.resolve(tiny_config(total_epochs="3"), None).total_steps == 6
  with pytest.raises(
    UserError,
    match=r"total_steps is not set and cannot follow from total_epochs=200\.0 with the 'synthetic'",
  ):
    recipe.resolve(tiny_config(total_steps="none"), None)


def test_fewer_shards_than_processes():
  """The remedy that is named works."""
  numbers = {"batch_size": 64, "streams": 32}
  with pytest.raises(UserError, match=r"set data\.streams to at most 24, or prepare the data"):
    check_streams(**numbers, shards=31, processes=8)
  with pytest.raises(UserError, match=r"data.streams=32: prepare .* with --num_shards=32"):
    check_streams(**numbers, shards=16, processes=32)


@pytest.mark.parametrize("file", ["cola.py:small", "trill.py:small"])
def test_clips_that_are_no_longer_than_a_window(file):
  """What the data set holds counts, not what the config allows."""
  dataset = mock.Mock(min_frames=lambda split: 20, max_frames=lambda split: 32)
  config = recipe.resolve(tiny_config(file), None)
  with pytest.raises(UserError, match="the longest clip has 32 frames, so both windows of every"):
    check(config, dataset, devices=8, processes=1)


def test_groups_whose_partners_are_no_strangers_are_told_of(warnings):
  common = {"batch_size": "48", "data__streams": "16"}
  told = lambda **changes: check(
    recipe.resolve(tiny_config(**common, **changes), None), None, devices=8, processes=1
  )
  told(views__group="6", difference__weight="0.2")
  told(views__group="3", difference__weight="0")
  told(views__group="2", difference__weight="0", views__mixup_ratio="0")
  assert not warnings
  told(views__group="2", difference__weight="0")
  told(views__group="3", difference__weight="0.2")
  assert [text.partition("take ")[2] for text in warnings] == ["3 or more", "5 or more"]


def test_a_clip_shorter_than_a_vector_is_refused():
  """Masked, nothing would be left of it: its vector is 0."""
  config = recipe.resolve(tiny_config(), None)
  objective = get_objective(config)
  options = {"devices": 8, "n_mels": 64}
  objective.check(clip_lengths=(4, 64), **options)
  with pytest.raises(UserError, match="has 3 frames, and a vector of this encoder sees 4"):
    objective.check(clip_lengths=(3, 64), **options)
  config.views.padding = "silence"
  get_objective(config).check(clip_lengths=(3, 64), **options)
