"""The sides of BgKnown's recordings, and the name of a set that is not the published one."""

import collections

import pytest

from atst_jax.util.errors import UserError
from data_pipeline import bgknown
from data_pipeline.mixing.sides import divided
from data_pipeline.sources.files import Listing, Source


def test_takes_of_a_sound_are_on_one_side_where_sides_are_drawn():
  """ESC-50's files without its table: three takes each of a hundred recordings."""
  names = [f"dog/1-{number}-{take}-0.wav" for number in range(100) for take in "ABC"]
  sides = collections.defaultdict(set)
  for source in divided([Source(name, name, ("dog",)) for name in names], ["4"], "foreground"):
    sides[source.id.split("-")[1]].add(source.split)
  assert len(sides) == 100 and all(len(found) == 1 for found in sides.values())
  assert set().union(*sides.values()) == {"train", "test"}


@pytest.mark.parametrize("column", ["split", "fold"])
def test_a_recording_on_both_sides_is_refused(column):
  """A background of the training mixtures would be that of tested ones."""
  values = {"split": ("train", "test"), "fold": (1, 4)}[column]
  sources = [
    Source(f"{i}", f"{i}.wav", group=f"street {i // 3}", **{column: values[i % 2]})
    for i in range(12)
  ]
  with pytest.raises(UserError, match=r"leaks: 4 recordings .* first is background 'street 0'"):
    divided(sources, ["4"], "background")
  assert divided(sources, ["4"], "background", owned=True)


def name_of(*flags, foreground="esc50", background="fsd50k"):
  needed = ["--foreground=x", "--background=y", "--output=z", "--frontend=difference"]
  args = bgknown._parser().parse([*needed, *flags])
  return bgknown._name(args, Listing([], foreground), Listing([], background))


def test_only_the_published_mixtures_have_the_published_name():
  assert name_of() == name_of("--seed=3", "--background_lufs=-30") == "bgknown_esc50"
  for flag in ("--snr=-20,-10", "--seconds=2", "--foreground_labels=dog", "--test_folds=1"):
    assert name_of(flag) == "bgknown_esc50_in_fsd50k"
  assert name_of(background="urbansound8k") == "bgknown_esc50_in_urbansound8k"
  assert name_of("--snr=-20,-10", foreground="esc10") == "bgknown_esc10"


def test_folds_that_no_set_has_are_named(tmp_path, capsys):
  for kind in ("foreground", "background"):
    (tmp_path / kind).mkdir()
    rows = [f"{i}.wav,a,{i % 5 + 1}" for i in range(10)]
    (tmp_path / kind / "list.csv").write_text("\n".join(["path,label,fold", *rows]))
    for i in range(10):
      (tmp_path / kind / f"{i}.wav").write_bytes(b"")
  sets = [f"--{kind}={tmp_path / kind / 'list.csv'}" for kind in ("foreground", "background")]
  more = [f"--output={tmp_path / 'out'}", "--frontend=atst", "--test_folds=4,6"]
  assert bgknown.main([*sets, *more]) == 2
  assert "--test_folds=4,6: neither set has a fold 6" in capsys.readouterr().err
