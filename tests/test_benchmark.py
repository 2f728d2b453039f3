"""The benchmarks measure what they say: seconds are nobody's promise here, that the numbers fit
together is."""

import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from atst_jax.artifacts.model import load_model
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.benchmark import main
from atst_jax.method.subtraction import Subtraction
from atst_jax.performance import embed_speed, speed, torch_encoder, torch_step, torch_update
from atst_jax.pretraining import recipe
from atst_jax.pretraining.recipe import clip_flops
from atst_jax.runtime.mesh import make_mesh
from atst_jax.util import environment
from atst_jax.util.errors import UserError
from data_pipeline.shards.speed import bare_loop
from tests.tiny import ROOT, tiny_config, tiny_flags


def test_prepare(tmp_path, capsys):
  rng = np.random.default_rng(0)
  for i in range(6):
    soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, (22050, 2)), 22050)
  (tmp_path / "bad.wav").write_text("text")
  assert (
    main(
      ["prepare", f"--input={tmp_path}", "--seconds=0.05", "--repeats=1", "--workers=1", "--json"]
    )
    == 0
  )
  result = json.loads(capsys.readouterr().out)
  assert result["files"] == 6 and abs(result["hours"] - 6 / 3600) < 1e-6
  share = result["clips_per_second"] / result["bare_clips_per_second"]
  assert abs(result["share_of_bare_loop"] - share) < 1e-6 and 0 < share < 2
  # clips of 1 s
  assert abs(result["hours_per_core_minute"] - result["clips_per_second"] / 60) < 1e-6
  assert result["pool_clips_per_second"] > 0 and 50 < result["worker_megabytes"] < 1000
  paths = [str(tmp_path / f"{i}.wav") for i in range(6)]
  assert abs(bare_loop(paths, FRONTENDS["atst"], None) - 6) < 1e-3
  assert main(["prepare", f"--input={tmp_path}", "--files=0"]) == 2
  assert main(["prepare", f"--input={tmp_path / 'absent'}"]) == 2
  assert "does not exist" in capsys.readouterr().err


SMALL = {"difference__weight": "0", "encoder__depth": "1"}


def _measure(capsys, part, *flags):
  code = main([part, *tiny_flags(**SMALL), *flags, "--repeats=2", "--json"])
  captured = capsys.readouterr()
  assert code == 0, captured.err
  return json.loads(captured.out)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Short windows, and a step that is compiled for one device."""
  one = {"data": 1, "fsdp": 1, "devices": jax.devices()[:1]}
  monkeypatch.setattr(speed, "WINDOW_SECONDS", 0.1)
  monkeypatch.setattr(speed, "make_mesh", lambda **_: make_mesh(**one))


def test_step(capsys):
  """Rates, FLOPs and utilisation follow from one median."""
  result = _measure(capsys, "step", "--peak_tflops=0.5")
  flops = clip_flops(tiny_config(**SMALL).to_dict())
  assert result["clips_per_second"] == pytest.approx(16e3 / result["ms_per_step"])
  assert result["gflop_per_clip"] == pytest.approx(flops / 1e9)
  assert result["mfu"] == pytest.approx(
    result["clips_per_second"] * flops / (0.5e12 * jax.device_count())
  )
  assert (
    result["ms_per_step_best"] <= result["ms_per_step"] and result["devices"] == jax.device_count()
  )
  assert (
    result["peak_memory_bytes"] > 0
    and result["compile_seconds"] > 0
    and result["dtype"] == "float32"
  )


def test_utilisation_is_of_the_types_peak(monkeypatch, capsys):
  """And says of which. Seen red with bfloat16's peak for a step in float32."""
  monkeypatch.setattr(speed, "find_chip", lambda kind: "H100")
  assert main(["step", *tiny_flags(**SMALL), "--config.dtype=float32", "--repeats=1"]) == 0
  assert "of 67 TFLOP/s a device" in capsys.readouterr().out


def test_a_window_is_whole_steps_that_have_ended(monkeypatch):
  """Seen red with the warm-up counted and with a window of one step."""
  clock, runs = [0.0], []

  def run(steps):
    runs.append(steps)
    clock[0] += 0.02 * steps + (5.0 if len(runs) == 1 else 0)  # the first one compiles

  monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
  seconds = speed._windows(run, 3)
  assert seconds == pytest.approx([0.02] * 3) and runs == [speed.WARM_UP, 1, 5, 5, 5]


def test_input_and_end_to_end(capsys):
  """From noise written for the purpose; the clips have the config's length."""
  result = _measure(capsys, "input", "--clips=64")
  assert (result["clips"], result["clip_shape"], result["data"]) == (64, [64, 64], "noise")
  best = result["clips_per_second"].get("tf.data", result["clips_per_second"]["plain"])
  assert result["megabytes_per_second"] == pytest.approx(best * 64 * 64 * 2 / 1e6)
  readers = result["clips_per_second"].keys() - {"bare"}
  assert readers == result["first_batch_seconds"].keys() == result["resumed_seconds"].keys()
  assert result["memory_bytes"].keys() - {"before", "tensorflow"} == readers
  # 8 KB of a clip's record: a look, not a promise
  assert all(1e-8 < seconds < 1e-2 for seconds in result["check_seconds"].values())
  result = _measure(capsys, "end_to_end", "--clips=64")
  assert (
    0 <= result["data_wait"] < 1 and result["clips_per_second"] > 0 and result["data"] == "noise"
  )


def test_a_data_set_that_is_not_there(capsys):
  assert main(["input", *tiny_flags(data__path="nowhere")]) == 2
  assert (
    "nowhere does not exist; set --config.data.path=DIR, or --clips=2048" in capsys.readouterr().err
  )
  assert main(["input", *tiny_flags(), "--clips=-5"]) == 2
  assert main(["step", "--config=configs/linear.py"]) == 2
  captured = capsys.readouterr().err
  assert "must not be negative" in captured and "only a pre-training has a step" in captured


def test_torch_has_the_same_sizes():
  """Its parameters are as many as ours, and the child's request is answered."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed: .[torch]")
  config = recipe.resolve(tiny_config(), None)
  sizes = {k: v for k, v in config.encoder.items() if k != "kind"} | {
    "n_mels": 64,
    "hidden": 32,
    "out": 8,
  }
  student, teacher = torch_update.make_networks(torch, **sizes, differences=True)
  count = lambda module: sum(p.numel() for p in module.parameters())
  init, _ = recipe.build(config, ragged=False)
  state = jax.eval_shape(init, jax.random.key(0))
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert (count(student), count(teacher)) == (size(state.params), size(state.teacher.params))
  mixing = torch_update.mixing_of(config)
  request = {"batch": 4, "frames": 32, "mixing": {**mixing, "options": mixing["options"]._asdict()}}
  seconds = torch_step.measure(
    bfloat16=False, compiled=False, device="cpu", repeats=2, **request, **sizes
  )
  assert len(seconds) == 2 and min(seconds) > 0
  assert not torch.backends.cuda.matmul.allow_tf32  # our float32 is float32, too


def test_beside_torch(capsys, monkeypatch):
  """Ours, PyTorch's, ours: the ratio is to the mean of ours. PyTorch's is asked for the mixtures of
  the config; what it does not compute is refused before anything is measured."""
  answers = iter(
    (
      {"devices": 1, "device": "cpu", "dtype": "float32", "clips_per_second": 8.0},
      [2.0, 4.0, 3.0],
      {"clips_per_second": 16.0},
    )
  )
  asked = []
  monkeypatch.setattr(
    torch_step, "_child", lambda *command, what: asked.append(command) or next(answers)
  )
  result = torch_step.beside(tiny_config(), ["step", "--torch"], repeats=3, compiled=False)
  assert [command[0] for command in asked] == [
    "atst_jax.benchmark",
    "atst_jax.performance.torch_step",
    "atst_jax.benchmark",
  ]
  assert asked[0] == ("atst_jax.benchmark", "step", "--json")
  assert result["torch_clips_per_second"] == pytest.approx(16 / 3)
  assert result["times_torch"] == pytest.approx(12 / (16 / 3))
  mixing = json.loads(asked[1][1])["mixing"]
  assert mixing["options"] == Subtraction(weight=0.2, mix_domain="energy")._asdict()
  assert (mixing["k"], mixing["group"]) == (pytest.approx(7 * np.log(10)), 2)
  for flags, message in (
    (tiny_flags("byola.py"), "encoder.kind=cnn: PyTorch's update knows transformer alone"),
    (tiny_flags(joint_views="false"), "joint_views=False"),
    (tiny_flags(difference__level="frame"), "difference.level=frame"),
    (tiny_flags(compute__accumulation=2), "compute.accumulation=2"),
    (tiny_flags(views__first_frames="16,32"), "views of one length; leave out views.first_frames"),
  ):
    assert main(["step", "--torch", *flags]) == 2 and message in capsys.readouterr().err
  assert len(asked) == 3


def test_embed(encoder, tmp_path, monkeypatch, capsys):
  """Lengths with their chunks, and files to vectors: those given, or noise."""
  monkeypatch.setattr(embed_speed, "CLIPS", 2)
  monkeypatch.setattr(embed_speed, "FRAMES", 100)
  monkeypatch.setattr(embed_speed, "NOISE_FILES", 2)
  flags = ["embed", f"--encoder={encoder}", "--frames=20,70", "--repeats=1"]
  assert main([*flags, "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert [length["chunks"] for length in result["lengths"]] == [[20], [32, 32, 6]]
  assert all(length["clips_per_second"] > 0 for length in result["lengths"])
  assert result["files"] == 2 and result["files_per_second"] > 0
  soundfile.write(tmp_path / "a.wav", np.full(8000, 0.1), 16000)
  assert main([*flags, f"--input={tmp_path}"]) == 0
  assert "files to vectors (1 files, given)" in capsys.readouterr().out
  for change, message in (
    (["--frames=2"], "at least 4"),
    (["--frames=a"], "whole numbers"),
    (["--torch"], "one device, here are 8"),
  ):
    assert main([*flags, *change]) == 2 and message in capsys.readouterr().err


def test_embed_beside_torch(encoder):
  """The same clips for both, cut alike, in turns."""
  asked = []

  class Theirs:
    def seconds(self, chunks, clips):
      asked.append((chunks, clips))
      return 2.0

  result = embed_speed._measure_length(load_model(encoder), Theirs(), 70, 2)
  clips = 480  # full batches, whose frames are at least FRAMES
  assert asked == [([32, 32, 6], 1), *2 * [([32, 32, 6], clips)]]
  assert result["torch_clips_per_second"] == clips / 2
  assert result["times_torch"] == pytest.approx(result["clips_per_second"] * 2 / clips)


def test_torch_answers_requests(monkeypatch, capsys):
  pytest.importorskip("torch", reason="PyTorch is not installed: .[torch]")
  monkeypatch.setattr(sys, "stdin", io.StringIO('{"chunks": [32, 8], "clips": 3}\n'))
  sizes = {"width": 16, "depth": 1, "heads": 2, "patch_frames": 4, "max_frames": 32}
  torch_encoder.serve(device="cpu", bfloat16=False, n_mels=64, **sizes)
  assert json.loads(capsys.readouterr().out) > 0


def test_a_torch_that_fails_is_one_sentence():
  sizes = {"width": 16, "depth": 1, "heads": 0, "patch_frames": 4, "max_frames": 32}
  message = "--torch: PyTorch's encoder"
  encoder = torch_encoder.TorchEncoder(sizes, 64, device="cpu", bfloat16=False)
  with encoder as theirs, pytest.raises(UserError, match=message):
    theirs.seconds([32], 1)


@pytest.mark.parametrize("platform", environment.PLATFORMS)
def test_environment_as_a_shell_reads_it(platform, capfd, tmp_path):
  """What is set already stays; of flags, the user's come last and win."""
  command = f'eval "$({sys.executable} -m atst_jax.util.environment {platform})" && env'
  given = {
    "PATH": os.environ["PATH"],
    "XLA_FLAGS": "--mine=1",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5",
  }
  shown = subprocess.run(
    ["bash", "-c", command], env=given, cwd=ROOT, capture_output=True, text=True, check=True
  )
  found = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
  assert (
    found["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    and found["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
  )
  assert found["XLA_FLAGS"].split()[-1] == "--mine=1"
  assert ("latency_hiding" in found["XLA_FLAGS"]) == (platform == "gpu")
  assert ("LIBTPU_INIT_ARGS" in found) == (platform == "tpu")
  assert environment.main(["abacus"]) == 2


def test_a_program_starts_anew_once(tmp_path):
  """With its arguments and the interpreter's options; not where the variable is set."""
  (tmp_path / "shown.py").write_text(
    "import os, sys\n"
    "from atst_jax.util.environment import start_anew\n"
    "print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], sys.warnoptions, flush=True)\n"
    "start_anew('shown')\n"
  )
  env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
  env.pop("GLIBC_TUNABLES", None)
  command = [sys.executable, "-W", "error", "-m", "shown", "a b"]
  show = lambda env: subprocess.run(
    command, env=env, capture_output=True, text=True, check=True
  ).stdout.splitlines()
  assert show(env) == ["None ['a b'] ['error']", "glibc.malloc.hugetlb=1 ['a b'] ['error']"]
  assert show({**env, "GLIBC_TUNABLES": "x=1"}) == ["x=1 ['a b'] ['error']"]
