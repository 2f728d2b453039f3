"""Divisions of labelled sets: complete, disjoint, stratified, and refused where they leak or cannot
be learned."""

import time

import numpy as np
import pytest

from atst_jax.downstream.splits import Split, check, make_splits, source_of
from atst_jax.util.errors import UserError

NAMES = ["bark", "crow", "rain", "wind"]


def columns(n=48, classes=4, **changes):
  """A set of n files, class i mod classes, without folds and splits."""
  found = {
    "ids": [f"{i}.wav" for i in range(n)],
    "groups": [""] * n,
    "targets": np.eye(classes, dtype=int)[np.arange(n) % classes],
    "folds": np.full(n, -1),
    "splits": np.full(n, "train"),
    "label_names": NAMES[:classes],
    "way": "auto",
    "num_folds": 5,
    "hold_out": "fold",
    "seed": 0,
  }
  return {**found, **changes}


def assert_divides(split, n):
  np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(n))
  assert all(len(part) for part in split)


def test_source_of_a_piece_is_its_file():
  assert source_of("a/b.wav#0012") == "a/b.wav"
  assert source_of("a#12.wav") == "a#12.wav"
  assert source_of("a.wav#12345") == "a.wav"


def test_folds_test_each_once_and_the_next_one_chooses():
  folds = np.arange(48) // 4 % 3 + 1  # from 1, as ESC-10's
  parts = make_splits(**columns(folds=folds))
  assert len(parts) == 3
  for fold, split in zip((1, 2, 3), parts, strict=True):
    assert_divides(split, 48)
    assert set(folds[split.test]) == {fold}
    assert set(folds[split.valid]) == {fold % 3 + 1}
    assert set(folds[split.train]) == {1, 2, 3} - {fold, fold % 3 + 1}


def test_two_folds_hold_a_tenth_of_the_other_out():
  folds = np.arange(80) // 4 % 2
  parts = make_splits(**columns(80, folds=folds))
  for fold, split in enumerate(parts):
    assert_divides(split, 80)
    assert set(folds[split.test]) == {fold} and len(split.valid) == 4


def test_split_column_is_taken_as_it_is():
  names = np.array(["train", "train", "valid", "test"])[np.arange(48) // 4 % 4]
  (split,) = make_splits(**columns(splits=names))
  assert_divides(split, 48)
  for name in ("train", "valid", "test"):
    assert set(names[getattr(split, name)]) == {name}


@pytest.mark.parametrize("seed", range(5))
def test_without_valid_a_stratified_tenth_of_train_is_held_out(seed):
  names = np.where(np.arange(480) % 12 < 8, "train", "test")
  (split,) = make_splits(**columns(480, splits=names, seed=seed))
  assert_divides(split, 480)
  assert set(names[split.valid]) == {"train"}
  assert np.bincount(split.valid % 4).tolist() == [8, 8, 8, 8]
  again = make_splits(**columns(480, splits=names, seed=seed))[0]
  np.testing.assert_array_equal(split.valid, again.valid)
  other = make_splits(**columns(480, splits=names, seed=seed + 1))[0]
  assert set(split.valid) != set(other.valid)


def test_a_tenth_of_a_hundred_thousand_files_is_held_out_in_seconds():
  """The time grew with the square of their number: minutes of silence for VGGSound, hours for
  AudioSet."""
  names = np.array(["train"] * 99_000 + ["test"] * 1000)
  started = time.process_time()
  (split,) = make_splits(**columns(100_000, splits=names))
  assert len(split.valid) == 9900 and time.process_time() - started < 10


def test_held_out_clips_never_take_the_last_of_a_class():
  targets = np.zeros((40, 4), int)
  targets[:, 0], targets[0, 1] = 1, 1  # file 0 alone has class 1
  targets[30:, 2] = 1
  names = np.array(["train"] * 35 + ["test"] * 5)
  for seed in range(40):
    (split,) = make_splits(**columns(40, targets=targets, splits=names, seed=seed))
    assert 0 in split.train and len(split.valid) == 3


def test_random_folds_are_stratified_and_keep_pieces_together():
  ids = [f"{i // 3}.wav#{i % 3:04d}" for i in range(240)]
  targets = np.eye(4, dtype=int)[np.arange(240) // 3 % 4]
  parts = make_splits(**columns(240, ids=ids, targets=targets))
  assert len(parts) == 5
  assert len(np.unique(np.concatenate([split.test for split in parts]))) == 240
  for split in parts:
    assert_divides(split, 240)
    assert np.bincount(targets[split.test].argmax(1)).tolist() == [12, 12, 12, 12]
    files = [{source_of(ids[i]) for i in part} for part in split]
    assert not files[0] & files[1] and not files[0] & files[2] and not files[1] & files[2]
  other = make_splits(**columns(240, ids=ids, targets=targets, seed=1))
  assert set(parts[0].test) != set(other[0].test)


def test_pieces_stay_together_when_held_out():
  ids = [f"{i // 4}.wav#{i % 4:04d}" for i in range(240)]
  names = np.where(np.arange(240) // 4 % 3 < 2, "train", "test")
  targets = np.eye(4, dtype=int)[np.arange(240) // 4 % 4]
  (split,) = make_splits(**columns(240, ids=ids, splits=names, targets=targets))
  assert len(split.valid) == 16
  assert not {source_of(ids[i]) for i in split.train} & {source_of(ids[i]) for i in split.valid}


def refusal(pattern, **changes):
  with pytest.raises(UserError, match=pattern):
    make_splits(**columns(**changes))


def test_what_the_columns_do_not_allow_is_refused():
  folds, halves = np.arange(48) % 3, np.array(["train", "test"])[np.arange(48) % 2]
  refusal("way=sideways: choose one of auto, fold, split, random", way="sideways")
  refusal(
    "folds and a test split; set --config.splits.way to fold or split", folds=folds, splits=halves
  )
  refusal(
    r"\{'train': 24, 'eval': 24\}, none of them `test`",
    splits=np.array(["train", "eval"])[np.arange(48) % 2],
  )
  refusal("48 of 48 clips have no fold", way="fold")
  refusal(r"\{'train': 48\}; needed are `train`, `test`", way="split")
  refusal("num_folds=99: 48 files allow 2 to 48 folds", num_folds=99)
  refusal("all 48 clips are in fold 7; at least 2", folds=np.full(48, 7))
  refusal("the set holds one file, or one group", ids=[f"a.wav#{i:04d}" for i in range(48)])


def test_fault_39_pieces_of_one_file_in_two_folds_leak():
  ids = [f"{i}.wav" for i in range(46)] + ["long.wav#0000", "long.wav#0001"]
  refusal(
    r"leaks: 1 source file in more than one part, the first is 'long.wav' in .* \(16 train, 16 "
    "valid, 16 test ",
    ids=ids,
    folds=np.arange(48) % 3,
  )


def test_fault_39_an_id_in_two_parts_leaks():
  ids = [f"{i % 47}.wav" for i in range(48)]
  refusal(
    "leaks: 1 id in more than one part, the first is '0.wav' in test and train",
    ids=ids,
    splits=np.where(np.arange(48) < 36, "train", "test"),
  )


def test_fault_39_a_speaker_in_two_parts_leaks():
  """By folds and by splits; clips of which nothing is known are no group."""
  speakers = [f"speaker {i % 8}" for i in range(48)]
  refusal(
    r"leaks: 8 groups in more than one part, the first is 'speaker 0' in test and train and valid ",
    groups=speakers,
    folds=np.arange(48) // 4 % 3,
  )
  names = np.where(np.arange(48) < 36, "train", "test")
  refusal(
    "leaks: 1 group in more than one part, the first is 'theo' in test and train",
    splits=names,
    groups=["theo" if i in (3, 40) else "" for i in range(48)],
  )
  for split in make_splits(
    **columns(groups=[f"speaker {i // 4 % 3}" for i in range(48)], folds=np.arange(48) // 4 % 3)
  ):
    assert_divides(split, 48)


def test_fault_39_speakers_stay_together_where_divisions_are_drawn():
  speakers = [f"speaker {i // 4 % 15}" for i in range(240)]
  (held,) = make_splits(
    **columns(240, groups=speakers, splits=np.where(np.arange(240) // 4 % 15 < 12, "train", "test"))
  )
  for split in (held, *make_splits(**columns(240, groups=speakers, way="random"))):
    assert_divides(split, 240)
    train, valid, test = ({speakers[i] for i in part} for part in split)
    assert not train & valid and not train & test and not valid & test


def test_a_tested_class_without_training_clips_is_named():
  names = np.where(np.arange(48) % 4 == 2, "test", "train")
  names[:8] = "test"
  refusal("1 of 4 tested classes have no training clip: rain", splits=names)


def test_fault_38_one_tested_class_is_refused():
  names = np.array(["train"] * 40 + ["test"] * 8)
  targets = np.eye(4, dtype=int)[np.r_[np.arange(40) % 4, np.zeros(8, int)]]
  refusal("the test clips hold 1 class of 4; a probe needs 2", splits=names, targets=targets)


def test_a_set_of_one_class_is_refused():
  with pytest.raises(UserError, match=r"has one class \(dog\), and an evaluation needs"):
    make_splits(**{**columns(targets=np.ones((48, 1), int)), "label_names": ["dog"]})


def test_an_empty_part_is_refused():
  part = np.arange(4)
  with pytest.raises(
    UserError, match=r"this one: a part is empty \(4 train, 0 valid, 4 test clips\)"
  ):
    check(
      Split(part, part[:0], part + 4),
      ids=list("abcdefgh"),
      groups=[""] * 8,
      targets=np.ones((8, 2), int),
      label_names=NAMES[:2],
      name="this one",
    )


def test_validation_clips_that_cannot_choose_are_refused_and_strange_classes_named(warnings):
  """Classes that were never trained, and no label at all; some strange classes are a warning."""
  names = np.array(["train", "train", "valid", "test"])[np.arange(48) // 4 % 4]
  classes = np.arange(48) % 4
  valid = names == "valid"
  targets = lambda of_valid: np.eye(5, dtype=int)[np.where(valid, of_valid, classes)]
  five = {"splits": names, "label_names": [*NAMES, "zebra"]}
  refusal(
    "12 validation clips cannot choose anything: .* no clip is trained", targets=targets(4), **five
  )
  none = targets(0) * ~valid[:, None]
  refusal("of their classes there is none .* a tenth of the training clips", targets=none, **five)
  make_splits(**columns(targets=targets(np.where(classes == 1, 4, classes)), **five))
  assert [
    "1 of 4 classes of the validation clips" in line and "zebra" in line for line in warnings
  ] == [True]


def test_a_class_of_one_clip_is_refused_with_the_remedy():
  targets = np.eye(4, dtype=int)[np.minimum(np.arange(48), 3)]
  targets[:3] = np.eye(4, dtype=int)[[0, 1, 2]]
  targets[3:] = np.eye(4, dtype=int)[[0, 1] * 22 + [0]]
  refusal("no training clip: rain .* prepare the set again without its clips", targets=targets)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_held_out_of_several_labels_has_a_label(seed):
  """Nine files in ten have none, and the first class cannot spare its only one."""
  targets = np.zeros((48, 4), int)
  targets[[3, 17, 41], [0, 1, 1]] = 1
  targets[[5, 44], [0, 1]] = 1
  names = np.where(np.isin(np.arange(48), [5, 44, 9]), "test", "train")
  (split,) = make_splits(**columns(targets=targets, splits=names, seed=seed))
  assert targets[split.valid].any()
  assert targets[split.train].any(0).tolist() == [True, True, False, False]
