"""The page about a run: whole, escaped, offline; and what a browser makes of it."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from atst_jax import report
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.data.dataset import Clip, write_json
from atst_jax.figures import maps, run_page
from atst_jax.runtime.workdir import read_starts, record_start
from atst_jax.util import config as configs
from data_pipeline import prepare
from tests.evaluation import write_encoder
from tests.pages import Checker, pixels, records
from tests.tiny import tiny_config

BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CLASSES = ("<b>bark", 'rain & "wind"', "tone")
RESULTS = {
  "job": "linear",
  "protocol": "atst",
  "selected_on_test": False,
  "data": {"name": "<i>tones", "clips": 18, "classes": 3, "divisions": [{}, {}]},
  "encoder": {"path": "enc", "provenance": {"step": 6}},
  "config": {"seeds": 3, "knn": 10},
  "metric": "accuracy",
  "chance": 0.33,
  "published": [],
  "rows": [
    {
      "name": "pre-trained, last block",
      "dimensions": 16,
      "mean": 0.876,
      "std": 0.01,
      "ci95": 0.02,
      "knn": 0.8,
      "effective_rank": 3.2,
      "test": {"interval": [0.81, 0.93], "by": "clips", "draws": 1000},
    }
  ],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Recordings, the set prepared from them, an encoder, and the workdir of a run and of an
  evaluation."""
  root = tmp_path_factory.mktemp("report")
  rng = np.random.default_rng(0)
  for label, rate in zip(CLASSES, (16000, 8000, 44100), strict=True):
    (root / "audio" / label).mkdir(parents=True)
    for i in range(6):
      wave = 0.1 * rng.normal(size=rate) + 0.3 * np.sin(np.arange(rate) * rng.uniform(0.05, 0.3))
      soundfile.write(root / "audio" / label / f"take '{i}'.wav", wave, rate)
  flags = [f"--input={root}/audio", f"--output={root}/data", "--frontend=atst", "--workers=1"]
  assert prepare.main(flags) == 0
  config = configs.to_json(tiny_config(data__source="records", data__path=f"{root}/data"))
  (root / "run").mkdir()
  write_json(str(root / "run" / "config.json"), config)
  online = {
    "step": 600,
    "online_ridge_accuracy": 0.71,
    "online_knn_accuracy": None,
    "online_mel_accuracy": 0.5,
    "online_effective_rank": 3.5,
    "online_seconds": 1.0,
  }
  lines = [*records(120, data_wait=0.01), online]
  (root / "run" / "metrics.jsonl").write_text(
    "".join(json.dumps(r) + "\n" for r in lines), encoding="utf-8"
  )
  record_start(str(root / "run"), 0)
  write_encoder(root / "encoder")
  (root / "linear").mkdir()
  write_json(str(root / "linear" / "results.json"), RESULTS)
  return root


@pytest.fixture(scope="module")
def page(folders):
  flags = [
    f"--workdir={folders}/run",
    f"--encoder={folders}/encoder",
    f"--data={folders}/data",
    f"--audio={folders}/audio",
    f"--results={folders}/linear",
  ]
  assert report.main(flags) == 0
  return folders / "run" / "report.html"


def test_the_pictures_lie_beside_the_page(page):
  names = ("training_curve", "views", "embeddings", "attention_1", "attention_2")
  for name in names:
    pixels(page.parent / f"{name}.png")
  assert {path.stem for path in page.parent.glob("*.png")} == set(names)


def test_the_page_is_whole_escaped_and_needs_nothing_from_outside(page):
  text, checker = page.read_text(encoding="utf-8"), Checker()
  checker.feed(text)
  assert checker.open == []
  embedded = [s for s in checker.sources if not s.startswith("#")]
  assert all(re.match(r"data:(image/png|audio/mpeg|audio/wav);base64,", s) for s in embedded)
  # of every clip: fewer than PLAYERS
  assert sum(s.startswith("data:audio") for s in embedded) == 18
  assert "://" not in text and "default-src 'none'" in text
  assert "<b>bark" not in text and "&lt;b&gt;bark" in text and "<i>tones" not in text
  assert 'rain & "wind"' not in text and "take '" not in text
  assert len(text.encode()) < run_page.PAGE_BYTES / 4


def test_the_page_says_what_is_known_of_the_run(page, folders):
  text = " ".join(
    re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8").partition("<h1>")[2]).split()
  )
  (start,) = read_starts(str(folders / "run"))
  for words in (
    "steps 1,190 of 6",
    "clips seen 19,040",
    "clips per second: median, and 10 % to 90 % 50.0, 50.0 to 50.0",
    "time that waited for data: median 1.0 %",
    "600 0.71 not finite 0.5 3.5 1",
    "pre-trained, last block 16 87.6 ± 1.0 80.0 3.2",
    "pre-trained, last block 87.6 81.0 to 93.0",
    "±: standard deviation over seeds of the probe",
    "95 % of 1000 draws of the test clips",
    "views.crop_frames 32",
    f"0 {start['host']} 8 x cpu 1",
    "tone (6)",
    "18 files listed, 0 not used",
  ):
    assert words in text, words
  assert "Attention" in text and start["versions"]["jax"] in text


def test_updates_that_were_left_out_are_told():
  found = [{"data_wait": 0.0, "skipped": 1203.0, "rollbacks": 2.0}]
  text = str(run_page.progress({"total_steps": 9, "batch_size": 4}, records(1, **found[0]), []))
  shown = " ".join(re.sub(r"<[^>]+>", " ", text).split())
  assert "steps without an update 1,203 times gone back to a checkpoint 2" in shown


@pytest.mark.parametrize("number", [1, 20, 21, 22, 40, 41])
def test_the_last_score_is_always_shown(number):
  online = [{"step": s, "online_ridge_map": 0.5, "online_seconds": 1.0} for s in range(number)]
  text = str(run_page.online_scores([*records(3), *online]))
  assert f'<td class="n">{number - 1}</td>' in text and text.count("<tr>") <= 20 + 1


def test_a_player_plays_no_more_than_the_clip(tmp_path, monkeypatch):
  """The file goes on behind a clip that was cut of it."""
  soundfile.write(tmp_path / "a.wav", np.full(48000, 0.1), 16000)
  played = []
  monkeypatch.setattr(run_page, "player", lambda waveform, rate: played.append(len(waveform)))
  clip = Clip("a.wav#0000", np.zeros((100, 64), np.float16), (0,), False, -1, "train", "")
  drawn = maps.Labelled([clip], np.zeros(1, int), np.zeros((1, 2)))
  run_page.players(drawn, {"a.wav": str(tmp_path / "a.wav")}, FRONTENDS["atst"])
  assert played == [16000]


@pytest.mark.parametrize("lines", ["", '{"step": 0, "online_seconds": 1.0}'])
def test_the_page_of_a_run_with_nothing_to_show(tmp_path, capsys, lines):
  """Not even if the online evaluation has measured the first weights."""
  (tmp_path / "metrics.jsonl").write_text(lines)
  write_json(str(tmp_path / "config.json"), configs.to_json(tiny_config()))
  assert report.main([f"--workdir={tmp_path}"]) == 0
  assert capsys.readouterr().out.split() == [f"{tmp_path}/report.html"]
  text = (tmp_path / "report.html").read_text(encoding="utf-8")
  assert (
    "no metrics yet" in text
    and "the run trains on noise" in text
    and "did not record its starts" in text
  )


def test_mistakes_are_refused_in_one_line(folders, tmp_path, capsys):
  run = f"--workdir={folders}/run"
  encoder = [f"--encoder={folders}/encoder", f"--data={folders}/data"]
  (tmp_path / "other").mkdir()
  soundfile.write(tmp_path / "other" / "a.wav", np.zeros(8000), 8000)
  (tmp_path / "broken").mkdir()
  (tmp_path / "broken" / "results.json").write_text("{}")
  for flags, message in (
    ([f"--workdir={tmp_path}"], "is not the workdir of a run"),
    ([run, encoder[0]], "needs both --encoder and --data"),
    (
      [run, *encoder, f"--audio={tmp_path}/other"],
      "none of its 1 files is one of the data set's clips",
    ),
    ([run, *encoder, f"--audio={tmp_path}/none"], "--audio="),
    ([run, f"--results={tmp_path}"], "results.json does not exist"),
    ([run, f"--results={tmp_path}/broken"], "is not that of an evaluation"),
  ):
    assert report.main(flags) == 2
    assert message in capsys.readouterr().err


# Does what a visitor does, and leaves what came of it in the page.
VISITOR = """<script>
const sounds = [...document.querySelectorAll('audio')], found = {};
const ready = sound => new Promise(done => {
  if (sound.readyState > 0 || sound.error) done();
  sound.onloadedmetadata = sound.onerror = done;
});
Promise.all(sounds.map(ready)).then(() => {
  found.seconds = sounds.map(sound => sound.duration);
  found.pictures = [...document.images].map(image => image.naturalWidth);
  const points = document.querySelectorAll('.map .p'), tip = document.getElementById('tip');
  points[0].dispatchEvent(new PointerEvent('pointerenter', {clientX: 9, clientY: 9}));
  found.tip = [tip.textContent, getComputedStyle(tip).display];
  points[0].dispatchEvent(new PointerEvent('pointerleave'));
  found.after = getComputedStyle(tip).display;
  document.querySelector('.legend button').click();
  found.dim = document.querySelectorAll('.dim').length;
  document.querySelector('.legend button').click();
  found.undim = document.querySelectorAll('.dim').length;
  document.querySelector('.play').dispatchEvent(new MouseEvent('click', {bubbles: true}));
  found.on = document.querySelectorAll('.players .on').length;
  found.points = points.length;
  document.querySelector('.legend button').append('x'.repeat(300));
  const top = name => document.querySelector(name).offsetTop;
  found.below = top('.legend') - top('.map');
  document.documentElement.dataset.found = JSON.stringify(found);
});
</script></body>"""


def visit(path):
  """(DOM, lines of the console) of a page in a headless browser."""
  command = [
    BROWSER,
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--window-size=1200,900",
    "--virtual-time-budget=20000",
    "--dump-dom",
    "--enable-logging=stderr",
    f"--user-data-dir={path.parent}/profile",
    path.as_uri(),
  ]
  run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
  return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_shows_the_page_without_errors(page, tmp_path):
  """Pictures are drawn, sounds can be played, points say their names, classes can be picked out."""
  (tmp_path / "visited.html").write_text(
    page.read_text(encoding="utf-8").replace("</body>", VISITOR), encoding="utf-8"
  )
  dom, console = visit(tmp_path / "visited.html")
  assert console == []
  found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom)[1]))
  assert len(found["seconds"]) == 18 and all(
    s == pytest.approx(1, abs=0.1) for s in found["seconds"]
  )
  assert min(found["pictures"]) > 50 and len(found["pictures"]) > 18
  label, _, id = found["tip"][0].partition(": ")
  assert (
    label in CLASSES
    and id.startswith(label)
    and found["tip"][1] == "block"
    and found["after"] == "none"
  )
  assert found["points"] == 18 and found["dim"] == 12 and found["undim"] == 0 and found["on"] == 1
  assert found["below"] == 0  # a long name does not push the list below the map


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
def test_the_browser_would_report_errors_and_loads(page, tmp_path):
  """The control: a script that fails, and a picture from outside, which the page's policy
  refuses."""
  text = page.read_text(encoding="utf-8")
  bad = '<script>missing()</script><img src="http://127.0.0.1:9/x.png"></body>'
  (tmp_path / "bad.html").write_text(text.replace("</body>", bad), encoding="utf-8")
  _, console = visit(tmp_path / "bad.html")
  assert any("missing is not defined" in line for line in console)
  assert any("Content Security Policy" in line for line in console)
