"""Standard streams as people have them: closed, read by nobody, in another encoding; and `~`."""

import os
import subprocess
import sys

import pytest

from atst_jax.util import cli
from atst_jax.util.cli import Parser
from tests.tiny import ROOT

SCRIPT = """
import sys
from atst_jax.util import cli, logs
def work():
  cli.Parser("x", "").parse([])
  {}
cli.leave(cli.guard(work))
"""


def _shell(work: str, redirection: str, **environment):
  command = f'set -o pipefail; "$PYTHON" -c "$SCRIPT" {redirection}'
  env = {**os.environ, "PYTHON": sys.executable, "SCRIPT": SCRIPT.format(work), **environment}
  return subprocess.run(
    ["bash", "-c", command], check=False, cwd=ROOT, env=env, capture_output=True, text=True
  )


@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "<&- 2>&-"])
def test_closed_streams_write_into_no_file(tmp_path, closed):
  """The next file that is opened would be standard error."""
  path = tmp_path / "data"
  work = (
    f"file = open({str(path)!r}, 'w'); logs.log.warning('a line'); print('b', file=sys.stderr); "
    "import os; os.system('echo c >&2'); bar = logs.progress_bar(2, 0, 'step'); bar.update(1); "
    "file.write('ours'); file.close()"
  )
  ended = _shell(work, closed)
  assert ended.returncode == 0 and path.read_text() == "ours", ended


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_that_nobody_reads_is_no_error(lines):
  work = f"import time; time.sleep(0.3); [print('line', i) for i in range({lines})]"
  ended = _shell(work, "| true")
  assert ended.returncode == cli.EXIT_PIPE == 141 and not ended.stderr, ended


def test_signs_that_the_encoding_lacks_are_written_otherwise():
  ended = _shell("print('0.5 \u00b1 0.1 \u2026 \u00fc')", "", PYTHONIOENCODING="ascii")
  assert ended.stdout == "0.5 +- 0.1 ... \\xfc\n" and ended.returncode == 0, ended


def test_a_home_folder_is_found_in_flags(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  parser = Parser("x", "")
  parser.add_argument("--output")
  assert parser.parse(["--output=~/data"]).output == "/home/me/data"
  assert parser.parse(["--output=a/~/b~"]).output == "a/~/b~"
  assert parser.parse(["--output=~"]).output == "/home/me"
  _, rest = parser.parse_with_overrides(["--config.data.path=~/data"])
  assert rest == ["--config.data.path=/home/me/data"]


@pytest.mark.parametrize("words", cli.NO_BACKEND)
def test_fault_35_a_platform_that_is_not_there_is_one_sentence(monkeypatch, capsys, words):
  def work():
    raise RuntimeError(f"{words} 'tpu': no device")

  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  assert cli.guard(work) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: JAX_PLATFORMS=tpu: JAX finds no such device") and "unset" in error
  # JAX says the same of a device that is there and does not start: another try may help
  monkeypatch.delenv("JAX_PLATFORMS")
  assert cli.guard(work) == 74
  assert capsys.readouterr().err.startswith("error: JAX cannot start its device (")
