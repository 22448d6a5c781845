"""Compares two checkpoints: config keys, classes, and each tensor of the weights that would be used (see --weights).

Exit status: 0 nothing differs, 1 something does.
"""

import argparse
from pathlib import Path

import torch

from utils.cli import add_weights, not_negative
from utils.errors import printable

from .weight_files import Checkpoint, config_differences, open_checkpoint, say_how


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    add_weights(parser)
    parser.add_argument(
        "--tolerance",
        type=not_negative,
        default=0.0,
        metavar="X",
        help="tensors whose values differ by no more count as equal (default: 0)",
    )
    parser.add_argument(
        "--tensors-only", action="store_true", help="leave out config and classes, which differ between runs"
    )


def run(args: argparse.Namespace) -> int:
    first, second = open_checkpoint(args.first), open_checkpoint(args.second)
    names = [checkpoint.choose(args.weights) for checkpoint in (first, second)]
    for checkpoint, name in zip((first, second), names):
        say_how(checkpoint, name)
    print(f"{first.path} ({names[0]} weights) and {second.path} ({names[1]} weights)")
    lines = [] if args.tensors_only else [*differing_settings(first, second), *differing_classes(first, second)]
    tensors, equal = differing_tensors(first.states[names[0]], second.states[names[1]], args.tolerance)
    for line in [*lines, *tensors]:
        print(printable(line))
    within = f" within {args.tolerance:g}" if args.tolerance else ""
    settings = "" if args.tensors_only else f"{len(lines)} of config and classes and "
    print(f"{settings}{len(tensors)} tensors differ; {equal} tensors are equal{within}")
    return 1 if lines or tensors else 0


def differing_settings(first: Checkpoint, second: Checkpoint) -> list[str]:
    """A line per key of the config."""
    if first.cfg is None or second.cfg is None:
        if first.cfg is second.cfg:
            return []
        return [f"config: {(first if first.cfg is None else second).path} has none of this project"]
    return [f"config {key}: {a!r}, {b!r}" for key, a, b in config_differences(first.cfg, second.cfg)]


def differing_classes(first: Checkpoint, second: Checkpoint) -> list[str]:
    """A line for the number of classes, and one for the first label whose name is another one."""
    if first.classes == second.classes:
        return []
    if first.classes is None or second.classes is None:
        return [f"classes: {(first if first.classes is None else second).path} names none"]
    lines = (
        [f"classes: {len(first.classes)}, {len(second.classes)}"] if len(first.classes) != len(second.classes) else []
    )
    other = [(i, a, b) for i, (a, b) in enumerate(zip(first.classes, second.classes)) if a != b]
    return lines + [
        f"classes: {len(other)} labels have another name, the first is {i}: {a!r}, {b!r}" for i, a, b in other[:1]
    ]


def differing_tensors(first, second, tolerance: float) -> tuple[list[str], int]:
    """A line per tensor that is not in both, or differs by more than the tolerance; and how many others there are."""
    lines = []
    for key in dict.fromkeys([*first, *second]):
        a, b = first.get(key), second.get(key)
        if a is None or b is None:
            lines.append(
                f"{key}: only in the {'second' if a is None else 'first'}, {tuple((b if a is None else a).shape)}"
            )
        elif a.shape != b.shape:
            lines.append(f"{key}: shape {tuple(a.shape)}, {tuple(b.shape)}")
        elif a.dtype != b.dtype and not tolerance:
            lines.append(f"{key}: {a.dtype}, {b.dtype}")
        elif text := difference(a, b, tolerance):
            lines.append(f"{key}: {text}")
    return lines, len({*first, *second}) - len(lines)


def difference(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> str:
    """The largest absolute difference, alone and over the largest absolute value of the first; '' if within the tolerance.

    Values that are no numbers, or infinite, are equal to their like alone.
    """
    a, b = (value.detach().to(torch.complex128 if value.is_complex() else torch.float64) for value in (a, b))
    same = (a == b) | (a.isnan() & b.isnan())
    gaps = torch.where(same, 0.0, (a - b).abs())
    if not gaps.numel() or (gaps <= tolerance).all():
        return ""
    if not gaps.isfinite().all():
        return f"{int((~gaps.isfinite()).sum())} values are not finite, or not numbers, in one of them"
    largest, scale = gaps.max().item(), a.abs()[a.isfinite()].max().item()
    return f"max |difference| {largest:.3g}" + (f", {largest / scale:.2g} of the largest value" if scale else "")
