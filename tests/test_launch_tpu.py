"""launch/tpu.sh: what it would run, and its loop with replacements for gcloud and sleep."""

import os
import shlex

import pytest

from tests.launching import MAIN, TPU, fake, run_script

GCLOUD = """
import pathlib, sys
log = pathlib.Path({log!r})
done = log.read_text().split() if log.exists() else []
note = lambda word: log.write_text(" ".join([*done, word]))
word = next((w for w in ("describe", "create", "delete", "scp", "ssh") if w in sys.argv), "?")
made = "create" in done and done[-1] != "delete" and done[-2:] != ["delete", "sleep"]
training = "launch/run.sh" in sys.argv[-1]
{body}
if word == "describe":
  sys.exit(print(state) if made else "NOT_FOUND: it")
if word in ("create", "delete"):
  note(word)
"""
SLEEP = """
import pathlib
log = pathlib.Path({log!r})
log.write_text(log.read_text() + " sleep" if log.exists() else "sleep")
"""


def run_loop(folder, body, *flags):
  """(the ended script, what it did) with a gcloud that first does `body`."""
  log = folder / "log"
  fake(folder / "bin", "gcloud", GCLOUD.format(log=str(log), body=body))
  fake(folder / "bin", "sleep", SLEEP.format(log=str(log)))
  path = f"{folder / 'bin'}:{os.environ['PATH']}"
  ran = run_script("tpu.sh", *TPU, *flags, "--", *MAIN, PATH=path)
  return ran, log.read_text().split()


def test_commands():
  lines = [
    shlex.split(line)
    for line in run_script("tpu.sh", *TPU, "--spot", "--dry_run", "--", *MAIN).stdout.splitlines()
  ]
  create, copy, set_up, train, delete = lines
  assert create[3:6] == ["queued-resources", "create", "atst"] and {
    "--spot",
    "--node-id=atst",
  } <= set(create)
  assert (
    "--runtime-version=v2-alpha-tpuv5-lite" in create
    and "--worker=all" in copy
    and "delete" in delete
  )
  assert set_up[-1].endswith("-e .[tpu,gcs]")
  words = shlex.split(train[-1].removeprefix("--command="))
  assert words[-2:] == MAIN and "launch/run.sh" in words and "--distributed" in words
  two = run_script("tpu.sh", *TPU, "--slices=2", "--keep", "--dry_run", "--", *MAIN).stdout
  assert "--node-count=2 --node-prefix=atst" in two and "ssh atst-0" in two and "ssh atst-1" in two
  assert " delete " not in two


def test_restarts(tmp_path):
  """Created; stopped with 75 and started again; taken back and asked for anew; done; deleted."""
  body = """
state = "SUSPENDED" if done[-2:] == ["lost", "sleep"] else "ACTIVE"
if training:
  code = [75, 255, 0][sum(w in ("75", "lost", "0") for w in done)]
  note("lost" if code == 255 else str(code))
  sys.exit(code)
"""
  ran, done = run_loop(tmp_path, body)
  assert ran.returncode == 0, ran.stderr
  assert done == ["create", "75", "lost", "sleep", "delete", "create", "0", "delete"]


def test_a_request_that_fails_is_made_five_times(tmp_path):
  """With a pause between them; the reason is told."""
  body = 'state = "not enough quota" if "failedData" in str(sys.argv) else "FAILED"'
  ran, done = run_loop(tmp_path, body)
  assert ran.returncode == 1, ran.stderr
  assert ran.stderr.count("the request failed: not enough quota") == 5
  assert done == 4 * ["create", "delete", "sleep"] + ["create", "delete"]


DENIED = """
if word == "describe" and {when}:
  sys.exit("PERMISSION_DENIED: log in again")
state = "ACTIVE"
if training:
  note("74" if "74" not in done else "0")
  sys.exit("74" not in done and 74)
"""


def test_a_gcloud_that_does_not_answer_ends_it(tmp_path):
  """With its own message. What there is is left alone: nobody knows of it."""
  ran, done = run_loop(tmp_path, DENIED.format(when="True"))
  assert ran.returncode == 1 and done == 19 * ["sleep"]
  assert "PERMISSION_DENIED: log in again" in ran.stderr and "gcloud does not answer" in ran.stderr


def test_one_that_answers_again_is_asked_on(tmp_path):
  """The count begins anew: 15 times before the first start, and 15 before the second."""
  when = 'done.count("sleep") % 16 < 15 and done[-1:] != ["0"]'
  ran, done = run_loop(tmp_path, DENIED.format(when=when))
  assert ran.returncode == 0, ran.stderr
  assert done == 15 * ["sleep"] + ["create", "74"] + 16 * ["sleep"] + ["0", "delete"]


@pytest.mark.parametrize(
  ("first", "second", "end"), [(74, 2, 0), (2, 74, 0), (75, 2, 0), (2, 0, 2), (0, 3, 3)]
)
def test_a_code_that_may_pass_counts_for_all_slices(tmp_path, first, second, end):
  """Whatever their order: it is started again, which ends well. Else a mistake ends the job."""
  body = f"""
state = "ACTIVE"
if training:
  second = "atst-1" in sys.argv
  started = log.with_name(f"started_{{second}}")
  again = started.exists()
  started.touch()
  sys.exit(0 if again else {second} if second else {first})
"""
  ran, done = run_loop(tmp_path, body, "--slices=2")
  assert ran.returncode == end and done[-1] == "delete", ran.stderr
