"""The COCO table: parameters and MACs of RetinaNet and Mask R-CNN on FAT, 80 classes. AP is published, not measured here."""

import argparse
from typing import Any

import torch

from engine.tasks import create_task
from utils.config import load_config
from utils.macs import measure_complexity
from utils.markdown import markdown_table
from utils.provenance import environment

from .cells import CONFIGS
from .results import NOT_MEASURED, Outcome, read_expected, write_results

CELLS = [f"detection/{head}_fat_b{size}_1x" for head in ("retinanet", "mask_rcnn") for size in range(4)]
INPUT = (800, 800)  # height and width
NOTES = """Parameters and MACs are computed; no published ones are at hand to compare them with. MACs are those of one image of 800x800 px, of all
matrix products, with attention; Mask R-CNN's have the boxes' head on 1000 regions, and not the masks', which depend on how much is
detected."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def reproduce(args: argparse.Namespace) -> Outcome:
    """Writes coco.md and .csv."""
    expected = read_expected()
    rows = [row_of(cell, {name: value for (of, name), value in expected.items() if of == cell}) for cell in CELLS]
    head = ["model", "parameters", "GMACs", "box AP, %", "verdict", "mask AP, %", "verdict"]
    lines = [
        [
            f"[{row['model']}](../configs/{row['model']}.yaml)", f"{row['params']:,}", row["gmacs"], f"{row['box_ap_published']} (published)",
            NOT_MEASURED, f"{row['mask_ap_published']} (published)" if row["mask_ap_published"] else "",
            NOT_MEASURED if row["mask_ap_published"] else "",
        ]
        for row in rows
    ]  # fmt: skip
    body = "\n\n".join([markdown_table([head, *lines]), NOTES, f"Published figures: {rows[0]['source']}."])
    write_results(
        args.output / "coco", "COCO detection, 12 epochs", args.command, environment(torch.device("cpu")), body, rows
    )
    return Outcome()


def row_of(cell: str, known: dict) -> dict[str, Any]:
    """A model's row of the CSV."""
    cfg = load_config(CONFIGS / f"{cell}.yaml")
    model = create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES)
    if hasattr(model, "roi_heads"):
        model.roi_heads.score_thresh = 1.0  # random weights detect now more, now less
    found = measure_complexity(model, (3, *INPUT))
    return {
        "model": cell,
        "params": found.params,
        "gmacs": f"{found.macs / 1e9:.1f}",
        "box_ap_published": known["box_ap"].text,
        "mask_ap_published": known["mask_ap"].text if "mask_ap" in known else "",
        "ap_verdict": NOT_MEASURED,
        "source": known["box_ap"].source,
    }
