"""One tar file for each split: DATA_PATH/train.tar, DATA_PATH/val.tar with <class>/<file>."""

import os
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Mapping, Optional

from utils.errors import DataError

from ..image_files import is_image, notes_of, rule_of
from ..workers import reading
from .archive import (
    ArchiveSource,
    Entry,
    by_class,
    describe_leading,
    inner_name,
    leading_folders,
    require_end,
    require_file,
)

LAYOUT = (
    "DATA.DATA_PATH (--data-path) must hold train.tar and val.tar with <class>/<file>, see scripts/prepare_data.py tar"
)


class TarSource(ArchiveSource):
    """An uncompressed tar file with <class>/<file>, or, as ILSVRC2012_img_train.tar, with a tar file for each class.

    Folders that all of it lies in are taken off, see `leading_folders`.

    Raises:
        DataError: the file is missing, is cut short, is no such tar file, or names files outside of it.
    """

    def __init__(
        self,
        path: Path,
        decode: Callable[[BinaryIO], Any],
        split: str = "",
        class_to_idx: Optional[Mapping[str, int]] = None,
    ):
        require_file(path, LAYOUT)
        try:
            with tarfile.open(path, "r:") as archive:
                places, others = {}, []
                for name, place in _members(path, archive):
                    if rule_of(decode)(name):
                        places[name] = place
                    else:
                        others.append(name)
        except (tarfile.TarError, ValueError, OverflowError) as error:  # of numbers in headers that are none
            with open(path, "rb") as file:
                packed = file.read(6)[:3] in (b"\x1f\x8b\x08", b"BZh", b"\xfd7z")
            raise DataError(
                f"{path}: {'is compressed; unpack it to a plain .tar' if packed else f'is no whole tar file ({error}); make or fetch it again'}"
            ) from error
        prefix = leading_folders(places, split, class_to_idx)
        places = {name[len(prefix) :]: place for name, place in places.items()}
        folders = [name[len(prefix) :] for name in others if name.startswith(prefix)]
        classes, files, unnamed = by_class(path, places, class_to_idx, folders)
        super().__init__(
            path, classes, [Entry(name, label, places[name], places[name][1]) for name, label in files], decode
        )
        left_out = [name for name in others if name[-1] != "/"]
        self.notes = notes_of(path, left_out) + describe_leading(path, prefix) + unnamed

    @classmethod
    def open(cls, split: str, data_path: str, decode: Callable, class_to_idx, **_) -> "TarSource":
        name = split if split.endswith(".tar") else split + ".tar"
        return cls(Path(data_path) / name, decode, os.path.basename(split), class_to_idx)


def _members(
    path: Path, archive: tarfile.TarFile, offset: int = 0, folder: str = ""
) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (first byte, length)) of the files and folders; the files of a tar file in it are <its stem>/<name>, and a
    folder's name ends with '/'.
    """
    for member in archive:
        name = inner_name(path, member.name)
        reading(f"{path}:{name}")
        if (member.islnk() or member.issym()) and is_image(name):
            raise DataError(
                f"{path}: holds {name!r} as a link to {member.linkname!r}; make the archive anew with --dereference --hard-dereference"
            )
        if member.isdir() and name.strip("./"):
            yield f"{folder}{name}/", (0, 0)
        if not member.isreg():
            continue
        if name.endswith(".tar") and not folder:
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                yield from _members(path, inner, member.offset_data, name[:-4] + "/")
        elif member.issparse():
            raise DataError(f"{path}: holds {name!r} as a sparse file; make the archive anew without --sparse")
        else:
            yield folder + name, (offset + member.offset_data, member.size)
        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all; typeshed does not list it
    require_end(archive)
