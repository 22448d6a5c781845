"""Makes the paper's tables and figures: each target writes Markdown, CSV and PNG below --output (results/).

    python scripts/reproduce.py --all                       # all that needs no ImageNet, on a CPU in less than 10 minutes
    python scripts/reproduce.py classification --data-path /path/to/imagenet --checkpoints fat_b0=output/fat_b0/default/best.pth
    python scripts/reproduce.py ablations --proxy
    python scripts/reproduce.py figure4 --checkpoint best.pth --image photo.jpg
    python scripts/reproduce.py <target> --help

Exit statuses: 0 done; 1 a computed figure is not the expected one; 2 an argument or input cannot be used (what it was for
stays "not measured", the rest is done); that of main.py where a training run ends with an error.
"""

import argparse
import importlib
import os
import shlex
import sys
from pathlib import Path
from typing import Optional, Sequence

from command_line import ROOT, Parser, importing, run_script
from utils.errors import UserError, printable

TARGETS = {  # by name: what it makes; a module target_* of parts/reproduce/ each
    "classification": "parameters, MACs, top-1 of FAT-B0 to B3, beside peers",
    "speed": "images/s of FAT and peers",
    "ablations": "parameters and MACs of FAT-B0 with parts changed; accuracy by a proxy",
    "ade20k": "parameters and MACs of the segmentation models",
    "coco": "parameters and MACs of the detectors",
    "figure2": "top-1 over MACs and over images/s, FAT and peers",
    "figure4": "Fourier magnitudes of what FASA computes of an image",
    "overlays": "attention maps and Grad-CAM over an image",
    "curves": "training curves of two or more runs",
}
# What --all does, in this order.
ALL: list[list[str]] = [
    ["classification"],
    ["speed", "--quick"],
    ["ablations", "--proxy", "{configs}/proxy/tiny.yaml", "--seeds", "2"],
    ["ade20k"],
    ["coco"],
    ["figure2", "--speed", "{output}/speed_quick.csv"],
    ["figure4"],
    ["overlays", "--img-size", "224"],  # at its own 32 px the quickstart's model has one key per stage
    ["curves", "output/proxy/tiny/fat_tiny/base_seed0", "output/proxy/tiny/fat_tiny/interaction_add_seed0"],
]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, targets = build_parser()
    args = parser.parse_args(argv)
    if args.all == bool(args.target):
        parser.error(f"give --all, or one target: {', '.join(TARGETS)}")
    missed, refused, status = [], [], 0
    for words in ALL if args.all else [argv]:
        if args.all:
            places = {"output": args.output, "configs": os.path.relpath(ROOT / "configs")}
            words = [*(word.format(**places) for word in words), "--output", str(args.output)]
            print(f"== {shlex.join(words)}", flush=True)
        target_args = parser.parse_args(words)
        target_args.command = shlex.join(["python", "scripts/reproduce.py", *words])
        try:
            outcome = targets[target_args.target].reproduce(target_args)
        except UserError as error:
            if not args.all:
                raise
            refused.append(f"{target_args.target}: {error}")  # the other targets are made
            status = status or error.status
            continue
        missed += outcome.missed
        refused += outcome.refused
    for line in missed + refused:
        print(f"error: {printable(line)}", file=sys.stderr)
    return 1 if missed else status or (2 if refused else 0)


def build_parser() -> tuple[argparse.ArgumentParser, dict]:
    parser = Parser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every target that needs neither ImageNet nor a GPU")
    output = argparse.ArgumentParser(add_help=False)
    # a target's would hide one given before it
    for place, default in ((parser, Path("results")), (output, argparse.SUPPRESS)):
        place.add_argument("--output", type=Path, default=default, help="folder to write to (default: results)")
    commands = parser.add_subparsers(dest="target")
    with importing("-r requirements.txt -r scripts/quickstart-requirements.txt"):
        import matplotlib
        import torch

        matplotlib.use("Agg")
        torch.set_num_threads(1)  # figures of one core, the same on any machine
        modules = {name: importlib.import_module(f"parts.reproduce.target_{name}") for name in TARGETS}
    for name, text in TARGETS.items():
        modules[name].add_arguments(
            commands.add_parser(name, parents=[output], help=text, description=modules[name].__doc__)
        )
    return parser, modules


if __name__ == "__main__":
    run_script(main)
