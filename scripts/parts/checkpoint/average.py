"""Averages the weights of checkpoints of one model, as of a run's last epochs or of runs with other seeds or settings.

Uniform: each has the same share. --ema 0.9: exponential shares in the order of training (of updates, where all files say
them; else as given), the newest the largest. --soup: greedy soup (Wortsman et al. 2022, arXiv 2203.05482, Recipe 1): from
the best checkpoint down, one is taken in if the average with it is at least as good on the validation images.

Sums are float64; whole numbers, as BatchNorm's count of batches, are the newest's. BatchNorm's means and variances are averaged
as weights are, or, with --recompute-bn, computed anew from augmented training images.
"""

import argparse
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import torch
from yacs.config import CfgNode

from utils.cli import add_weights, number, whole_number
from utils.config import batch_size_of
from utils.device import is_out_of_memory
from utils.errors import CheckpointError, ConfigError
from utils.schema import COLOURS, MODEL, VIEW, keys_of
from utils.urls import shown

from .evaluation import Evaluation
from .weight_files import (
    Checkpoint,
    State,
    add_output,
    config_differences,
    misfit,
    open_checkpoint,
    require_output,
    say_how,
    write_checkpoint,
)

# What shapes the model and what it sees; in other settings, the checkpoints may differ.
SEEN = keys_of(MODEL, COLOURS, VIEW)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="checkpoint", help="two or more")
    add_output(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--ema",
        type=number("between 0 and 1", lambda value: 0 < value < 1),
        metavar="DECAY",
        help="each older one's share is this much of the next one's; 0 < DECAY < 1",
    )
    how.add_argument(
        "--soup", action="store_true", help="greedy soup on the validation images of the checkpoints' config"
    )
    add_weights(parser)
    parser.add_argument(
        "--recompute-bn",
        type=whole_number(1),
        metavar="N",
        help="BatchNorm's statistics anew, from N batches of training images",
    )
    data = parser.add_argument_group("for --soup and --recompute-bn")
    data.add_argument("--data-path", metavar="DIR", help="the data set (default: the checkpoints' own)")
    data.add_argument(
        "--split", metavar="NAME", help="of the images that the soup is chosen on (default: the validation images)"
    )
    data.add_argument("--batch-size", type=whole_number(1), metavar="N", help="default: the config's")
    data.add_argument("--workers", type=whole_number(0), metavar="N", help="loading processes (default: the config's)")
    data.add_argument("--device", choices=["auto", "cuda", "cpu"], help="default: the config's")


def run(args: argparse.Namespace) -> int:
    require_usable(args)
    opened = opened_in_order(args)
    names, states = zip(*((name, state) for checkpoint in opened for name, state in checkpoint.states.items()))
    newest = opened[-1]
    for checkpoint, state in zip(opened[:-1], states):
        require_same(checkpoint, state, newest, states[-1])
    for checkpoint, state in zip(opened, states):
        require_finite(checkpoint, state)
    evaluation = evaluation_of(newest, args) if args.soup or args.recompute_bn else None
    try:
        chosen, shares, figures = chosen_of(args, opened, states, evaluation)
        made = average([states[i] for i in chosen], shares)
        made, bn = with_statistics(args, made, evaluation, figures)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"--batch-size: {batch_size_of(evaluation.cfg)} images at a time are too many for the memory; use fewer"
        ) from error
    if len({names[i] for i in chosen}) > 1:
        print("note: raw weights and averaged ones (ema) are put together; --weights takes one kind of them")
    how = "greedy soup" if args.soup else f"exponential, decay {args.ema}" if args.ema else "uniform"
    of = [{**opened[i].source(names[i]), "share": share} for i, share in zip(chosen, shares)]
    origin = {"made": "average", "how": how, "batch_norm": bn, "of": of, **figures}
    base = opened[chosen[-1]]
    write_checkpoint(args.output, made, base.cfg, base.classes, origin)
    for entry in of:
        print(f"{entry['share']:.4f} of {entry['file']} ({entry['weights']} weights{_place(entry)})")
    print(
        f"{args.output}: average of {len(of)} checkpoint{'s' * (len(of) > 1)}, {how}; BatchNorm's statistics: {bn}; config of {base.path}"
    )
    return 0


def require_usable(args: argparse.Namespace) -> None:
    """Raises ConfigError for arguments that contradict one another."""
    if len(args.checkpoints) < 2:
        raise ConfigError(f"{args.checkpoints[0]}: one checkpoint alone has no average; give two or more")
    for i, path in enumerate(args.checkpoints):
        if path.exists() and any(other.exists() and path.samefile(other) for other in args.checkpoints[:i]):
            raise ConfigError(f"{path}: is given twice; give each checkpoint once")
    if not args.soup and not args.recompute_bn:
        for name in ("data_path", "batch_size", "workers", "device"):
            if getattr(args, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag}: no such data are read; leave it out, or add --soup or --recompute-bn")
    if args.split is not None and not args.soup:
        raise ConfigError("--split: no such data are read; leave it out, or add --soup")
    require_output(args.output, args.checkpoints, args.force)


def opened_in_order(args: argparse.Namespace) -> list[Checkpoint]:
    """The checkpoints, each with the weights that are averaged: by their updates, where all say them."""
    opened = []
    for path in args.checkpoints:
        checkpoint = open_checkpoint(path)
        name = checkpoint.choose(args.weights)
        say_how(checkpoint, name)
        opened.append(checkpoint.only(name))
    if all(checkpoint.progress for checkpoint in opened):
        opened.sort(key=lambda checkpoint: checkpoint.progress.updates)
    return opened


def evaluation_of(newest: Checkpoint, args: argparse.Namespace) -> Evaluation:
    """Raises CheckpointError: nobody knows on which images."""
    if newest.cfg is None:
        raise CheckpointError(
            f"{newest.path}: has no config, so it is unknown which images its model saw; use checkpoints of main.py"
        )
    return Evaluation(_with_data(newest.cfg, args), newest.classes, newest.path)


def chosen_of(
    args: argparse.Namespace, opened: Sequence[Checkpoint], states: Sequence[State], evaluation: Optional[Evaluation]
) -> tuple[list[int], list[float], dict[str, Any]]:
    """Which states are averaged, their shares, and what was measured to choose them."""
    if args.soup:
        chosen, figures = cook(opened, states, evaluation)
        return chosen, [1 / len(chosen)] * len(chosen), figures
    return list(range(len(states))), shares_of(len(states), args.ema), {}


def with_statistics(
    args: argparse.Namespace, made: State, evaluation: Optional[Evaluation], figures: dict[str, Any]
) -> tuple[State, str]:
    """The average with BatchNorm's statistics, and what those are; a soup's new figures are added to `figures`."""
    if not args.recompute_bn:
        has_any = any(key.endswith("running_mean") for key in made)
        return made, "averaged as weights are" if has_any else "none"
    made = evaluation.recompute_bn(made, args.recompute_bn)
    if args.soup:
        figures["with recomputed statistics"] = metrics = evaluation.metrics(made)
        print(f"with BatchNorm's statistics recomputed: {_shown(metrics, evaluation)}")
    size = batch_size_of(evaluation.cfg)
    return made, f"recomputed from {args.recompute_bn} batches of {size} training images"


def shares_of(count: int, decay: Optional[float]) -> list[float]:
    """Of each state, the oldest first: equal, or those of the moving average a <- decay a + (1 - decay) state, which begins
    as the oldest one.
    """
    if decay is None:
        return [1 / count] * count
    return [(1 - decay if i else 1.0) * decay ** (count - 1 - i) for i in range(count)]


def average(states: Sequence[State], shares: Sequence[float]) -> dict[str, torch.Tensor]:
    """The weighted sum of the states in float64, in the types of the last one, of which whole numbers are taken."""
    made = {}
    for key, newest in states[-1].items():
        if newest.is_floating_point():
            total = sum(share * state[key].detach().double() for state, share in zip(states, shares))
            made[key] = total.to(newest.dtype)
        else:
            made[key] = newest
    return made


def greedy(scores: Sequence[float], score_of: Callable[[list[int]], float]) -> list[int]:
    """Which of the models the greedy soup takes in, best first.

    Args:
        scores: of each model alone; of equal ones the first given comes first.
        score_of: indices of models -> the score of their average.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    chosen, best = order[:1], scores[order[0]]
    for i in order[1:]:
        score = score_of([*chosen, i])
        if score >= best:
            chosen, best = [*chosen, i], score
    return chosen


def cook(
    opened: Sequence[Checkpoint], states: Sequence[State], evaluation: Evaluation
) -> tuple[list[int], dict[str, Any]]:
    """The greedy soup's models, and what it measured; says each step."""
    metric, cfg = evaluation.task.primary, evaluation.cfg
    alone = []
    for checkpoint, state in zip(opened, states):
        alone.append(evaluation.metrics(state))
        print(f"{checkpoint.path}: {_shown(alone[-1], evaluation)}", flush=True)
    measured = {}

    def score_of(indices: list[int]) -> float:
        figures = evaluation.metrics(average([states[i] for i in sorted(indices)], [1 / len(indices)] * len(indices)))
        measured[tuple(sorted(indices))] = figures
        print(f"with {opened[indices[-1]].path}: {_shown(figures, evaluation)}", flush=True)
        return metric.rank(figures[metric.key])

    chosen = sorted(greedy([metric.rank(found[metric.key]) for found in alone], score_of))
    best = max((found[metric.key] for found in alone), key=metric.rank)
    soup = alone[chosen[0]] if len(chosen) == 1 else measured[tuple(chosen)]
    print(
        f"soup of {len(chosen)} of {len(opened)}: {_shown(soup, evaluation)}; the best alone: {metric.key} {best:.3f}"
    )
    print(
        f"these figures are optimistic: the soup was chosen on these images ({images_of(cfg)}); evaluate it on others"
    )
    return chosen, {
        "chosen_on": images_of(cfg),
        "metrics": soup,
        "best_alone": best,
    }


def images_of(cfg: CfgNode) -> str:
    """What the validation images are called."""
    return f"{shown(cfg.DATA.VAL_SPLIT)} of {shown(cfg.DATA.DATA_PATH) or cfg.DATA.DATASET}"


def require_same(checkpoint: Checkpoint, state: State, newest: Checkpoint, expected: State) -> None:
    """Refuses a checkpoint that is not of the newest one's model, naming the first difference.

    Raises:
        CheckpointError: model, classes or the images that it saw are other ones.
    """
    difference = ""
    if (checkpoint.cfg is None) != (newest.cfg is None):
        difference = f"{(newest if checkpoint.cfg else checkpoint).path} has no config"
    elif checkpoint.cfg is not None:
        seen = [entry for entry in config_differences(checkpoint.cfg, newest.cfg) if entry[0].startswith(SEEN)]
        seen.sort(key=lambda entry: not entry[0].startswith("MODEL"))
        difference = "{} is {!r} there, {!r} here".format(seen[0][0], seen[0][2], seen[0][1]) if seen else ""
    if not difference and checkpoint.classes != newest.classes:
        ours, theirs = checkpoint.classes or [], newest.classes or []
        pairs = [f"{b!r} there, {a!r} here" for a, b in zip(ours, theirs) if a != b]
        difference = f"class {pairs[0]}" if pairs else f"{len(theirs)} classes there, {len(ours)} here"
    if not difference and (tensors := misfit(expected, state)):
        difference = f"tensors: {tensors}"
    if difference:
        raise CheckpointError(
            f"{checkpoint.path}: cannot be averaged with {newest.path}: {difference}; give checkpoints of one model"
        )


def require_finite(checkpoint: Checkpoint, state: State) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{checkpoint.path}: its {key} holds values that are infinite or no numbers; leave it out"
            )


def _with_data(cfg, args: argparse.Namespace):
    """The config with the data that the arguments name."""
    cfg = cfg.clone()
    cfg.defrost()
    for section, key, value in (
        ("DATA", "DATA_PATH", args.data_path), ("DATA", "VAL_SPLIT", args.split), ("DATA", "BATCH_SIZE", args.batch_size),
        ("DATA", "NUM_WORKERS", args.workers), (None, "DEVICE", args.device),
    ):  # fmt: skip
        if value is not None:
            (cfg[section] if section else cfg)[key] = value
    cfg.freeze()
    return cfg


def _shown(metrics: dict[str, Any], evaluation: Evaluation) -> str:
    metric = evaluation.task.primary
    left_out = f", {metrics['unreadable']} could not be read" if metrics.get("unreadable") else ""
    return f"{metric.key} {metrics[metric.key]:.3f} of {metrics['num_images']} images{left_out}"


def _place(entry: dict[str, Any]) -> str:
    return f", epoch {entry['epochs']}, update {entry['updates']}" if "updates" in entry else ""
