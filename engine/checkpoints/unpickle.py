"""torch.load, which never runs code of a file, with stand-ins for the settings that training codes save beside weights."""

import contextlib
import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, BinaryIO, Iterator, Union

import torch

from .protocol import PICKLES, in_protocol_2

Source = Union[Path, BinaryIO]


class StandIn:
    """What a file's object of a type is read as that need not be installed: nothing of its content."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Dictionary:
    """Read as a plain dictionary, with its entries."""

    def __new__(cls, *args: Any) -> OrderedDict:  # type: ignore[misc]  # of another type on purpose
        return OrderedDict()


class Items:
    """Read as a plain list."""

    def __new__(cls, *args: Any) -> list:  # type: ignore[misc]  # of another type on purpose
        return list(args[0]) if args and type(args[0]) in (list, tuple) else []


TYPES = {
    "argparse.Namespace": Namespace,  # timm, DeiT
    "collections.deque": Items,
    **dict.fromkeys(  # subclasses of dict
        (
            "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "detectron2.config.config.CfgNode", "collections.defaultdict",
            "easydict.EasyDict", "addict.addict.Dict", "munch.Munch", "mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict",
            "pytorch_lightning.utilities.parsing.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict",
            "lightning.fabric.utilities.data.AttributeDict", "lightning_fabric.utilities.data.AttributeDict",
        ),
        Dictionary,
    ),
}  # fmt: skip
# Packages whose types, all of them, are stood in for: numbers, paths, dates and settings.
PACKAGES = {
    "numpy", "pathlib", "datetime", "decimal", "fractions", "uuid", "enum", "typing", "argparse", "collections", "copyreg", "omegaconf", "yacs",
    "ml_collections", "easydict", "addict", "munch", "box", "fvcore", "detectron2", "mmengine", "mmcv", "pytorch_lightning", "lightning",
    "lightning_fabric", "lightning_utilities", "hydra",
}  # fmt: skip
BUILTINS = {
    "list",
    "dict",
    "tuple",
    "int",
    "float",
    "str",
    "bool",
    "bytes",
    "frozenset",
    "slice",
    "range",
    "object",
    "type",
}
SINGLE = {"torch.torch_version.TorchVersion"}


def load(path: Path) -> Any:
    """The content of a file that torch.save wrote, on the CPU.

    Raises:
        pickle.UnpicklingError: it holds objects of other kinds; nothing of it was run.
        CheckpointError: it was saved with a newer pickle protocol, and holds what cannot be said in torch's own.
        Exception: it is damaged; zipfile, pickle and torch raise of many kinds.
    """
    source = in_protocol_2(path) or path
    try:
        return _load(source, [])
    except pickle.UnpicklingError:
        stand_ins = [(stand_in, name) for name in set(_types_in(source)) if (stand_in := _stand_in_for(name))]
        if not stand_ins:
            raise
    return _load(source, stand_ins)


def _load(source: Source, types: list) -> Any:
    if not isinstance(source, Path):
        source.seek(0)
    with torch.serialization.safe_globals(types):
        return torch.load(source, map_location="cpu", weights_only=True)


def _stand_in_for(name: str) -> Any:
    if name in TYPES:
        return TYPES[name]
    module, _, rest = name.partition(".")
    harmless = module in PACKAGES or name in SINGLE or (module == "builtins" and rest in BUILTINS)
    return StandIn if harmless else None


def _types_in(source: Source) -> Iterator[str]:
    """Full names of the types and functions that a file's pickles name, without loading any."""
    with open(source, "rb") if isinstance(source, Path) else contextlib.nullcontext(source) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            for _ in range(PICKLES):
                yield from _types_in_pickle(file)
            return
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.rpartition("/")[2] == "data.pkl":
                    with archive.open(name) as data:
                        yield from _types_in_pickle(data)


def _types_in_pickle(file: IO[bytes]) -> Iterator[str]:
    try:
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                if (module, name) in NAME_MAPPING:  # Python 2's
                    module, name = NAME_MAPPING[module, name]
                yield f"{IMPORT_MAPPING.get(module, module)}.{name}"
    except Exception:  # a damaged pickle, which torch.load refuses
        return
