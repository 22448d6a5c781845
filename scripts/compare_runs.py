"""Finished runs side by side: those whose configs differ in the seed alone are one setting, with mean and standard deviation.

    python scripts/compare_runs.py output/fat_tiny/mine_* --recall rare_class
    python scripts/compare_runs.py output/fat_tiny/mine_* --output results/mine

A setting is called by the keys in which it differs from the others. Its figures are those of the last epoch, which no choice among
epochs on the same images has made better. --output also writes them as Markdown, and those of each run as CSV.
"""

import shlex
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Optional, Sequence

from command_line import Parser, importing, run_script
from utils.config import to_dict, value_of
from utils.errors import ConfigError, DataError
from utils.markdown import aligned_table, markdown_table
from utils.run_files import MISTAKES, RESULT, read_config, require_object
from utils.schema import KEYS, Role

FIGURES = ("acc1", "balanced_accuracy", "f1_macro")
REMEDY = "give folders of finished runs, such as output/fat_tiny/digits"


def run_row(run: Path, figures: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """A run's figures after its last epoch, and what they depend on.

    Raises:
        DataError: the run is not finished, or lacks one of them.
    """
    result = require_object(run / RESULT, REMEDY)
    last = result["last"]
    missing = [name for name in figures if name not in last]
    if missing:
        there = ", ".join(name for name, value in last.items() if isinstance(value, float))
        raise DataError(f"{run / RESULT}", f"has no figure {missing[0]}", f"those that it has: {there}")
    recalls = recalls_of(run, last["weights"]) if classes else {}
    unknown = [name for name in classes if name not in recalls]
    if unknown:
        raise DataError(f"{run / MISTAKES}", f"has no class {unknown[0]}", f"those that it has: {', '.join(recalls)}")
    return {
        "run": run.name,
        "seed": result["seed"],
        "epochs": result["epochs"],
        **{name: last[name] for name in figures},
        **{f"recall of {name}": recalls[name] for name in classes},
        **{key: result[key] for key in ("date", "commit", "machine", "versions")},
    }


def recalls_of(run: Path, weights: str) -> dict[str, float]:
    """The recall of each class (percent) in the evaluation after the last epoch, as the report shows it."""
    sections = require_object(run / MISTAKES, REMEDY)["weights"][weights]
    (table,) = [section for section in sections if section["title"] == "Classes"]
    column = table["columns"].index("recall, %")
    return {row[0]: float(row[column]) for row in table["rows"]}


def settings_of(runs: Sequence[Path]) -> list[str]:
    """What each run is called by: what its config says otherwise than the first one's, but for the seed and where it lies."""
    configs = [to_dict(read_config(run)) for run in runs]
    keys = [name for name, key in KEYS.items() if key.role is not Role.RUN]
    settings = []
    for cfg in configs:
        changed = [key for key in keys if value_of(cfg, key) != value_of(configs[0], key)]
        settings.append(", ".join(f"{key} {value_of(cfg, key) or repr(value_of(cfg, key))}" for key in changed))
    return [setting or "as the first" for setting in settings]


def summary(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """A table: of each setting its runs, and mean and standard deviation (over n - 1) of each figure."""
    table = [["setting", "runs", *names]]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == setting]
        cells = []
        for name in names:
            values = [row[name] for row in own]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        table.append([setting, str(len(own)), *cells])
    return table


def main(argv: Optional[Sequence[str]] = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folders of finished runs; the first is what others are called by",
    )
    parser.add_argument(
        "--figures",
        nargs="+",
        default=FIGURES,
        metavar="NAME",
        help=f"figures of an evaluation (default: {' '.join(FIGURES)})",
    )
    parser.add_argument("--recall", nargs="+", default=(), metavar="CLASS", help="classes whose recall is shown, too")
    parser.add_argument("--output", type=Path, metavar="PATH", help="writes PATH.md and PATH.csv")
    args = parser.parse_args(argv)
    rows = [
        {"setting": setting, **run_row(run, args.figures, args.recall)}
        for setting, run in zip(settings_of(args.runs), args.runs)
    ]
    times = Counter((row["setting"], row["seed"]) for row in rows)
    again = next((row for row in rows if times[row["setting"], row["seed"]] > 1), None)
    if again:
        raise ConfigError(f"{again['run']}: another run has the same config and seed; give one of them")
    table = summary(rows, [*args.figures, *(f"recall of {name}" for name in args.recall)])
    print(aligned_table(table))
    if args.output:
        with importing():  # after the flags, as it takes seconds
            from parts.reproduce.results import facts_of, write_results
        command = shlex.join(["python", "scripts/compare_runs.py", *argv])
        body = f"""Mean ± standard deviation over the seeds, after the last epoch; all but losses in percent.

{markdown_table(table)}
"""
        write_results(args.output, "Runs side by side", command, facts_of(rows), body, rows)
    return 0


if __name__ == "__main__":
    run_script(main)
