"""Training curves of two or more runs in one figure: losses and top-1 over epochs, and what differs in their configs.

python scripts/reproduce.py curves output/fat_b0/default output/fat_b0/other
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import matplotlib.pyplot as plt
import torch

from utils.config import to_dict, value_of
from utils.errors import ConfigError
from utils.markdown import markdown_table
from utils.provenance import environment
from utils.run_files import Records, median_speed, read_config, read_figures, weights_in
from utils.schema import KEYS

from .plots import literal, save_png
from .results import Outcome, write_results

MOST_RUNS = 10  # as many as there are colours
PLACES = ("OUTPUT", "TAG")  # say where a run lies, not what it is
STYLES = {"raw": "-", "ema": "--"}


@dataclass
class Run:
    path: Path
    records: Records
    config: dict[str, Any]  # by SECTION.KEY
    name: str = ""

    @property
    def weights(self) -> list[str]:
        return weights_in(self.records)

    @property
    def epochs(self) -> list[dict[str, Any]]:
        return self.records["epoch"]

    def best(self) -> tuple[float, str, int]:
        """The highest top-1, of which weights, after which epoch (from 1); the earliest of several."""
        values = [
            (record[name]["acc1"], name, record["epoch"] + 1)
            for record in self.epochs
            for name in self.weights
            if name in record
        ]
        return max(values, key=lambda item: item[0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, such as output/fat_b0/default"
    )


def reproduce(args: argparse.Namespace) -> Outcome:
    runs = read_runs(args.runs)
    save_png(draw(runs), args.output / "curves.png")
    differing = differences(runs)
    names = [run.name for run in runs]
    body = "\n\n".join([
        "![](curves.png)",
        "Top-1 in percent on each run's own validation images. The training loss is that of the augmented images and with the run's "
        "label smoothing and mixing, so it can be compared only between runs with the same of these.",
        markdown_table([
            ["run", "model", "parameters, M", "epochs", "best top-1", "last top-1, raw", "last top-1, ema", "images/s (median)", "on"],
            *(summary(run) for run in runs),
        ]),
        "Config keys that differ:" if differing else "The runs' configs are the same in every key but those of the folder.",
        markdown_table([["key", *names], *([key, *map(repr, values)] for key, values in differing.items())]) if differing else "",
    ])  # fmt: skip
    write_results(
        args.output / "curves", "Training curves", args.command, environment(torch.device("cpu")), body, rows_of(runs)
    )
    return Outcome()


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of these folders, with names that tell them apart.

    Raises:
        ConfigError: not two or more different runs, or a run's config cannot be read.
        DataError: a folder that is no run, or one without a finished epoch.
    """
    real = [path.resolve() for path in paths]
    again = next((path for number, path in enumerate(paths) if real[number] in real[:number]), None)
    if again:
        raise ConfigError(f"{again}: stands twice; give each run once")
    if not 2 <= len(paths) <= MOST_RUNS:
        raise ConfigError(f"curves: {len(paths)} run(s); give between 2 and {MOST_RUNS} to compare")
    runs = []
    for path in paths:
        records = read_figures(path, ("acc1", "loss"))
        cfg = to_dict(read_config(path))
        runs.append(Run(path, records, {key: value_of(cfg, key) for key in KEYS if key != "BASE"}))
    length = 1
    while len({path.parts[-length:] for path in real}) < len(real):
        length += 1
    for run, path in zip(runs, real):
        run.name = "/".join(path.parts[-max(length, 2) :])
    return runs


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Each run's value of the config keys that not all have the same of."""
    values = {key: [run.config[key] for run in runs] for key in runs[0].config if key not in PLACES}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def summary(run: Run) -> list[str]:
    start, last = run.records["start"][-1], run.epochs[-1]
    accuracy, weights, epoch = run.best()
    return [
        run.name, start["model"], f"{start['params'] / 1e6:.2f}", f"{last['epoch'] + 1} of {run.config['TRAIN.EPOCHS']}",
        f"{accuracy:.2f} ({weights}, epoch {epoch})", *(f"{last[name]['acc1']:.2f}" if name in last else "-" for name in STYLES),
        f"{median_speed(run.records):.1f}", start.get("device", "-"),
    ]  # fmt: skip


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every epoch of every run."""
    return [
        {
            "run": run.name, "epoch": record["epoch"] + 1, "train_loss": record["train_loss"],
            **{f"val_loss_{name}": record[name]["loss"] if name in record else "" for name in STYLES},
            **{f"acc1_{name}": record[name]["acc1"] if name in record else "" for name in STYLES},
        }
        for run in runs
        for record in run.epochs
    ]  # fmt: skip


def draw(runs: Sequence[Run]) -> plt.Figure:
    """A colour per run; solid lines of the weights, dashed ones of their average."""
    figure, (training, validation, accuracy) = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    for number, run in enumerate(runs):
        colour, dot = f"C{number}", "o" if len(run.epochs) == 1 else ""
        epochs = [record["epoch"] + 1 for record in run.epochs]
        training.plot(
            epochs, [record["train_loss"] for record in run.epochs], color=colour, marker=dot, label=literal(run.name)
        )
        for name in run.weights:
            how = dict(color=colour, marker=dot, linestyle=STYLES[name], label=literal(f"{run.name}, {name}"))
            points = [(record["epoch"] + 1, record[name]) for record in run.epochs if name in record]
            validation.plot([epoch for epoch, _ in points], [found["loss"] for _, found in points], **how)
            accuracy.plot([epoch for epoch, _ in points], [found["acc1"] for _, found in points], **how)
    for axes, title, unit in (
        (training, "Training loss (augmented images)", "loss"), (validation, "Validation loss", "loss"), (accuracy, "Top-1", "%")
    ):  # fmt: skip
        axes.set(xlabel="epoch", ylabel=unit, title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8)
    return figure
