"""What the evaluations share: who may read a config, and what values are refused."""

import ast
import json
import pathlib
import types

import pytest
from ml_collections import ConfigDict

from atst_jax.downstream import evaluation, values
from atst_jax.util.errors import UserError

ROOT = pathlib.Path(__file__).parents[1] / "atst_jax" / "downstream"

# A job's entrances, which hand it on; `resolve`, and what that asks to fill and check.
READERS = {
  *("resolve", "filled", "take", "check_values", "refuse_idle", "refuse_idle_folds"),
  *("schedule_settings", "program_settings"),
}
ENTRANCES = {"run", "describe"}
BESIDE = {"_check", "_refuse_idle", "_section"}


def test_only_resolve_reads_a_config():
  """Everything else takes values by name. A function whose name begins with "_" belongs to those
  beside it that read."""
  readers = set()
  for path in ROOT.rglob("*.py"):
    functions = [
      node
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
      if isinstance(node, ast.FunctionDef)
    ]
    for node in functions:
      arguments = [*node.args.args, *node.args.kwonlyargs]
      taken = {a.arg for a in arguments if "ConfigDict" in ast.unparse(a.annotation or a)}
      if not taken:
        continue
      reads = any(
        isinstance(part, ast.Attribute | ast.Subscript) and ast.unparse(part.value) in taken
        for part in ast.walk(node)
      )
      place = f"{path.name}: {node.name}"
      assert node.name in READERS | ENTRANCES | BESIDE, place
      assert not (reads and node.name in ENTRANCES), f"{place} reads the config itself"
      readers.add(node.name)
  assert readers >= {"resolve", "run", "describe"}


@pytest.mark.parametrize(
  ("check", "message"),
  [
    ({"one_of": {"part.kind": ("a", "b")}}, "--config.part.kind=c: choose one of a, b"),
    ({"some_of": {"kinds": ("a", "b")}}, "--config.kinds=a,c: choose from a, b"),
    ({"positive": ("sizes",)}, r"--config.sizes=\(1, 0\): must be positive and finite"),
    ({"ascending": ("rates",)}, r"--config.rates=\(0.1, 0.1\): must be positive and ascending"),
  ],
)
def test_values_that_cannot_work_name_key_and_choices(check, message):
  config = ConfigDict({"part": {"kind": "c"}, "kinds": ("a", "c"), "sizes": (1, 0)})
  config.rates = (0.1, 0.1)
  with pytest.raises(UserError, match=message):
    values.check_values(config, **check)


def _run(workdir, knn, *, until=None, allow=False, job="linear"):
  """An evaluation of two parts that fails in its part `until`."""

  def parts(job, folder):
    for name in ("first", "second"):
      if name == until:
        raise RuntimeError(name)
      yield name, lambda: [{"mean": 0.0, "test": {"file": "config.json"}}]

  return evaluation.frozen(
    types.SimpleNamespace(record={"job": job, "knn": knn}),
    str(workdir),
    free_keys=(),
    allow_changes=allow,
    parts=parts,
    results=lambda job, rows: {"config": job.record},
  )


def test_fault_08_an_evaluation_keeps_the_config_of_what_is_finished(
  tmp_path, monkeypatch, warnings
):
  """Nothing is finished: other values are free. Parts or results are: they are refused, and with
  --allow_changed_config recorded once there are results with them."""
  monkeypatch.setattr(evaluation.bootstrap, "keep", lambda workdir, row, name: row)
  write = lambda workdir, results: evaluation.write_json(f"{workdir}/results.json", results)
  monkeypatch.setattr(evaluation, "write_results", write)
  recorded = lambda: json.loads((tmp_path / "config.json").read_text())["knn"]
  for knn in (1, 2):
    with pytest.raises(RuntimeError, match="first"):
      _run(tmp_path, knn, until="first")
    assert recorded() == knn
  with pytest.raises(RuntimeError, match="second"):
    _run(tmp_path, 2, until="second")
  with pytest.raises(UserError, match="belongs to a run with another config:\n  knn: 2 -> 3"):
    _run(tmp_path, 3)
  with pytest.raises(UserError, match="knn: 2 -> 3"):
    evaluation.belongs({"job": "linear", "knn": 3}, str(tmp_path), ())
  assert _run(tmp_path, 2) == 0
  with pytest.raises(RuntimeError, match="second"):
    _run(tmp_path, 3, until="second", allow=True)
  assert recorded() == 2 and _run(tmp_path, 2) == 0
  assert _run(tmp_path, 3, allow=True) == 0 and recorded() == 3
  with pytest.raises(UserError, match="knn: 3 -> 2"):
    _run(tmp_path, 2)


def test_a_workdir_of_another_job_is_refused_whatever_it_has_finished(tmp_path):
  (tmp_path / "config.json").write_text('{"job": "pretrain"}')
  with pytest.raises(UserError, match="belongs to a job 'pretrain', and this one is 'linear'"):
    _run(tmp_path, 1, allow=True)
  assert json.loads((tmp_path / "config.json").read_text()) == {"job": "pretrain"}
