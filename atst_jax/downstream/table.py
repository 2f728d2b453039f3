"""The results of an evaluation as a table for people.

`results` is the content of results.json (`evaluation.results_of`); a row has `name`, `mean`, `std` and `ci95` (None for
one seed), and what is in EXTRAS. Scores are shares of 1, the published ones percent.
"""

from atst_jax import storage
from atst_jax.markdown import table_lines

# Columns besides the name and the score: key of a row, where it stands, heading and how it is written.
BEFORE = {"dimensions": ("size", str)}
AFTER = {
  "valid": ("validation", lambda x: f"{100 * x:.1f}"),
  "d_prime": ("d′", lambda x: "∞" if x is None else f"{x:.3f}"),
  "epoch": ("epoch", lambda x: f"{x:g}"),
  "knn": ("{knn}-NN", lambda x: f"{100 * x:.1f}"),
  "effective_rank": ("effective rank", lambda x: f"{x:.1f}"),
}


def title(results: dict) -> str:
  """What was measured, on what and how."""
  data, seeds = results["data"], results["config"]["seeds"]
  folds, step = len(data["divisions"]), results["encoder"]["provenance"].get("step")
  return (f"{data['name']}: {data['clips']} clips, {data['classes']} classes, "
          f"{f'{folds} folds' if folds > 1 else 'one division'}; encoder {results['encoder']['path']}"
          f"{'' if step is None else f' after {step} steps'}; {results['metric']} in %, "
          f"{f'mean ± {_spread(results)[1]} over {seeds} seeds' if seeds > 1 else 'one seed'}; protocol "
          f"{results['protocol']}{', CHOSEN ON THE TEST CLIPS' if results['selected_on_test'] else ''}")  # fmt: skip


def _spread(results: dict) -> tuple[str, str]:
  """Its key in a row and its name: EVAR's tables give confidence intervals, ATST's nothing."""
  evar = results["protocol"] == "evar"
  return ("ci95", "95 % confidence interval") if evar else ("std", "standard deviation")


def cells(results: dict) -> list[list[str]]:
  """The header, a row for each kind of features, chance, and the published rows."""
  percent = lambda x: f"{100 * x:.1f}"
  key = _spread(results)[0]
  has = lambda columns: {k: v for k, v in columns.items() if all(k in row for row in results["rows"])}
  before, after = has(BEFORE), has(AFTER)
  write = lambda row, columns: [how(row[k]) for k, (_, how) in columns.items()]
  heading = lambda columns: [name.format(**results["config"]) for name, _ in columns.values()]
  score = lambda row: percent(row["mean"]) + ("" if row[key] is None else f" ± {percent(row[key])}")
  others = lambda name, score: [name, *[""] * len(before), score, *[""] * len(after)]
  head = ["features", *heading(before), f"{results['job']} {results['metric']}", *heading(after)]
  body = [[row["name"], *write(row, before), score(row), *write(row, after)] for row in results["rows"]]
  task = results["data"]["name"]
  known = [others(f"{row['name']} ({row['source']})", f"{row['scores'][task]:.1f}") for row in results["published"]]
  return [head, *body, others("chance", percent(results["chance"])), *known]


def table(results: dict) -> str:
  """Aligned text: the first column to the left, numbers to the right."""
  lines = cells(results)
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  align = lambda line: "  ".join(
    [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
  )
  return "\n".join([title(results), "", align(lines[0]), "-" * (sum(widths) + 2 * len(widths) - 2),
                    *(align(line).rstrip() for line in lines[1:])])  # fmt: skip


def markdown(results: dict) -> str:
  """The same as a Markdown table."""
  table = cells(results)
  return "\n".join([title(results) + ".", "", *table_lines(table, numbers=len(table[0]) - 1)]) + "\n"


def write_markdown(path: str, results: dict) -> None:
  """Writes the Markdown table, whole or not at all."""
  storage.write_text(path, markdown(results))
