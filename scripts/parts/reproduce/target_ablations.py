"""The paper's questions: FAT-B0 with one part changed (configs/ablations/). Parameters and MACs of each, counted.

Accuracy is measured by training: with the whole recipe on ImageNet (each config's header has the command; a finished run's
figure then stands here), or with --proxy by a short schedule on a small set, several seeds each, compared by a paired test.
"""

import argparse
import os
from pathlib import Path
from typing import Any, Mapping, Optional

import matplotlib.pyplot as plt
import torch

from engine.tasks import create_task
from utils.config import load_config, value_of
from utils.image_size import height_and_width
from utils.macs import Complexity, measure_complexity
from utils.markdown import markdown_table
from utils.provenance import environment
from utils.schema import KEYS

from . import cells, proxy
from .plots import save_png
from .results import NOT_MEASURED, REPRODUCED, ROOT, Outcome, read_expected, write_results

CONFIGS = ROOT / "configs" / "ablations"
BASE = "base"
PROXY = ROOT / "configs" / "proxy" / "short.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cells.add_arguments(parser)
    parser.add_argument(
        "--proxy", nargs="?", type=Path, const=PROXY, metavar="YAML",
        help="train all variants by this config's short schedule (default: configs/proxy/short.yaml)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5, help="of the proxy: runs of each variant (default: 5)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="of the proxy: runs at a time (default: one a core)",
    )
    parser.add_argument(
        "--proxy-runs",
        type=Path,
        default=Path("output/proxy"),
        help="where the proxy's runs lie (default: output/proxy)",
    )


def reproduce(args: argparse.Namespace) -> Outcome:
    """Counts each variant, compares with configs/expected.csv, and trains the proxy if asked to."""
    names = variants()
    measured, refused = cells.measure(args, [f"ablations/{name}" for name in names])
    outcome = Outcome(refused=refused)
    rows = [row_of(name, measured.get(f"ablations/{name}"), outcome) for name in names]
    write_table(args, rows)
    if args.proxy:
        proxy.reproduce(args, {name: changes_of(name) for name in names}, BASE)
    return outcome


def variants() -> list[str]:
    """Names of the configs, the base first."""
    return [BASE, *sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != BASE)]


def changes_of(name: str) -> dict[str, Any]:
    """{config key: value} of what a variant has and the base has not."""
    cfg, base = (load_config(CONFIGS / f"{n}.yaml") for n in (name, BASE))
    values = {key: (value_of(cfg, key), value_of(base, key)) for key in KEYS if key.startswith("MODEL.")}
    return {key: own for key, (own, of_base) in values.items() if own != of_base}


def count(name: str) -> Complexity:
    cfg = load_config(CONFIGS / f"{name}.yaml")
    return measure_complexity(
        create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES), (3, *height_and_width(cfg.DATA.IMG_SIZE))
    )


def row_of(name: str, measured: Optional[Mapping[str, Any]], outcome: Outcome) -> dict[str, Any]:
    """A variant's row; what misses its expected value is added to `outcome`."""
    counted, expected = count(name), read_expected()
    row = {"variant": name, "change": describe(changes_of(name))}
    for quantity in ("params", "conv_macs", "macs"):
        value, wanted = getattr(counted, quantity), expected[f"ablations/{name}", quantity]
        verdict = wanted.verdict(value)
        row |= {quantity: value, f"expected_{quantity}": wanted.text, f"{quantity}_verdict": verdict}
        if verdict != REPRODUCED:
            outcome.missed.append(f"ablations/{name}: {quantity} is {value}, expected {wanted.text} ({wanted.source})")
    return {
        **row,
        "top1": f"{measured['acc1']:.2f}" if measured else NOT_MEASURED,
        "top1_source": cells.provenance(measured) if measured else "",
    }


def describe(changes: dict[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('MODEL.FAT.')}: {value}" for key, value in changes.items()) or "none: FAT-B0"


def write_table(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """results/ablations.md, .csv and .png."""
    base = rows[0]
    table = [
        [
            "config",
            "change",
            "parameters, M",
            "to base",
            "MACs, convolutions, G",
            "to base",
            "MACs, all matrix products, G",
            "to base",
            "verdict",
            "ImageNet top-1, %",
        ]
    ]
    for row in rows:
        line = [f"[{row['variant']}](../configs/ablations/{row['variant']}.yaml)", row["change"]]
        for quantity, unit in (("params", 1e6), ("conv_macs", 1e9), ("macs", 1e9)):
            line += [
                f"{row[quantity] / unit:.3f}",
                f"{(row[quantity] - base[quantity]) / unit:+.3f}" if row is not base else "",
            ]
        verdicts = {row[f"{quantity}_verdict"] for quantity in ("params", "conv_macs", "macs")}
        table.append([*line, ", ".join(sorted(verdicts)), row["top1"]])
    sources = "\n\n".join(f"{row['variant']}: {row['top1_source']}" for row in rows if row["top1_source"])
    body = f"""FAT-B0 at 224 px with one part changed. The verdict compares the counts, to the last unit, with a closed form of each variant's
equations ([configs/expected.csv](../configs/expected.csv)); the paper's own ablation figures were not at hand. Top-1 is of finished runs of
these configs on ImageNet; ablations_short.md compares the variants on a small set, which says little about ImageNet.

{markdown_table(table)}

SiLU(l) SiLU(g) reads both ways: as local side with its self-modulation times the modulated global side, and as each side modulated by
the other. So `interaction_bidirectional` without self-modulation is the base itself; `no_self_modulation` leaves W(l sigmoid(g) g). `ffn_mlp`
keeps the ConvFFN of the three blocks that make the map smaller. The strided convolution's kernel, 2 window + 1, is this project's choice.

{sources}
"""
    write_results(
        args.output / "ablations", "Ablations: sizes", args.command, environment(torch.device("cpu")), body, rows
    )
    draw(args.output / "ablations.png", rows)


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Each variant's parameters and MACs over the base's."""
    base, others = rows[0], rows[1:]
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(others) + 1.2), layout="constrained")
    for offset, (quantity, label) in enumerate([("params", "parameters"), ("macs", "MACs, all matrix products")]):
        places = [index + 0.38 * (offset - 0.5) for index in range(len(others))]
        percent = [100 * (row[quantity] / base[quantity] - 1) for row in others]
        bars = axes.barh(places, percent, height=0.36, label=label)
        axes.bar_label(bars, [f"{value:+.1f}" for value in percent], fontsize=8, padding=3)
    axes.set_yticks(range(len(others)), [row["variant"] for row in others])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="difference from FAT-B0, %")
    axes.legend(loc="lower left", fontsize=8)
    save_png(figure, path)
