"""Keeps the weights, config, class names and thresholds of a checkpoint: what evaluation, --pretrained and predictions need.

Optimizer, schedule, random numbers and progress go, so that training cannot go on from the result. Of raw weights and their
average (EMA) one is kept, see --weights.
"""

import argparse
from pathlib import Path

from utils.cli import add_weights

from .weight_files import add_output, file_of, megabytes, open_checkpoint, require_output, say_how, write_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    add_output(parser)
    add_weights(parser)


def run(args: argparse.Namespace) -> int:
    require_output(args.output, [args.checkpoint], args.force)
    checkpoint = open_checkpoint(args.checkpoint)
    name = checkpoint.choose(args.weights)
    say_how(checkpoint, name)
    origin = {"made": "strip", "of": [checkpoint.source(name)]}
    state, chosen = checkpoint.states[name], checkpoint.chosen(name)
    write_checkpoint(args.output, state, checkpoint.cfg, checkpoint.classes, origin, chosen)
    before, after = (file_of(path).stat().st_size for path in (args.checkpoint, args.output))
    print(f"{args.checkpoint}: {megabytes(before)}")
    kept = (
        f"{name} weights, {', '.join(['config', *chosen])} and class names"
        if checkpoint.cfg
        else f"{name} weights; the file has no config of this project"
    )
    print(f"{args.output}: {megabytes(after)}, {kept}")
    return 0
