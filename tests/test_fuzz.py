"""Hostile config overrides, manifests, shards and their records, and dataset.json: only documented
errors, no hang, no memory that no file backs, no half-written output. Sound files, exports and
PyTorch files are in test_fuzz_*.py.

The suite runs a few cases, always the same; `make fuzz` runs thousands, others every time, and
prints how many.
"""

import copy
import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from atst_jax.data.dataset import Clip, Dataset, Shard
from atst_jax.data.shard_reader import Damage, ShardReader
from atst_jax.data.tfrecord import (
  RecordError,
  decode_example,
  find_feature,
  frame_record,
  read_records,
)
from atst_jax.downstream import features
from atst_jax.method.subtraction import SECTIONS
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from data_pipeline import prepare
from data_pipeline.shards import merge, verify
from data_pipeline.sources.files import inside
from data_pipeline.sources.inputs import list_sources
from tests.hostile import bounded, damaged_trees, edits, fuzz, mutate
from tests.preparing import contents, write_inline
from tests.tiny import ROOT
from tests.tiny_clips import FRONTEND, make_clip

RATE = 16000


# Config overrides

CONFIGS = {
  name: configs.load(str(ROOT / "configs" / name), SECTIONS)
  for name in ("base.py", "byola.py", "linear.py")
}
KEYS = {name: list(configs.flatten(config)) for name, config in CONFIGS.items()}
NASTY = (
  "none nan inf -1 0 1e999 true () ( [[ (1,2) {1:2} (1).__class__ "
  "__import__('os').system('x') (nan,) (1e999,1) 'a', float32 cnn standard"
)
ODD = ("", "\0", "٣", "\ud800", "({1: 2},)", "({1: 2, 3: 4})")
LONG = ("1" * 5000, "(" * 300, "-" * 300 + "1", "9" * 30)
nasty = st.sampled_from([*NASTY.split(), *ODD, *LONG])
words = st.one_of(
  nasty,
  st.text(max_size=12),
  st.integers(-(2**70), 2**70).map(str),
  st.integers(0, 64).map(str),
  st.floats(0, 1).map(str),
  st.floats().map(str),
  st.sampled_from(["true", "false", "single", "energy", "batch", "8,32"]),
  st.lists(st.one_of(st.integers(-3, 700), st.floats(-2, 2)), max_size=3).map(str),
)


@fuzz(60)
@given(st.data())
def test_config_overrides(data):
  name = data.draw(st.sampled_from(sorted(CONFIGS)))
  config = copy.deepcopy(CONFIGS[name])
  key = st.sampled_from(
    [*KEYS[name], *KEYS[name], "", "views", "a.b", "encoder.", "__class__", "\ud800"]
  )
  flags = [
    f"--config.{k}={v}"
    for k, v in data.draw(st.lists(st.tuples(key, words), min_size=1, max_size=2))
  ]
  with bounded("config overrides", UserError):
    for flag in flags:
      key, _, value = flag.removeprefix("--config.").partition("=")
      configs.override(config, key, value)
    json.dumps(configs.to_json(config))
    if config.job == "pretrain":
      config.data.source = "synthetic"
      for key, steps in (("total_steps", 100), ("warmup_steps", 10)):
        config[key] = steps if config[key] is None else config[key]
      check(recipe.resolve(config, None), None, devices=8, processes=1)


# Manifests

CELLS = (
  "a.wav ../a.wav /a.wav x/../../a.wav gs://b/a.wav link/a.wav file.wav . 1 -1 train "
  "all ../x a;b ; a.wav#0001 =cmd()"
)
cells = st.one_of(
  st.sampled_from(
    [
      *CELLS.split(),
      "..\\a.wav",
      "C:\\a.wav",
      "",
      " ",
      "a\0.wav",
      '"',
      '"a\nb"',
      "a\nb",
      "9" * 30,
      "\ufeff",
      "a" * 300,
      "\u2028",
      "\x1b[2J",
    ]
  ),
  st.text(max_size=6),
)
rows = st.lists(st.lists(cells, min_size=1, max_size=5), max_size=3)
sound = st.lists(st.sampled_from("abcdefgh"), max_size=5, unique=True).map(
  lambda names: [[f"{name}.wav", name, "1", "train", ""] for name in names]
)
headers = st.one_of(
  st.just(["path", "label", "fold", "split", "id"]),
  st.permutations(["path", "label", "fold", "split", "id"]),
  st.lists(cells, max_size=3),
  st.just(["path"]),
)


@fuzz(60)
@given(headers, sound, rows, st.sampled_from(",\t"), st.booleans(), st.one_of(st.just([]), edits))
def test_manifests(tmp_path_factory, header, good, rows, separator, quote, damage):
  root = _manifest_root(tmp_path_factory)
  mark = lambda cell: '"' + cell.replace('"', '""') + '"' if quote else cell
  rows = [*good, *rows[:1]] if len(rows) % 2 else [*good, *rows]
  if quote:
    rows = [(row + [""] * 5)[: len(header)] for row in rows]
  text = "\n".join(separator.join(map(mark, row)) for row in [header, *rows])
  path = root / "list.csv"
  path.write_bytes(mutate(text.encode("utf-8", "surrogatepass"), damage))
  with bounded("manifests", UserError):
    listing = list_sources(str(path), root=str(root / "root"))
    for source in listing.sources:
      assert inside(source.path, str(root / "root")), source
      assert source.split.isidentifier() and source.fold >= -1 and source.id.encode()


def _manifest_root(factory):
  root = factory.getbasetemp() / "manifests"
  if not root.exists():
    (root / "root").mkdir(parents=True)
    (root / "secret").mkdir()
    (root / "secret" / "a.wav").touch()
    (root / "root" / "link").symlink_to("../secret")
    (root / "root" / "file.wav").symlink_to("../secret/a.wav")
  return root


# Shards

PAYLOADS = [make_clip(i).encode() for i in range(3)]


def _read_all(path, clips):
  """Every way a shard is read."""
  errors = []
  for read in (
    lambda: [Clip.decode(data, FRONTEND.n_mels, "here") for data in read_records(path)],
    lambda: _batch(path, clips),
  ):
    try:
      read()
    except RecordError as error:
      errors.append(error)
  if errors:
    raise errors[0]


def _batch(path, clips):
  reader = ShardReader(
    Shard(path, clips, os.path.getsize(path), ""), FRONTEND.n_mels, Damage(0, clips)
  )
  try:
    out = np.empty(5 * 2 * FRONTEND.n_mels, np.uint8)  # room for five frames
    for number in range(clips):
      length, record = reader.read(number, np.float32(0.5), out)
      assert 1 <= length <= 5 and record == number
      reader.clip(record)
  finally:
    reader.close()


@fuzz(80)
@given(edits, st.booleans(), st.integers(1, 3))
def test_shards(tmp_path_factory, damage, framed, clips):
  path = str(tmp_path_factory.getbasetemp() / "fuzzed.tfrecord")
  payloads = [mutate(PAYLOADS[0], damage), *PAYLOADS[1:]] if framed else PAYLOADS
  whole = b"".join(map(frame_record, payloads))
  with open(path, "wb") as file:
    file.write(whole if framed else mutate(whole, damage))
  with bounded("shards", UserError):
    _read_all(path, clips)


@fuzz(80)
@given(
  st.one_of(edits.map(lambda damage: mutate(PAYLOADS[0], damage)), st.binary(max_size=200)),
  st.integers(0, 600),
)
def test_examples(data, cut):
  with bounded("examples", ValueError, IndexError, KeyError):
    try:
      place, size = find_feature(data[:cut], b"mel")
      assert 0 <= place <= cut + 20 and size >= 0
    except (ValueError, IndexError, KeyError):
      pass
    try:
      for values in decode_example(data).values():
        assert isinstance(values, bytes) or all(-(2**63) <= value < 2**63 for value in values)
    except TypeError:  # a number where bytes are expected, as its docstring says
      pass
  with bounded("examples", RecordError):
    Clip.decode(data, FRONTEND.n_mels, "here")


# dataset.json


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A prepared set of 18 clips in two splits, and another to be merged with."""
  root = tmp_path_factory.mktemp("sets")
  for name in ("one", "two"):
    rows = ["path,label,split,fold"]
    for i in range(9 if name == "one" else 2):
      os.makedirs(root / name, exist_ok=True)
      soundfile.write(root / name / f"{i}.wav", np.random.default_rng(i).normal(0, 0.1, 2000), RATE)
      rows.append(f"{i}.wav,{'ab'[i % 2]},{'test' if i % 3 == 0 else 'train'},{i % 2}")
    (root / name / "list.csv").write_text("\n".join([*rows, "gone.wav,a,train,0"]))
    flags = [
      f"--input={root / name / 'list.csv'}",
      f"--output={root / f'{name}.out'}",
      "--frontend=atst",
      "--workers=1",
    ]
    with pytest.MonkeyPatch.context() as patch:
      write_inline(patch)
      assert prepare.main([*flags, f"--name={name}", "--num_shards=2"]) == 0
  return root


@fuzz(40)
@given(st.data())
def test_dataset_json(prepared, data):
  root, output = prepared / "one.out", prepared / "merged"
  whole = (prepared / "one.out.json").read_bytes() if (prepared / "one.out.json").exists() else None
  if whole is None:
    whole = (root / "dataset.json").read_bytes()
    (prepared / "one.out.json").write_bytes(whole)
  if data.draw(st.booleans()):
    text = json.dumps(data.draw(damaged_trees(json.loads(whole)))).encode("utf-8", "surrogatepass")
  else:
    text = mutate(whole, data.draw(edits))
  (root / "dataset.json").write_bytes(text)
  before = contents(root)
  merged = data.draw(st.integers(0, 3)) == 0
  with bounded("dataset.json", UserError):
    dataset = Dataset.load(str(root))
    for split in dataset.splits:
      assert dataset.num_clips(split) >= 0 and len(dataset.fingerprint(split)) == 16
    assert all(np.isfinite(dataset.statistics[key]) for key in ("mean", "log_std"))
    features.read_labels(dataset)
  with bounded("dataset.json", UserError):
    verify.verify(str(root))
  if merged:
    try:
      with bounded("dataset.json", UserError):
        merge.merge([str(root), str(prepared / "two.out")], str(output), "both")
        assert verify.verify(str(output))[0] == {}
    finally:
      left = contents(output) if output.exists() else {}
      shutil.rmtree(output, ignore_errors=True)
    assert not left or "dataset.json" in left
  assert contents(root) == before
