"""Spectral analysis of FASA (paper, Figure 4): Fourier magnitudes of what one block computes of an image.

Rows: (a) local aggregation, (b) global aggregation, (c) "add + linear", W(local + global), (d) the checkpoint's own
interaction. W is the block's own projection in (c), too. Columns: output channels. Low frequencies are in the centre.
"""

import argparse
import textwrap
from typing import Optional, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch

from models.inspection import FASAMaps, inspect_fasa
from utils.errors import CheckpointError, ConfigError
from utils.markdown import markdown_table
from utils.provenance import environment

from ..visualize.inputs import require_number
from ..visualize.show_fasa import MOST_CHANNELS, channels_shown
from . import figure_inputs
from .plots import literal, save_png
from .results import Outcome, write_results

LEAST_SIDE = 4  # of a map: below it there is hardly a frequency
OWN = {
    "released": "bidirectional interaction (as released)",
    "bidirectional": "bidirectional interaction (the paper's equation)",
    "add": "add (the checkpoint's own)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    figure_inputs.add_arguments(parser, img_size=224)
    parser.add_argument("--stage", type=int, default=1, help="from 1 (default: 1)")
    parser.add_argument("--block", type=int, default=1, help="in the stage, from 1 (default: 1)")
    parser.add_argument(
        "--channels",
        type=int,
        nargs="+",
        metavar="CHANNEL",
        help=f"from 0, at most {MOST_CHANNELS} (default: 8, evenly spaced)",
    )


def reproduce(args: argparse.Namespace) -> Outcome:
    trained, path = figure_inputs.inputs_of(args)
    stages = trained.model.layers
    stage = require_number("--stage", args.stage, len(stages), trained.cfg.MODEL.NAME)
    block = require_number("--block", args.block, len(stages[stage].blocks), f"stage {args.stage}")
    _, image = figure_inputs.read_image(path, trained, args.img_size)
    inspected = inspect_fasa(trained.model, image, stage, block)
    try:
        maps = maps_of(inspected)
    except ValueError as error:
        raise CheckpointError(
            f"{trained.path}: {error}, which the figure compares; use a checkpoint with both sides and one W"
        ) from error
    side, channels = inspected.q.shape[-1], inspected.q.shape[1]
    if side < LEAST_SIDE:
        raise ConfigError(
            f"--img-size: at {args.img_size} px stage {args.stage} has maps of {side} x {side}; give a greater one"
        )
    shown = channels_shown(args.channels, channels)

    spectra = {name: spectrum(values) for name, values in maps.items()}
    where = f"FASA of stage {args.stage}, block {args.block}: maps of {channels} x {side} x {side}"
    introduction = trained.introduce(args.img_size)
    figure = draw({name: magnitudes[shown] for name, magnitudes in spectra.items()}, shown)
    figure.suptitle(
        "\n".join(map(literal, filter(None, [f"{where}, image {path}", introduction, trained.limits]))), fontsize=8
    )
    save_png(figure, args.output / "figure4.png")

    rows = [
        {"map": name, "channel": channel, "in_figure": int(channel in shown), **measured(magnitudes[channel])}
        for name, magnitudes in spectra.items()
        for channel in range(channels)
    ]
    body = "\n\n".join(filter(None, [
        f"Image `{path}`, {introduction}. {trained.limits}",
        f"{where}. Fourier magnitude, logarithm to base 10 relative to each panel's largest; lighter is larger, low "
        "frequencies are in the centre. (c) uses the same weights W as (d): it is what this block would give if it added "
        "instead, not a model that was trained to add.",
        "![](figure4.png)",
        "Share of a map's energy (squared magnitude) above half the Nyquist frequency, mean over channels, in percent. "
        "A map's mean is the frequency zero; without it only what varies over the map counts.",
        markdown_table(table(rows)),
        " ".join(findings(rows)),
    ]))  # fmt: skip
    facts = environment(torch.device("cpu"))
    write_results(args.output / "figure4", "Figure 4: spectral analysis of FASA", args.command, facts, body, rows)
    return Outcome()


def maps_of(inspected: FASAMaps) -> dict[str, np.ndarray]:
    """The figure's four rows, (C, H, W) each.

    Raises:
        ValueError: the interaction does not have them all.
    """
    rows = {
        "(a) local aggregation": inspected.local_aggregation,
        "(b) global aggregation": inspected.global_aggregation,
        "(c) add + linear": inspected.added,
        f"(d) {OWN[inspected.fasa.interaction]}": inspected.output,
    }
    return {name: values[0].double().numpy() for name, values in rows.items()}


def spectrum(maps: np.ndarray) -> np.ndarray:
    """Fourier magnitudes of maps (..., H, W), the frequency zero in the centre, at [H // 2, W // 2]."""
    return np.abs(np.fft.fftshift(np.fft.fft2(maps), axes=(-2, -1)))


def frequencies(height: int, width: int) -> np.ndarray:
    """The radial frequency at each place of a `spectrum`, 1 at the Nyquist frequency of an axis: (H, W)."""
    rows, columns = (np.fft.fftshift(np.fft.fftfreq(size)) * 2 for size in (height, width))
    return np.hypot(rows[:, None], columns[None, :])


def measured(magnitude: np.ndarray) -> dict[str, float]:
    """One map's shares of energy in percent, and the mean of log10 of its magnitude by radial frequency.

    A share is '' where there is no energy.
    """
    radius, energy = frequencies(*magnitude.shape), magnitude**2
    constant, high, total = energy[radius == 0].sum(), energy[radius > 0.5].sum(), energy.sum()
    varying = total - constant if total - constant > 1e-12 * total else 0.0  # what is left is rounding
    row = {
        "high_share": round(100 * high / total, 4) if total else "",
        "high_share_without_mean": round(100 * high / varying, 4) if varying else "",
    }
    step = 2 / max(magnitude.shape)  # the distance of two frequencies
    bins = np.rint(radius / step).astype(int).ravel()
    logs = np.log10(magnitude + np.finfo(np.float32).tiny).ravel()
    means = np.bincount(bins, logs) / np.bincount(bins)
    return row | {f"log10_at_{number * step:.3f}_nyquist": round(mean, 4) for number, mean in enumerate(means)}


def table(rows: Sequence[dict]) -> list[list[str]]:
    lines = [["", "shown channels", "all channels", "shown, without mean", "all, without mean"]]
    for name in dict.fromkeys(row["map"] for row in rows):
        own = [row for row in rows if row["map"] == name]
        figured = [row for row in own if row["in_figure"]]
        means = [mean_of(part, key) for key in ("high_share", "high_share_without_mean") for part in (figured, own)]
        lines.append([name, *("-" if mean is None else f"{mean:.2f}" for mean in means)])
    return lines


def mean_of(rows: Sequence[dict], key: str) -> Optional[float]:
    values = [row[key] for row in rows if row[key] != ""]
    return sum(values) / len(values) if values else None


def findings(rows: Sequence[dict]) -> list[str]:
    """Sentences that follow from the shares of what varies over the map."""
    key = "high_share_without_mean"
    by_map = {
        name[:3]: {r["channel"]: r[key] for r in rows if r["map"] == name}
        for name in dict.fromkeys(r["map"] for r in rows)
    }
    sentences = []
    for first, second, names in (
        ("(a)", "(b)", ("local", "global")),
        ("(d)", "(c)", ("this block's own interaction", "addition")),
        ("(d)", "(b)", ("this block's own interaction", "global aggregation")),
    ):
        pairs = [
            (by_map[first][c], by_map[second][c])
            for c in by_map[first]
            if "" not in (by_map[first][c], by_map[second][c])
        ]
        more = sum(a > b for a, b in pairs)
        sentences.append(
            f"{first} {names[0]} has the larger share of high frequencies than {second} {names[1]} in {more} of {len(pairs)} channels."
        )
    return ["Without the mean:", *sentences]


def draw(spectra: dict[str, np.ndarray], channels: Sequence[int]) -> plt.Figure:
    """A row per map, a column per channel; one scale for all panels, from -4 to 0 decades of each panel's largest."""
    size = (1.3 * len(channels) + 1.6, 1.35 * len(spectra) + 1.1)
    figure, grid = plt.subplots(
        len(spectra), len(channels), figsize=(max(size[0], 8), size[1]), squeeze=False, layout="constrained"
    )
    for line, (name, magnitudes) in zip(grid, spectra.items()):
        for axes, magnitude in zip(line, magnitudes):
            largest = magnitude.max()
            decades = np.log10(np.maximum(magnitude / largest if largest else magnitude, 1e-4))
            shown = axes.imshow(decades, cmap="viridis", vmin=-4, vmax=0, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(textwrap.fill(name, 18), fontsize=8, rotation=0, ha="right", va="center")
    for axes, channel in zip(grid[0], channels):
        axes.set_title(f"channel {channel}", fontsize=8)
    bar = figure.colorbar(shown, ax=grid, shrink=0.8, pad=0.01)
    bar.set_label("log10 of magnitude / the panel's largest", fontsize=8)
    return figure
