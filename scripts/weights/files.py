"""Checkpoint files of this project, the released code, timm and others: opened, compared, written."""

import argparse
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import timm
import torch
from timm.models import list_models
from yacs.config import CfgNode

import models  # noqa: F401  (registers FAT with timm)
from engine.build import better_weights
from engine.checkpoints.file import read_checkpoint
from engine.download import sha256_of
from engine.progress import Progress
from engine.resume import progress_of
from utils.config import config_from, leaf_keys, to_dict, value_of
from utils.errors import CheckpointError, ConfigError
from utils.files import atomic_write

State = Mapping[str, torch.Tensor]

RAW, EMA = ("model", "state_dict"), ("ema", "model_ema", "state_dict_ema")  # under which keys training codes save weights
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
ORIGIN = "origin"  # in files that are made here: of what and how
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's


@dataclass(frozen=True)
class Checkpoint:
    """A file with weights."""

    path: Path
    content: dict[str, Any]
    states: dict[str, State]  # 'raw', 'ema' or both, without prefixes
    cfg: Optional[CfgNode]  # this project's
    classes: Optional[list[str]]
    progress: Optional[Progress]  # None where there is no training state

    @property
    def better(self) -> str:
        """Which weights to use: 'ema' if they made this the run's best checkpoint, or if there are no others."""
        return better_weights(self.content, self.states) if "raw" in self.states else "ema"

    def choose(self, name: Optional[str]) -> str:
        """The name that --weights gives, or the better weights'.

        Raises:
            CheckpointError: it has no such weights.
        """
        if name and name not in self.states:
            raise CheckpointError(f"{self.path}: has no {name} weights; use --weights {next(iter(self.states))}, or leave it out")
        return name or self.better

    def only(self, name: str) -> "Checkpoint":
        """The same without what else fills memory: other weights and the optimizer's state."""
        content = {key: self.content[key] for key in ("progress", ORIGIN) if key in self.content}
        return replace(self, content=content, states={name: self.states[name]})

    def source(self, name: str) -> dict[str, Any]:
        """What a file that is made of these weights says of where they come from."""
        found = {"file": str(self.path), "sha256": sha256_of(self.path), "weights": name}
        if self.progress:
            found |= {"epochs": self.progress.epoch, "updates": self.progress.updates, "best": dict(self.progress.best)}
        if ORIGIN in self.content:
            found[ORIGIN] = self.content[ORIGIN]
        return found


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a file with weights, of this project or another.

    Raises:
        CheckpointError: it cannot be read, holds no weights, or leaves open which of its tensors they are.
    """
    content = read_checkpoint(path)
    states = {"raw": _state(content, RAW, path), "ema": _state(content, EMA, path)}
    states = {name: state for name, state in states.items() if state}
    if not states and _is_state(content):
        states = {"raw": _without_prefix(content)}
    if not states:
        raise CheckpointError(f"{path}: holds no model weights; use a checkpoint or a state dict")
    for state in states.values():
        odd = next((key for key, value in state.items() if not _is_plain(value)), None)
        if odd:
            raise CheckpointError(f"{path}: its {odd} is {state[odd].dtype} ({state[odd].layout}), no plain tensor; use another file")
    try:
        progress = progress_of(content, path)
    except CheckpointError:  # weights alone, or of another tool
        progress = None
    classes = content.get("classes")
    own = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    cfg = None
    if own and isinstance(content.get("config"), dict):  # Swin's and the released code's is another one
        try:
            cfg = config_from(content["config"], f"{path}: its config")
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
    return Checkpoint(path, content, states, cfg, classes if own else None, progress)


def _state(content: Mapping[str, Any], keys: Sequence[str], path: Path) -> Optional[State]:
    found = [key for key in keys if isinstance(content.get(key), Mapping) and content[key]]
    found = [key for key in found if _is_state(content[key])]
    if len(found) > 1:
        raise CheckpointError(f"{path}: has weights under {' and '.join(map(repr, found))}; save those that you mean in a file alone")
    return _without_prefix(content[found[0]]) if found else None


def _is_state(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())


def _without_prefix(state: State) -> State:
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) and key != p for key in state)), None):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _is_plain(value: torch.Tensor) -> bool:
    return value.layout is torch.strided and not value.is_meta and not value.is_quantized


# Comparing


def misfit(expected: State, found: State) -> str:
    """What keeps weights from taking others' places, in one line; '' if nothing does."""
    kinds = {
        "missing": [key for key in expected if key not in found],
        "unknown": [key for key in found if key not in expected],
        "of another shape": [],
        "of another type": [],
    }
    for key in (key for key in expected if key in found):
        if expected[key].shape != found[key].shape:
            kinds["of another shape"].append(f"{key} {tuple(found[key].shape)} for {tuple(expected[key].shape)}")
        elif expected[key].is_floating_point() != found[key].is_floating_point():
            kinds["of another type"].append(f"{key} {found[key].dtype} for {expected[key].dtype}")
    said = []
    for kind, keys in kinds.items():
        if keys:
            said.append(f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    return ", ".join(said)


def config_differences(first: CfgNode, second: CfgNode) -> list[tuple[str, Any, Any]]:
    """Keys with their values in both configs, where these differ."""
    pairs = ((key, value_of(first, key), value_of(second, key)) for key in leaf_keys())
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
        if not misfit(model.state_dict(), body):
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


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", choices=["raw", "ema"],
        help="default: the average (ema) of a run's best checkpoint if that was what was best, else raw",
    )  # fmt: skip


def require_output(output: Path, inputs: Sequence[Path], force: bool) -> None:
    """Refuses, before anything is computed, a file that is an input, or is there.

    Raises:
        ConfigError: it must not be written.
    """
    if output.is_dir():
        raise ConfigError(f"--output: {output} is a folder; give a file's name")
    if output.is_symlink() or (output.exists() and not output.is_file()):  # would be replaced, as /dev/stdout or /dev/null
        raise ConfigError(f"--output: {output} is a link or a device, no regular file; give a file's name")
    if not output.exists():
        return
    if any(path.exists() and output.samefile(path) for path in inputs):
        raise ConfigError(f"--output: {output} is an input, which is never written over; give another name")
    if not force:
        raise ConfigError(f"--output: {output} is there already; give another name, or --force to replace it")


def write_checkpoint(path: Path, state: State, cfg: Optional[CfgNode], classes: Optional[Sequence[str]], origin: Mapping[str, Any]) -> None:
    """Writes weights as a checkpoint that can be evaluated; the same arguments give the same bytes.

    Raises:
        OutputError: it cannot be written.
    """
    # A view would bring all that it is a view of.
    content: dict[str, Any] = {"model": {key: value.detach().clone() for key, value in state.items()}}
    if cfg is not None:
        content["config"] = to_dict(cfg)
    if classes is not None:
        content["classes"] = list(classes)
    save({**content, ORIGIN: dict(origin)}, path)


def save(content: Mapping[str, Any], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
