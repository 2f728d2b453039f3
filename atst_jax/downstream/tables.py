"""The results of an evaluation as a table for people.

`results` is the content of a results.json. The same cells become aligned text on the terminal and
Markdown in results.md. Scores are shares of 1 in `results`, and percent in a table; published
scores are percent.
"""

from atst_jax.util.markdown import table_lines

# Columns besides name and score (linear evaluation, fine-tuning): key of a row, heading, format.
BEFORE = {"dimensions": ("size", str)}
AFTER = {
  "valid": ("validation", lambda x: f"{100 * x:.1f}"),
  "d_prime": ("d′", lambda x: "∞" if x is None else f"{x:.3f}"),
  "epoch": ("epoch", lambda x: f"{x:g}"),
  "exact": ("exact probe", str),  # `_cells` adds the spread
  "above_optimum": ("loss above optimum", lambda x: f"{x:.3f}"),
  "knn": ("{knn}-NN", lambda x: f"{100 * x:.1f}"),
  "knn_whitened": ("{knn}-NN whitened", lambda x: f"{100 * x:.1f}"),
  "effective_rank": ("effective rank", lambda x: f"{x:.1f}"),
  "directions_90": ("90 % in", lambda x: f"{x:.0f}"),
  "directions_99": ("99 % in", lambda x: f"{x:.0f}"),
}


def title(results: dict) -> str:
  """What was measured, on what and how."""
  return _TITLES.get(results["job"], _title)(results)


def cells(results: dict) -> list[list[str]]:
  """The header, a row for each kind of features, chance, and the published rows."""
  return _CELLS.get(results["job"], _cells)(results)


def table(results: dict) -> str:
  """Aligned text: words to the left, numbers to the right."""
  lines, words = cells(results), _words(results)
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

  def align(line):
    padded = [cell.ljust(width) for cell, width in zip(line[:words], widths, strict=False)]
    padded += [cell.rjust(width) for cell, width in zip(line[words:], widths[words:], strict=True)]
    return "  ".join(padded).rstrip()

  rule = "-" * (sum(widths) + 2 * len(widths) - 2)
  return "\n".join([title(results), "", align(lines[0]), rule, *map(align, lines[1:])])


def text(results: dict) -> str:
  """The table and its notes, for a terminal."""
  return "\n".join([table(results), "", *notes(results)])


def markdown(results: dict) -> str:
  """The same in Markdown, with the table of intervals."""
  lines, found = cells(results), intervals(results)
  body = table_lines(lines, numbers=len(lines[0]) - _words(results))
  if found:
    body += ["", *table_lines(found, numbers=len(found[0]) - 1)]
  return "\n".join([f"{title(results)}.", "", *body, "", *notes(results)]) + "\n"


def column(row: dict) -> str:
  """Which column of a table the score of a row of results stands in, "" where there is one."""
  if "scene" in row:
    return f"{row['scene']} {row['name']}"
  return row["name"] if "vector" in row or "clips_per_class" in row else ""


def line(row: dict) -> str:
  """The name of a row of results among those of its column."""
  if "system" in row:
    return ", ".join(filter(None, (row["features"], row["system"])))
  return row["features"] if column(row) else row["name"]


def _range(found: list[float] | None) -> str:
  return "" if found is None else f"{100 * found[0]:.1f} to {100 * found[1]:.1f}"


def intervals(results: dict) -> list[list[str]]:
  """A header and a row for each score with an interval; beside it its difference to the first row
  of the same column. [] where results have none, as those of earlier versions."""
  rows = [row for row in results["rows"] if row.get("test")]
  if not rows:
    return []
  known = {(d["column"], d["of"], d["less"]): d for d in results.get("differences", [])}
  first: dict[str, dict] = {}
  lines = [["95 % intervals", "score", "interval", "less than the first", "interval", "differ"]]
  for row in rows:
    reference = first.setdefault(column(row), row)
    name = ": ".join(filter(None, (column(row), line(row))))
    beside = ["", "", ""]
    if found := known.get((column(row), line(reference), line(row))):
      differ = "yes" if found["is_difference"] else "no"
      beside = [f"{100 * found['mean']:.1f}", _range(found["interval"]), differ]
    lines.append([name, f"{100 * row['mean']:.1f}", _range(row["test"]["interval"]), *beside])
  return lines


def notes(results: dict) -> list[str]:
  """Sentences below the table: what "±" and the intervals mean, which groups keep clips together,
  and over how many classes a mean is."""
  out, data, config, spread = [], results["data"], results["config"], _spread(results)[1]
  if results["job"] == "few":
    out.append(f"±: {spread} of the mean over {config['few']['draws']} draws of clips.")
  elif config["seeds"] > 1:
    what = {
      "finetune": "over trainings with other seeds of head, order and augmentation",
      "retrieval": "over seeds of the adapters; of random encoders, of encoder and adapters",
    }.get(
      results["job"],
      "over seeds of the probe on the same vectors; of random encoders, of encoder and probe",
    )
    if results["protocol"] == "exact":
      what = "over random encoders (the exact probe draws nothing)"
    out.append(f"±: {spread} {what}. It holds neither other clips nor other encoders.")
  if "directions_99" in results["rows"][0]:
    out.append("90 % in, 99 % in: the fewest directions with that share of the variance.")
  if "above_optimum" in results["rows"][0]:
    out.append(
      "Loss above optimum: cross entropy of the probe on its training clips, less that of the best "
      "linear layer on the same vectors. Exact probe: ridge regression in closed form."
    )
  if results["protocol"] == "exact" or {"exact", "knn_whitened"} & results["rows"][0].keys():
    out.append(_known_to_the_exact_probe(results))
  if any(row.get("test") for row in results["rows"]):
    out.append(
      f"Intervals: 95 % of {_draws(results)} (bootstrap), of the mean over seeds; differences on "
      "the same draws. Rows differ where the interval of their difference does not contain 0."
    )
  if data.get("groups"):
    out.append(f"Divisions that are drawn keep the clips of each {data['groups']} together.")
  classes = data.get("tested_classes", [])
  if classes and (data.get("multi_label") or min(classes) < data["classes"]):
    number = "/".join(map(str, sorted(set(classes))))
    what = "means are over" if data.get("multi_label") else "the test clips are of"
    out.append(f"In each division {what} {number} of {data['classes']} classes.")
  return out + results.get("notes", [])


def _draws(results: dict) -> str:
  """How the test clips were drawn; scenes may differ."""
  file = "pairs that share a clip" if results["job"] == "retrieval" else "file"
  how = {
    "clips": "",
    "groups": f", by {results['data'].get('groups') or file}",
    "clips of a single group": " (a division tests a single group: nothing is said of others)",
  }
  found: dict[str, dict] = {}  # how -> columns
  for row in results["rows"]:
    if test := row.get("test"):
      by = how.get(test["by"], f", by the {test['by']} that they are mixed from")
      said = f"{test['draws']} draws of the test clips with replacement{by}"
      found.setdefault(said, {})[row.get("scene", column(row) or line(row))] = None
  if len(found) == 1:
    return next(iter(found))
  return "; ".join(f"{', '.join(columns)}: {said}" for said, columns in found.items())


def _known_to_the_exact_probe(results: dict) -> str:
  """A sentence; the probe beside it may know fewer clips."""
  if results["selected_on_test"]:
    return "The exact probe's penalty is chosen on the test clips, too."
  near = "knn_whitened" in results["rows"][0]
  who = "it and the nearest neighbours know" if near else "it knows"
  refitted = results["config"].get("probe", {}).get("refit", False)
  beside = "" if results["protocol"] == "exact" or refitted else "; the other probe does not"
  on = results["config"]["exact"].get("chosen_on", "valid")
  by = "the validation clips" if on == "valid" else f"leaving out the known {on} in turn"
  chosen = f"The exact probe's penalty is chosen by {by}"
  return f"{chosen}; then {who} the validation clips as well as the training clips{beside}."


def _words(results: dict) -> int:
  """Columns that hold words: the name of the features, and in a retrieval the query."""
  return 2 if results["job"] == "retrieval" else 1


def _percent(row: dict, spread: str) -> str:
  """ "MEAN ± SPREAD" of a row in percent; a single run has no spread."""
  return f"{100 * row['mean']:.1f}" + ("" if row[spread] is None else f" ± {100 * row[spread]:.1f}")


def _after_steps(results: dict) -> str:
  step = results["encoder"]["provenance"].get("step")
  return "" if step is None else f" after {step} steps"


def _seeds(results: dict, spread: str = "standard deviation") -> str:
  seeds = results["config"]["seeds"]
  if results["job"] == "few":
    return f"mean ± {spread} over {results['config']['few']['draws']} draws"
  if results["protocol"] == "exact":
    return f"of random encoders mean ± {spread} over {seeds}" if seeds > 1 else "one random encoder"
  return f"mean ± {spread} over {seeds} seeds" if seeds > 1 else "one seed"


def _spread(results: dict) -> tuple[str, str]:
  """Its key in a row and its name: EVAR's tables give confidence intervals, ATST's nothing."""
  by_interval = results["protocol"] == "evar" or results["job"] == "few"
  return ("ci95", "95 % confidence interval") if by_interval else ("std", "standard deviation")


def _title(results: dict) -> str:
  data = results["data"]
  folds = len(data["divisions"])
  divided = f"{folds} folds" if folds > 1 else "one division"
  chosen = ", CHOSEN ON THE TEST CLIPS" if results["selected_on_test"] else ""
  return (
    f"{data['name']}: {data['clips']} clips, {data['classes']} classes, {divided}; "
    f"encoder {results['encoder']['path']}{_after_steps(results)}; {results['metric']} in %, "
    f"{_seeds(results, _spread(results)[1])}; protocol {results['protocol']}{chosen}"
  )


def _cells(results: dict) -> list[list[str]]:
  rows = results["rows"]
  has = lambda columns: {k: v for k, v in columns.items() if all(k in row for row in rows)}
  spread, task = _spread(results)[0], results["data"]["name"]
  exact = {"exact": (AFTER["exact"][0], lambda x: _percent(x, spread))}
  before, after = has(BEFORE), has(AFTER | exact)
  write = lambda row, columns: [how(row[key]) for key, (_, how) in columns.items()]
  heading = lambda columns: [name.format(**results["config"]) for name, _ in columns.values()]
  other = lambda name, score: [name, *[""] * len(before), score, *[""] * len(after)]
  lines = [["features", *heading(before), f"{results['job']} {results['metric']}", *heading(after)]]
  for row in rows:
    lines.append([row["name"], *write(row, before), _percent(row, spread), *write(row, after)])
  lines.append(other("chance", f"{100 * results['chance']:.1f}"))
  shown = lambda row: other(f"{row['name']} ({row['source']})", f"{row['scores'][task]:.1f}")
  return [*lines, *map(shown, results["published"])]


def _difference_title(results: dict) -> str:
  data, config = results["data"], results["config"]
  sizes = ", ".join(f"{count} {part}" for part, count in data["divisions"][0].items())
  return (
    f"{data['name']}: {data['clips']} mixtures ({sizes}), {data['classes']} classes; "
    f"encoder {results['encoder']['path']}{_after_steps(results)}; {results['metric']} in %, "
    f"{_seeds(results)}; {config['weight']:g} x background subtracted"
  )


def _cells_by_column(results: dict) -> list[list[str]]:
  """A line for each kind of features, and lines for its neighbours, exact probe and loss."""
  spread, knn = _spread(results)[0], results["config"].get("knn")
  found = {(row["features"], row["name"]): row for row in results["rows"]}
  names = list(dict.fromkeys(row["features"] for row in results["rows"]))
  columns = list(dict.fromkeys(row["name"] for row in results["rows"]))
  lines = [["features", "size", *columns]]
  for name in names:
    size = str(found[name, columns[0]]["dimensions"])
    rows = [found[name, column] for column in columns]
    lines.append([name, size, *[_percent(row, spread) for row in rows]])
    if all("knn" in row for row in rows):
      lines.append([f"{name}, {knn}-NN", "", *[f"{100 * row['knn']:.1f}" for row in rows]])
    if all("exact" in row for row in rows):
      lines.append([f"{name}, exact probe", "", *[_percent(row["exact"], spread) for row in rows]])
      above = [f"{row['above_optimum']:.3f}" for row in rows]
      lines.append([f"{name}, loss above optimum", "", *above])
  lines.append(["chance", "", *[f"{100 * results['chance']:.1f}"] * len(columns)])
  for row in results["published"]:
    scores = [f"{row['scores'][column]:.2f}" for column in columns]
    lines.append([f"{row['name']} ({row['source']})", "", *scores])
  return lines


def _retrieval_title(results: dict) -> str:
  data = results["data"]
  sizes = "; ".join(
    f"{scene}: {', '.join(f'{count} {split}' for split, count in part.items())} pairs"
    for scene, part in data["pairs"].items()
  )
  encoder = f"encoder {results['encoder']['path']}{_after_steps(results)}"
  return f"{data['name']} ({sizes}); {encoder}; recall in %, {_seeds(results)}"


def _retrieval_cells(results: dict) -> list[list[str]]:
  """A row for each kind of features and query, chance last, then what was published."""
  columns = list(dict.fromkeys((row["scene"], row["name"]) for row in results["rows"]))
  systems = list(dict.fromkeys((row["features"], row["system"]) for row in results["rows"]))
  systems.sort(key=lambda key: key[1] == "chance")
  found = {
    (row["features"], row["system"], row["scene"], row["name"]): row for row in results["rows"]
  }
  lines = [["features", "query", *(f"{scene} {name}" for scene, name in columns)]]
  for name, system in systems:
    cells = (found[name, system, *column] for column in columns)
    lines.append([name, system, *(_percent(cell, "std") for cell in cells)])
  for row in results["published"]:
    scores = [row["scores"].get(f"{scene} {name}") for scene, name in columns]
    if any(score is not None for score in scores):
      written = ["" if score is None else f"{score:.1f}" for score in scores]
      lines.append([f"{row['name']} ({row['source']})", "audio + text", *written])
  return lines


_TITLES = {"difference": _difference_title, "retrieval": _retrieval_title}
_CELLS = {"difference": _cells_by_column, "few": _cells_by_column, "retrieval": _retrieval_cells}
