"""The papers' tables with our rows beside the published ones, each of our scores traced to its run.

  python -m atst_jax.downstream.report RUNS… --output=DIR

RUNS are workdirs of the jobs linear, finetune, difference and retrieval. Writes into DIR:
report.md, report.csv (one line for each score) and a picture of each table. Of fine-tunings that
differ only in the learning rate, the one with the best validation score is taken.
"""

import csv
import io
import os
import sys

from atst_jax.downstream.papers.comparison import Cell, Comparison, average, compare, differences
from atst_jax.downstream.papers.runs import Run, read_runs
from atst_jax.util import storage
from atst_jax.util.cli import Parser, guard
from atst_jax.util.markdown import table_lines

OVER = "over seeds of one encoder's probe or training; of random encoders, over encoders too"
SPREADS = {
  "std": f"standard deviation {OVER}",
  "ci95": f"95 % confidence interval of the mean {OVER}",
}
PANELS = 5  # of a picture, side by side
COLORS = {"published": "0.55", "ours": "#D55E00", "baseline": "#0072B2"}


def write(cell: Cell, number: int | None) -> str:
  """ "82.7 ± 0.5 (80.1 to 85.0) † [3]": score, spread, interval over test clips, whether it was
  chosen on the test clips, and the number of its run."""
  parts = [f"{cell.score:.2f}", "" if cell.spread is None else f"± {cell.spread:.2f}"]
  if cell.interval:
    parts.append("({:.2f} to {:.2f})".format(*cell.interval))
  parts += [
    "†" if cell.run and cell.run.results["selected_on_test"] else "",
    f"[{number}]" if number else "",
  ]
  return " ".join(filter(None, parts))


def numbers_of(comparisons: list[Comparison]) -> dict[str, int]:
  """A number for every run with a score, by its path, in the order of the tables."""
  numbers: dict[str, int] = {}
  for comparison in comparisons:
    for line in comparison.lines:
      for cell in line.cells.values():
        if cell.run:
          numbers.setdefault(cell.run.path, len(numbers) + 1)
  return numbers


def markdown(comparisons: list[Comparison], runs: list[Run]) -> str:
  """All tables, and below them the runs of the numbers in brackets."""
  numbers, text = numbers_of(comparisons), ["# Results beside the published ones", ""]
  text += [
    "Scores in percent. Numbers in brackets name the run, below. Rows without one are the paper's.",
    "",
  ]
  marks, remarks = False, {}
  for comparison in comparisons:
    table = comparison.table
    averaged = ["Average"] if table.averaged else []
    head = ["", *comparison.columns.values(), *averaged]
    body = []
    for line in comparison.lines:
      cells = [line.cells.get(column) for column in comparison.columns]
      marks |= any(cell and cell.run and cell.run.results["selected_on_test"] for cell in cells)
      remarks |= {
        numbers[cell.run.path]: cell.note for cell in cells if cell and cell.run and cell.note
      }
      mean = average(comparison, line)
      row = [f"**{line.name}**" if line.kind == "ours" else line.name]
      row += [
        "" if cell is None else write(cell, numbers.get(cell.run.path) if cell.run else None)
        for cell in cells
      ]
      body.append([*row, *(["" if mean is None else f"{mean:.2f}"] if averaged else [])])
    text += [f"## {table.title} ({table.source})", "", f"![]({comparison.key}.png)", ""]
    text += table_lines([head, *body], numbers=len(head) - 1)
    kinds = sorted(
      {cell.spread_kind for line in comparison.lines for cell in line.cells.values()} - {""}
    )
    notes = [f"±: {SPREADS[kind]}. Published: of the paper's own runs." for kind in kinds]
    if any(cell.interval for line in comparison.lines for cell in line.cells.values()):
      notes.append("In parentheses: 95 % of draws of the test clips (bootstrap), of the mean.")
    text += ["", *notes, ""] if notes else [""]
    text += _differences(comparison)
  if marks:
    text += ["† chosen on the test clips, as some published scores were: too good.", ""]
  traced = [["", "run", "encoder", "params_hash", "data", "seeds", "config", "made with"]]
  by_path = {run.path: run for run in runs}
  for path, number in numbers.items():
    run, r = by_path[path], by_path[path].results
    note = f" ({remarks[number]})" if number in remarks else ""
    versions = ", ".join(f"{k} {v}" for k, v in r.get("versions", {}).items())
    data = f"{r['data']['name']} {r['data'].get('fingerprint', '')}"
    if groups := r["data"].get("groups"):
      data += f", groups: {groups}"
    traced.append(
      [
        f"[{number}]",
        f"{path}{note}",
        r["encoder"]["path"],
        r["encoder"]["params_hash"],
        data,
        r["config"].get("seeds", ""),
        f"{r['job']}, {run.config_hash}",
        versions,
      ]
    )
  return "\n".join([*text, "## Runs", "", *table_lines(traced)]) + "\n"


def _differences(comparison: Comparison) -> list[str]:
  """Lines about our first row's score minus the others', on the same test clips."""
  found = differences(comparison)
  if not found:
    return []
  body = [["task", "our row", "against", "difference", "95 % interval", "differ"]]
  for d in found:
    ends = "{:.2f} to {:.2f}".format(*d.interval)
    verdict = "yes" if d.is_difference else "no"
    body.append([comparison.columns[d.column], d.of, d.less, f"{d.mean:.2f}", ends, verdict])
  words = (
    "Differences of our first row to the others on the same test clips. They differ where the "
    "interval does not contain 0; it holds no other pre-training."
  )
  return [words, "", *table_lines(body, numbers=3), ""]


HEAD = (
  "table",
  "row",
  "kind",
  "column",
  "score",
  "spread",
  "spread_kind",
  "interval_low",
  "interval_high",
  "metric",
  "selected_on_test",
  "source",
  "run",
  "encoder",
  "params_hash",
  "data",
  "config_hash",
)


def rows(comparisons: list[Comparison]) -> list[tuple[str, ...]]:
  """HEAD and a row for every score of every table, published ones too."""
  out: list[tuple[str, ...]] = [HEAD]
  for comparison in comparisons:
    for line in comparison.lines:
      for column, cell in line.cells.items():
        trace = ("", "", comparison.table.source, "", "", "", "", "")
        if cell.run:
          r = cell.run.results
          trace = (
            r["metric"],
            r["selected_on_test"],
            cell.note,
            cell.run.path,
            r["encoder"]["path"],
            r["encoder"]["params_hash"],
            r["data"].get("fingerprint", ""),
            cell.run.config_hash,
          )
        spread = "" if cell.spread is None else f"{cell.spread:.4f}"
        ends = [f"{end:.4f}" for end in cell.interval or ()] or ["", ""]
        score = (f"{cell.score:.4f}", spread, cell.spread_kind, *ends)
        out.append((comparison.key, line.name, line.kind, column, *score, *trace))
  return out


def picture(comparison: Comparison, path: str) -> None:
  """A panel for each column that has a score, a line for each row: published grey, ours orange,
  baselines blue."""
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  lines = [line for line in comparison.lines if line.cells]
  columns = [c for c in comparison.columns if any(c in line.cells for line in lines)]
  longest, across = max(len(line.name) for line in lines), min(len(columns), PANELS)
  down = -(-len(columns) // across)
  size = (0.075 * longest + 2.1 * across, 0.5 + down * (0.8 + 0.26 * len(lines)))
  figure = Figure(figsize=size, layout="constrained")
  axes = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
  for axis in axes[len(columns) :]:
    axis.set_visible(False)
  for axis, column in zip(axes, columns, strict=False):
    for place, line in enumerate(lines):
      if (cell := line.cells.get(column)) is None:
        continue
      axis.errorbar(
        cell.score,
        place,
        xerr=cell.spread,
        fmt="o" if line.kind == "ours" else "s",
        markersize=5,
        color=COLORS[line.kind],
        capsize=2,
        linewidth=1,
      )
      axis.annotate(
        f"{cell.score:.1f}",
        (cell.score, place),
        xytext=(0, 5),
        textcoords="offset points",
        fontsize=6.5,
        ha="center",
        color=COLORS[line.kind],
      )
    axis.set_title(comparison.columns[column], fontsize=9)
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    axis.margins(x=0.18)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
  axes[0].set_yticks(range(len(lines)), [line.name for line in lines])
  axes[0].set_ylim(len(lines) - 0.5, -0.7)
  figure.suptitle(f"{comparison.table.title} ({comparison.table.source}), %", fontsize=10)
  kinds = [kind for kind in COLORS if any(line.kind == kind for line in lines)]
  handles = [
    Line2D(
      [], [], color=COLORS[kind], marker="o" if kind == "ours" else "s", linestyle="", label=kind
    )
    for kind in kinds
  ]
  figure.legend(
    handles=handles, loc="outside lower center", ncols=len(kinds), fontsize=8, frameon=False
  )
  with storage.writing(path) as file:
    figure.savefig(file, format="png", dpi=130)


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("atst_jax.downstream.report", __doc__)
  parser.add_argument(
    "runs", nargs="+", metavar="RUN", help="workdir of a finished evaluation, or its results.json"
  )
  parser.add_argument("--output", required=True, help="folder to write into")
  return guard(lambda: _main(parser.parse(argv)))


def _main(flags) -> None:
  runs = read_runs(flags.runs)
  comparisons = compare(runs)
  storage.make_folder(flags.output)
  text = markdown(comparisons, runs)
  storage.write_text(os.path.join(flags.output, "report.md"), text)
  table = io.StringIO()
  csv.writer(table, lineterminator="\n").writerows(rows(comparisons))
  storage.write_text(os.path.join(flags.output, "report.csv"), table.getvalue())
  for comparison in comparisons:
    picture(comparison, os.path.join(flags.output, f"{comparison.key}.png"))
  print(text)


if __name__ == "__main__":
  sys.exit(main())
