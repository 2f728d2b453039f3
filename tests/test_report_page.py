"""The page about a prepared set: what is in it, what is not, and that it needs nothing from
outside."""

import base64
import io
import re

import numpy as np
import PIL.Image
import pytest
import soundfile

from atst_jax.data.dataset import Dataset
from atst_jax.data.dataset_page import bars, image
from atst_jax.util.html_page import table
from data_pipeline import prepare
from tests.pages import Checker


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  root = tmp_path_factory.mktemp("report")
  rng = np.random.default_rng(0)
  for label, seconds in (("<b>bark", 1.5), ("rain & wind", 3.2)):
    (root / "audio" / label).mkdir(parents=True)
    for i in range(9):
      soundfile.write(
        root / "audio" / label / f"{i}.wav", rng.normal(0, 0.1, int(16000 * seconds)), 16000
      )
  (root / "audio" / "rain & wind" / "bad.wav").write_text("text")
  flags = [
    f"--input={root / 'audio'}",
    f"--output={root / 'out'}",
    "--frontend=atst",
    "--workers=1",
  ]
  assert prepare.main(flags) == 0
  return (root / "out" / "report.html").read_text(), Dataset.load(str(root / "out"))


def test_the_page_is_whole_and_needs_nothing_from_outside(page):
  checker = Checker()
  checker.feed(page[0])
  assert checker.open in ([], ["html"]) and "://" not in page[0]
  assert len(checker.sources) == 18 and all(
    s.startswith("data:image/png;base64,") for s in checker.sources
  )
  assert "<b>bark" not in page[0] and "&lt;b&gt;bark" in page[0]


def test_the_page_says_what_is_there_and_what_is_not(page):
  text = " ".join(re.sub(r"<[^>]+>", " ", page[0]).split())
  for words in (
    "id reason detail rain &amp; wind/bad.wav undecodable",
    "19 files listed, 1 not used",
    "Hz files 16000 18",
    "class train &lt;b&gt;bark 9 rain &amp; wind 9",
    "Coverage, where files are missing",
  ):
    assert words in text, words
  counts = page[1].manifest["counts"]
  assert counts["seconds"] == {"1": 9, "3": 9}
  levels = [5 * np.floor(clip.mel.mean(dtype=np.float64) / 5) for clip in page[1].clips("train")]
  assert counts["levels"] == {str(int(v)): levels.count(v) for v in set(levels)}


def test_bars_and_long_tables():
  drawn = bars({"-50": 1, "-40": 4}, "dB", 5)
  assert (
    drawn.count("<rect") == 2
    and "-50 dB" in drawn
    and "-35 dB" in drawn
    and bars({}, "s", 1) == "<p>none</p>"
  )
  assert bars({str(i): 1 for i in range(3600)}, "s", 1).count("<rect") == 200
  assert "… and 100 more in dataset.json" in table(
    ["a"], [[i] for i in range(2100)], rest=" in dataset.json"
  )


@pytest.mark.parametrize(("level", "pixel"), [(0.0, 255), (None, 0)])
def test_a_spectrogram_is_upright_and_silence_is_black(level, pixel):
  """Bin 5 is the sixth row from below; digital silence has nothing louder than its floor."""
  mel = np.full((20, 64), -100, np.float16)
  if level is not None:
    mel[:, 5] = level
  content = base64.b64decode(image(mel).partition(",")[2])
  picture = np.asarray(PIL.Image.open(io.BytesIO(content)))
  assert picture.shape == (64, 20) and (picture[-6] == pixel).all() and (picture[0] == 0).all()
