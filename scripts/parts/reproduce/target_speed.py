"""The speed table: images/s of FAT and of timm's models, as scripts/benchmark.py times them on the device at hand."""

import argparse
import csv
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, DataError
from utils.files import atomic_write, require_no_device, unreadable
from utils.markdown import markdown_table

from .results import ROOT, Outcome, read_published, read_published_speed, write_results

# A few minutes on one core, where benchmark.py's own settings take an hour.
QUICK = [
    "--tasks",
    "inference",
    "--precisions",
    "float32",
    "--compile-mode",
    "",
    "--batch-sizes",
    "8",
    "--rounds",
    "3",
    "--seconds",
    "0.1",
]
COLUMNS = {"task", "batch_size", "model", "form", "precision", "images_per_second"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="inference alone, float32, batch 8, 3 rounds: some minutes on a CPU"
    )
    parser.add_argument("--csv", type=Path, help="make the table of this file of benchmark.py, and time nothing")


def reproduce(args: argparse.Namespace) -> Outcome:
    """Times, unless `--csv` gives the figures, and writes results/speed.md, .csv and .png; with `--quick` results/speed_quick.*."""
    if args.csv and args.quick:
        raise ConfigError("--csv contradicts --quick, which times; give one of them")
    output = args.output / ("speed_quick" if args.quick else "speed")  # what took an hour is not overwritten
    with tempfile.TemporaryDirectory() as folder:
        source = args.csv or benchmark(Path(folder) / "speed", QUICK if args.quick else [])
        rows = read_speed(source)
        facts = facts_of(source.with_suffix(".md"))
        write_results(output, "Speed", args.command, facts, body_of(rows, f"{output.name}.csv"), rows)
        picture = source.with_suffix(".png")
        if picture.is_file():
            with atomic_write(output.with_suffix(".png")) as file:
                file.write(picture.read_bytes())
    return Outcome()


def benchmark(output: Path, settings: list[str]) -> Path:
    """Runs benchmark.py; returns its CSV."""
    done = subprocess.run([sys.executable, ROOT / "scripts" / "benchmark.py", *settings, "--output", str(output)])
    if done.returncode:
        raise ConfigError(f"scripts/benchmark.py ended with status {done.returncode}; see what it says above")
    return output.with_suffix(".csv")


def read_speed(path: Path) -> list[dict[str, Any]]:
    """The rows of one of benchmark.py's files.

    Raises:
        DataError: it is not there, or none of those.
    """
    what = "make it with scripts/benchmark.py"
    try:
        require_no_device(path)
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        good = (
            bool(rows)
            and COLUMNS <= set(rows[0])
            and all(0 < float(row["images_per_second"]) < math.inf for row in rows)
        )
    except OSError as error:
        raise unreadable(path, error, what) from error
    except (ValueError, TypeError, csv.Error):
        good = False
    if not good:
        raise DataError(f"{path}: is no table of scripts/benchmark.py; {what}")
    return rows


def fastest(rows: list[dict[str, Any]], task: str, batch_size: str, precision: str) -> dict[str, dict[str, Any]]:
    """Each model's fastest row; of a FAT that took turns with the peers too, that one, as machines drift."""
    found: dict[str, dict[str, Any]] = {}
    for beside in (" beside peers", ""):
        here: dict[str, dict[str, Any]] = {}
        for row in rows:
            if (row["task"], row["batch_size"], row["precision"]) != (
                task + beside,
                batch_size,
                precision,
            ) or row["form"].endswith(("OpenVINO", "onnxruntime")):
                continue
            best = here.get(row["model"])
            if best is None or float(row["images_per_second"]) > float(best["images_per_second"]):
                here[row["model"]] = row
        found = {**here, **found}
    return found


def body_of(rows: list[dict[str, Any]], every_form: str) -> str:
    """The tables; `every_form` is the file that has what they leave out."""
    published = {row["model"]: row for row in read_published()}
    parts = [
        "Each model in the fastest of its forms in torch that was timed; top-1 as published, not measured here. The ratio is to FAT's plain form\n"
        f"(`scripts/parts/benchmark/plain_fat.py`) in the same precision. Every form and spread: {every_form}."
    ]
    tasks = dict.fromkeys(
        (row["task"].removesuffix(" beside peers"), row["batch_size"], row["precision"]) for row in rows
    )
    for task, batch_size, precision in tasks:
        table = [["model", "form", "images/s", "to plain", "top-1, %, published"]]
        models = fastest(rows, task, batch_size, precision)
        for name, row in sorted(models.items(), key=lambda item: -float(item[1]["images_per_second"])):
            top1 = published.get(name, {}).get("top1", "")
            size = published.get(name, {}).get("img_size", "")
            note = f" (at {size} px)" if size not in ("", "224") else ""
            table.append(
                [
                    f"**{name}**" if name.startswith("fat_") else name,
                    row["form"],
                    f"{float(row['images_per_second']):.1f}",
                    row.get("ratio_to_plain", ""),
                    top1 + note,
                ]
            )
        parts.append(f"## {task}, batch {batch_size}, {precision}\n\n{markdown_table(table)}")
    return "\n\n".join([*parts, published_speeds()])


def published_speeds() -> str:
    """What others have measured, apart from what was measured here."""
    rows = read_published_speed()
    table = [["model", "device", "batch", "images/s, published"]]
    table += [[row["model"], row["device"], row["batch_size"], row["images_per_second"]] for row in rows]
    sources = "; ".join(dict.fromkeys(row["source"] for row in rows))
    return f"## Published, not measured here\n\n{markdown_table(table)}\n\nSource: {sources}."


def facts_of(report: Path) -> list[str]:
    """What benchmark.py says of machine and versions, in the report beside its CSV."""
    try:
        lines = report.read_text().splitlines()
    except OSError:
        return [f"the machine is not known: {report.name} is not beside its CSV"]
    said = next((line for line in lines if line.startswith("`")), "")
    said = re.sub(r" --output \S*/speed(?=`)", "", said)  # the temporary file's
    return [f"timed by {said.rstrip('.')}"] if said else ["the machine is not known"]
