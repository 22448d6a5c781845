"""A run's checkpoints: plain tensors and types in one file, written whole or not at all."""

import io
import re
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

import torch
from torch import nn

from utils.errors import CheckpointError, one_line
from utils.files import atomic_write
from utils.rng import get_rng_state, set_rng_state

from .background import Background
from .host_copy import copy_to_host
from .load import load_weights
from .parts import OPTIMIZER, Parts, remove_unnamed

LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best.pth"


def checkpoints_of(directory: Path) -> list[Path]:
    """A run's checkpoints in the order in which it would go on from them: the newest first."""
    first = [directory / LAST, directory / PREVIOUS]
    others = [p for p in directory.glob("*.pth") if p.name == BEST or re.fullmatch(r"epoch_\d+\.pth", p.name)]
    others = [path for path in others if path.is_file()]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path for path in first if path.exists()] + others


class Checkpointer:
    """Saves and restores a run.

    A save holds the training up for a copy of the state only; a thread writes that (`background`). It is one file, which
    whoever reads weights can read; an optimizer's state that is spread over the processes lies in a folder that the file
    names (`parts`), and that is whole before the file has its name.

    Args:
        directory: the run's folder.
        metadata: plain values that go into every checkpoint as they are (config, class names).
        parts: writes the optimizer's state where each process keeps its own part of it (`TRAIN.SHARD`); None: the first one
            has all.
        checkpointables: objects with `state_dict()` and `load_state_dict()`, by the key of their state; None ones are
            left out.
    """

    def __init__(
        self, directory: Path, metadata: dict[str, Any], parts: Optional[Parts] = None, **checkpointables: Any
    ):
        self.directory = directory
        self.metadata = metadata
        self.parts = parts
        self.checkpointables = {key: item for key, item in checkpointables.items() if item is not None}
        self.background = Background("checkpoints")

    def save(self, *names: str) -> None:
        """Begins to write the present state to each of the files; what was in `last.pth` is then in `previous.pth`.

        All processes call this; one without names writes no files, only its part of the optimizer's state, if it has one.

        They are written when `background.wait` returns. A save that is still being written is waited for first, so that no more
        than one copy of the state is there.

        Raises:
            OutputError: a file of the save before could not be written; it is then as it was.
        """
        self.background.wait()
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        folder = self.parts.agree_on_folder() if self.parts else ""
        if not names:
            state = {OPTIMIZER: state[OPTIMIZER]} if folder else {}
        if not state:
            return
        content = {**self.metadata, **copy_to_host({**state, "rng": get_rng_state()})}
        self.background.start(lambda: self._write(content, names, folder))

    def _write(self, content: dict[str, Any], names: tuple[str, ...], folder: str) -> None:
        try:
            if self.parts:
                content[OPTIMIZER] = self.parts.write(folder, content[OPTIMIZER])
            if names:
                self._write_files(content, names)
        finally:
            if names:
                remove_unnamed(self.directory)

    def _write_files(self, content: dict[str, Any], names: tuple[str, ...]) -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        content.clear()  # its memory is free while the disk works
        for name in names:
            with atomic_write(self.directory / name, keep=self.directory / PREVIOUS if name == LAST else None) as file:
                file.write(buffer.getbuffer())

    def restore(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Gives every object its state from a checkpoint that `read_with_parts` returned.

        Raises:
            CheckpointError: a part is missing, or of another model.
        """
        for key in (*self.checkpointables, *self.metadata, "rng"):
            if key not in checkpoint and "progress" not in checkpoint:
                raise CheckpointError(
                    f"{path}: holds weights alone, no {key!r} to resume with; start a run from them with --pretrained"
                )
            if key not in checkpoint:
                raise CheckpointError(
                    f"{path}: has no {key!r} to resume with; start with the settings it was made with, or with another --tag"
                )
        for key, item in self.checkpointables.items():
            if isinstance(item, nn.Module):
                load_weights(item, checkpoint[key], path)
            else:
                self._load(item.load_state_dict, key, checkpoint, path)
        self._load(set_rng_state, "rng", checkpoint, path)

    @staticmethod
    def _load(load: Callable, key: str, checkpoint: Mapping[str, Any], path: Path) -> None:
        try:
            load(checkpoint[key])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: its {key!r} does not fit this run ({one_line(error)}); start with another --tag"
            ) from error
