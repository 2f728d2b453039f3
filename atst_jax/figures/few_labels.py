"""The curve of an evaluation of few labels: score over the number of labelled clips per class."""

from atst_jax.figures.pictures import COLORS, literal, save


def few_labels_curve(results: dict, path: str) -> None:
  """A line for each kind of features, with the 95 % interval over draws if there are several, and
  chance.

  Args:
    results: the content of a results.json of the job `few`.
    path: PNG to write.
  """
  from matplotlib.figure import Figure

  rows = results["rows"]
  kinds = list(dict.fromkeys(row["features"] for row in rows))
  numbers = sorted({row["clips_per_class"] for row in rows})
  figure = Figure(figsize=(7.5, 4.5), layout="constrained")
  axis = figure.subplots()
  for place, kind in enumerate(kinds):
    mine = [row for row in rows if row["features"] == kind]
    mean = [100 * row["mean"] for row in mine]
    half = [100 * (row["ci95"] or 0) for row in mine]
    axis.errorbar(
      [row["clips_per_class"] for row in mine],
      mean,
      yerr=half,
      fmt="o-",
      color=COLORS[place % len(COLORS)],
      markersize=4,
      linewidth=1.4,
      capsize=3,
      label=kind,
    )
  axis.axhline(100 * results["chance"], color="0.35", linestyle="--", linewidth=1, label="chance")
  axis.set_xscale("log", base=2)
  axis.set_xticks(numbers, map(str, numbers))
  axis.minorticks_off()
  draws = results["config"]["few"]["draws"]
  what = f"mean and 95 % interval over {draws} draws" if draws > 1 else "one draw"
  axis.set(xlabel="labelled clips per class", ylabel=f"{results['metric']} in %", ylim=(0, None))
  axis.set_title(literal(f"{results['data']['name']}: {what}", 70), fontsize=10)
  axis.grid(alpha=0.25)
  axis.spines[["top", "right"]].set_visible(False)
  axis.legend(frameon=False, fontsize=8)
  save(figure, path)
