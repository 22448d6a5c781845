"""What is written of a benchmark: a CSV of all candidates, tables in Markdown, and a picture."""

import csv
from pathlib import Path
from statistics import median, quantiles
from typing import Sequence

import torch

from utils import provenance
from utils.markdown import markdown_table

from .candidates import LABELS, PLAIN, Candidate

PUBLISHED = provenance.ROOT / "configs" / "published.csv"


def rows_of(task: str, batch_size: int, candidates: Sequence[Candidate]) -> list[dict]:
    base = {c.model: median(c.seconds) for c in candidates if c.form == PLAIN and c.precision == "float32"}
    same = {(c.model, c.precision): median(c.seconds) for c in candidates if c.form == PLAIN}
    rows = []
    for c in candidates:
        middle = median(c.seconds)
        low, _, high = quantiles(c.seconds, n=4, method="inclusive") if len(c.seconds) > 1 else (middle,) * 3
        rows.append({
            "task": task, "batch_size": batch_size, "model": c.model, "form": c.form, "precision": c.precision,
            "images_per_second": round(batch_size / middle, 2),
            "lower_quartile": round(batch_size / high, 2), "upper_quartile": round(batch_size / low, 2),
            "ratio_to_plain_float32": round(base[c.model] / middle, 2) if c.model in base else "",
            "ratio_to_plain": round(same[c.model, c.precision] / middle, 2) if (c.model, c.precision) in same else "",
            "memory_mib": round(c.memory_mib, 1) if c.memory_mib == c.memory_mib else "", "first_seconds": round(c.first_seconds, 2),
        })  # fmt: skip
    return rows


def environment(device: torch.device, kept: bool) -> list[str]:
    """What the figures depend on, a line each."""
    memory = (
        "freed memory is kept (mallopt), for all candidates"
        if kept
        else "the C library's memory settings are the environment's"
    )
    return [*provenance.environment(device), memory]


def write_results(output: Path, rows: list[dict], facts: list[str], command: str) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = ["# Benchmark", "", f"`{command}`, synthetic images. " + "; ".join(facts) + ".", ""]
    text += [
        "Ratios are to the plain form (`scripts/parts/benchmark/plain_fat.py`: NCHW, one operator after the other) of the same model in float32,",
        "and of the same precision. 16 bits: autocast for the plain and eager forms, rounded weights for the fused one. Memory: tensors",
        "at the fullest moment. First call: with compilation.",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        for batch_size in dict.fromkeys(row["batch_size"] for row in rows if row["task"] == task):
            text += ["", f"## {task}, batch {batch_size}", ""]
            text.append(table([row for row in rows if (row["task"], row["batch_size"]) == (task, batch_size)]))
    output.with_suffix(".md").write_text("\n".join(text) + "\n")
    draw(output.with_suffix(".png"), rows, facts)


def table(rows: Sequence[dict]) -> str:
    head = [
        "model", "form", "precision", "images/s", "quartiles", "ratio to plain float32", "same precision", "memory, MiB", "first call, s",
    ]  # fmt: skip
    lines = [
        [
            row["model"], row["form"], row["precision"], f"{row['images_per_second']:.1f}",
            f"{row['lower_quartile']:.1f} to {row['upper_quartile']:.1f}", row["ratio_to_plain_float32"], row["ratio_to_plain"],
            row["memory_mib"], row["first_seconds"],
        ]
        for row in rows
    ]  # fmt: skip
    return markdown_table([head, *lines])


def draw(path: Path, rows: list[dict], facts: list[str]) -> None:
    """Published accuracy over measured inference speed, each model in torch's fastest form of each precision."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(PUBLISHED) as file:
        top1 = {row["model"]: (float(row["top1"]), row["img_size"]) for row in csv.DictReader(file)}
    timed = [
        r
        for r in rows
        if r["task"].startswith("inference") and r["model"] in top1 and not r["form"].endswith(tuple(LABELS.values()))
    ]
    if not timed:
        return
    batch_size = max(r["batch_size"] for r in timed)
    figure, axes = plt.subplots(figsize=(9, 6))
    for precision, marker in zip(dict.fromkeys(r["precision"] for r in timed), "os^"):
        for fat, color in ((True, "tab:red"), (False, "tab:gray")):
            best: dict[str, float] = {}
            for r in timed:
                if (r["batch_size"], r["precision"], r["model"].startswith("fat_")) == (batch_size, precision, fat):
                    best[r["model"]] = max(best.get(r["model"], 0), r["images_per_second"])
            label = f"{'FAT (paper)' if fat else 'peers (timm)'}, {precision}"
            axes.scatter(best.values(), [top1[m][0] for m in best], c=color, marker=marker, label=label)
            if precision == timed[0]["precision"]:
                for m, speed in best.items():
                    size = f" ({top1[m][1]} px)" if top1[m][1] != "224" else ""
                    text, place = m.replace("_patch4_window7_224", "") + size, (speed, top1[m][0])
                    axes.annotate(text, place, fontsize=8, xytext=(4, 4), textcoords="offset points")
    axes.set(
        xscale="log",
        xlabel=f"images/s, inference, batch {batch_size}, measured, fastest form",
        ylabel="ImageNet top-1, %, published",
    )
    axes.set_title("; ".join(facts[:2]), fontsize=8)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
