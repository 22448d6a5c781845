"""Prints a run's figures as a table and draws its curves: python scripts/summarize_run.py output/fat_tiny/digits"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def read_records(run: Path) -> dict[str, list[dict[str, Any]]]:
    """metrics.jsonl by kind of record."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        fail(f"{path}: no such file; give the folder of a run, such as output/fat_b0/default")
    records: dict[str, list[dict[str, Any]]] = {"start": [], "train": [], "epoch": []}
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            records[record["kind"]].append(record)
        except (ValueError, KeyError, TypeError):
            print(f"warning: {path}: left out a line that is no record: {line[:60]!r}", file=sys.stderr)
    if not all(records.values()):
        fail(f"{path}: has no finished epoch yet; try again later")
    return records


def draw_curves(records: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Loss and accuracy over epochs, as a PNG."""
    epochs = [r["epoch"] + 1 for r in records["epoch"]]
    weights = [name for name in ("raw", "ema") if name in records["epoch"][0]]
    figure, (loss_axes, accuracy_axes) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    loss_axes.plot(epochs, [r["train_loss"] for r in records["epoch"]], label="training (augmented, smoothed)")
    for name in weights:
        loss_axes.plot(epochs, [r[name]["loss"] for r in records["epoch"]], label=f"validation, {name}")
        accuracy_axes.plot(epochs, [r[name]["acc1"] for r in records["epoch"]], label=f"top-1, {name}")
    loss_axes.set(xlabel="epoch", ylabel="loss", title="Loss")
    accuracy_axes.set(xlabel="epoch", ylabel="%", title="Validation accuracy")
    for axes in (loss_axes, accuracy_axes):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def table_rows(run: Path, records: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    start = records["start"][-1]
    rows = [
        ("model", f"{start['model']}, {start['params'] / 1e6:.2f} M parameters, {start['img_size']} px"),
        ("training images", f"{start['train_images']:,}"),
        ("validation images", f"{start['val_images']:,}"),
        ("classes", str(start["classes"])),
    ]
    split = Path(start["data_path"]) / "val"
    if start["data_path"] and split.is_dir():
        sizes = Counter({folder.name: sum(1 for _ in folder.iterdir()) for folder in split.iterdir() if folder.is_dir()})
        name, count = sizes.most_common(1)[0]
        rows.append(("majority-class guess", f"{100 * count / sizes.total():.2f} % (always {name})"))
    evaluation = run / "eval.json"
    if evaluation.is_file():
        try:
            result = json.loads(evaluation.read_text())
            result["raw"]["acc1"]
        except (ValueError, KeyError, TypeError):
            fail(f"{evaluation}: is no evaluation's result; run main.py --eval again")
        rows.append(("evaluated checkpoint", result["checkpoint"]))
    else:
        result = records["epoch"][-1]
        rows.append(("evaluated", f"after epoch {result['epoch'] + 1}"))
    for name in ("raw", "ema"):
        if name in result:
            rows.append((f"{name} acc1 / acc5", f"{result[name]['acc1']:.2f} % / {result[name]['acc5']:.2f} %"))
    if result.get("unreadable") or result.get("raw", {}).get("unreadable"):
        missing = result.get("unreadable") or result["raw"]["unreadable"]
        rows.append(("NOT THE FULL SET", f"{missing} images could not be read and are in no metric"))
    speed = median(r["images_per_second"] for r in records["train"])
    return rows + [("training speed", f"{speed:.1f} images/s (median, {start['device']})"), ("run", str(run))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    run = parser.parse_args().run
    records = read_records(run)
    draw_curves(records, run / "curves.png")
    rows = [*table_rows(run, records), ("curves", str(run / "curves.png"))]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
