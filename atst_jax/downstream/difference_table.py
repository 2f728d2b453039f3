"""The results of an evaluation on sounds in known backgrounds as a table: a row for each kind of features."""

from atst_jax.markdown import table_lines


def title(results: dict) -> str:
  """What was measured, on what and how."""
  data, config, encoder = results["data"], results["config"], results["encoder"]
  step = encoder["provenance"].get("step")
  sizes = ", ".join(f"{count} {part}" for part, count in data["divisions"][0].items())
  seeds = f"mean ± standard deviation over {config['seeds']} seeds" if config["seeds"] > 1 else "one seed"
  return (f"{data['name']}: {data['clips']} mixtures ({sizes}), {data['classes']} classes; encoder {encoder['path']}"
          f"{'' if step is None else f' after {step} steps'}; {results['metric']} in %, {seeds}; "
          f"{config['weight']:g} x background subtracted")  # fmt: skip


def cells(results: dict) -> list[list[str]]:
  """The header, a row for each kind of features, chance, and the published rows."""
  percent = lambda row: f"{100 * row['mean']:.1f}" + ("" if row["std"] is None else f" ± {100 * row['std']:.1f}")
  found = {(row["features"], row["name"]): row for row in results["rows"]}
  names, columns = (list(dict.fromkeys(row[key] for row in results["rows"])) for key in ("features", "name"))
  rows = [["features", "size", *columns]]
  rows += [[name, str(found[name, columns[0]]["dimensions"]), *[percent(found[name, c]) for c in columns]]
           for name in names]  # fmt: skip
  rows.append(["chance", "", *[f"{100 * results['chance']:.1f}"] * len(columns)])
  rows += [[f"{row['name']} ({row['source']})", "", *[f"{row['scores'][c]:.2f}" for c in columns]]
           for row in results["published"]]  # fmt: skip
  return rows


def markdown(results: dict) -> str:
  """A Markdown table."""
  table = cells(results)
  return "\n".join([f"{title(results)}.", "", *table_lines(table, numbers=len(table[0]) - 1)]) + "\n"
