"""What fine-tuning refuses before anything is computed."""

import pytest

from atst_jax.data.dataset import Clip
from atst_jax.downstream.finetune import job
from atst_jax.util.errors import UserError
from tests.evaluation import make_clips, write_clips
from tests.finetuning import refused, resolved, split_clips
from tests.test_vggish import write_vggish


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write_clips(tmp_path_factory.mktemp("finetune") / "data", make_clips(60))


def test_fault_24_38_39_data_that_cannot_be_used_is_refused_before_anything_is_computed(
  encoder, tmp_path, monkeypatch
):
  monkeypatch.setattr(job, "compile_for", None)
  other = write_clips(tmp_path / "front-end", make_clips(), frontend="audiossl")
  refused(
    "'audiossl' .* expects 'atst' .* prepare the data with --frontend=atst",
    encoder,
    other,
    tmp_path / "run",
  )
  clips = make_clips()
  clips[3] = Clip("0.wav#0000", clips[3].mel, clips[3].labels, fold=clips[3].fold)
  clips[7] = Clip("0.wav#0001", clips[7].mel, clips[7].labels, fold=clips[7].fold)
  refused(
    "leaks: 1 source file .* '0.wav'",
    encoder,
    write_clips(tmp_path / "leak", clips),
    tmp_path / "run",
  )
  clips = make_clips()
  clips[4] = Clip("bare.wav", clips[4].mel, fold=0)
  refused(
    "1 of 36 clips have no label", encoder, write_clips(tmp_path / "bare", clips), tmp_path / "run"
  )
  one = [Clip(c.id, c.mel, (0,), False, -1, c.split) for c in split_clips()]
  refused("hold 1 class of 3", encoder, write_clips(tmp_path / "one", one), tmp_path / "run")
  new = [
    Clip(c.id, c.mel, (2,) if c.split == "test" and i % 2 else (i // 5 % 2,), False, -1, c.split)
    for i, c in enumerate(split_clips())
  ]
  refused(
    "1 of 2 tested classes have no training clip: high",
    encoder,
    write_clips(tmp_path / "new", new),
    tmp_path / "run",
  )
  few = write_clips(tmp_path / "few", split_clips(20))
  refused(
    "12 clips to train on are less than one batch of 16; lower", encoder, few, tmp_path / "run"
  )


@pytest.mark.parametrize(
  ("overrides", "pattern"),
  [
    ({"batch_size": "12", "devices": 8}, "batch_size 12 is not divisible by 8 devices"),
    ({"mixup__group": "3"}, "mixup.group 3 must be at least 2 and divide the 16 clips of a device"),
    ({"epochs": "0"}, "epochs=0: must lie between 1"),
    ({"warmup_epochs": "7"}, "warmup_epochs=7.0: must lie between 0"),
    ({"tail": "cut"}, "tail=cut: choose one of released"),
    ({"initial": "best"}, "choose one of pre-trained, random"),
    ({"crop__freq_scale": "1.5,0.6"}, "crop.freq_scale=.* the smaller first"),
    ({"seeds": "0"}, "seeds=0: must be at"),
    ({"optimizer__layer_decay": "2"}, "layer_decay=2.0: must lie"),
    ({"params_hash": "abc"}, "params_hash=abc, but what"),
    ({"compute__attention": "cudnn"}, "compute.attention=cudnn needs"),
  ],
)
def test_values_that_cannot_work_are_refused(encoder, data, tmp_path, overrides, pattern):
  refused(pattern, encoder, data, tmp_path / "run", **overrides)


@pytest.mark.parametrize(
  ("overrides", "pattern"),
  [
    ({"splits__num_folds": "4"}, r"num_folds=4 plays no part: .*splits\.way=random"),
    ({"variant": "vox1", "mixup__alpha": "10"}, r"alpha=10\.0 plays no part without Mixup"),
    ({"variant": "vox1", "crop__canvas_time": "2"}, r"crop\.canvas_time=2\.0 plays no part"),
    ({"variant": "vox1", "crop__freq_scale": "1,1"}, r"crop\.freq_scale=.* plays no part"),
  ],
)
def test_settings_without_a_part_are_refused(encoder, data, tmp_path, overrides, pattern):
  refused(pattern, encoder, data, tmp_path / "run", **overrides)


def test_settings_with_a_part_are_taken(encoder, data):
  drawn = resolved(encoder, data, splits__way="random", splits__num_folds="4", mixup__alpha="10")
  assert len(drawn.splits) == 4 and drawn.program["mixup"]["alpha"] == 10
  plain = resolved(encoder, data, mixup__probability="0", crop__enabled="False")
  assert plain.program["crop"] is None and len(plain.splits) == 3


def test_clips_that_are_all_too_short_are_refused(tmp_path):
  """VGGish has no vector of less than 96 frames: it ended in a traceback."""
  clips = [Clip(c.id, c.mel[:80], c.labels, fold=c.fold) for c in make_clips(60)]
  data = write_clips(tmp_path / "short", clips, frontend="vggish")
  encoder = write_vggish(tmp_path / "vggish")
  refused("clips of up to 80 frames, 80 are heard .* needs at least 96", encoder, data, tmp_path)


def test_hosts_of_a_fine_tuning_are_compared_before_anything_is_computed(
  encoder, data, tmp_path, monkeypatch
):
  """As of a pre-training (`test_processes`): what lies behind a path, not the path."""
  compared = []

  def refuse(values):
    compared.append(values)
    raise UserError("process 1 has another config")

  monkeypatch.setattr(job, "refuse_others", refuse)
  refused("process 1 has another config", encoder, data, tmp_path / "run")
  assert {"seed", "data.fingerprint", "params_hash", "embedding_hash"} <= compared[0].keys()
  assert not compared[0].keys() & {"encoder", "data.path", "log.every_steps"}
