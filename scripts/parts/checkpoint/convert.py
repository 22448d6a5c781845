"""Weights of the released FAT code to a checkpoint of this project, and back. Both have the same tensors under the same keys.

--to ours: takes every layout that docs/checkpoints.md lists, a head without bias as one with zeros; fits it strictly to the model,
and adds config and class names. The model is the
FAT of these shapes, with the config configs/<model>.yaml, or that of --cfg.

--to released: {"model": state dict}, which the released code loads. It knows the released form of FAT alone; what has another
one is refused.
"""

import argparse
from pathlib import Path
from typing import Sequence

import torch
from yacs.config import CfgNode

from data.class_maps import read_class_map
from engine.checkpoints.load import COUNT
from engine.setup.preprocessing import take_from_model
from engine.tasks import create_task
from utils.cli import add_weights
from utils.config import load_config
from utils.errors import CheckpointError, ConfigError
from utils.schema import CONFIGS, DEFAULTS

from .weight_files import (
    ORIGIN,
    Checkpoint,
    State,
    add_output,
    guess_fat,
    misfit,
    num_classes_in,
    open_checkpoint,
    require_output,
    save,
    say_how,
    shape_of_fat,
    write_checkpoint,
)

# of MODEL.FAT: the released code has the defaults alone
FORM = ("interaction", "downsampling", "cpe", "self_modulation", "ffn", "distilled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--to", choices=["ours", "released"], required=True, help="which code the result is for")
    add_output(parser)
    add_weights(parser)
    parser.add_argument(
        "--cfg",
        type=Path,
        metavar="FILE",
        help="to ours: config of the model (default: configs/<the FAT of these shapes>.yaml)",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="to ours: names, one in each line, or imagenet-1k ... (default for 1000: imagenet-1k)",
    )


def run(args: argparse.Namespace) -> int:
    for flag, given in (("--cfg", args.cfg), ("--classes", args.classes)):
        if given and args.to != "ours":
            raise ConfigError(f"{flag}: the released code's files hold weights alone; leave it out, or use --to ours")
    require_output(args.output, [args.checkpoint], args.force)
    checkpoint = open_checkpoint(args.checkpoint)
    name = checkpoint.choose(args.weights)
    say_how(checkpoint, name)
    print(to_ours(args, checkpoint, name) if args.to == "ours" else to_released(args, checkpoint, name))
    return 0


def to_ours(args: argparse.Namespace, checkpoint: Checkpoint, name: str) -> str:
    """Writes a checkpoint of this project; returns what to say of it."""
    if checkpoint.cfg is not None:
        raise CheckpointError(f"{checkpoint.path}: is this project's already; to make it smaller use strip")
    state = dict(checkpoint.states[name])
    notes = []
    num_classes = num_classes_in(state)
    if num_classes and "head.bias" not in state:
        state["head.bias"] = torch.zeros(num_classes, dtype=state["head.weight"].dtype)
        notes.append("its head has no bias; one of zeros was added")
    cfg = config_of(args, checkpoint, state)
    classes = classes_of(args, checkpoint, num_classes, cfg)
    expected = fit(checkpoint.path, state, cfg, len(classes))
    counts = [key for key in expected if key not in state]
    if counts:
        notes.append(f"its {len(counts)} {COUNT} of BatchNorm are not in it and set to 0")
    state |= {key: torch.zeros_like(expected[key]) for key in counts}
    state = {key: state[key].to(value.dtype) for key, value in expected.items()}
    origin = {"made": "convert", "of": [checkpoint.source(name)], "notes": notes}
    write_checkpoint(args.output, state, cfg, classes, origin)
    return "\n".join(
        [
            *notes,
            f"{args.output}: {cfg.MODEL.NAME}, {len(state)} tensors, {len(classes)} classes ({name} weights of {checkpoint.path})",
        ]
    )


def config_of(args: argparse.Namespace, checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> CfgNode:
    """The config of a model that the weights may be of.

    Raises:
        CheckpointError: it is unknown which one that is.
    """
    if args.cfg:
        return take_from_model(load_config(args.cfg))
    name = guess_fat(state)
    if name and (CONFIGS / f"{name}.yaml").is_file():
        return load_config(CONFIGS / f"{name}.yaml")
    form = shape_of_fat(state)
    found = (
        f"is {name}, which has no config of its own"
        if name
        else f"is a FAT of {form}, none that is registered"
        if form
        else "is no FAT by its tensors"
    )
    raise CheckpointError(f"{checkpoint.path}: {found}; say which model and images it is for with --cfg config.yaml")


def classes_of(args: argparse.Namespace, checkpoint: Checkpoint, num_classes: int, cfg: CfgNode) -> Sequence[str]:
    """Names of the classes, in label order."""
    if args.classes:
        return list(read_class_map(args.classes, "--classes"))
    if checkpoint.classes:
        return checkpoint.classes
    if 1000 in (num_classes, cfg.MODEL.NUM_CLASSES):
        return list(read_class_map("imagenet-1k"))
    raise ConfigError(
        f"--classes: {checkpoint.path} has {num_classes or 'an unknown number of'} classes without names; give a file with one in each line"
    )


def fit(path: Path, state: State, cfg: CfgNode, num_classes: int) -> State:
    """Refuses weights that are not those of the config's model with so many classes; returns that model's own, new ones.

    Raises:
        CheckpointError: some are missing, unknown or of another shape; the first of each kind are named.
    """
    expected = create_task(cfg).build_model(num_classes).state_dict()
    if problems := misfit(expected, state):
        raise CheckpointError(
            f"{path}: does not fit {cfg.MODEL.NAME} with {num_classes} classes: {problems}; check --cfg and --classes"
        )
    return expected


def to_released(args: argparse.Namespace, checkpoint: Checkpoint, name: str) -> str:
    """Writes a file for the released code; returns what to say of it."""
    state, cfg = checkpoint.states[name], checkpoint.cfg
    if cfg is None:
        model = guess_fat(state)
        if not model:
            raise CheckpointError(
                f"{checkpoint.path}: is no registered FAT by its tensors; the released code has no other model"
            )
    else:
        if cfg.MODEL.TYPE != "fat":
            raise CheckpointError(
                f"{checkpoint.path}: is of {cfg.MODEL.NAME}, no FAT; the released code has no other model"
            )
        for key in FORM:
            if cfg.MODEL.FAT[key] != DEFAULTS.MODEL.FAT[key]:
                raise CheckpointError(
                    f"{checkpoint.path}: MODEL.FAT.{key} is {cfg.MODEL.FAT[key]!r}; the released code has {DEFAULTS.MODEL.FAT[key]!r} alone "
                    "and would compute something else"
                )
        model = cfg.MODEL.NAME
        fit(checkpoint.path, state, cfg, len(checkpoint.classes))
    origin = {"made": "convert", "of": [checkpoint.source(name)]}
    save({"model": {key: value.detach().clone() for key, value in state.items()}, ORIGIN: origin}, args.output)
    return f"{args.output}: {model} for the released code, {len(state)} tensors ({name} weights of {checkpoint.path})"
