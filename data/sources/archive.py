"""Images that lie one after the other in one large file, read in place."""

import contextlib
import io
import os
import re
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterable, Iterator, Mapping, NamedTuple, Optional, Sequence, Union

import numpy as np

from utils.errors import DataError
from utils.rng import fingerprint

from ..cache import ImageCache
from ..class_maps import unnamed_classes
from ..image_files import is_hidden_or_tool, left_out
from .reading import OR_SKIP, printable, read_image

PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
SUSPICIOUS = re.compile(r"\.\.|^\.?/|/\.?/|\0")  # what keeps a name from being taken as it is


class Entry(NamedTuple):
    """A file in an archive."""

    key: str  # <class>/<file>
    label: int
    place: tuple[int, ...]  # whatever its format needs to read it
    size: int  # bytes of the image file


class ArchiveSource:
    """Labelled files of an archive.

    The file stays open and is read by position, which processes that are forked from this one may do at the same time.

    Args:
        path: the archive.
        classes: names, in label order.
        entries: its images, in order.
        decode: open file -> image.
    """

    def __init__(self, path: Path, classes: Sequence[str], entries: Sequence[Entry], decode: Callable[[BinaryIO], Any]):
        self.path = path
        self.classes = list(classes)
        self.decode = decode
        self.notes: list[str] = []  # see `data.sources`
        self.cache: Optional[ImageCache] = None
        # Arrays, not a list: workers share their memory, as no reference counts in it change.
        self.keys = np.array([os.fsencode(entry.key) for entry in entries])
        self.labels = np.array([entry.label for entry in entries])
        self.places = np.array([entry.place for entry in entries], dtype=np.int64)
        self.sizes = np.array([entry.size for entry in entries], dtype=np.int64)
        self.fingerprint = fingerprint(self.keys.tolist())  # that of the folders it was made of
        self.file = os.open(path, os.O_RDONLY)
        self.length = os.fstat(self.file).st_size

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        return os.fsdecode(self.keys[index])

    def name(self, index: int) -> str:
        return printable(f"{self.path}:{self.key(index)}")

    def load(self, index: int) -> tuple[Any, int]:
        @contextlib.contextmanager
        def opened() -> Iterator[BinaryIO]:
            yield io.BytesIO(self.read(index))

        remedy = f"make {self.path.name} anew without it{OR_SKIP}"
        return read_image(self.name(index), opened, self.decode, remedy), int(self.labels[index])

    def read(self, index: int) -> Any:
        """The bytes of an image's file."""
        return (
            self.cache[index]
            if self.cache is not None and index in self.cache
            else self.extract(self.places[index].tolist())
        )

    def extract(self, place: Sequence[int]) -> bytes:
        """The bytes of the file at an entry's `place`; by default that is its first byte and its length."""
        return self.pread(*place)

    def pread(self, start: int, length: int) -> bytes:
        data = os.pread(self.file, length, start)
        while len(data) < length:  # Linux reads at most 2 GiB at once, network file systems less
            more = os.pread(self.file, length - len(data), start + len(data))
            if not more:
                raise EOFError(f"the archive ends {length - len(data)} bytes too early")
            data += more
        return data


def require_file(path: Path, what: str) -> None:
    """Raises DataError if there is no such file; says so if it is there compressed."""
    if path.is_file():
        return
    stem = path.with_suffix("")  # the file itself where the split is called val.tar.gz
    beside = [stem, Path(f"{stem}.tgz"), *(Path(f"{path}{suffix}") for suffix in PACKED)]
    for other in beside:
        if other.suffix in PACKED and other.is_file():
            raise DataError(
                f"{other}: is compressed and images are read at their places; unpack it to a plain {path.suffix}"
            )
    raise DataError(f"{path}: no such file; {what}")


def inner_name(path: Union[str, Path], name: str) -> str:
    """A member's name, without './'.

    Raises:
        DataError: it leads out of the archive.
    """
    if not SUSPICIOUS.search(name):
        return name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or name.startswith("/") or "\0" in name:
        raise DataError(
            f"{path}: holds {name!r}, a name that leads out of it; make the archive anew from files that you trust"
        )
    return "/".join(parts)


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a plain file."""
    file = archive.extractfile(member)
    assert file is not None  # as it is of a folder
    return file.read()


def require_end(archive: tarfile.TarFile) -> None:
    """To be called after the last member, as tarfile itself takes any end of the file for the archive's.

    Raises:
        tarfile.ReadError: there is no empty block.
    """
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it has no end")


def leading_folders(names: Iterable[str], split: str, class_to_idx: Optional[Mapping[str, int]]) -> str:
    """The folders that all files lie in and that are no class, as 'data/imagenet/val/'; '' for none.

    They end with the folder of the split's name, if that is among them; else where the folders part, or have a class'
    name. Without the split's, the last folder of a file is never one of them.
    """
    common: Optional[list[str]] = None
    for name in names:
        folders = name.split("/")[:-1]
        if common is None:
            common, shortest = folders, len(folders)
        elif folders[: len(common)] != common:
            common = list(os.path.commonprefix([common, folders]))
        shortest = min(shortest, len(folders))
        if not common:
            break
    if not common:
        return ""
    if split in common:
        common = common[: common.index(split) + 1]
    else:
        common = common[: shortest - 1]
        named = [place for place, folder in enumerate(common) if folder in (class_to_idx or ())]
        common = common[: named[0]] if named else common
    return "".join(folder + "/" for folder in common)


def describe_leading(path: Path, prefix: str) -> list[str]:
    """A line of the folders that are taken off, unless they are the split's alone."""
    return [f"{path}: its classes are the folders in {prefix}"] if prefix.count("/") > 1 else []


def by_class(
    path: Path, found: Iterable[str], class_to_idx: Optional[Mapping[str, int]], others: Iterable[str] = ()
) -> tuple[list[str], list[tuple[str, int]], list[str]]:
    """The classes, (name, label) of each file `<class>/<file>` in the order in which `FolderSource` has them, and lines of
    what a class map leaves out.

    Args:
        path: of the archive, for messages.
        found: names of the images.
        class_to_idx: see `FolderSource`.
        others: names of what else is there; those of folders end with '/'.

    Raises:
        DataError: a file lies in no class' folder; no class of `class_to_idx` is here; without it, a class has no images.
    """
    names = sorted(found, key=lambda name: (name.split("/")[0], os.path.dirname(name), name))
    outside = next((name for name in names if "/" not in name), None)
    if outside or not names:
        reason = f"{f'{outside!r} lies in no' if outside else 'holds no images in a'} class' folder"
        raise DataError(str(path), reason, "it must hold <class>/<file>")
    present = sorted({name.split("/")[0] for name in names})
    without = {name.split("/")[0] for name in others if "/" in name} - set(present)
    empty = sorted(name for name in without if not is_hidden_or_tool(name))
    if empty and class_to_idx is None:
        instead = left_out([name for name in others if name.startswith(f"{empty[0]}/") and name[-1] != "/"])
        raise DataError(
            str(path),
            f"no image in the class' folder {empty[0]!r}{f' ({instead})' if instead else ''}",
            "make the archive anew without the folder or with images in it, or name all classes in a text file and give it as "
            "DATA.CLASS_MAP",
        )
    unnamed = unnamed_classes(path, present, class_to_idx)
    labels = dict(class_to_idx) if class_to_idx is not None else {name: i for i, name in enumerate(present)}
    files = [(name, labels[name.split("/")[0]]) for name in names if name.split("/")[0] in labels]
    if not files:
        reason = f"none of its folders, {present[0]!r} and so on, has a class' name"
        raise DataError(str(path), reason, "check DATA.CLASS_MAP")
    return sorted(labels, key=labels.__getitem__), files, unnamed
