"""TensorFlow's own readers agree with ours: TFDS on the whole dataset, tf.train.Example on every
record."""

import types
import warnings

import numpy as np
import pytest
import soundfile

from atst_jax.data.dataset import Dataset
from atst_jax.util.errors import UserError
from data_pipeline import prepare
from data_pipeline.sources import tfds as tfds_source
from tests.preparing import write_inline


def test_classes_of_an_example():
  """-1 is TFDS's mark of an example without one; a list of them is refused."""
  assert tfds_source._label({"label": np.int64(1)}, "label", ["a", "b"]) == "b"
  assert tfds_source._label({"label": np.int64(-1)}, "label", ["a", "b"]) == ""
  several = types.SimpleNamespace(names=["a"], feature=None)
  with pytest.raises(UserError, match="--tfds_label=label: each example of toy has a list"):
    tfds_source._names("toy", {"label": several}, "label", "--tfds_label")


def test_opens_with_tfds(tmp_path, monkeypatch):
  write_inline(monkeypatch)
  rng, rows = np.random.default_rng(0), ["path,label,split,fold"]
  for i in range(20):
    soundfile.write(tmp_path / f"é {i}.wav", rng.uniform(-0.5, 0.5, 1600 + 160 * i), 16000)
    rows.append(
      f"é {i}.wav,{'dog' if i % 2 else 'cat 語'},{'test' if i % 4 == 0 else 'train'},{i % 5}"
    )
  for name, change in (
    ("single", lambda row: row),
    ("multi", lambda row: row.replace(",dog", ",dog;barks")),
  ):
    (tmp_path / f"{name}.csv").write_text("\n".join(map(change, rows)))
    arguments = [
      f"--input={tmp_path / f'{name}.csv'}",
      f"--output={tmp_path / name}",
      "--frontend=atst",
    ]
    assert prepare.main(arguments) == 0
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    for name in ("single", "multi"):
      builder = tfds.builder_from_directory(str(tmp_path / name))
      dataset = Dataset.load(str(tmp_path / name))
      assert set(builder.info.splits) == {"test", "train"}
      for split in dataset.splits:
        ours = {clip.id: clip for clip in dataset.clips(split)}
        theirs = {
          example["id"].decode(): example
          for example in tfds.as_numpy(builder.as_dataset(split=split))
        }
        assert set(ours) == set(theirs) and len(ours) == builder.info.splits[split].num_examples
        for id, clip in ours.items():
          assert theirs[id]["mel"].dtype == np.float16 and theirs[id]["fold"] == clip.fold
          np.testing.assert_array_equal(theirs[id]["mel"], clip.mel)
          np.testing.assert_array_equal(
            np.ravel(theirs[id]["labels" if clip.multi_label else "label"]), clip.labels
          )
      feature = builder.info.features["labels" if name == "multi" else "label"]
      assert (feature.feature if name == "multi" else feature).names == dataset.label_names
    paths = [shard.path for shard in dataset.shards("train")]
    for data, clip in zip(tf.data.TFRecordDataset(paths), dataset.clips("train"), strict=True):
      features = tf.train.Example.FromString(data.numpy()).features.feature
      assert features["id"].bytes_list.value[0].decode() == clip.id
      assert features["mel"].bytes_list.value[0] == clip.mel.tobytes()
      assert list(features["labels"].int64_list.value) == list(clip.labels)
      assert features["num_frames"].int64_list.value[0] == len(clip.mel)
      assert features["split"].bytes_list.value[0] == b"train"
      assert features["fold"].int64_list.value[0] == clip.fold


def test_files_of_another_data_set_are_not_taken_for_ours(tmp_path):
  tfds_source._claim(str(tmp_path), {"tfds": "one/1.0.0", "label": ""})
  tfds_source._claim(str(tmp_path), {"tfds": "one/1.0.0", "label": ""})
  with pytest.raises(UserError, match=r"holds the files of .*one.*, not of .*two"):
    tfds_source._claim(str(tmp_path), {"tfds": "two/1.0.0", "label": ""})


def test_a_data_set_of_tfds_becomes_files_and_is_prepared(tmp_path, monkeypatch, capsys):
  """A builder of this test's own: labels, splits, sample rate and every sample arrive; a rerun
  writes nothing anew."""
  write_inline(monkeypatch)
  rng = np.random.default_rng(0)
  sounds = {
    f"{split}{i}": rng.integers(-9000, 9000, 2000 + 10 * i)
    for split in ("train", "validation")
    for i in range(6)
  }
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow_datasets as tfds

    class ToyAudio(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version("1.0.0")

      def _info(self):
        features = {
          "audio": tfds.features.Audio(sample_rate=8000),
          "label": tfds.features.ClassLabel(names=["a", "b"]),
          "speaker": tfds.features.FeaturesDict({"name": tfds.features.Text()}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

      def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "validation")}

      def _generate_examples(self, split):
        for key, samples in sounds.items():
          if key.startswith(split):
            yield (
              key,
              {"audio": samples, "label": int(key[-1]) % 2, "speaker": {"name": f"s{key[-1]}"}},
            )

    flags = [
      "--tfds=toy_audio",
      f"--tfds_dir={tmp_path / 'tfds'}",
      f"--output={tmp_path / 'out'}",
      "--frontend=atst",
    ]
    assert prepare.main(flags) == 0
    dataset = Dataset.load(str(tmp_path / "out"))
    assert dataset.num_clips("train") == dataset.num_clips("valid") == 6
    assert dataset.label_names == ["a", "b"]
    assert dataset.manifest["name"] == "toy_audio"
    assert dataset.manifest["counts"]["sample_rates"] == {"8000": 12}
    found = {}
    for path in sorted((tmp_path / "out.audio").rglob("*.wav")):
      samples, rate = soundfile.read(path, dtype="int16")
      found[samples.tobytes()] = (path.parent.name, rate)
    assert found == {
      v.astype(np.int16).tobytes(): ("valid" if k[0] == "v" else "train", 8000)
      for k, v in sounds.items()
    }
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.audio").rglob("*.wav")}
    assert prepare.main(flags) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}
    other = [*flags[:2], f"--output={tmp_path / 'other'}", "--frontend=atst"]
    assert prepare.main([*other, "--tfds_label=speaker/name"]) == 0
    assert Dataset.load(str(tmp_path / "other")).label_names == [f"s{i}" for i in range(6)]
    grouped = [*flags[:2], f"--output={tmp_path / 'grouped'}", "--frontend=atst"]
    assert prepare.main([*grouped, "--tfds_group=speaker/name"]) == 0
    dataset = Dataset.load(str(tmp_path / "grouped"))
    assert {clip.group for clip in dataset.clips("train")} == {f"s{i}" for i in range(6)}
    assert dataset.manifest["groups"] == {
      "by": "speaker/name",
      "number": 6,
      "parted": 6,
      "divided_by_owner": True,
    }
    capsys.readouterr()
    for change, message in (
      (["--tfds_label=class"], "--tfds_label=class: toy_audio has the features audio, label"),
      (["--tfds_group=who"], "--tfds_group=who: toy_audio has the features audio, label"),
      (["--tfds=no_such_set"], "--tfds=no_such_set: "),
      (["--input=x"], "either --input=DIR_or_MANIFEST or --tfds=NAME"),
    ):
      assert prepare.main([*other, *change]) == 2
      error = capsys.readouterr().err
      assert message in error and "Traceback" not in error, error
