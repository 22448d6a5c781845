"""Accuracy over cost (paper, Figure 2): ImageNet top-1 over MACs and over measured images/s, FAT beside timm's models.

MACs of FAT are counted here at 224 px: all matrix products (filled markers), as timm's tables count, and convolutions only
(hollow ones), as the paper does. Accuracies are published ones (configs/published.csv), of FAT the measured one where
OUTPUT/measured/<cell>.json or results/measured/ has it. Images/s come from a CSV of scripts/benchmark.py.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional

import matplotlib.pyplot as plt
import timm
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

import models  # noqa: F401 (registers FAT with timm)
from utils.errors import DataError
from utils.macs import measure_complexity
from utils.markdown import markdown_table
from utils.provenance import environment

from . import cells
from .plots import label_points, point_name, save_png
from .results import ROOT, Outcome, read_published, write_results
from .target_speed import fastest, read_speed

FALLBACK = ROOT / "results" / "benchmark_cpu.csv"
IMG_SIZE = 224
FAT_COLOUR, PEER_COLOUR = "tab:red", "tab:gray"


@dataclass
class Point:
    """A model of the figure."""

    model: str
    is_fat: bool
    img_size: int
    top1: float
    top1_source: str
    gmacs: float
    conv_gmacs: Optional[float]  # of FAT only
    images_per_second: Optional[float] = None
    form: str = ""


@dataclass
class Speeds:
    """Measured inference of one batch size and precision."""

    by_model: dict[str, tuple[float, str]]  # images/s and form, the fastest one
    batch_size: int
    precision: str
    machine: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--speed", type=Path, metavar="CSV",
        help=f"of scripts/benchmark.py (default: OUTPUT/speed.csv, or {FALLBACK.relative_to(ROOT)} if that is not there)",
    )  # fmt: skip


def reproduce(args: argparse.Namespace) -> Outcome:
    path = args.speed or next(filter(Path.is_file, [args.output / "speed.csv"]), FALLBACK)
    speeds = read_speeds(path)
    published = read_published()
    measured, refused = cells.kept(args.output, [row["model"] for row in published if not row["weights"]])
    points = [point_of(row, measured.get(row["model"])) for row in published]
    for point in points:
        point.images_per_second, point.form = speeds.by_model.get(point.model, (None, ""))
    unmeasured = [point.model for point in points if point.images_per_second is None]
    unpublished = sorted(set(speeds.by_model) - {point.model for point in points})

    save_png(draw(points, speeds), args.output / "figure2.png")
    source = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    notes = [
        "![](figure2.png)",
        f"MACs of FAT are counted here, with one forward pass at {IMG_SIZE} px: all matrix products, as timm's tables count, and in "
        "brackets convolutions only, as the paper does. Peers' MACs and accuracies are timm's, at the size in the table (and beside the "
        f"name in the figure, where it is not {IMG_SIZE}); all were timed at one size, scripts/benchmark.py's --img-size.",
        f"Images/s: `{source}`, inference, batch {speeds.batch_size}, {speeds.precision}, {speeds.machine}; of each model its fastest form in "
        "torch. FAT's fused form has no counterpart among the peers, which are re-parameterised where they can be.",
    ]
    if unmeasured:
        notes.append(f"Without a measurement, and so not in the right panel: {', '.join(unmeasured)}.")
    if unpublished:
        notes.append(f"Measured, but without a published row, and so in neither panel: {', '.join(unpublished)}.")
    sources = list(dict.fromkeys(point.top1_source for point in points))
    head = ["model", "px", "GMACs", "top-1, %", "top-1 from", "images/s", "form"]
    lines = [
        [p.model, p.img_size, f"{p.gmacs:.2f}" + (f" ({p.conv_gmacs:.2f})" if p.is_fat else ""), f"{p.top1:.2f}", f"[{sources.index(p.top1_source) + 1}]",
         "-" if p.images_per_second is None else f"{p.images_per_second:.1f}", p.form]
        for p in points
    ]  # fmt: skip
    rows = [
        {
            "model": p.model, "img_size": p.img_size, "gmacs": round(p.gmacs, 4),
            "conv_gmacs": "" if p.conv_gmacs is None else round(p.conv_gmacs, 4), "top1": p.top1, "top1_source": p.top1_source,
            "images_per_second": "" if p.images_per_second is None else p.images_per_second, "form": p.form,
            "batch_size": speeds.batch_size, "precision": speeds.precision, "machine": speeds.machine,
        }
        for p in points
    ]  # fmt: skip
    body = "\n\n".join(
        [*notes, markdown_table([head, *lines]), *(f"[{number}] {text}" for number, text in enumerate(sources, 1))]
    )
    write_results(
        args.output / "figure2",
        "Figure 2: accuracy over cost",
        args.command,
        environment(torch.device("cpu")),
        body,
        rows,
    )
    return Outcome(refused=refused)


def point_of(row: Mapping[str, str], measured: Optional[Mapping[str, Any]]) -> Point:
    """A row of configs/published.csv as a point, with what was measured of its cell."""
    point = Point(row["model"], not row["weights"], int(row["img_size"]), float(row["top1"]), row["source"], 0.0, None)
    if not point.is_fat:
        point.gmacs = float(row["gmacs"])
        return point
    complexity = measure_complexity(timm.create_model(point.model), (3, IMG_SIZE, IMG_SIZE))
    point.gmacs, point.conv_gmacs = complexity.macs / 1e9, complexity.conv_macs / 1e9
    if measured:
        point.top1, point.top1_source = measured["acc1"], "measured here"
    return point


def read_speeds(path: Path) -> Speeds:
    """The fastest form of each model in torch, at the batch size and precision that most models were timed with; of several
    such ones at the largest batch, and in float32.

    Raises:
        DataError: no such file, or none of scripts/benchmark.py, or none of inference.
    """
    rows = read_speed(path)
    kinds = {(row["batch_size"], row["precision"]) for row in rows if row["task"].startswith("inference")}
    groups = {kind: fastest(rows, "inference", *kind) for kind in kinds}
    if not groups:
        raise DataError(f"{path}: has no inference; run scripts/benchmark.py --tasks inference")
    batch_size, precision = max(groups, key=lambda kind: (len(groups[kind]), int(kind[0]), kind[1] == "float32"))
    by_model = {
        name: (float(row["images_per_second"]), row["form"]) for name, row in groups[batch_size, precision].items()
    }
    return Speeds(by_model, int(batch_size), precision, machine_of(path))


def machine_of(path: Path) -> str:
    """The machine that the Markdown beside a benchmark's CSV names."""
    try:
        match = re.search(r"commit [^;]+; ([^;]+)", path.with_suffix(".md").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        match = None
    return match.group(1) if match else "machine not recorded"


def draw(points: list[Point], speeds: Speeds) -> plt.Figure:
    figure, (macs, speed) = plt.subplots(1, 2, figsize=(15, 7), layout="constrained", sharey=True)
    timed = [point for point in points if point.images_per_second is not None]
    scatter(macs, [(point, point.gmacs) for point in points])
    fats = sorted((point for point in points if point.is_fat), key=lambda point: point.conv_gmacs)
    hollow = dict(
        facecolors="none", edgecolors=FAT_COLOUR, label="FAT, convolutions only (the paper's count)", zorder=3
    )
    macs.scatter([point.conv_gmacs for point in fats], [point.top1 for point in fats], **hollow)
    scatter(speed, [(point, point.images_per_second) for point in timed])
    macs.set(
        xlabel=f"GMACs, all matrix products, FAT counted at {IMG_SIZE} px, peers' published", ylabel="ImageNet top-1, %"
    )
    speed.set(
        xlabel=f"images/s, inference, batch {speeds.batch_size}, {speeds.precision}, fastest form in torch\n{speeds.machine}"
    )
    for axes, title in ((macs, "Accuracy over MACs"), (speed, "Accuracy over measured speed")):
        axes.set(xscale="log", title=title)
        axes.margins(x=0.12, y=0.06)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else ""))
        axes.grid(alpha=0.3, which="both")
    macs.legend(fontsize=8, loc="lower right")
    speed.legend(fontsize=8, loc="lower left")
    label_points(macs, [(point.gmacs, point.top1, point_name(point.model, point.img_size)) for point in points])
    label_points(
        speed, [(point.images_per_second, point.top1, point_name(point.model, point.img_size)) for point in timed]
    )
    return figure


def scatter(axes: Axes, places: list[tuple[Point, float]]) -> None:
    kinds = {
        "FAT, top-1 measured here": ("*", FAT_COLOUR, lambda p: p.is_fat and p.top1_source == "measured here"),
        "FAT, top-1 of the paper": ("o", FAT_COLOUR, lambda p: p.is_fat and p.top1_source != "measured here"),
        "timm's models, published": ("s", PEER_COLOUR, lambda p: not p.is_fat),
    }
    for label, (marker, colour, belongs) in kinds.items():
        own = [(x, point.top1) for point, x in places if belongs(point)]
        if own:
            axes.scatter(*zip(*own), c=colour, marker=marker, label=label, zorder=3)
