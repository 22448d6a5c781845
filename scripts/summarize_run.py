"""Prints a run's figures as a table and draws its curves: python scripts/summarize_run.py output/fat_tiny/digits"""

import json
from collections import Counter
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from command_line import Parser, run_script
from utils.errors import DataError
from utils.image_size import size_text
from utils.metrics import DETAILS
from utils.run_files import EVAL, Records, median_speed, read_config, read_figures, weights_in

matplotlib.use("Agg")


COUNTS = ("num_images", "num_classes", "unreadable")  # beside the figures of an evaluation, whatever the task


def figures_in(records: Records) -> list[str]:
    """What an evaluation of the run's task gives, the loss and means over classes aside; first what the task goes by."""
    return [name for name in records["epoch"][-1]["raw"] if name not in ("loss", *COUNTS, *DETAILS)]


def draw_curves(records: Records, path: Path) -> None:
    """The loss and the task's first figure over epochs, as a PNG."""
    epochs = [r["epoch"] + 1 for r in records["epoch"]]
    first = figures_in(records)[0]
    figure, (loss_axes, figure_axes) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    training_loss = [r["train_loss"] for r in records["epoch"]]
    loss_axes.plot(epochs, training_loss, color="grey", label="training (augmented, smoothed)")
    for name in weights_in(records):  # of one colour in both
        if "loss" in records["epoch"][-1][name]:  # not every task has one
            loss_axes.plot(epochs, [r[name]["loss"] for r in records["epoch"]], label=f"validation, {name}")
        figure_axes.plot(epochs, [r[name][first] for r in records["epoch"]], label=name)
    loss_axes.set(xlabel="epoch", ylabel="loss", title="Loss")
    figure_axes.set(xlabel="epoch", ylabel=first, title=f"Validation, {first}")
    for axes in (loss_axes, figure_axes):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120, format="png")


def table_rows(run: Path, records: Records) -> list[tuple[str, str]]:
    start = records["start"][-1]
    rows = [
        ("model", f"{start['model']}, {start['params'] / 1e6:.2f} M parameters, {size_text(start['img_size'])} px"),
        ("training images", f"{start['train_images']:,}"),
        ("validation images", f"{start['val_images']:,}"),
        ("classes", str(start["classes"])),
    ]
    split = Path(start["data_path"]) / "val"
    if start["data_path"] and split.is_dir():
        sizes = Counter(
            {folder.name: sum(1 for _ in folder.iterdir()) for folder in split.iterdir() if folder.is_dir()}
        )
        for name, count in sizes.most_common(1):  # none where images do not lie in folders of classes
            rows.append(("majority-class guess", f"{100 * count / sizes.total():.2f} % (always {name})"))
    evaluation = run / EVAL
    if evaluation.is_file():
        try:
            result = json.loads(evaluation.read_text())
            result["raw"][figures_in(records)[0]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{evaluation}: is no evaluation's result; run main.py --eval again") from error
        rows.append(("evaluated checkpoint", result["checkpoint"]))
    else:
        result = records["epoch"][-1]
        rows.append(("evaluated", f"after epoch {result['epoch'] + 1}"))
    figures = figures_in(records)
    chosen_by = read_config(run).TRAIN.BEST_METRIC
    if chosen_by in DETAILS:  # a mean over classes that was asked for
        figures.append(chosen_by)
    for name in ("raw", "ema"):
        if name in result:
            values = [f"{result[name][key]:.2f}{' %' * key.startswith('acc')}" for key in figures]
            rows.append((f"{name} {' / '.join(figures)}", " / ".join(values)))
    if result.get("unreadable") or result.get("raw", {}).get("unreadable"):
        missing = result.get("unreadable") or result["raw"]["unreadable"]
        rows.append(("NOT THE FULL SET", f"{missing} images could not be read and are in no metric"))
    return rows + [
        ("training speed", f"{median_speed(records):.1f} images/s (median, {start['device']})"),
        ("run", str(run)),
    ]


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--curves", type=Path, help="PNG for the curves (default: curves.png in the run's folder)")
    args = parser.parse_args()
    curves = args.curves or args.run / "curves.png"
    records = read_figures(args.run)
    draw_curves(records, curves)
    rows = [*table_rows(args.run, records), ("curves", str(curves))]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


if __name__ == "__main__":
    run_script(main)
