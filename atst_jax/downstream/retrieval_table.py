"""The results of retrieval as a table for people: a row for each system, a column for each scene and K."""

from atst_jax.markdown import table_lines


def title(results: dict) -> str:
  """What was measured, on what and how."""
  data, config = results["data"], results["config"]
  sizes = "; ".join(f"{scene}: {', '.join(f'{n} {split}' for split, n in part.items())} pairs"
                    for scene, part in data["pairs"].items())  # fmt: skip
  step = results["encoder"]["provenance"].get("step")
  seeds = f"mean ± standard deviation over {config['seeds']} seeds" if config["seeds"] > 1 else "one seed"
  return (f"{data['name']} ({sizes}); encoder {results['encoder']['path']}"
          f"{'' if step is None else f' after {step} steps'}; recall in %, {seeds}")  # fmt: skip


def cells(results: dict) -> list[list[str]]:
  """The header, a row for each kind of features and system, chance last, then what was published."""
  columns = list(dict.fromkeys((row["scene"], row["name"]) for row in results["rows"]))
  systems = list(dict.fromkeys((row["features"], row["system"]) for row in results["rows"]))
  systems.sort(key=lambda key: key[1] == "chance")
  found = {(row["features"], row["system"], row["scene"], row["name"]): row for row in results["rows"]}
  lines = [["features", "query", *(f"{scene} {name}" for scene, name in columns)]]
  for name, system in systems:
    values = [_percent(found[name, system, *column]) for column in columns]
    lines.append([name, system, *values])
  for row in results["published"]:
    values = [row["scores"].get(f"{scene} {name}") for scene, name in columns]
    if any(value is not None for value in values):
      lines.append([f"{row['name']} ({row['source']})", "audio + text",
                    *("" if value is None else f"{value:.1f}" for value in values)])  # fmt: skip
  return lines


def _percent(row: dict) -> str:
  return f"{100 * row['mean']:.1f}" + ("" if row["std"] is None else f" ± {100 * row['std']:.1f}")


def table(results: dict) -> str:
  """Aligned text: words to the left, numbers to the right."""
  lines = cells(results)
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  align = lambda line: "  ".join([c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in
                                  enumerate(zip(line, widths, strict=True))]).rstrip()  # fmt: skip
  rule = "-" * (sum(widths) + 2 * len(widths) - 2)
  return "\n".join([title(results), "", align(lines[0]), rule, *map(align, lines[1:])])


def markdown(results: dict) -> str:
  """The same as a Markdown table."""
  table = cells(results)
  return "\n".join([title(results) + ".", "", *table_lines(table, numbers=len(table[0]) - 2)]) + "\n"
