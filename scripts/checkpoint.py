"""Looks into checkpoints and makes others of them; nothing in a file is run, and no input is changed.

    python scripts/checkpoint.py info    best.pth
    python scripts/checkpoint.py strip   best.pth --output small.pth                  # weights, config, class names
    python scripts/checkpoint.py average epoch_*.pth --output average.pth             # --ema 0.9, or --soup
    python scripts/checkpoint.py convert released.pth --to ours --output fat_b0.pth   # and --to released
    python scripts/checkpoint.py diff    a.pth b.pth
    python scripts/checkpoint.py <subcommand> --help

What is made works with `main.py --eval --resume`, with --pretrained, and wherever a checkpoint is asked for. Exit statuses:
0 done, or no difference; 1 a difference (diff); 2 arguments or data; 3 a checkpoint that cannot be used; 5 no room or no
permission.
"""

import argparse
import importlib
from typing import Optional, Sequence

from command_line import Parser, importing, run_script
from utils.errors import CheckpointError

SUBCOMMANDS = {  # by name: what it does; a module of parts/checkpoint/ each
    "info": "what a checkpoint is: model, parameters, classes, recipe, epoch, best metric, sizes, hash",
    "strip": "the weights, config and class names alone",
    "average": "one model of several checkpoints: uniform, exponentially weighted, or a greedy soup",
    "convert": "weights of the released FAT code to a checkpoint of this project, and back",
    "diff": "which config keys, classes and tensors of two checkpoints differ",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    args = build_parser().parse_args(argv)
    from utils.device import is_out_of_memory

    try:
        return args.run(args)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{args.subcommand}: the checkpoints' tensors are too large for the memory; use others, or another machine"
        ) from error


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="subcommand")
    with importing():
        modules = {name: importlib.import_module(f"parts.checkpoint.{name}") for name in SUBCOMMANDS}
    for name, text in SUBCOMMANDS.items():
        command = commands.add_parser(name, help=text, description=modules[name].__doc__)
        modules[name].add_arguments(command)
        command.set_defaults(run=modules[name].run)
    return parser


if __name__ == "__main__":
    run_script(main)
