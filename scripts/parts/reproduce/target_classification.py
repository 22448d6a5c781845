"""The classification table: parameters, MACs and ImageNet top-1 of FAT-B0 to B3, beside timm's models of their sizes.

Parameters and MACs are counted here. Top-1 is measured where a finished training run of configs/<cell>.yaml is found
(--runs), or a checkpoint is evaluated (--data-path, --checkpoints); what was measured stays in <output>/measured/.
"""

import argparse
from pathlib import Path
from typing import Any, Mapping, Sequence

import matplotlib.pyplot as plt
import torch

from engine.tasks import create_task
from utils.config import load_config
from utils.image_size import height_and_width
from utils.macs import Complexity, measure_complexity
from utils.markdown import markdown_table
from utils.provenance import environment

from . import cells
from .cells import CONFIGS
from .plots import label_points, point_name, save_png
from .results import (
    DIFFERS,
    REPRODUCED,
    Expected,
    Outcome,
    read_expected,
    read_published,
    write_results,
)

CELLS = ["fat_b0", "fat_b1", "fat_b2", "fat_b3"]
NOTES = """Verdicts: a computed figure is "reproduced" where it rounds to what is printed (parameters: is the released code's number, too).
The paper's "FLOPs" are multiply-accumulates (MACs) of the convolutions only; all matrix products are those of attention and linear
layers, too. Top-1 is reproduced within 0.3 points: 50,000 images alone give a standard error of 0.19 points at 77.6 %, other seeds add
to that, and the paper gives one figure without a spread. It is that of the epoch that was best on the validation images, on which
alone it is chosen; the last epoch's is said beside it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cells.add_arguments(parser)


def reproduce(args: argparse.Namespace) -> Outcome:
    """Writes classification.md, .csv and .png."""
    expected, published = read_expected(), read_published()
    measured, refused = cells.measure(args, CELLS)
    outcome, rows = Outcome(refused=refused), []
    for cell in CELLS:
        found = count(cell)
        figures = {
            "params": found.params, "params_m": found.params / 1e6, "conv_gmacs_paper": found.conv_macs / 1e9,
            "conv_gmacs": found.conv_macs / 1e9, "gmacs": found.macs / 1e9,
        }  # fmt: skip
        for quantity, value in figures.items():
            known = expected[cell, quantity]
            if known.verdict(value) != REPRODUCED:
                outcome.missed.append(f"{cell}: {quantity} is {value:.10g}, expected {known.text} ({known.source})")
        rows.append(row_of(cell, figures, measured.get(cell), expected))
    peers = [{**dict.fromkeys(rows[0], ""), **peer_row(row)} for row in published if row["model"] not in CELLS]
    beside = sorted(rows + peers, key=lambda row: float(row["params"]))
    sources = dict.fromkeys(row["source"] for row in published)
    body = "\n\n".join([
        markdown_table([
            ["model", "parameters", "verdict", "GMACs, convolutions", "verdict", "GMACs, all matrix products", "verdict", "top-1, %", "verdict"],
            *([
                f"[{row['model']}](../configs/{row['model']}.yaml)",
                f"{row['params']:,} (paper: {row['params_m_expected']} M)", row["params_verdict"],
                f"{row['conv_gmacs']} (paper: {row['conv_gmacs_paper']}; released code: {row['conv_gmacs_expected']})", row["conv_gmacs_verdict"],
                f"{row['gmacs']} (released code: {row['gmacs_expected']})", row["gmacs_verdict"],
                top1_text(row), row["top1_verdict"],
            ] for row in rows),
        ]),
        *(f"{cell}: {cells.provenance(measured[cell])}" for cell in CELLS if cell in measured),
        NOTES,
        "## Beside models of their sizes",
        "All at their published input size; GMACs and top-1 of the others as published, FAT's GMACs those of all matrix products. "
        "Recipes differ: `dist` in a name is distillation, `in12k` and `in22k` pretraining on more images.",
        markdown_table([
            ["model", "px", "parameters, M", "GMACs", "top-1, %"],
            *([
                f"**{row['model']}**" if row["kind"] == "FAT" else row["model"], row["img_size"], f"{row['params'] / 1e6:.2f}",
                row["gmacs"], f"**{top1_text(row)}**" if row["kind"] == "FAT" else row["top1_published"],
            ] for row in beside),
        ]),
        "Published figures: " + "; ".join(sources) + ".",
    ])  # fmt: skip
    output = args.output / "classification"
    write_results(
        output, "ImageNet-1k classification, 224 px", args.command, environment(torch.device("cpu")), body, beside
    )
    draw(output.with_suffix(".png"), beside)
    return outcome


def count(cell: str) -> Complexity:
    """Of the model as its config builds it."""
    cfg = load_config(CONFIGS / f"{cell}.yaml")
    model = create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES)
    return measure_complexity(model, (3, *height_and_width(cfg.DATA.IMG_SIZE)))


def row_of(
    cell: str, figures: Mapping[str, float], measured: Mapping[str, Any], expected: Mapping[tuple[str, str], Expected]
) -> dict[str, Any]:
    """A model's row of the CSV."""

    def verdict(*quantities: str) -> str:
        return REPRODUCED if all(expected[cell, q].verdict(figures[q]) == REPRODUCED for q in quantities) else DIFFERS

    acc1 = expected[cell, "acc1"]
    return {
        "model": cell,
        "kind": "FAT",
        "img_size": 224,
        "params": figures["params"],
        "params_m_expected": expected[cell, "params_m"].text,
        "params_verdict": verdict("params", "params_m"),
        "conv_gmacs": f"{figures['conv_gmacs']:.3f}",
        "conv_gmacs_paper": expected[cell, "conv_gmacs_paper"].text,
        "conv_gmacs_expected": expected[cell, "conv_gmacs"].text,
        "conv_gmacs_verdict": verdict("conv_gmacs", "conv_gmacs_paper"),
        "gmacs": f"{figures['gmacs']:.3f}",
        "gmacs_expected": expected[cell, "gmacs"].text,
        "gmacs_verdict": verdict("gmacs"),
        "top1_measured": f"{measured['acc1']:.2f}" if measured else "",
        "top1_published": acc1.text,
        "top1_verdict": acc1.verdict(measured and measured["acc1"]),
        "source": cells.provenance(measured) if measured else acc1.source,
    }


def peer_row(published: Mapping[str, str]) -> dict[str, Any]:
    """What is published of a timm model, for its row of the CSV."""
    return {
        "model": published["weights"],
        "kind": "peer",
        "img_size": published["img_size"],
        "params": round(float(published["params_m"]) * 1e6),
        "gmacs": published["gmacs"],
        "top1_published": published["top1"],
        "source": published["source"],
    }


def top1_text(row: Mapping[str, Any]) -> str:
    if row["top1_measured"]:
        return f"{row['top1_measured']} measured (paper: {row['top1_published']})"
    return f"{row['top1_published']} (the paper's)"


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Top-1 over parameters."""
    figure, axes = plt.subplots(figsize=(11, 8))
    for label, marker, face, kind, key in (
        ("timm's models, published", "o", "tab:gray", "peer", "top1_published"),
        ("FAT, the paper's figure", "s", "none", "FAT", "top1_published"),
        ("FAT, measured", "s", "tab:red", "FAT", "top1_measured"),
    ):
        shown = [(row["params"] / 1e6, float(row[key])) for row in rows if row["kind"] == kind and row[key]]
        edge = "tab:gray" if kind == "peer" else "tab:red"
        if shown:
            axes.scatter(
                *zip(*shown),
                marker=marker,
                facecolors=face,
                edgecolors=edge,
                s=18 if kind == "peer" else 50,
                label=label,
            )
    axes.set(xscale="log", xlim=(3.3, 40), xlabel="parameters, M", ylabel="ImageNet-1k top-1, %")
    ticks = [3, 5, 7, 10, 15, 20, 30]
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    label_points(
        axes,
        [
            (row["params"] / 1e6, float(row["top1_published"]), point_name(row["model"], row["img_size"]))
            for row in rows
        ],
    )
    save_png(figure, path)
