"""The benchmark data sets as their owners ship them, each in miniature: files, labels, folds,
splits and groups."""

import json

from data_pipeline.sources.owner_lists import split_of


def write_files(root, files: dict[str, str]) -> str:
  """Writes {path below root: text}. Returns root."""
  for name, text in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return str(root)


def touch(root, *names) -> None:
  """Empty files."""
  write_files(root, dict.fromkeys(names, ""))


def table(*rows: str) -> str:
  return "\n".join(rows) + "\n"


ESC50 = {
  "ESC-50-master/meta/esc50.csv": table(
    "filename,fold,target,category,esc10,src_file,take",
    "1-100032-A-0.wav,1,0,dog,True,100032,A",
    "5-9032-A-0.wav,5,0,dog,True,9032,A",
    "2-7-B-14.wav,2,14,chirping_birds,False,7,B",
  ),
  "ESC-50-master/audio/1-100032-A-0.wav": "",
  "ESC-50-master/audio/2-7-B-14.wav": "",
}


NSYNTH = {
  f"nsynth-{split}/examples.json": json.dumps(
    {
      f"{family}_acoustic_00{n}-060-100": {"instrument_family_str": family}
      for n, family in enumerate(families)
    }
  )
  for split, families in (("train", ["bass", "flute"]), ("valid", ["bass"]), ("test", ["organ"]))
}


AUDIOSET = {
  "class_labels_indices.csv": table(
    "index,mid,display_name", "0,/m/09x0r,Speech", '1,/m/05zppz,"Male speech, man"'
  ),
  "balanced_train_segments.csv": table(
    "# Segments csv created Sun Mar  5 10:54:31 2017",
    "# num_ytids=2",
    "# YTID, start_seconds, end_seconds, labels",
    '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/05zppz"',
    'Y1234567890, 0.000, 10.000, "/m/09x0r"',
    'abcdefghijk, 7.500, 17.500, "/m/05zppz"',
  ),
  "eval_segments.csv": table("# comment", '_0123456789, 5.000, 13.000, "/m/09x0r"'),
  "audio/--PJHxphWEs_30.000.wav": "",
  "audio/YY1234567890.wav": "",
  "eval/_0123456789_5000_13000.flac": "",
  "more/--PJHxphWEs_30.000.wav": "",
}


# Where the owner divides nothing: drawn by the name of the group, in these shares.
CREMA_D_SPLIT = split_of("crema_d 1001", {"train": 0.7, "valid": 0.1, "test": 0.2})
VOXFORGE_SPLIT = split_of("voxforge de/anna", {"train": 0.7, "valid": 0.15, "test": 0.15})
SURGE_SPLIT = split_of(
  "surge presets/Basses/Attacky", {"train": 0.81, "valid": 0.095, "test": 0.095}
)

# layout -> (files, the expected {id: (labels, fold, split, whether the file is there)})
CASES = {
  "esc50": (
    ESC50,
    {
      "ESC-50-master/audio/1-100032-A-0.wav": (("dog",), 1, "train", True),
      "ESC-50-master/audio/5-9032-A-0.wav": (("dog",), 5, "train", False),
      "ESC-50-master/audio/2-7-B-14.wav": (("chirping_birds",), 2, "train", True),
    },
  ),
  "esc10": (
    ESC50,
    {
      "ESC-50-master/audio/1-100032-A-0.wav": (("dog",), 1, "train", True),
      "ESC-50-master/audio/5-9032-A-0.wav": (("dog",), 5, "train", False),
    },
  ),
  "fsdd": (
    {"7_jackson_32.wav": "", "0_theo_1.wav": ""},
    {"7_jackson_32.wav": (("7",), 0, "train", True), "0_theo_1.wav": (("0",), 1, "train", True)},
  ),
  "urbansound8k": (
    {
      "metadata/UrbanSound8K.csv": table(
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        "100032-3-0-0.wav,100032,0.0,0.3,1,5,3,dog_bark",
        "7-1-0-0.wav,7,0,4,1,10,1,car_horn",
      ),
      "audio/fold5/100032-3-0-0.wav": "",
    },
    {
      "audio/fold5/100032-3-0-0.wav": (("dog_bark",), 5, "train", True),
      "audio/fold10/7-1-0-0.wav": (("car_horn",), 10, "train", False),
    },
  ),
  "speech_commands": (
    {
      "validation_list.txt": table("yes/a_nohash_0.wav"),
      "testing_list.txt": table("no/b_nohash_0.wav", "no/gone.wav"),
      "yes/a_nohash_0.wav": "",
      "yes/c_nohash_1.wav": "",
      "no/b_nohash_0.wav": "",
      "_background_noise_/white.wav": "",
    },
    {
      "yes/a_nohash_0.wav": (("yes",), -1, "valid", True),
      "yes/c_nohash_1.wav": (("yes",), -1, "train", True),
      "no/b_nohash_0.wav": (("no",), -1, "test", True),
      "no/gone.wav": (("no",), -1, "test", False),
    },
  ),
  "voxceleb1": (
    {
      "iden_split.txt": table(
        "1 id10001/1zcIwhmdeo4/00001.wav", "2 id10002/x/00002.wav", "3 id10001/y/00003.wav"
      ),
      "wav/id10001/1zcIwhmdeo4/00001.wav": "",
    },
    {
      "wav/id10001/1zcIwhmdeo4/00001.wav": (("id10001",), -1, "train", True),
      "wav/id10002/x/00002.wav": (("id10002",), -1, "valid", False),
      "wav/id10001/y/00003.wav": (("id10001",), -1, "test", False),
    },
  ),
  "nsynth": (
    {**NSYNTH, "nsynth-train/audio/bass_acoustic_000-060-100.wav": ""},
    {
      "nsynth-train/audio/bass_acoustic_000-060-100.wav": (("bass",), -1, "train", True),
      "nsynth-train/audio/flute_acoustic_001-060-100.wav": (("flute",), -1, "train", False),
      "nsynth-valid/audio/bass_acoustic_000-060-100.wav": (("bass",), -1, "valid", False),
      "nsynth-test/audio/organ_acoustic_000-060-100.wav": (("organ",), -1, "test", False),
    },
  ),
  "gtzan": (
    {
      "train_filtered.txt": table("blues/blues.00029.wav"),
      "valid_filtered.txt": table("rock/rock.00001.wav"),
      "test_filtered.txt": table("blues/blues.00002.wav"),
      "genres/blues/blues.00029.wav": "",
      "genres/rock/rock.00001.wav": "",
      "genres/rock/rock.00099.wav": "",
    },
    {
      "genres/blues/blues.00029.wav": (("blues",), -1, "train", True),
      "genres/rock/rock.00001.wav": (("rock",), -1, "valid", True),
      "genres/blues/blues.00002.wav": (("blues",), -1, "test", False),
    },
  ),
  "crema_d": (
    {"AudioWAV/1001_DFA_ANG_XX.wav": "", "AudioWAV/1001_IEO_SAD_HI.wav": ""},
    {
      "AudioWAV/1001_DFA_ANG_XX.wav": (("ANG",), -1, CREMA_D_SPLIT, True),
      "AudioWAV/1001_IEO_SAD_HI.wav": (("SAD",), -1, CREMA_D_SPLIT, True),
    },
  ),
  "voxforge": (
    {"de/anna-20080320-rgz/wav/de7-58.wav": ""},
    {"de/anna-20080320-rgz/wav/de7-58.wav": (("de",), -1, VOXFORGE_SPLIT, True)},
  ),
  "surge": (
    {"presets/Basses/Attacky/21.ogg": ""},
    {"presets/Basses/Attacky/21.ogg": (("21",), -1, SURGE_SPLIT, True)},
  ),
  "fsd50k": (
    {
      "FSD50K.ground_truth/dev.csv": table(
        "fname,labels,mids,split",
        '64760,"Electric_guitar,Guitar",/m/02sgy,train',
        "7,Bark,/m/0bt9lr,val",
      ),
      "FSD50K.ground_truth/eval.csv": table("fname,labels,mids", "37199,Bark,/m/0bt9lr"),
      "FSD50K.dev_audio/64760.wav": "",
    },
    {
      "FSD50K.dev_audio/64760.wav": (("Electric_guitar", "Guitar"), -1, "train", True),
      "FSD50K.dev_audio/7.wav": (("Bark",), -1, "valid", False),
      "FSD50K.eval_audio/37199.wav": (("Bark",), -1, "test", False),
    },
  ),
  "audioset": (
    AUDIOSET,
    {
      "--PJHxphWEs_30.000": (("Speech", "Male speech, man"), -1, "train", True),
      "Y1234567890_0.000": (("Speech",), -1, "train", True),
      "abcdefghijk_7.500": (("Male speech, man",), -1, "train", False),
      "_0123456789_5.000": (("Speech",), -1, "test", True),
    },
  ),
}


GROUPS = {
  "crema_d": ["1001", "1001"],
  "esc10": ["100032", "9032"],
  "esc50": ["100032", "7", "9032"],
  "fsdd": ["theo", "jackson"],
  "nsynth": ["organ_acoustic_000", "bass_acoustic_000", "flute_acoustic_001", "bass_acoustic_000"],
  "speech_commands": ["b", "gone", "a", "c"],
  "surge": ["presets/Basses/Attacky"],
  "urbansound8k": ["7", "100032"],
  "voxceleb1": ["1zcIwhmdeo4", "y", "x"],
  "voxforge": ["de/anna"],
}  # in the order of ids; clips of the others are recordings of their own
