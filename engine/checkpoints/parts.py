"""An optimizer's state in parts, each written by the process that keeps it (TRAIN.SHARD).

The parts lie in a folder beside the checkpoint, in the format of torch.distributed.checkpoint: a file of each process, and
`.metadata`, which says what lies where. Keys are `state.<number>.<name>`, as in an optimizer's `state_dict()`. The
checkpoint names the folder, and has the settings and the files' checksums.

Of torch.distributed.checkpoint its planner, writer and reader are used, but not `save` and `async_save`: what these have the
processes say to one another is here one exchange.
"""

import pickle
import re
import secrets
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from utils.errors import CheckpointError, OutputError, one_line
from utils.files import sha256_of, sync_folder, unreadable, unwritable
from utils.processes.peers import Peers

from .file import read_checkpoint

OPTIMIZER = "optimizer"  # in a checkpoint
PARTS = "parts"  # in its optimizer, in place of "state"
FOLDER = re.compile(r"optimizer-[0-9a-f]{16}")
FILE = re.compile(r"__\d+_0\.distcp|\.metadata")
METADATA = ".metadata"
REMEDY = "use another one, or start a run from its weights alone with --pretrained"


class Report(NamedTuple):
    """What a process says of its part when that is on the disk."""

    plan: SavePlan  # what is in it
    results: list[WriteResult]  # where
    name: str  # of its file
    sha256: str


class _Writer(dcp.FileSystemWriter):
    """torch's, for tensors that are in the host's memory already; it does not write down the folder's path on this machine."""

    def __init__(self, folder: Path):
        super().__init__(folder, per_thread_copy_ahead=0)  # else it would take up a GPU in the thread, the first one

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self.save_id)


class Parts:
    """Writes an optimizer's state in parts. All processes make one.

    Args:
        directory: the run's folder, which all processes see.
        peers: the processes.
    """

    def __init__(self, directory: Path, peers: Peers):
        self.directory = directory
        self.peers = peers
        self.exchange = peers.exchange_beside()

    def agree_on_folder(self) -> str:
        """A folder's name that no save has had, the same for all processes, which call this between two saves."""
        return self.peers.from_first(f"optimizer-{secrets.token_hex(8)}")

    def write(self, folder: str, optimizer: Mapping[str, Any]) -> dict[str, Any]:
        """Returns, for the first process and when all parts are on the disk, the optimizer's entry in the checkpoint.

        All processes call this, in a thread beside the training, each with an optimizer's `state_dict()` that has the state of
        the parameters that it keeps.

        Raises:
            OutputError: on all processes, if one cannot write its part, or the first one does not see it.
        """
        place, planner = self.directory / folder, DefaultSavePlanner()
        try:
            report: Any = self._write_own(place, planner, optimizer["state"])
        except OutputError as error:
            report = error
        reports = self.exchange.gather(report)
        for report in reports:
            if isinstance(report, OutputError):
                raise report
        if self.peers.launch.rank:
            return {}
        self._finish(place, planner, reports)
        sums = {report.name: report.sha256 for report in reports} | {METADATA: sha256_of(place / METADATA)}
        rest = {key: value for key, value in optimizer.items() if key != "state"}
        return {**rest, PARTS: {"folder": folder, "sha256": sums}}

    def _write_own(self, place: Path, planner: DefaultSavePlanner, state: Mapping[int, Any]) -> Report:
        rank, writer = self.peers.launch.rank, _Writer(place)
        name = f"__{rank}_0.distcp"
        planner.set_up_planner({"state": state})
        writer.set_up_storage_writer(False, rank=rank, use_collectives=False)
        try:
            plan = writer.prepare_local_plan(planner.create_local_plan())
            results = writer.write_data(plan, planner).value()
            sync_folder(place)
        except (OSError, RuntimeError) as error:
            # where a disk is full within a tensor, torch.save says that a position is wrong
            cause = error.__context__ if isinstance(error, RuntimeError) else error
            if not isinstance(cause, OSError):
                raise
            raise unwritable(place / name, cause) from error
        return Report(plan, results, name, sha256_of(place / name))

    def _finish(self, place: Path, planner: DefaultSavePlanner, reports: list[Report]) -> None:
        unseen = next((report.name for report in reports if not (place / report.name).is_file()), None)
        if unseen:
            raise OutputError(
                str(place / unseen),
                "is written by another process, and the first one does not see it",
                "give --output a folder that all machines share, or set TRAIN.SHARD to none",
            )
        _, metadata = planner.create_global_plan([report.plan for report in reports])
        try:
            _Writer(place).finish(metadata, [report.results for report in reports])
            sync_folder(place)
            sync_folder(self.directory)
        except OSError as error:
            raise unwritable(place / METADATA, error) from error


def folders_in(directory: Path) -> list[Path]:
    """Of parts, whether a checkpoint names them or not."""
    return [path for path in directory.glob("optimizer-*") if FOLDER.fullmatch(path.name) and path.is_dir()]


def remove_unnamed(directory: Path) -> None:
    """Removes the folders of parts that no checkpoint beside them names, not even a damaged one.

    Only the process that writes the checkpoints calls this, between two saves.
    """
    folders = folders_in(directory)
    try:
        texts = [_names_in(path) for path in directory.glob("*.pth*") if path.is_file()] if folders else []
    except OSError:  # whatever a file that cannot be read just now names is kept
        return
    for folder in folders:
        if not any(folder.name.encode() in text for text in texts):
            shutil.rmtree(folder, ignore_errors=True)


def _names_in(path: Path) -> bytes:
    """A part of a checkpoint's bytes, in which the folder stands that it names."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.save's: beside all tensors' bytes, a pickle of the rest
            return b"".join(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    except Exception:  # zipfile raises of many kinds at damaged files
        return path.read_bytes()


# Reading


def read_with_parts(path: Path) -> dict[str, Any]:
    """A run's checkpoint as `read_checkpoint` has it, with the whole state of an optimizer that was saved in parts.

    Raises:
        CheckpointError, OutputError: as `read_checkpoint`; or a part is missing or damaged.
    """
    checkpoint = read_checkpoint(path)
    optimizer = checkpoint.get(OPTIMIZER)
    if isinstance(optimizer, dict) and PARTS in optimizer:
        rest = {key: value for key, value in optimizer.items() if key != PARTS}
        checkpoint[OPTIMIZER] = {**rest, "state": _read_parts(path, optimizer[PARTS])}
    return checkpoint


def folder_of(checkpoint: Mapping[str, Any]) -> Optional[str]:
    """The folder that a checkpoint names, if its optimizer's state was saved in parts."""
    optimizer = checkpoint.get(OPTIMIZER)
    parts = optimizer.get(PARTS) if isinstance(optimizer, dict) else None
    folder = parts.get("folder") if isinstance(parts, dict) else None
    return folder if isinstance(folder, str) and FOLDER.fullmatch(folder) else None


def _read_parts(path: Path, parts: Any) -> dict[int, dict[str, torch.Tensor]]:
    sums = parts.get("sha256") if isinstance(parts, dict) else None
    name = folder_of({OPTIMIZER: {PARTS: parts}})
    if name is None or not isinstance(sums, dict) or not all(FILE.fullmatch(str(file)) for file in sums):
        raise CheckpointError(f"{path}: does not say where its optimizer's state lies; {REMEDY}")
    beside = [path.parent / name, path.resolve().parent / name]  # of a link, or of the file that it leads to
    place = next((folder for folder in beside if folder.is_dir()), None)
    if place is None:
        raise CheckpointError(
            f"{path}: its optimizer's state lies in the folder {name} beside it, which is missing; copy that too, or start a "
            "run from its weights alone with --pretrained"
        )
    for file, sha256 in sums.items():
        _require_whole(path, place / file, sha256)
    try:
        return _load(place, set(sums))
    except MemoryError:
        raise
    except OSError as error:
        raise unreadable(place, error, REMEDY, CheckpointError) from error
    except Exception as error:  # what pickle and torch.distributed.checkpoint raise at odd files is of many kinds
        raise CheckpointError(
            f"{path}: its optimizer's state in {place} cannot be used ({one_line(error, 200)}); {REMEDY}"
        ) from error


def _require_whole(path: Path, part: Path, sha256: Any) -> None:
    """Raises CheckpointError if the part is missing or not what was written."""
    if not part.is_file():
        raise CheckpointError(
            f"{path}: {part}, a part of its optimizer's state, is missing; copy it again, or {REMEDY}"
        )
    try:
        found = sha256_of(part)
    except OSError as error:
        raise unreadable(part, error, REMEDY, CheckpointError) from error
    if found != sha256:
        raise CheckpointError(
            f"{path}: {part}, a part of its optimizer's state, is damaged, its checksum is wrong; copy it again, or {REMEDY}"
        )


def _load(place: Path, files: set[str]) -> dict[int, dict[str, torch.Tensor]]:
    reader = _Reader(place)
    metadata = reader.read_metadata()
    if not {info.relative_path for info in metadata.storage_data.values()} <= files:
        raise ValueError("it leads to other files")
    tensors = {}
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"its {key} is no tensor")
        tensors[key] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this process reads by itself
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        _, number, name = key.split(".", 2)
        state.setdefault(int(number), {})[name] = value
    return dict(sorted(state.items()))


class _Reader(dcp.FileSystemReader):
    """torch's, which runs no code of a file: its own loads `.metadata` as any pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / METADATA, "rb") as file:
            return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    KNOWN = {
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex", "StorageMeta",
                "_MEM_FORMAT_ENCODING",
            )
        ),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_type or (module, name) in self.KNOWN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused, it names {module}.{name}, which could run code")
