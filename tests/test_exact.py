"""The exact probe in the evaluations: what chooses its penalty, and BgKnown by it alone."""

import numpy as np
import pytest

from atst_jax import main
from atst_jax.downstream import bootstrap, features, ridge
from atst_jax.downstream.bgknown import job as bgknown
from atst_jax.downstream.evaluation import score_of
from atst_jax.downstream.linear.exact import chosen_on
from atst_jax.downstream.linear.probing import Training
from atst_jax.downstream.splits import Split
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log
from tests.test_difference import flags, write_set

N = 24
SPLIT = Split(np.arange(8), np.arange(8, 16), np.arange(16, N))


def labels(folds=(-1,), groups=("",)):
  """Of clips that have these folds and groups by turns."""
  repeat = lambda values: np.resize(values, N)
  targets = np.eye(3, dtype=np.uint8)[np.arange(N) // 2 % 3]
  ids = [f"{i}.wav" for i in range(N)]
  return features.Labels(
    ids, targets, False, repeat(folds), repeat("train"), repeat(groups).tolist()
  )


@pytest.mark.parametrize(
  ("found", "options", "chosen", "parts"),
  [
    (labels((0, 1, 2)), {}, "folds", 3),
    (labels((0, 1, 2), ("a", "b")), {}, "folds", 3),
    (labels((4,), ("a", "b")), {}, "groups", 2),  # of one fold none can be left out
    (labels((0, -1), ("a", "b")), {}, "groups", 2),  # not all clips have one
    (labels(), {}, "valid", None),
    (labels((0, 1)), {"exact": False}, "valid", None),  # beside a paper's protocol
    (labels((0, 1)), {"on_test": True}, "valid", None),
    (labels((0, 1), ("a", "b", "c")), {"wanted": "groups"}, "groups", 3),
    (labels((0, 1)), {"wanted": "valid"}, "valid", None),
  ],
)
def test_what_chooses_the_penalty(found, options, chosen, parts):
  options = {"wanted": None, "exact": True, "on_test": False} | options
  name, groups = chosen_on(labels=found, splits=[SPLIT], **options)
  assert name == chosen and (groups is None) == (parts is None)
  assert parts is None or len(np.unique(groups)) == parts


def test_folds_that_part_groups_are_kept_and_said(monkeypatch):
  """Of the 16 known clips: four speakers in three folds are parted, in four folds they are not."""
  said = []
  monkeypatch.setattr(log, "warning", lambda text, *values: said.append(text % values))
  choose = lambda found: chosen_on(None, found, [SPLIT], exact=True, on_test=False)
  name, groups = choose(labels((0, 1, 2), tuple("abcd")))
  assert name == "folds" and len(np.unique(groups)) == 3
  (message,) = said
  assert message.startswith(
    "4 of 4 groups (16 of 16 clips that are not tested) lie in several fold"
  )
  assert "the first is 'a'; the folds are kept" in message and "chosen_on=groups" in message
  said.clear()
  choose(labels((0, 1, 2, 3), tuple("abcd")))
  choose(labels((0, 1, 2)))
  assert not said
  # the interval is by speaker all the same, whose clips lie in several divisions
  found = labels((0, 1, 2), tuple("abcd"))
  tests = [np.flatnonzero(found.folds == fold) for fold in range(3)]
  design = bootstrap.design(tests, found.ids, found.groups)
  assert design.by == "groups" and design.joint and design.numbers == ((4,),) * 3


def test_labels_of_one_part_alone_are_said(monkeypatch):
  """Left out, they are never recognised. Tested clips do not count."""
  said = []
  monkeypatch.setattr(log, "warning", lambda text, *values: said.append(text % values))
  found = labels((0, 1))
  targets = np.eye(4, dtype=np.uint8)[np.where(found.folds == 0, 0, np.arange(N) % 3)]
  targets[N - 1] = targets[2] = (0, 0, 0, 1)  # of a tested clip, and of one known clip
  chosen_on(None, found._replace(targets=targets), [SPLIT], exact=True, on_test=False)
  (message,) = said
  # 0 in fold 0 and in fold 1, 1 and 2 in fold 1, 3 in fold 0
  assert message.startswith("3 of 4 labels have clips in one part of the folds alone, the first is")
  assert "'1.wav'" in message


def test_many_groups_are_left_out_in_parts(monkeypatch):
  """A label of two groups that are left out together is lonely, too."""
  said = []
  monkeypatch.setattr(log, "warning", lambda text, *values: said.append(text % values))
  groups = tuple(f"{i:02d}" for i in range(15))
  found = labels((0,), groups)
  known = np.concatenate(SPLIT[:2])
  parts = ridge.parts_of(np.unique(np.array(found.groups)[known], return_inverse=True)[1])
  together = known[
    parts == np.bincount(parts[1:15]).argmax()
  ]  # the first and last are of one group
  assert len({found.groups[i] for i in together}) > 1
  targets = np.zeros((N, 2), np.uint8)
  targets[:, 0] = 1
  targets[together] = (0, 1)
  chosen_on(None, found._replace(targets=targets), [SPLIT], exact=True, on_test=False)
  (message,) = said
  assert message.startswith("1 of 2 labels have clips in one part of the groups alone")


@pytest.mark.parametrize(
  ("wanted", "on_test", "message"),
  [
    ("fold", False, "chosen_on=fold: choose one of folds, groups, valid"),
    ("groups", False, "lie in one of the groups, so that none can be left out; take"),
    ("folds", True, "the test clips choose; leave one of them out"),
  ],
)
def test_what_cannot_choose_it(wanted, on_test, message):
  with pytest.raises(UserError, match=message):
    chosen_on(wanted, labels((0, 1)), [SPLIT], exact=True, on_test=on_test)


def test_known_backgrounds_by_the_exact_probe_alone():
  found, rng = labels(groups=("a", "b", "c", "d")), np.random.default_rng(0)
  arrays = {condition: [rng.normal(size=(N, 5))] for condition in ("mix", "a")}
  training = Training("exact", (1e-3,), 1, 9, False, 1, "loss", False)
  groups = np.arange(N) % 4
  job = bgknown.Evaluation(
    {}, None, {}, found, SPLIT, [0, 1], ("y",), (), 0.5, training, (1e-3, 1.0), groups
  )
  (row,) = bgknown.run_row("pre-trained", "y", "a", arrays, job)
  x, score = arrays["mix"][0] - 0.5 * arrays["a"][0], score_of(found)
  wanted = ridge.evaluate(x, found.targets, SPLIT, score, (1e-3, 1.0), groups=groups)
  assert row["mean"] == wanted.score and row["weight"] == 0.5 and row["std"] is None
  assert row["runs"][0]["penalty_valid_scores"] == list(wanted.valid_scores)
  assert len(row["runs"]) == 1 and "above_optimum" not in row and "exact" not in row
  assert row["tested"].kept["predicted"].tolist() == [wanted.test_scores.argmax(1).tolist()]


def test_known_backgrounds_refuse_settings_of_the_other_probe(encoder, tmp_path, capsys):
  data = write_set(tmp_path / "data")
  assert main.main(flags(encoder, data, tmp_path / "run", protocol="exact")) == 2
  assert "probe.batch_size=16 plays no part by the protocol exact" in capsys.readouterr().err
