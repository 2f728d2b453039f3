"""What comes from elsewhere is never run: no code of files, no shell of names, no tags and no lines
of their own."""

import ast
import html.parser
import json
import logging
import shlex
import subprocess

import numpy as np
import pytest
import soundfile

from atst_jax.data.dataset import Dataset
from atst_jax.util import logs
from atst_jax.util.errors import UserError, plain
from data_pipeline import prepare
from tests.tiny import ROOT

FILES = sorted(
  path
  for part in ("atst_jax", "configs", "data_pipeline", "launch")
  for path in (ROOT / part).rglob("*.py")
)
# by the name it is called by
FORBIDDEN = """
  eval exec compile __import__ os.system os.popen pickle.load pickle.loads pickle.Unpickler
  marshal.load marshal.loads shelve.open dill.load dill.loads joblib.load cloudpickle.load
  cloudpickle.loads yaml.load yaml.unsafe_load yaml.full_load tempfile.mktemp os.tempnam
  pandas.read_pickle subprocess.getoutput subprocess.getstatusoutput shutil.unpack_archive
  loader.load_module runpy.run_path
"""
METHODS = {"extractall", "extract", "exec_module"}  # whatever they are called on
ALLOWED = {("atst_jax/util/config.py", "exec_module")}  # a config file is the user's own program
TABLES = ("atst_jax/main.py", "atst_jax/util/checkout.py")
NEEDED = {
  "load": {
    "np": ("allow_pickle", False),
    "numpy": ("allow_pickle", False),
    "torch": ("weights_only", True),
  }
}


DECISIVE = ("shell", "allow_pickle", "weights_only")


def _dotted(node) -> str:
  """The name that is called, as far as it is names and dots: `spec.loader.exec_module`."""
  parts: list[str] = []
  while isinstance(node, ast.Attribute):
    parts.insert(0, node.attr)
    node = node.value
  return ".".join([node.id if isinstance(node, ast.Name) else "", *parts])


def faults(source: str, name: str = "") -> list[str]:
  """ "line: call" of everything in a program that would run what it is given."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Call):
      continue
    options = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg in DECISIVE}
    called = _dotted(node.func)
    base, _, method = called.rpartition(".")
    key, wanted = NEEDED.get(method, {}).get(base, (None, None))
    if (
      called in FORBIDDEN.split()
      or (method in METHODS and (name, method) not in ALLOWED)
      # the names are in tables: JOBS, and modules of our own
      or (method == "import_module" and name not in TABLES)
      or options.get("shell", "False") != "False"
      or (key and options.get(key) != str(wanted))
      or options.get("allow_pickle", "False") != "False"
    ):
      found.append(f"{node.lineno}: {ast.unparse(node)[:80]}")
  return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
  assert not faults(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))


@pytest.mark.parametrize(
  "source",
  [
    "eval(x)",
    "exec(x)",
    "os.system(x)",
    "pickle.loads(x)",
    "subprocess.run(x, shell=True)",
    "np.load(x)",
    "np.load(x, allow_pickle=True)",
    "torch.load(x)",
    "torch.load(x, weights_only=False)",
    "yaml.load(x)",
    "archive.extractall()",
    "tempfile.mktemp()",
    "importlib.import_module(x)",
    "spec.loader.exec_module(m)",
  ],
)
def test_the_search_finds(source):
  assert faults(source)


def test_launchers_run_nothing_of_their_flags(tmp_path):
  """Bash evaluates what stands in arithmetic, `x[$(command)]` too."""
  trap = f"a[$(touch {tmp_path}/ran)]"
  gke = {
    "name": "a",
    "image": "i",
    "accelerator": "t",
    "topology": "4x4",
    "slices": "1",
    "chips": "4",
  }
  tpu = {"name": "a", "zone": "z", "type": "v4-8", "slices": "2"}
  for script, flags in (("gke.sh", gke), ("tpu.sh", tpu)):
    for key in flags:
      # words of gcloud's own command line
      if (script, key) in (("tpu.sh", "zone"), ("tpu.sh", "type")):
        continue
      command = [
        ROOT / "launch" / script,
        *(f"--{k}={trap if k == key else v}" for k, v in flags.items()),
        "--dry_run",
      ]
      ran = subprocess.run([*command, "--", "--config=c"], capture_output=True, text=True)
      assert ran.returncode == 2 and ran.stderr.startswith("error: --"), (script, key, ran.stderr)
  assert not list(tmp_path.iterdir())


def test_a_flag_of_dataflow_stays_one_word():
  flags = [
    "--project=p --runner=x",
    "--region=it's",
    "--image=i",
    "--temp=gs://t/a b",
    "--dry_run",
    "--",
    "--input=gs://a",
  ]
  ran = subprocess.run(
    [ROOT / "launch/dataflow.sh", *flags], capture_output=True, text=True, check=True
  )
  options = shlex.split(shlex.split(ran.stdout)[-1].removeprefix("--beam_options="))
  assert options[:3] == ["--project=p --runner=x", "--region=it's", "--temp_location=gs://t/a b"]


NAME = "a\n12:00:00 step 9 loss 0.0\x1b[2K\r\u202egnp.exe"


def test_names_write_no_lines_of_their_own(capsys, monkeypatch):
  """Every line after the first of a message is indented; nothing moves the cursor or turns the
  direction of writing."""
  message = str(UserError(f"{NAME}: no such file"))
  assert message == "a\n  12:00:00 step 9 loss 0.0\\x1b[2K\\r\\u202egnp.exe: no such file"
  assert plain(message) == message
  monkeypatch.setattr(logs.log, "handlers", [])
  monkeypatch.setattr(logs.log, "propagate", True)
  monkeypatch.setattr(logs.log, "level", logging.INFO)
  logs.set_up()
  logs.log.warning("%s: damaged", NAME)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2 and lines[1].startswith("  12:00:00 step 9") and "\x1b" not in lines[1]


class Page(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.tags, self.attributes = set(), set()

  def handle_starttag(self, tag, attributes):
    self.tags.add(tag)
    self.attributes |= {name for name, _ in attributes}


def test_the_report_escapes_names_and_labels(tmp_path, inline):
  evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
  (tmp_path / "audio").mkdir()
  names = ["<script>alert(1)<script>.wav", "'><svg onload=alert(1)>.wav", "plain.wav"]
  for name in names:
    soundfile.write(tmp_path / "audio" / name, np.random.default_rng(0).normal(0, 0.1, 4000), 16000)
  (tmp_path / "audio" / "<iframe>.wav").write_text("no audio")
  quoted = '"' + evil.replace('"', '""') + '"'
  rows = [
    f"{name},{quoted},,,{quoted if name == 'plain.wav' else ''}"
    for name in [*names, "<iframe>.wav"]
  ]
  (tmp_path / "list.csv").write_text("\n".join(["path,label,fold,split,id", *rows]))
  flags = [
    f"--input={tmp_path / 'list.csv'}",
    f"--root={tmp_path / 'audio'}",
    f"--output={tmp_path / 'out'}",
    "--frontend=atst",
    "--workers=1",
    f"--name={evil}",
  ]
  assert prepare.main(flags) == 0
  text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
  page = Page()
  page.feed(text)
  assert "&lt;script&gt;alert(1)" in text and "&lt;iframe&gt;" in text
  assert not {"script", "svg onload=alert(1)", "iframe"} & page.tags
  assert not {name for name in page.attributes if name.startswith("on")}
  path = tmp_path / "out" / "dataset.json"
  manifest = json.loads(path.read_text(encoding="utf-8"))
  for key in ("listed_files", "silent"):
    path.write_text(
      json.dumps(
        manifest | {"counts": manifest["counts"] | {key: {"<img src=x onerror=alert(1)>": 1}}}
      )
    )
    with pytest.raises(UserError, match=f"{key} holds something else than whole numbers"):
      Dataset.load(str(tmp_path / "out"))
