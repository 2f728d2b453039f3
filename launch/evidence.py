"""The evidence on real sound, from recordings to its tables: docs/evidence.md.

  python launch/evidence.py --recordings=recordings --output=runs/evidence
  python launch/evidence.py … --seeds=0,1,2 --only=cnn,…
  python launch/evidence.py … --dry_run      prints the commands
  python launch/evidence.py … --tables       the tables of what is done so far

`recordings/` holds `esc10/CLASS/FOLD-ID-TAKE.ogg` and `fsdd/DIGIT_SPEAKER_INDEX.flac`. What an
encoder is tested on it has not been pre-trained on: it sees folds 1 to 3 of ESC-10 (240 clips) and
as many digits, without labels, and is tested on folds 4 and 5. Clips of a Freesound recording share
a fold. BgKnown mixes the classes EVENTS into BACKGROUNDS.

Further flags, --config.KEY=VALUE, go to every pre-training: `--config.total_steps=4000` trains
longer.

Commands run one after the other, a seed at a time; what is done is skipped, and what was stopped
goes on.
"""

import argparse
import itertools
import json
import os
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import scipy.stats
from sweep import commands

from atst_jax.util.config import flatten, load_with_overrides
from atst_jax.util.markdown import table_lines

EXIT_RESUME = 75
EVENTS = (
  "baby_cry",
  "chainsaw",
  "clock_tick",
  "dog_bark",
  "helicopter",
  "person_sneeze",
  "rooster",
)
BACKGROUNDS = ("fire_crackling", "rain", "sea_waves")
TRAINED_FOLDS = "123"
DIGIT_TAKES = range(5, 9)  # of 50 of every digit and speaker: 240 clips
FRONTENDS = {"transformer": "atst", "cnn": "difference", "ablation": "atst"}
SWEEPS = {"transformer": "lambda", "cnn": "lambda", "ablation": "views"}
# The best of 200 epochs: with as few clips, 20 epochs without a better loss are common before it
# begins to fall.
PROBE = ("--config.probe.patience=200", "--config.probe.monitor=loss")
COLUMNS = ("Mix", "(a) 100%", "(b) 50%", "(c) 0%")
LINEAR = "ESC-10"


def write_manifests(recordings: pathlib.Path, output: pathlib.Path) -> None:
  """pretrain.csv, and esc10.csv with its split."""
  clips = sorted((recordings / "esc10").glob("*/*.ogg"))
  digits = [
    path
    for path in sorted((recordings / "fsdd").glob("*.flac"))
    if int(path.stem.split("_")[2]) in DIGIT_TAKES
  ]
  if not clips or not digits:
    raise SystemExit(
      f"--recordings={recordings} needs esc10/CLASS/FOLD-ID-TAKE.ogg and "
      "fsdd/DIGIT_SPEAKER_INDEX.flac"
    )
  name = lambda path: path.relative_to(recordings).as_posix()
  trained = [path for path in clips if path.name[0] in TRAINED_FOLDS]
  rows = [
    f"{name(path)},{path.parent.name},{'train' if path in trained else 'test'}" for path in clips
  ]
  output.mkdir(parents=True, exist_ok=True)
  (output / "pretrain.csv").write_text("\n".join(["path", *map(name, trained + digits)]) + "\n")
  (output / "esc10.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")


def data_steps(recordings: pathlib.Path, output: pathlib.Path, frontend: str):
  """Yields (what is there when it is done, command) of a front-end's sets."""
  for name, manifest in ((frontend, "pretrain"), (f"esc10_{frontend}", "esc10")):
    yield (
      output / name / "dataset.json",
      [
        "data_pipeline.prepare",
        f"--input={output / manifest}.csv",
        f"--root={recordings}",
        f"--output={output / name}",
        f"--frontend={frontend}",
        f"--name={manifest}",
      ],
    )
  sets = [
    flag
    for kind, labels in (("foreground", EVENTS), ("background", BACKGROUNDS))
    for flag in (
      f"--{kind}={recordings / 'esc10'}",
      f"--{kind}_layout=esc10",
      f"--{kind}_labels={','.join(labels)}",
    )
  ]
  folder = output / f"bgknown_{frontend}"
  yield (
    folder / "c" / "dataset.json",
    [
      "data_pipeline.bgknown",
      *sets,
      "--seconds=2",
      "--per_clip=4",
      f"--output={folder}",
      f"--frontend={frontend}",
    ],
  )


def run_steps(output: pathlib.Path, variant: str, command: list[str], first: bool):
  """Yields the steps of one pre-training: itself, its export and its evaluations."""
  frontend = FRONTENDS[variant]
  workdir = pathlib.Path(
    next(word for word in command if word.startswith("--workdir=")).removeprefix("--workdir=")
  )
  encoder = workdir / "encoder"

  def evaluation(name, config, data, *flags):
    yield (
      workdir / name / "results.json",
      [
        "atst_jax.main",
        f"--config=configs/{config}",
        f"--workdir={workdir / name}",
        f"--config.encoder={encoder}",
        f"--config.data.path={output / f'{data}_{frontend}'}",
        *PROBE,
        *flags,
      ],
    )

  yield encoder, ["atst_jax.main", *command, f"--config.data.path={output / frontend}"]
  yield encoder / "config.json", ["atst_jax.export", f"--workdir={workdir}", f"--output={encoder}"]
  if variant != "ablation":
    yield from evaluation(
      "bgknown", "bgknown.py", "bgknown", *([] if first else ["--config.baselines=()"])
    )
  yield from evaluation("esc10", "linear.py:evar", "esc10")


def pretrainings(output: pathlib.Path, variant: str, overrides: list[str]) -> list[list[str]]:
  """The flags of every pre-training of a variant. Ends the program if one of `overrides` is not a
  config's."""
  return commands(
    [
      f"--config=configs/evidence.py:{variant}",
      f"--workdir={output / variant}",
      f"--sweep={SWEEPS[variant]}",
      *overrides,
    ]
  )


def run(step: list[str], dry_run: bool) -> None:
  """Runs a command until it is done. Ends the program if it fails."""
  command = [sys.executable, "-m", *step]
  print(shlex.join(command), flush=True)
  while not dry_run and (code := subprocess.run(command).returncode):
    if code != EXIT_RESUME:
      raise SystemExit(f"exit code {code}: {shlex.join(command)}")


def scores(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
  """{kind of features: {column: mean over the probe's seeds}} of one pre-training, in percent."""
  found = {}
  for name in ("bgknown", "esc10"):
    path = workdir / name / "results.json"
    if not path.is_file():
      continue
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
      kind, column = (row["features"], row["name"]) if name == "bgknown" else (row["name"], LINEAR)
      found.setdefault(kind, {})[column] = 100 * row["mean"]
  return found


def interval(values: list[float]) -> str:
  """Mean and half width of its 95 % confidence interval (Student's t), and how many are above 0."""
  mean, n = float(np.mean(values)), len(values)
  if n == 1:
    return f"{mean:+.1f}"
  half = scipy.stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5
  return f"{mean:+.1f} ± {half:.1f} ({sum(value > 0 for value in values)} of {n})"


def agree(command: list[str], overrides: list[str]) -> None:
  """Ends the program if a pre-training that has begun was given other values of the keys that are
  overridden."""
  config, workdir = (
    next(word.removeprefix(flag) for word in command if word.startswith(flag))
    for flag in ("--config=", "--workdir=")
  )
  path = pathlib.Path(workdir) / "config.json"
  if not overrides or not path.is_file():
    return
  stored = flatten(json.loads(path.read_text(encoding="utf-8")))
  asked = flatten(load_with_overrides(config, overrides))
  for flag in overrides:
    key = flag.removeprefix("--config.").partition("=")[0]
    if json.loads(json.dumps(asked[key])) != stored.get(key):
      raise SystemExit(
        f"{workdir} was trained with {key}={stored.get(key)}, not {flag}: choose another --output"
      )


def tables(output: pathlib.Path, variants: list[str], wanted: list[str]) -> str:
  """What was measured, as Markdown: means and standard deviations over pre-trainings, and paired
  differences."""
  text = []
  for variant in variants:
    runs = {}  # settings without the seed -> seed -> scores
    for workdir in sorted((output / variant).glob("*_seed=*")):
      setting, _, seed = workdir.name.rpartition("_seed=")
      if seed in wanted and (found := scores(workdir)):
        runs.setdefault(setting, {})[int(seed)] = found
    if not runs:
      continue
    kinds = [
      kind
      for kind in dict.fromkeys(k for seeds in runs.values() for r in seeds.values() for k in r)
      if kind.startswith("pre-trained")
    ]
    columns = [*(COLUMNS if variant != "ablation" else ()), LINEAR]
    rows = [["run", "features", "seeds", *columns]]
    for kind, (setting, seeds) in itertools.product(kinds, runs.items()):
      values = [[r[kind][c] for r in seeds.values() if c in r.get(kind, {})] for c in columns]
      if any(values):
        write = lambda v: (
          f"{np.mean(v):.1f}" + (f" ± {np.std(v, ddof=1):.1f}" if len(v) > 1 else "") if v else ""
        )
        rows.append([setting, kind, len(seeds), *map(write, values)])
    for kind in dict.fromkeys(
      k for seeds in runs.values() for r in seeds.values() for k in r if k not in kinds
    ):
      every = [r[kind] for seeds in runs.values() for r in seeds.values() if kind in r]
      cells = [[r[c] for r in every if c in r] for c in columns]
      rows.append(["", kind, "", *(f"{np.mean(v):.1f}" if v else "" for v in cells)])
    text += [
      f"**{variant}**",
      "",
      *table_lines(rows, numbers=1 + len(columns)),
      "",
      *paired(runs, kinds, columns),
      "",
    ]
  return "\n".join(text)


def paired(runs: dict, kinds: list[str], columns: list[str]) -> list[str]:
  """Differences to the first setting at the same seed: mean, 95 % confidence interval, and how many
  seeds gained."""
  first, *others = runs
  rows = [[f"minus {first}, by seed", "features", *columns]]
  for kind, setting in itertools.product(kinds, others):
    cells = []
    for column in columns:
      values = [
        one[kind][column] - runs[first][seed][kind][column]
        for seed, one in runs[setting].items()
        if seed in runs[first]
        and column in one.get(kind, {})
        and column in runs[first][seed].get(kind, {})
      ]
      cells.append(interval(values) if values else "")
    if any(cells):
      rows.append([setting, kind, *cells])
  return table_lines(rows, numbers=len(columns)) if len(rows) > 1 else []


def main() -> int:
  """Returns 0. Raises SystemExit naming a command that fails."""
  parser = argparse.ArgumentParser(
    "python launch/evidence.py",
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--recordings", required=True, type=pathlib.Path, help="folder with esc10/ and fsdd/"
  )
  parser.add_argument(
    "--output",
    required=True,
    type=pathlib.Path,
    help="folder of all data and runs; made if need be",
  )
  parser.add_argument(
    "--seeds", default="0,1,2", help="of the pre-trainings, separated by commas (default 0,1,2)"
  )
  parser.add_argument("--only", default=",".join(FRONTENDS), help="variants, separated by commas")
  parser.add_argument(
    "--dry_run", action="store_true", help="print the commands that are left, and end"
  )
  parser.add_argument(
    "--tables", action="store_true", help="print the tables of what is done, and end"
  )
  flags, overrides = parser.parse_known_args()
  variants = [name for name in flags.only.split(",") if name]
  if unknown := set(variants) - set(FRONTENDS):
    parser.error(
      f"--only={flags.only}: no variant {', '.join(unknown)}; there are {', '.join(FRONTENDS)}"
    )
  output = flags.output
  if not flags.tables:
    write_manifests(flags.recordings, output)
    frontends = dict.fromkeys(FRONTENDS[name] for name in variants)
    steps = itertools.chain.from_iterable(
      data_steps(flags.recordings, output, name) for name in frontends
    )
    found = {name: pretrainings(output, name, overrides) for name in variants}
    runs = [
      (name, command)
      for seed in flags.seeds.split(",")
      for name in variants
      for command in found[name]
      if f"--config.seed={seed}" in command
    ]
    seen = set()
    for variant, command in runs:
      agree(command, overrides)
      steps = itertools.chain(steps, run_steps(output, variant, command, first=variant not in seen))
      seen.add(variant)
    for done, step in steps:
      if not os.path.exists(done):
        run(step, flags.dry_run)
    if flags.dry_run:
      return 0
  text = tables(output, variants, flags.seeds.split(","))
  if not flags.tables:
    (output / "evidence.md").write_text(text, encoding="utf-8")
  print(text)
  return 0


if __name__ == "__main__":
  sys.exit(main())
