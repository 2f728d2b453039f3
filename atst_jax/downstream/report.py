"""The results of a linear evaluation as a table for people.

`results` is the content of results.json: `data`, `encoder`, `config`, `metric`, `chance`, `published` and `rows`; a row
has `name`, `dimensions`, `mean`, `std` and `ci95` (None for one seed), `knn`, `effective_rank` and `runs`, one for each
seed and fold. Scores are shares of 1, the published ones percent.
"""

from atst_jax import storage


def title(results: dict) -> str:
  """What was measured, on what and how."""
  data, config = results["data"], results["config"]
  folds, seeds = len(data["divisions"]), config["seeds"]
  step = results["encoder"]["provenance"].get("step")
  return (f"{data['name']}: {data['clips']} clips, {data['classes']} classes, "
          f"{f'{folds} folds' if folds > 1 else 'one division'}; encoder {results['encoder']['path']}"
          f"{'' if step is None else f' after {step} steps'}; {results['metric']} in %, "
          f"{f'mean ± {_spread_name(results)} over {seeds} seeds' if seeds > 1 else 'one seed'}; protocol "
          f"{config['protocol']}{', CHOSEN ON THE TEST CLIPS' if config['select_on_test'] else ''}")  # fmt: skip


def _spread_name(results: dict) -> str:
  """EVAR's tables give confidence intervals, ATST's nothing."""
  return "95 % confidence interval" if results["config"]["protocol"] == "evar" else "standard deviation"


def cells(results: dict) -> list[list[str]]:
  """The header, a row for each kind of features, and chance."""
  percent = lambda x: f"{100 * x:.1f}"
  key = "ci95" if results["config"]["protocol"] == "evar" else "std"
  spread = lambda row: "" if row[key] is None else f" ± {percent(row[key])}"
  body = [[row["name"], str(row["dimensions"]), percent(row["mean"]) + spread(row), percent(row["knn"]),
           f"{row['effective_rank']:.1f}"] for row in results["rows"]]  # fmt: skip
  head = ["features", "size", f"linear {results['metric']}", f"{results['config']['knn']}-NN", "effective rank"]
  task = results["data"]["name"]
  known = [
    [f"{row['name']} ({row['source']})", "", f"{row['scores'][task]:.1f}", "", ""] for row in results["published"]
  ]
  return [head, *body, ["chance", "", percent(results["chance"]), "", ""], *known]


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
  head, *body = ["| " + " | ".join(line) + " |" for line in cells(results)]
  rule = "|---|" + "---:|" * (len(cells(results)[0]) - 1)
  return "\n".join([title(results) + ".", "", head, rule, *body]) + "\n"


def write_markdown(path: str, results: dict) -> None:
  """Writes the Markdown table, whole or not at all."""
  storage.write_text(path, markdown(results))
