"""Checkpoints: plain tensors and types in one file, written whole or not at all, read without running code."""

import io
import pickle
import re
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

import torch
from torch import nn

from utils.errors import CheckpointError, OutputError
from utils.files import atomic_write, is_of_the_machine, require_no_device
from utils.rng import get_rng_state, set_rng_state

LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best.pth"

# Settings that timm (an argparse.Namespace) and Swin (a yacs CfgNode, read as a plain dictionary) save beside weights.
FOREIGN_SETTINGS = [Namespace, (OrderedDict, "yacs.config.CfgNode")]


def checkpoints_of(directory: Path) -> list[Path]:
    """A run's checkpoints in the order in which it would go on from them: the newest first."""
    first = [directory / LAST, directory / PREVIOUS]
    others = [p for p in directory.glob("*.pth") if p.name == BEST or re.fullmatch(r"epoch_\d+\.pth", p.name)]
    others = [path for path in others if path.is_file()]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path for path in first if path.exists()] + others


class Checkpointer:
    """Saves and restores a run.

    Args:
        directory: the run's folder.
        metadata: plain values that go into every checkpoint as they are (config, class names).
        checkpointables: objects with `state_dict()` and `load_state_dict()`, by the key of their state; None ones are
            left out.
    """

    def __init__(self, directory: Path, metadata: dict[str, Any], **checkpointables: Any):
        self.directory = directory
        self.metadata = metadata
        self.checkpointables = {key: item for key, item in checkpointables.items() if item is not None}

    def save(self, *names: str) -> None:
        """Writes the present state to each of the files; what was in `last.pth` is then in `previous.pth`.

        Raises:
            OutputError: a file cannot be written; it is then as it was.
        """
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        buffer = io.BytesIO()
        torch.save({**self.metadata, **state, "rng": get_rng_state()}, buffer)
        for name in names:
            with atomic_write(self.directory / name, keep=self.directory / PREVIOUS if name == LAST else None) as file:
                file.write(buffer.getbuffer())

    def restore(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Gives every object its state from a checkpoint that `read_checkpoint` returned.

        Raises:
            CheckpointError: a part is missing, or of another model.
        """
        for key in (*self.checkpointables, *self.metadata, "rng"):
            if key not in checkpoint and "progress" not in checkpoint:
                raise CheckpointError(f"{path}: holds weights alone, no {key!r} to resume with; start a run from them with --pretrained")
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
                f"{path}: its {key!r} does not fit this run ({' '.join(str(error).split())}); start with another --tag"
            ) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU.

    Raises:
        CheckpointError: no such file, a damaged one, or one that holds more than plain tensors and types; code in it
            is not run.
    """
    try:
        require_no_device(path)
        if zipfile.is_zipfile(path):  # torch.load does not compare the checksums that torch.save writes
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
                odd = [e.filename for e in archive.infolist() if e.compress_type or e.is_dir() or e.external_attr & 0x10]
            if damaged:
                raise CheckpointError(f"{path}: is damaged, the checksum of its {damaged} is wrong; use another one")
            if odd:  # torch.save writes none, and torch.load would take a folder's bytes for zeros
                raise CheckpointError(f"{path}: is damaged, its {odd[0]} is no plain entry; use another one")
        with torch.serialization.safe_globals(FOREIGN_SETTINGS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except OSError as error:
        if is_of_the_machine(error):
            raise OutputError(f"{path}: cannot be read just now ({error.strerror}); start the same command again") from None
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "class" in str(error):
            raise CheckpointError(
                f"{path}: refused, it holds Python objects other than plain tensors and types, which could run code; "
                "nothing of it was run. Save its state_dict() alone and use that"
            ) from None
        raise CheckpointError(f"{path}: is damaged or no checkpoint; use another one") from None
    except CheckpointError:
        raise
    except Exception:  # zipfile, pickle and torch raise of many kinds at damaged files
        raise CheckpointError(f"{path}: is damaged or no checkpoint; use another one") from None
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, no state dict; use another file")
    return content


def weights_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Mapping[str, torch.Tensor]]:
    """The weights in a checkpoint: {'raw': state dict} and, if it has an average, 'ema'.

    Takes this project's checkpoints, the released code's and timm's, and plain state dicts.

    Raises:
        CheckpointError: there are none.
    """
    if isinstance(checkpoint.get("model"), Mapping):
        found = {"raw": checkpoint["model"], "ema": checkpoint.get("ema")}
    elif isinstance(checkpoint.get("state_dict"), Mapping):
        found = {"raw": checkpoint["state_dict"], "ema": checkpoint.get("state_dict_ema")}
    else:
        found = {"raw": checkpoint}
    found = {name: weights for name, weights in found.items() if weights is not None and weights != {}}
    mappings = all(isinstance(weights, Mapping) for weights in found.values())
    if "raw" not in found or not mappings or not all(isinstance(v, torch.Tensor) for w in found.values() for v in w.values()):
        raise CheckpointError(f"{path}: holds no model weights; use a checkpoint or a state dict")
    return found


def first_difference(model: nn.Module, weights: Mapping[str, torch.Tensor], ignore: tuple[str, ...] = ()) -> Optional[str]:
    """Says which tensor of the weights is the first not to fit the model; None if all do.

    `ignore` has the prefixes of tensors whose shape may differ.
    """
    own = model.state_dict()
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        return "it holds no tensors"
    for key, value in own.items():
        if key not in weights:
            return f"the model's {key} {tuple(value.shape)} is missing"
        other = weights[key]
        plain = other.layout is torch.strided and not other.is_meta and not other.is_quantized
        if not plain or other.is_floating_point() != value.is_floating_point():
            return f"{key} is {other.dtype} ({other.layout}), the model's {value.dtype}"
        if value.shape != weights[key].shape and not (ignore and key.startswith(ignore)):
            return f"{key} is {tuple(weights[key].shape)}, the model's {tuple(value.shape)}"
    unknown = next((key for key in weights if key not in own), None)
    return unknown and f"{unknown} {tuple(weights[unknown].shape)} is not in the model"


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Loads all weights into the model.

    Raises:
        CheckpointError: they are of another model; the first tensor that differs is named, the model unchanged.
    """
    difference = first_difference(model, weights)
    if difference:
        key = "MODEL.FAT.distilled" if "head_dist." in difference else "MODEL.NAME, MODEL.FAT and MODEL.NUM_CLASSES"
        raise CheckpointError(f"{path}: is of another model: {difference}; check {key}")
    model.load_state_dict(weights)


def classifier_of(model: nn.Module) -> tuple[str, ...]:
    """What the names of the classifier's parameters begin with, as timm's models say it; empty if one does not."""
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))


def load_pretrained(model: nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> list[str]:
    """Loads weights to start from; a classifier of another size keeps its initialisation.

    Returns:
        The names of the tensors that were not loaded.

    Raises:
        CheckpointError: anything but the classifier differs.
    """
    head = classifier_of(model)
    difference = first_difference(model, weights, ignore=head)
    if difference:
        raise CheckpointError(f"{path}: is of another model: {difference}; check MODEL.NAME")
    own = model.state_dict()
    skipped = [key for key, value in own.items() if weights[key].shape != value.shape]
    if skipped:
        skipped = [key for key in own if head and key.startswith(head)]  # weight and bias belong together
    model.load_state_dict({key: weights[key] for key in own if key not in skipped}, strict=False)
    return skipped
