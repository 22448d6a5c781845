"""Folders -> train.zip with train_map.txt (Swin's layout), or train.tar; likewise val.

An archive is written as `<name>.unfinished`. Beside it grows a journal, a line for each 256 MB that are on the disk for
sure: a command that is started again cuts the archive off there and goes on.
"""

import json
import os
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Optional, Union

from utils.files import write_text

from .images import Images
from .preparation import Progress, require_room, writing

STEP = 256 * 2**20
LOCAL_HEADER = 30  # bytes before a name in a zip file
DIRECTORY = 46  # and in its directory


class Tar:
    """Members `<class>/<file>`, uncompressed, the same bytes for the same images."""

    suffix = "tar"

    def __init__(self, file: BinaryIO, images: Images, crcs: list[int]):
        self.tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # writes where `file` stands

    def add(self, key: str, data: bytes) -> int:
        member = tarfile.TarInfo(key)
        member.size = len(data)
        self.tar.addfile(member, BytesIO(data))
        self.tar.members.clear()  # type: ignore[attr-defined]  # it keeps them all, which would be a gigabyte
        return 0

    def close(self) -> None:
        self.tar.close()

    def abandon(self) -> None:
        pass

    @staticmethod
    def size(images: Images) -> int:
        return int((512 + -(-images.sizes // 512) * 512).sum()) + 10240


class Zip:
    """The same, stored: JPEGs do not shrink."""

    suffix = "zip"

    def __init__(self, file: BinaryIO, images: Images, crcs: list[int]):
        self.zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        offset = 0
        for i, crc in enumerate(crcs):  # what the directory at the end must say of members written by an earlier start
            member = self._member(images.key(i))
            member.header_offset, member.CRC = offset, crc
            member.file_size = member.compress_size = int(images.sizes[i])
            offset += LOCAL_HEADER + len(member.filename.encode()) + member.file_size
            self.zip.filelist.append(member)
            self.zip.NameToInfo[member.filename] = member

    @staticmethod
    def _member(key: str) -> zipfile.ZipInfo:
        member = zipfile.ZipInfo(key)  # of 1980: the same bytes for the same images
        member.external_attr = 0o644 << 16
        return member

    def add(self, key: str, data: bytes) -> int:
        member = self._member(key)
        self.zip.writestr(member, data)
        return member.CRC

    def close(self) -> None:
        self.zip.close()

    def abandon(self) -> None:
        self.zip.fp = None  # or it would write its directory when it is collected, and complain of a full disk

    @staticmethod
    def size(images: Images) -> int:
        names = sum(len(images.key(i).encode()) for i in range(len(images)))
        return int(images.sizes.sum()) + len(images) * (LOCAL_HEADER + DIRECTORY) + 2 * names


Kind = Union[type[Zip], type[Tar]]


def write_archives(kind: Kind, splits: list[Images], output: Path) -> None:
    """
    Raises:
        OutputError: no room, now or in the middle; what is on the disk is gone on with.
        DataError: an image cannot be read.
    """
    todo = [images for images in splits if not (output / f"{images.split}.{kind.suffix}").exists()]
    unfinished = [output / f"{images.split}.{kind.suffix}.unfinished" for images in todo]
    require_room(output, sum(map(kind.size, todo)) - sum(path.stat().st_size for path in unfinished if path.exists()))
    for images in splits:
        target = output / f"{images.split}.{kind.suffix}"
        if kind is Zip and not (output / f"{images.split}_map.txt").exists():
            lines = (f"{images.key(i)}\t{images.label(i)}\n" for i in range(len(images)))
            write_text(output / f"{images.split}_map.txt", "".join(lines))
        if not target.exists():
            _write(kind, images, target)
        target.with_name(f"{target.name}.journal").unlink(missing_ok=True)


def _write(kind: Kind, images: Images, target: Path) -> None:
    unfinished = target.with_name(f"{target.name}.unfinished")
    with writing(unfinished), Journal(unfinished, target.with_name(f"{target.name}.journal")) as journal:
        archive = kind(journal.archive, images, journal.crcs)
        try:
            with Progress(target.name, len(images)) as progress:
                progress.skip(len(journal.crcs))
                for i, data in images.read_all(range(len(journal.crcs), len(images))):
                    journal.add(archive.add(images.key(i), data))
                    progress.add(len(data))
            archive.close()
        except BaseException:
            archive.abandon()
            raise
        journal.archive.flush()
        os.fsync(journal.archive.fileno())
        unfinished.rename(target)


def _entry(line: bytes, least: int, most: int) -> Optional[tuple[int, list[int]]]:
    """The archive's size and the new members' numbers that a line of a journal says; None if it is no whole line."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else {}
        size, crcs = entry["bytes"], entry["crcs"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    good = (
        type(size) is int and least <= size <= most and isinstance(crcs, list) and all(type(crc) is int for crc in crcs)
    )
    return (size, crcs) if good else None


class Journal:
    """An archive open for writing after the last member that is safely on the disk.

    Attributes:
        archive: the open file.
        crcs: a number for each member that is in it.
    """

    def __init__(self, path: Path, journal: Path):
        lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() and path.exists() else []
        self.crcs: list[int] = []
        whole = size = 0
        for line in lines:
            entry = _entry(line, size, path.stat().st_size)
            if entry is None:  # the kill came while it was written
                break
            size, crcs = entry
            self.crcs += crcs
            whole += len(line)
        self.archive = open(path, "r+b" if lines else "wb")
        self.journal = open(journal, "r+b" if lines else "wb")
        for file, length in ((self.archive, size), (self.journal, whole)):
            file.truncate(length)
            file.seek(length)
        self.written = size
        self.fresh: list[int] = []

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.archive.close()
        self.journal.close()

    def add(self, crc: int) -> None:
        self.fresh.append(crc)
        if self.archive.tell() - self.written >= STEP:
            self.archive.flush()
            os.fsync(self.archive.fileno())
            self.written = self.archive.tell()
            self.journal.write(json.dumps({"bytes": self.written, "crcs": self.fresh}).encode() + b"\n")
            self.journal.flush()
            os.fsync(self.journal.fileno())
            self.fresh = []
