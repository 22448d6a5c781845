"""Checkpoint files of this project, the released code, timm and others: opened, compared, written."""

import argparse
import io
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import timm
import torch
from timm.models import list_models
from yacs.config import CfgNode

import models  # noqa: F401  (registers FAT with timm)
from engine.checkpoints.file import CHOSEN, CheckpointFile
from engine.checkpoints.file import open_checkpoint as open_file
from engine.checkpoints.foreign import WEIGHT_FILES
from engine.checkpoints.layouts import State
from engine.checkpoints.load import COUNT, first_difference
from utils.config import config_from, to_dict, value_of
from utils.errors import CheckpointError, ConfigError, printable
from utils.files import atomic_write, sha256_of
from utils.schema import KEYS

ORIGIN = "origin"  # in files that are made here: of what and how
BUFFERS = ("running_mean", "running_var", COUNT)  # BatchNorm's


@dataclass(frozen=True)
class Checkpoint(CheckpointFile):
    """A file with weights, for tools that make others of it."""

    @cached_property
    def cfg(self) -> Optional[CfgNode]:
        """This project's config of it, if the file has one and the names of its classes.

        Raises:
            CheckpointError: it cannot be used.
        """
        if self.config is None or self.classes is None:
            return None
        try:
            return config_from(self.config, f"{self.path}: its config")
        except ConfigError as error:
            raise CheckpointError(str(error)) from error

    def only(self, name: str) -> "Checkpoint":
        """The same without what else fills memory: other weights and the optimizer's state."""
        content = {key: self.content[key] for key in ("progress", CHOSEN, ORIGIN) if key in self.content}
        return replace(self, content=content, weights={name: self.weights[name]})

    def source(self, name: str) -> dict[str, Any]:
        """What a file that is made of these weights says of where they come from."""
        facts = {"file": str(self.path), "sha256": sha256_of(file_of(self.path)), "weights": name}
        if note := self.note(name):
            facts["how"] = note
        if self.progress:
            facts |= {"epochs": self.progress.epoch, "updates": self.progress.updates, "best": dict(self.progress.best)}
        if ORIGIN in self.content:
            facts[ORIGIN] = self.content[ORIGIN]
        return facts


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a file with weights, of this project or another.

    Raises:
        CheckpointError: it cannot be read, holds no weights, or leaves open which of its tensors they are.
    """
    checkpoint = Checkpoint(**vars(open_file(path)))
    checkpoint.cfg  # refused now if it cannot be used
    return checkpoint


def file_of(path: Path) -> Path:
    """The file, or that with the weights in a model's folder."""
    if not path.is_dir():
        return path
    indices = sorted(path.glob("*.index.json"))  # of weights in parts
    return next(file for file in [*(path / name for name in WEIGHT_FILES), *indices] if file.exists())


def say_how(checkpoint: Checkpoint, name: str) -> None:
    """Prints what was done to get the weights, if anything was."""
    if note := checkpoint.note(name):
        print(printable(f"note: {checkpoint.path}: {note}"))


# Comparing


def misfit(expected: State, found: State) -> str:
    """What keeps weights from taking others' places, in one line; '' if nothing does."""
    kinds = {
        # torch does not ask for it
        "missing": [key for key in expected if key not in found and key.rpartition(".")[2] != COUNT],
        "unknown": [key for key in found if key not in expected],
        "of another shape": [],
        "of another type": [],
    }
    for key in (key for key in expected if key in found):
        if expected[key].shape != found[key].shape:
            kinds["of another shape"].append(f"{key} {tuple(found[key].shape)} for {tuple(expected[key].shape)}")
        elif expected[key].is_floating_point() != found[key].is_floating_point():
            kinds["of another type"].append(f"{key} {found[key].dtype} for {expected[key].dtype}")
    differences = []
    for kind, keys in kinds.items():
        if keys:
            differences.append(f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    return ", ".join(differences)


def config_differences(first: CfgNode, second: CfgNode) -> list[tuple[str, Any, Any]]:
    """Keys with their values in both configs, where these differ."""
    pairs = ((key, value_of(first, key), value_of(second, key)) for key in KEYS)
    return [(key, a, b) for key, a, b in pairs if a != b]


def parameters_in(state: State) -> int:
    """How many parameters the weights are, without BatchNorm's statistics and whole numbers."""
    return sum(v.numel() for key, v in state.items() if v.is_floating_point() and key.rpartition(".")[2] not in BUFFERS)


def num_classes_in(state: State) -> int:
    """The size of a FAT's head; 0 without one."""
    head = state.get("head.weight")
    return len(head) if head is not None and head.dim() == 2 else 0


def guess_fat(state: State) -> str:
    """The registered FAT whose tensors these are, by names and shapes; '' if there is none."""
    if "patch_embed.conv1.conv.0.weight" not in state:
        return ""
    body = {key: value for key, value in state.items() if not key.startswith(("head.", "head_dist."))}
    for name in list_models(module="fat"):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        if first_difference(model, body) is None:
            return name
    return ""


def shape_of_fat(state: State) -> str:
    """Blocks and channels of a FAT that is not registered; '' for another model."""
    blocks = [found for key in state if (found := re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.q\.weight", key))]
    if not blocks:
        return ""
    depths: dict[int, int] = {}
    dims: dict[int, int] = {}
    for block in blocks:
        stage = int(block[1])
        depths[stage] = depths.get(stage, 0) + 1
        dims[stage] = len(state[block[0]])
    return f"{' '.join(map(str, depths.values()))} blocks of {' '.join(map(str, dims.values()))} channels"


# Writing


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there; an input never is")


def require_output(output: Path, inputs: Sequence[Path], force: bool) -> None:
    """Refuses, before anything is computed, a file that is an input, or is there.

    Raises:
        ConfigError: it must not be written.
    """
    if output.is_dir():
        raise ConfigError(f"--output: {output} is a folder; give a file's name")
    # would be replaced, as /dev/stdout or /dev/null
    if output.is_symlink() or (output.exists() and not output.is_file()):
        raise ConfigError(f"--output: {output} is a link or a device, no regular file; give a file's name")
    if not output.exists():
        return
    if any(path.exists() and output.samefile(path) for path in inputs):
        raise ConfigError(f"--output: {output} is an input, which is never written over; give another name")
    if not force:
        raise ConfigError(f"--output: {output} is there already; give another name, or --force to replace it")


def write_checkpoint(
    path: Path,
    state: State,
    cfg: Optional[CfgNode],
    classes: Optional[Sequence[str]],
    origin: Mapping[str, Any],
    chosen: Mapping[str, Any] = {},
) -> None:
    """Writes weights as a checkpoint that can be evaluated; the same arguments give the same bytes.

    Args:
        chosen: what goes with the weights, see `CheckpointFile.chosen`.

    Raises:
        OutputError: it cannot be written.
    """
    # A view would bring all that it is a view of.
    content: dict[str, Any] = {"model": {key: value.detach().clone() for key, value in state.items()}}
    if cfg is not None:
        content["config"] = to_dict(cfg)
    if classes is not None:
        content["classes"] = list(classes)
    if chosen:
        content[CHOSEN] = dict(chosen)
    save({**content, ORIGIN: dict(origin)}, path)


def save(content: Mapping[str, Any], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
