"""The one reader of files with weights, whoever wrote them."""

import json
import pickle
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Optional, Union

import torch

from utils.errors import CheckpointError
from utils.files import require_no_device, unreadable

from . import unpickle
from .foreign import INDEX, WEIGHT_FILES, describe_archive, describe_folder, describe_start
from .layouts import State, Weights, weights_in
from .progress import Progress

CHOSEN = "chosen"  # in files with weights alone, see `CheckpointFile.chosen`
TRAINING_CONFIG = "training_config"  # in config.json of the folders that scripts/export.py hub writes
SAFETENSORS_HEADER = 100_000_000  # bytes at most, as its format says


@dataclass(frozen=True)
class CheckpointFile:
    """A file with weights."""

    path: Path
    content: dict[str, Any]  # as it was written
    weights: dict[str, Weights]  # 'raw', 'ema' or both; see `load.fit`
    config: Optional[dict[str, Any]]  # this project's, plain values
    classes: Optional[list[str]]  # in label order
    progress: Optional[Progress]  # None where there is no training state of this project

    @cached_property
    def states(self) -> dict[str, State]:
        """The weights by kind, for those who have no model to fit them to."""
        return {name: weights.plain.state for name, weights in self.weights.items()}

    @property
    def better(self) -> str:
        """Which weights to use: of a run's checkpoint the average (ema) if that was what was best, of another tool's if it has one."""
        if self.progress is None or "raw" not in self.weights:
            return "ema" if "ema" in self.weights else "raw"
        best = self.progress.best
        is_best = best.get("epoch") == self.progress.epoch - 1
        return "ema" if is_best and best.get("weights") == "ema" and "ema" in self.weights else "raw"

    def chosen(self, name: str) -> dict[str, Any]:
        """What the run's evaluation chose that goes with these weights; {} if nothing is there."""
        chosen = self.progress.chosen.get(name) if self.progress else self.content.get(CHOSEN)
        return chosen if isinstance(chosen, dict) else {}

    def choose(self, name: Optional[str], flag: str = "--weights") -> str:
        """The kind of weights that is asked for, or the better one; `flag` is what they are asked for by.

        Raises:
            CheckpointError: it has no such weights.
        """
        if name and name not in self.weights:
            raise CheckpointError(
                f"{self.path}: has no {name} weights; use {flag} {next(iter(self.weights))}, or leave it out"
            )
        return name or self.better

    def source_of(self, name: str) -> str:
        """`took model_ema` where the file has several weights, or has them under a name of its own; else ''."""
        key = self.weights[name].key
        ours = self.progress is not None or self.config is not None
        return "" if ours or (key in ("", "model", "state_dict") and len(self.weights) == 1) else f"took {key}"

    @property
    def in_chans(self) -> int:
        """Channels of the images that the weights are of, as the config says it; RGB's without one."""
        told = _section(self.config or {}, "DATA").get("IN_CHANS")
        return told if type(told) is int and told > 0 else 3

    def note(self, name: str) -> str:
        """What was done to get the weights without a model to fit them to, in one line; '' if nothing worth saying."""
        taken = self.weights[name].plain
        parts = [self.source_of(name), took_off(taken.prefix), left_out(taken.left_out)]
        return ", ".join(part for part in parts if part)


def took_off(prefix: str) -> str:
    return f"took off {prefix!r}" if prefix else ""


def left_out(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"left out {', '.join(names[:3])}{more}" if names else ""


def open_checkpoint(path: Union[str, Path]) -> CheckpointFile:
    """Opens a file with weights, of this project or another: see the table in docs/checkpoints.md.

    Raises:
        CheckpointError: it cannot be read, holds no weights, or leaves open which of its tensors they are.
        OutputError: it cannot be read just now.
    """
    path = Path(path)
    return interpret(read_checkpoint(path), path)


def interpret(content: dict[str, Any], path: Path) -> CheckpointFile:
    """What a content that `read_checkpoint` returned has for a model.

    Raises:
        CheckpointError: it holds no weights, or leaves open which of its tensors they are.
    """
    classes, config = content.get("classes"), content.get("config")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        classes = None
    # Swin's is another one
    if not isinstance(config, dict) or (classes is None and "FAT" not in _section(config, "MODEL")):
        config = None
    try:
        progress = progress_of(content, path)
    except CheckpointError:  # weights alone, or of another tool
        progress = None
    return CheckpointFile(path, content, weights_in(content, path), config, classes, progress)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def progress_of(checkpoint: Mapping[str, Any], path: Path) -> Progress:
    """Where the run stood.

    Raises:
        CheckpointError: the file holds weights only.
    """
    progress = Progress()
    try:
        progress.load_state_dict(checkpoint["progress"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: holds weights but no training state; use it with --pretrained instead"
        ) from error
    return progress


def read_checkpoint(path: Union[str, Path]) -> dict[str, Any]:
    """The content of a checkpoint file on the CPU: torch's formats, safetensors, their index if they are several, or a
    model's folder as of the Hugging Face hub.

    Raises:
        CheckpointError: no such file, a damaged one, one of another format, or one that holds more than plain tensors and
            types; code in it is not run.
        OutputError: it cannot be read just now.
    """
    path = Path(path)
    try:
        require_no_device(path)
        read = _read_folder if path.is_dir() else _read_parts if str(path).endswith(INDEX) else _read_file
        content = read(path)
    except (MemoryError, CheckpointError):
        raise
    except OSError as error:
        raise unreadable(path, error, "check the path", CheckpointError) from error
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "class" in str(error):
            raise CheckpointError(
                f"{path}: refused, it holds Python objects other than plain tensors and types, which could run code; "
                "nothing of it was run. Save its state_dict() alone and use that"
            ) from error
        raise CheckpointError(f"{path}: is damaged or no checkpoint; use another one") from error
    except Exception as error:  # zipfile, pickle, safetensors and torch raise of many kinds at damaged files
        raise CheckpointError(f"{path}: is damaged or no checkpoint; use another one") from error
    if isinstance(content, torch.Tensor):
        raise CheckpointError(f"{path}: holds one tensor, no state dict; use another file")
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, no state dict; use another file")
    return content


def _read_file(path: Path) -> Any:
    if problem := describe_start(Path(path)):
        raise CheckpointError(f"{path}: {problem}")
    if _is_safetensors(path):
        from safetensors.torch import load_file

        return load_file(path)
    if zipfile.is_zipfile(path):  # torch.load does not compare the checksums that torch.save writes
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            odd = [e.filename for e in archive.infolist() if e.compress_type or e.is_dir() or e.external_attr & 0x10]
            problem = describe_archive(archive)
        if damaged:
            raise CheckpointError(f"{path}: is damaged, the checksum of its {damaged} is wrong; use another one")
        if problem:
            raise CheckpointError(f"{path}: {problem}")
        if odd:  # torch.save writes none, and torch.load would take a folder's bytes for zeros
            raise CheckpointError(f"{path}: is damaged, its {odd[0]} is no plain entry; use another one")
    return unpickle.load(path)


def _is_safetensors(path: Path) -> bool:
    """It begins with the length of its header, 8 bytes, and the header, which is JSON."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= SAFETENSORS_HEADER


def _read_folder(folder: Path) -> dict[str, Any]:
    """Weights of a model's folder, with the names of the classes and this project's config, if its config.json has them."""
    names = sorted(path.name for path in Path(folder).iterdir())
    indices = [name for name in names if name.endswith(INDEX)]
    weights = next((name for name in [*WEIGHT_FILES, *indices] if name in names), None)
    if weights is None:
        raise CheckpointError(f"{folder}: {describe_folder(names, Path(folder))}")
    content: dict[str, Any] = {"model": read_checkpoint(Path(folder) / weights)}
    told = _read_json(Path(folder) / "config.json") if "config.json" in names else {}
    labels = told.get("label_names") or _section(told, "pretrained_cfg").get("label_names")
    if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
        content["classes"] = labels
    if "FAT" in _section(_section(told, TRAINING_CONFIG), "MODEL"):
        content["config"] = told[TRAINING_CONFIG]
    return content


def _read_parts(index: Path) -> dict[str, Any]:
    """The tensors of weights in several files, which lie beside their index."""
    places = _section(_read_json(Path(index)), "weight_map")
    if not places or any(not isinstance(name, str) or "/" in name for name in places.values()):
        raise CheckpointError(f"{index}: does not say which tensor lies in which file beside it; download it again")
    parts = {name: read_checkpoint(Path(index).with_name(name)) for name in sorted(set(places.values()))}
    lost = next((key for key, name in places.items() if key not in parts[name]), None)
    if lost:
        raise CheckpointError(f"{index}: has {lost} in {places[lost]}, which does not hold it; download both again")
    return {key: parts[name][key] for key, name in places.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is no JSON text; download it again, or give the weights' file beside it"
        ) from error
    return told if isinstance(told, dict) else {}
