"""The ADE20K table: parameters and MACs of FAT under Semantic FPN and UperNet, 150 classes. mIoU is published, not measured here."""

import argparse
from typing import Any

import torch

from engine.tasks import create_task
from utils.config import load_config
from utils.macs import layer_macs, measure_complexity
from utils.markdown import markdown_table
from utils.provenance import environment

from .cells import CONFIGS
from .results import DIFFERS, NOT_MEASURED, REPRODUCED, Expected, Outcome, read_expected, write_results

CELLS = [*(f"segmentation/semantic_fpn_fat_b{size}" for size in range(4)), "segmentation/upernet_fat_b3"]
NOTES = """Verdicts: a computed figure is "reproduced" where it rounds to what is printed. The published "FLOPs" are what mmcv's counter
gives: multiply-accumulates of convolutions with their biases, two for each value of a BatchNorm and one of a ReLU, nothing for
attention. All matrix products are those of attention, too. UperNet's MACs are without the auxiliary head, its parameters with it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def reproduce(args: argparse.Namespace) -> Outcome:
    """Writes ade20k.md and .csv."""
    expected, outcome, rows = read_expected(), Outcome(), []
    for cell in CELLS:
        known = {quantity: value for (name, quantity), value in expected.items() if name == cell}
        figures = count(cell, known)
        for quantity, value in figures.items():
            if quantity in known and known[quantity].verdict(value) != REPRODUCED:
                published = known[quantity]
                outcome.missed.append(
                    f"{cell}: {quantity} is {value:.10g}, expected {published.text} ({published.source})"
                )
        rows.append(row_of(cell, figures, known))
    body = "\n\n".join(
        [
            markdown_table(
                [
                    ["model", "parameters", "verdict", "input", "GMACs, mmcv's count", "verdict", "GMACs, all matrix products", "mIoU, %", "verdict"],
                    *(
                        [
                            f"[{row['model']}](../configs/{row['model']}.yaml)",
                            f"{row['params']:,} (published: {row['params_m_published']} M)", row["params_verdict"], row["input"],
                            f"{row['gflops']} (published: {row['gflops_published']})", row["gflops_verdict"], row["gmacs"],
                            f"{row['miou_published']} (published)", row["miou_verdict"],
                        ]
                        for row in rows
                    ),
                ]
            ),
            NOTES,
            f"Published figures: {rows[0]['source']}.",
        ]
    )  # fmt: skip
    title = "ADE20K semantic segmentation"
    write_results(args.output / "ade20k", title, args.command, environment(torch.device("cpu")), body, rows)
    return outcome


def input_of(known: dict[str, Expected]) -> tuple[str, tuple[int, int]]:
    """The name of the quantity of MACs, and the height and width that it says."""
    quantity = next(name for name in known if name.startswith("gflops_"))
    height, width = map(int, quantity.removeprefix("gflops_").split("x"))
    return quantity, (height, width)


def count(cell: str, known: dict[str, Expected]) -> dict[str, float]:
    """Of the model as its config builds it, on no device, as only shapes are counted."""
    cfg = load_config(CONFIGS / f"{cell}.yaml")
    with torch.device("meta"):
        model = create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES)
    quantity, size = input_of(known)
    found = measure_complexity(model, (3, *size))
    return {
        "params": found.params,
        "params_m": found.params / 1e6,
        quantity: layer_macs(model, (3, *size)) / 1e9,
        "gmacs": found.macs / 1e9,
    }


def row_of(cell: str, figures: dict[str, float], known: dict[str, Expected]) -> dict[str, Any]:
    """A model's row of the CSV."""
    quantity, (height, width) = input_of(known)
    params = {known[name].verdict(figures[name]) for name in ("params", "params_m")}
    return {
        "model": cell,
        "params": figures["params"],
        "params_m_published": known["params_m"].text,
        "params_verdict": REPRODUCED if params == {REPRODUCED} else DIFFERS,
        "input": f"{height}x{width}",
        "gflops": f"{figures[quantity]:.1f}",
        "gflops_published": known[quantity].text,
        "gflops_verdict": known[quantity].verdict(figures[quantity]),
        "gmacs": f"{figures['gmacs']:.1f}",
        "miou_published": known["miou"].text,
        "miou_verdict": NOT_MEASURED,
        "source": known["params_m"].source,
    }
